"""The sections of a recipe, and the door at which a config file becomes them.

A config file (``configs/*.py``) builds a ``ConfigDict``: the wire format, with variants and
overrides from the command line. ``parse`` turns it into frozen dataclasses: ``sections`` says what
each key means, ``jobs`` which sections a job has. There are no defaults: a recipe is complete, so
reading it is enough. Below ``jobs/`` of the package nobody has heard of a config.
"""

from regionclip_jax.config.jobs import (
    EvaluateConfig,
    PretrainConfig,
    ScenesDetectionConfig,
    ScenesExperimentConfig,
    TrainClipConfig,
    TrainDetectorConfig,
    TrainLocalizerConfig,
)
from regionclip_jax.config.parsing import (
    ConfigError,
    Count,
    as_plain,
    parse,
)
from regionclip_jax.config.sections import (
    AnchorsSection,
    ConceptsSection,
    DataSection,
    DetectionDataSection,
    DetectorSection,
    EvaluationSection,
    LocalizerSection,
    MixturePart,
    ModelSection,
    OptimizerSection,
    RegionsSection,
    RunSection,
    ScenesSection,
    TrainedModelSection,
)

__all__ = [
    "AnchorsSection",
    "ConceptsSection",
    "ConfigError",
    "Count",
    "DataSection",
    "DetectionDataSection",
    "DetectorSection",
    "EvaluateConfig",
    "EvaluationSection",
    "LocalizerSection",
    "MixturePart",
    "ModelSection",
    "OptimizerSection",
    "PretrainConfig",
    "RegionsSection",
    "RunSection",
    "ScenesDetectionConfig",
    "ScenesExperimentConfig",
    "ScenesSection",
    "TrainClipConfig",
    "TrainDetectorConfig",
    "TrainLocalizerConfig",
    "TrainedModelSection",
    "as_plain",
    "parse",
]
