"""The door: ``python -m regionclip_jax.main --config=configs/pretrain.py --workdir=DIR``.

Parses flags, starts the devices, and hands the recipe to the job it names.
"""

import importlib
import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/pretrain.py or configs/pretrain.py:rn50_coco."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing run is continued.")

# Job: (its config class in regionclip_jax.config, its module).
_JOBS = {
    "scenes_experiment": ("ScenesExperimentConfig", "regionclip_jax.jobs.scenes_experiment"),
    "train_clip": ("TrainClipConfig", "regionclip_jax.jobs.train_clip"),
    "pretrain": ("PretrainConfig", "regionclip_jax.jobs.pretrain"),
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
    from regionclip_jax.reporting.console import log_own_progress
    from regionclip_jax.training.loop import Preempted

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
        jax.config.update("jax_default_matmul_precision", config.matmul_precision)
        workdir = Path(_WORKDIR.value).absolute()
        workdir.mkdir(parents=True, exist_ok=True)
        importlib.import_module(module).run(config, workdir)
    except (config_module.ConfigError, CheckpointMismatch, FileNotFoundError) as error:
        sys.exit(f"regionclip_jax: {error}")
    except Preempted as error:
        print(f"regionclip_jax: {error}", file=sys.stderr)
        sys.exit(_PREEMPTED)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
