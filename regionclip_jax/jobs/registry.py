"""The jobs by name: their settings and their modules."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from regionclip_jax import settings
from regionclip_jax.settings import ConfigError


class Job(NamedTuple):
    """``module`` has ``run(settings, workdir)``, and ``build(settings, assumed)`` if it trains.

    It is imported when it is needed.
    """

    settings: type
    module: str

    def run(self, resolved: Any, workdir: Path) -> Any:
        return importlib.import_module(self.module).run(resolved, workdir)

    def build(self, resolved: Any, assumed: Any = None) -> Any:
        """Describe the training of a job that trains (``jobs.training``)."""
        return importlib.import_module(self.module).build(resolved, assumed)


JOBS = {
    "scenes_experiment": Job(
        settings.ScenesExperimentSettings, "regionclip_jax.jobs.scenes_experiment"
    ),
    "scenes_detection": Job(
        settings.ScenesDetectionSettings, "regionclip_jax.jobs.scenes_detection"
    ),
    "train_clip": Job(settings.TrainClipSettings, "regionclip_jax.jobs.train_clip"),
    "pretrain": Job(settings.PretrainSettings, "regionclip_jax.jobs.pretrain"),
    "train_localizer": Job(settings.TrainLocalizerSettings, "regionclip_jax.jobs.train_localizer"),
    "train_detector": Job(settings.TrainDetectorSettings, "regionclip_jax.jobs.train_detector"),
    "evaluate": Job(settings.EvaluateSettings, "regionclip_jax.jobs.evaluate"),
}


def find_job(name: Any) -> Job:
    """Return the job of a recipe's key ``job``.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in JOBS:
        raise ConfigError(f"config.job: {name!r} is none of {sorted(JOBS)}")
    return JOBS[name]
