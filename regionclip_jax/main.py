"""The door: ``python -m regionclip_jax.main --config=configs/pretrain.py --workdir=DIR``.

Parses flags, starts the devices, and hands the recipe to the job it names.
"""

import importlib
import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import UnsupportedOperationError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/pretrain.py or configs/pretrain.py:rn50_coco."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing run is continued.")

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
_PREEMPTED = 75  # EX_TEMPFAIL: start again and it goes on


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    # Imported late, so that --help and a mistyped flag answer at once.
    import jax

    from regionclip_jax import config as config_module
    from regionclip_jax.artifacts.model_card import CheckpointMismatch
    from regionclip_jax.data.faults import TooManyFaults
    from regionclip_jax.reporting.console import log_own_progress
    from regionclip_jax.sharding.agreement import HostsDisagree, require_agreement, require_shared
    from regionclip_jax.training.loop import Preempted
    from regionclip_jax.training.nan_guard import NonFiniteMetric

    log_own_progress()
    try:
        if any(name in os.environ for name in ("SLURM_NTASKS", "TPU_WORKER_HOSTNAMES")):
            jax.distributed.initialize()
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
    except Preempted as error:
        print(f"regionclip_jax: {error}", file=sys.stderr)
        sys.exit(_PREEMPTED)


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
