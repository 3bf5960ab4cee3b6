"""Settings: one typed definition of every number of a recipe.

Nested frozen dataclasses with the paper's numbers as defaults. Steps, losses, models and jobs use
them directly. The comment above a field is its meaning (``--describe`` prints it), and ``Literal``
lists its choices. ``__post_init__`` checks fields against each other. ``may_change`` marks fields
that a resumed run may change. ``regionclip_jax.recipes`` reads settings from recipe files and
command lines.
"""

from regionclip_jax.settings.data import (
    BoxDataSettings,
    CaptionDataSettings,
    EvaluatedClasses,
    EvaluatedImages,
    ImageDataSettings,
    LoadingSettings,
    MixturePart,
    ScenesSettings,
)
from regionclip_jax.settings.evaluation import EvaluationSettings, RecallSettings
from regionclip_jax.settings.fields import (
    ConfigError,
    Count,
    Section,
    UserError,
    as_plain,
    choose,
    completed,
    config_context,
    fixed_on_resume,
    may_change,
    meanings,
    unstated,
)
from regionclip_jax.settings.jobs import (
    DistillSettings,
    EvaluateSettings,
    JobSettings,
    PretrainSettings,
    ScenesDetectionSettings,
    ScenesExperimentSettings,
    ScenesViTSettings,
    TrainClipSettings,
    TrainDetectorSettings,
    TrainingSettings,
    TrainLocalizerSettings,
)
from regionclip_jax.settings.models import (
    Dtype,
    LocalizerModelSettings,
    ModelSettings,
    RematPolicy,
    TrainedModelSettings,
)
from regionclip_jax.settings.regions import (
    DetectionSettings,
    DetectorObjective,
    DistillObjective,
    EmbedFrom,
    LocalizerObjective,
    NmsMethod,
    NmsSettings,
    Objectness,
    PretrainObjective,
    ProposalSettings,
    ScoreSettings,
)
from regionclip_jax.settings.training import ConceptSettings, OptimizerSettings, RunSettings

__all__ = [
    "BoxDataSettings",
    "CaptionDataSettings",
    "ConceptSettings",
    "ConfigError",
    "Count",
    "DetectionSettings",
    "DetectorObjective",
    "DistillObjective",
    "DistillSettings",
    "Dtype",
    "EmbedFrom",
    "EvaluateSettings",
    "EvaluatedClasses",
    "EvaluatedImages",
    "EvaluationSettings",
    "ImageDataSettings",
    "JobSettings",
    "RematPolicy",
    "LoadingSettings",
    "LocalizerModelSettings",
    "LocalizerObjective",
    "MixturePart",
    "ModelSettings",
    "NmsMethod",
    "NmsSettings",
    "Objectness",
    "OptimizerSettings",
    "PretrainObjective",
    "PretrainSettings",
    "ProposalSettings",
    "RecallSettings",
    "RunSettings",
    "ScenesDetectionSettings",
    "ScenesExperimentSettings",
    "ScenesSettings",
    "ScenesViTSettings",
    "ScoreSettings",
    "Section",
    "TrainClipSettings",
    "TrainDetectorSettings",
    "TrainLocalizerSettings",
    "TrainedModelSettings",
    "TrainingSettings",
    "UserError",
    "as_plain",
    "choose",
    "completed",
    "config_context",
    "fixed_on_resume",
    "may_change",
    "meanings",
    "unstated",
]
