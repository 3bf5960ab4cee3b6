"""The door: ``python -m regionclip_jax.main --config=configs/pretrain.py --workdir=DIR``.

Parses flags, starts the devices, and hands the recipe to the job it names.
"""

import importlib
import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import UnsupportedOperationError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/pretrain.py or configs/pretrain.py:rn50_coco."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing run is continued.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0 where a run has several processes, the same in all of them; or auto: "
    "JAX looks for its cluster (needed on TPU VMs of more than one host). Slurm needs no flag.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which this one is, from 0.")
_PREEMPTED_STATUS = flags.DEFINE_integer(
    "preempted_status",
    0,
    "Exit status of a run that SIGTERM stopped before its end. Scripts that start something else "
    "after the run ask for another number, such as 75.",
)

# Job: (its config class in regionclip_jax.config, its module).
_JOBS = {
    "scenes_experiment": ("ScenesExperimentConfig", "regionclip_jax.jobs.scenes_experiment"),
    "scenes_detection": ("ScenesDetectionConfig", "regionclip_jax.jobs.scenes_detection"),
    "train_clip": ("TrainClipConfig", "regionclip_jax.jobs.train_clip"),
    "pretrain": ("PretrainConfig", "regionclip_jax.jobs.pretrain"),
    "train_localizer": ("TrainLocalizerConfig", "regionclip_jax.jobs.train_localizer"),
    "train_detector": ("TrainDetectorConfig", "regionclip_jax.jobs.train_detector"),
    "evaluate": ("EvaluateConfig", "regionclip_jax.jobs.evaluate"),
}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    # Imported late, so that --help and a mistyped flag answer at once.
    from regionclip_jax.training import stopping

    stopping.end_at_once(_PREEMPTED_STATUS.value)
    import jax

    from regionclip_jax import config as config_module
    from regionclip_jax.artifacts.model_card import CheckpointMismatch
    from regionclip_jax.data.faults import TooManyFaults
    from regionclip_jax.reporting.console import log_own_progress
    from regionclip_jax.sharding.agreement import HostsDisagree, require_agreement, require_shared
    from regionclip_jax.training.nan_guard import NonFiniteMetric

    log_own_progress()
    try:
        if "://" in _WORKDIR.value:
            raise config_module.ConfigError(
                f"--workdir: {_WORKDIR.value!r} is an address, expected a folder; mount the bucket "
                "(gcsfuse, s3fs) and name a folder in it"
            )
        _join_processes()
        recipe = _CONFIG.value
        name = recipe.get("job")
        if name not in _JOBS:
            raise config_module.ConfigError(f"config.job: {name!r} is none of {sorted(_JOBS)}")
        class_name, module = _JOBS[name]
        config = config_module.parse(getattr(config_module, class_name), recipe)
        try:
            jax.config.update("jax_default_matmul_precision", config.matmul_precision)
        except ValueError as error:
            raise config_module.ConfigError(f"config.matmul_precision: {error}") from error
        require_agreement({"config": config_module.as_plain(config)})
        workdir = Path(_WORKDIR.value).absolute()
        workdir.mkdir(parents=True, exist_ok=True)
        require_shared(workdir)
        joined_cpus = jax.process_count() > 1 and jax.default_backend() == "cpu"
        if jax.config.jax_compilation_cache_dir is None and not joined_cpus:
            # A run that goes on does not compile again, nor tune itself to other GPU kernels. Of
            # joined CPUs only the first process would find its programs, and Gloo has aborted
            # runs of a loaded program with a compiled one.
            jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        importlib.import_module(module).run(config, workdir)
    except (
        config_module.ConfigError,
        CheckpointMismatch,
        HostsDisagree,
        TooManyFaults,
        NonFiniteMetric,
        FileNotFoundError,
        FileExistsError,
    ) as error:
        sys.exit(f"regionclip_jax: {error}")
    except stopping.Preempted as error:
        print(f"regionclip_jax: {error}", file=sys.stderr)
        sys.exit(stopping.exit_status(error.number, _PREEMPTED_STATUS.value))


def _join_processes() -> None:
    """Makes this process one of several, where it is."""
    import jax

    from regionclip_jax.config import ConfigError
    from regionclip_jax.sharding.processes import distributed_arguments

    try:
        arguments = distributed_arguments(
            os.environ,
            coordinator=_COORDINATOR.value,
            num_processes=_NUM_PROCESSES.value,
            process_id=_PROCESS_ID.value,
        )
        if arguments is None:
            return
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"the processes of the run could not be joined: {error}") from error
    logging.info(
        "process %d of %d, with %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


def parse_flags(arguments: list[str]) -> list[str]:
    """As absl does it, but for what is wrong with a recipe: one line instead of a traceback."""
    try:
        remaining = flags.FLAGS(arguments)
        # A recipe that could not be read says so when it is used first.
        _CONFIG.value.get("job")
        return remaining
    except UnsupportedOperationError as error:
        # ml_collections cannot tell the type of a key that is None.
        reason = f"{str(error).split('. ')[0]}; set it in a recipe file of your own"
    except flags.Error as error:
        reason = _without_traceback(str(error))
    except (AttributeError, KeyError) as error:
        while isinstance(error.args[0], Exception):
            error = error.args[0]
        reason = f"no such key in --config: {' '.join(str(error.args[0]).split())}"
    except OSError:
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        reason = f"--config: {path!r} cannot be read; give a recipe such as configs/pretrain.py"
    sys.exit(f"regionclip_jax: {reason} (--helpfull lists all flags)")


def _without_traceback(text: str) -> str:
    """ml_collections' message for a recipe that raised, with only the last place and the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    places = [line for line in lines if line.startswith('File "')]
    return f"{lines[0]} {lines[-1]} ({places[-1]})" if places else " ".join(lines)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)
