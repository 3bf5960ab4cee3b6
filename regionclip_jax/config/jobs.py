"""The recipe of each job, by its name in ``main``: which sections it has."""

import dataclasses

from regionclip_jax.config.parsing import Count
from regionclip_jax.config.sections import (
    AnchorsSection,
    ConceptsSection,
    DataSection,
    DetectionDataSection,
    DetectorSection,
    Dtype,
    EvaluationSection,
    LocalizerSection,
    ModelSection,
    OptimizerSection,
    RegionsSection,
    RunSection,
    ScenesSection,
    TrainedModelSection,
)


@dataclasses.dataclass(frozen=True)
class TrainClipConfig:
    job: str
    # jax_default_matmul_precision: "default" (fast) or "highest" (with dtype "float32": parity with
    # the reference on accelerators, too).
    matmul_precision: str
    # As in RegionsSection.
    image_text_chunk: int | None
    model: TrainedModelSection
    data: DataSection
    optimizer: OptimizerSection
    run: RunSection


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    job: str
    matmul_precision: str
    student: TrainedModelSection
    teacher: ModelSection
    data: DataSection
    concepts: ConceptsSection
    regions: RegionsSection
    optimizer: OptimizerSection
    run: RunSection


@dataclasses.dataclass(frozen=True)
class TrainLocalizerConfig:
    job: str
    matmul_precision: str
    localizer: LocalizerSection
    data: DetectionDataSection
    anchors: AnchorsSection
    optimizer: OptimizerSection
    run: RunSection
    # Pictures and settings of the average recall at the end; evaluation.path "" measures none.
    evaluation: EvaluationSection


@dataclasses.dataclass(frozen=True)
class TrainDetectorConfig:
    job: str
    matmul_precision: str
    model: TrainedModelSection
    data: DetectionDataSection
    detector: DetectorSection
    optimizer: OptimizerSection
    run: RunSection
    # Of the detector at the end, with the classes of the test; evaluation.path "" evaluates none.
    evaluation: EvaluationSection


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    job: str
    matmul_precision: str
    # Model directories by the name they get in the results, e.g. {"student": "workdir/model"}.
    models: dict[str, str]
    # Type of the computation, as in ModelSection, of models and their localizers.
    dtype: Dtype
    evaluation: EvaluationSection


@dataclasses.dataclass(frozen=True)
class ScenesExperimentConfig:
    """The embedded experiment: teacher, RegionCLIP, table. Paths inside it are set by the job."""

    job: str
    matmul_precision: str
    # Of everything drawn at random but the pictures: initial weights, order, boxes.
    seed: int
    scenes: ScenesSection
    train_clip: TrainClipConfig
    pretrain: PretrainConfig
    evaluation: EvaluationSection


@dataclasses.dataclass(frozen=True)
class ScenesDetectionConfig:
    """The embedded experiment all the way to trained detectors. Paths are set by the job."""

    job: str
    matmul_precision: str
    seed: int
    scenes: ScenesSection
    # Scenes with boxes, for the localizer and the detectors; they use those of base shapes alone.
    num_labelled: Count
    train_clip: TrainClipConfig
    train_localizer: TrainLocalizerConfig
    pretrain: PretrainConfig
    train_detector: TrainDetectorConfig
    # What stays frozen where the image tower starts from random weights.
    random_frozen_patterns: tuple[str, ...]
