"""Registry of the jobs by name: settings and modules."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from regionclip_jax import settings
from regionclip_jax.settings import ConfigError


class Job(NamedTuple):
    """Settings and module of a job; the module is imported on demand.

    ``module`` has ``run(settings, workdir)``, and ``build(settings, assumed)`` if it trains.
    """

    settings: type
    module: str

    def run(self, resolved: Any, workdir: Path) -> Any:
        return importlib.import_module(self.module).run(resolved, workdir)

    def build(self, resolved: Any, assumed: Any = None) -> Any:
        """Build the description of a training job (``assembly.training``)."""
        return importlib.import_module(self.module).build(resolved, assumed)


JOBS = {
    "scenes_experiment": Job(
        settings.ScenesExperimentSettings, "regionclip_jax.jobs.scenes_experiment"
    ),
    "scenes_detection": Job(
        settings.ScenesDetectionSettings, "regionclip_jax.jobs.scenes_detection"
    ),
    "scenes_vit": Job(settings.ScenesViTSettings, "regionclip_jax.jobs.scenes_vit"),
    "train_clip": Job(settings.TrainClipSettings, "regionclip_jax.jobs.train_clip"),
    "pretrain": Job(settings.PretrainSettings, "regionclip_jax.jobs.pretrain"),
    "distill": Job(settings.DistillSettings, "regionclip_jax.jobs.distill"),
    "train_localizer": Job(settings.TrainLocalizerSettings, "regionclip_jax.jobs.train_localizer"),
    "train_detector": Job(settings.TrainDetectorSettings, "regionclip_jax.jobs.train_detector"),
    "evaluate": Job(settings.EvaluateSettings, "regionclip_jax.jobs.evaluate"),
}


def find_job(name: Any) -> Job:
    """Return the job of a recipe's key ``job``.

    Raises:
        ConfigError: there is no job of this name.
    """
    if name not in JOBS:
        raise ConfigError(f"config.job: {name!r} is none of {sorted(JOBS)}")
    return JOBS[name]
