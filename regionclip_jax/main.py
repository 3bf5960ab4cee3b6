"""Entry point: ``python -m regionclip_jax.main --config=configs/pretrain.py --workdir=DIR``.

Parses flags, initializes the devices, and runs the recipe's job.
"""

import os
import sys
from pathlib import Path

from absl import app, flags, logging

from regionclip_jax import recipes
from regionclip_jax.failures import Unreachable, one_line
from regionclip_jax.files import names_path
from regionclip_jax.jobs.registry import JOBS
from regionclip_jax.settings import ConfigError, JobSettings, TrainingSettings, as_plain

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "Recipe, e.g. configs/pretrain.py or configs/pretrain.py:rn50_coco. --config.KEY=VALUE sets "
    "one of its keys; --describe lists them.",
)
_DESCRIBE = flags.DEFINE_bool(
    "describe", False, "Print all keys of the recipe with values and meanings, and run nothing."
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
_REQUIRE_PLATFORM = flags.DEFINE_enum(
    "require_platform",
    None,
    ["cpu", "gpu", "tpu"],
    "Stop at once if JAX has other devices; default: compute on what JAX finds.",
)
_PREEMPTED_STATUS = flags.DEFINE_integer(
    "preempted_status",
    0,
    "Exit status of a run that SIGTERM stopped before its end. Scripts that start something else "
    "after the run ask for another number, such as 75.",
)


@one_line(prefix="regionclip_jax")
def main(argv: list[str]) -> int:
    settings = recipes.read(_CONFIG.value, argv[1:])
    if _DESCRIBE.value:
        print(recipes.describe(settings))
        return 0
    # Imported late, so that --help, --describe and wrong flags respond at once.
    from regionclip_jax.training import stopping

    stopping.end_at_once(_PREEMPTED_STATUS.value)

    from regionclip_jax.assembly.devices import start_devices
    from regionclip_jax.reporting.progress import log_own_progress
    from regionclip_jax.sharding.watchdog import watched

    log_own_progress()
    if "://" in _WORKDIR.value:
        raise ConfigError(
            f"--workdir: {_WORKDIR.value!r} is an address, expected a folder; mount the bucket "
            "(gcsfuse, s3fs) and name a folder in it"
        )
    workdir = Path(_WORKDIR.value).absolute()
    try:
        _join_processes()
        start_devices(_REQUIRE_PLATFORM.value)
        with watched(), names_path(workdir):
            _run(settings, workdir)
    except stopping.Preempted as error:
        print(f"regionclip_jax: {error}", file=sys.stderr)
        return stopping.exit_status(error.number, _PREEMPTED_STATUS.value)
    return 0


def _run(settings: JobSettings, workdir: Path) -> None:
    """Run the job of a recipe in its folder."""
    import jax

    from regionclip_jax import self_check
    from regionclip_jax.artifacts.results import write_settings
    from regionclip_jax.assembly.devices import cache_programs
    from regionclip_jax.sharding.consistency import (
        locked_workdir,
        require_consistent,
        require_shared,
    )

    jax.config.update("jax_default_matmul_precision", settings.matmul_precision)
    require_consistent({"config": as_plain(settings)})
    workdir.mkdir(parents=True, exist_ok=True)
    require_shared(workdir)
    # A resumed run then neither compiles again nor autotunes to other GPU kernels.
    cache_programs(workdir / "compiled")
    with locked_workdir(workdir):
        if jax.process_index() == 0 and not isinstance(settings, TrainingSettings):
            # A training job writes its settings after it has checked the run in the folder.
            write_settings(workdir, as_plain(settings))
        JOBS[settings.job].run(settings, workdir)
        self_check.write_missing(workdir)


def _join_processes() -> None:
    """Join the processes of the run, if there are several."""
    import jax

    from regionclip_jax.sharding.joining import join
    from regionclip_jax.sharding.processes import distributed_arguments
    from regionclip_jax.sharding.watchdog import end_as_lost

    try:
        arguments = distributed_arguments(
            os.environ,
            coordinator=_COORDINATOR.value,
            num_processes=_NUM_PROCESSES.value,
            process_id=_PROCESS_ID.value,
        )
        if arguments is None:
            return
        join(arguments, end_as_lost)
    except Unreachable:
        raise
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"the processes of the run could not be joined: {error}") from error
    logging.info("process %d of %d", jax.process_index(), jax.process_count())


def parse_flags(arguments: list[str]) -> list[str]:
    """Parse flags like absl, except --config.KEY=VALUE, which are left for ``main``.

    An error is one line instead of a traceback.
    """
    rest, assignments = recipes.split_assignments(arguments)
    try:
        rest = flags.FLAGS(rest)
        if len(rest) > 1:
            raise flags.Error(f"unexpected arguments {rest[1:]}")
        for name, is_needed in (("config", True), ("workdir", not _DESCRIBE.value)):
            if is_needed and flags.FLAGS[name].value is None:
                raise flags.Error(f"--{name} is required")
    except flags.Error as error:
        sys.exit(f"regionclip_jax: {error} (--helpfull lists all flags)")
    return [rest[0], *assignments]


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
