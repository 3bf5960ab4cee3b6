"""Settings of each job, with the paper's numbers as defaults."""

import dataclasses
from typing import Literal

from regionclip_jax.settings.data import (
    BoxDataSettings,
    CaptionDataSettings,
    ImageDataSettings,
    ScenesSettings,
)
from regionclip_jax.settings.evaluation import EvaluationSettings, RecallSettings, own_detection
from regionclip_jax.settings.fields import (
    ConfigError,
    Count,
    Section,
    Seed,
    Share,
    completed,
    may_change,
)
from regionclip_jax.settings.models import (
    Dtype,
    LocalizerModelSettings,
    ModelSettings,
    TrainedModelSettings,
)
from regionclip_jax.settings.regions import (
    DetectionSettings,
    DetectorObjective,
    DistillObjective,
    LocalizerObjective,
    PretrainObjective,
    ScoreActivation,
    ScoreSettings,
)
from regionclip_jax.settings.training import ConceptSettings, OptimizerSettings, RunSettings

MatmulPrecision = Literal["default", "high", "highest", "tensorfloat32", "float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class JobSettings(Section):
    """Settings of every job."""

    # jax_default_matmul_precision: "default" (fast) or "highest" (with dtype "float32": parity with
    # the reference, also on accelerators).
    matmul_precision: MatmulPrecision = may_change("default")
    # Service that gets metrics, images and settings beside TensorBoard: "wandb" (Weights & Biases)
    # or "mlflow", each with the extra of its name; None for none.
    tracker: Literal["wandb", "mlflow"] | None = may_change(None)


class _TrainingSettings(JobSettings):
    """Settings of a job of one training; its dataclasses place the two sections."""

    optimizer: OptimizerSettings
    run: RunSettings

    def __post_init__(self):
        super().__post_init__()
        self.optimizer.require_shorter_warmup(self.run.num_steps)


# Stem and layer1 (FREEZE_AT 2), every batch norm, the text tower and its temperature.
_RESNET_FROZEN = ("visual/stem/", "visual/layer1/", "norm", "^text/", "^logit_scale")


@dataclasses.dataclass(frozen=True)
class TrainClipSettings(_TrainingSettings):
    """Whole-image contrastive training of a CLIP from captions."""

    # Name of the job.
    job: Literal["train_clip"] = "train_clip"
    # As regions.image_text_chunk of pretraining.
    image_text_chunk: Count | None = may_change(None)
    # As regions.image_text_activation of pretraining.
    image_text_activation: ScoreActivation = "softmax"
    model: TrainedModelSettings = TrainedModelSettings()
    # The whole image on CLIP's canvas: a crop could remove objects that the caption names.
    data: CaptionDataSettings = CaptionDataSettings(
        short_sides=(168,), max_long_side=224, canvas_sizes=((224, 224),), group_by_canvas=False,
        flip_directional_captions=False,
    )  # fmt: skip
    optimizer: OptimizerSettings = OptimizerSettings(
        kind="adamw", learning_rate=1e-3, schedule="cosine", boundaries=(), warmup_steps=2000,
        weight_decay=0.2, no_decay_patterns=("bias$", "scale$", "embedding$"),
    )  # fmt: skip
    run: RunSettings = RunSettings(num_steps=50_000, batch_size=1024, checkpoint_every=1000)

    @property
    def has_sigmoid(self) -> bool:
        """True if the loss is SigLIP's, which learns a bias beside the temperature."""
        return self.image_text_activation == "sigmoid"


@dataclasses.dataclass(frozen=True)
class PretrainSettings(_TrainingSettings):
    """RegionCLIP pretraining; the defaults are the paper's RN50."""

    # Name of the job.
    job: Literal["pretrain"] = "pretrain"
    student: TrainedModelSettings = TrainedModelSettings()
    # Frozen teacher; in the paper the CLIP that the student starts from.
    teacher: ModelSettings = ModelSettings()
    data: CaptionDataSettings = CaptionDataSettings()
    concepts: ConceptSettings = ConceptSettings()
    regions: PretrainObjective = PretrainObjective()
    optimizer: OptimizerSettings = OptimizerSettings(
        clip_per_tensor_norm=5.0, frozen_patterns=_RESNET_FROZEN
    )
    run: RunSettings = RunSettings()

    def __post_init__(self):
        super().__post_init__()
        batch = self.run.batch_size
        if batch % (self.regions.images_per_group or batch):
            raise ConfigError(
                f"regions.images_per_group: {self.regions.images_per_group} does not divide "
                f"run.batch_size {batch}; choose a divisor, or None for the whole batch"
            )
        if batch % self.regions.micro_batches:
            raise ConfigError(
                f"regions.micro_batches: {self.regions.micro_batches} does not divide "
                f"run.batch_size {batch}; choose a divisor, or 1 for the whole batch at once"
            )


@dataclasses.dataclass(frozen=True)
class DistillSettings(_TrainingSettings):
    """Distillation of a CLIP's embeddings of crops into its dense map; CLIPSelf on ViT-B/16."""

    # Name of the job.
    job: Literal["distill"] = "distill"
    # Student. Its frozen start is the teacher.
    model: TrainedModelSettings = TrainedModelSettings(preset="ViT-B/16", normalize_map=True)
    # Share of the student in the saved model; the rest is its start. 1 saves the student itself. A
    # finished run is saved again with another share.
    student_share: Share = may_change(0.7)
    # COCO's images, most of which are 4:3, 3:4 or longer.
    data: ImageDataSettings = ImageDataSettings(
        canvas_sizes=((768, 1024), (1024, 768), (1024, 1024)), flip_probability=0.0
    )
    regions: DistillObjective = DistillObjective()
    # Only blocks are trained. The queries and keys of the last one have no gradient, so weight
    # decay alone would change them.
    optimizer: OptimizerSettings = OptimizerSettings(
        kind="adamw", learning_rate=1e-5, schedule="cosine", boundaries=(), beta2=0.98,
        epsilon=1e-6, weight_decay=0.1, no_decay_patterns=("bias$", "scale$"),
        frozen_patterns=(
            "^text/", "^logit_", "^visual/(?!blocks/)", "/block11/attention/[qk]_proj/",
        ),
    )  # fmt: skip
    # Six epochs of COCO's 118,287 images.
    run: RunSettings = RunSettings(num_steps=44_358, batch_size=16)


@dataclasses.dataclass(frozen=True)
class TrainLocalizerSettings(_TrainingSettings):
    """Training of a region proposal network; the defaults are the reference's on COCO."""

    # Name of the job.
    job: Literal["train_localizer"] = "train_localizer"
    localizer: LocalizerModelSettings = LocalizerModelSettings()
    data: BoxDataSettings = BoxDataSettings()
    anchors: LocalizerObjective = LocalizerObjective()
    # FREEZE_AT 2, and every norm.
    optimizer: OptimizerSettings = OptimizerSettings(
        learning_rate=0.02, boundaries=(60_000, 80_000),
        frozen_patterns=("trunk/stem/", "trunk/res2/", "norm"),
    )  # fmt: skip
    run: RunSettings = RunSettings(num_steps=90_000, batch_size=16)
    # Average recall at the end; evaluation.path "" skips it.
    evaluation: RecallSettings = may_change(RecallSettings())


@dataclasses.dataclass(frozen=True)
class TrainDetectorSettings(_TrainingSettings):
    """Training of an open-vocabulary detector; the defaults are the paper's on COCO."""

    # Name of the job.
    job: Literal["train_detector"] = "train_detector"
    model: TrainedModelSettings = TrainedModelSettings()
    data: BoxDataSettings = BoxDataSettings()
    detector: DetectorObjective = DetectorObjective()
    optimizer: OptimizerSettings = OptimizerSettings(
        boundaries=(60_000, 80_000), warmup_steps=5000, frozen_patterns=_RESNET_FROZEN
    )
    run: RunSettings = RunSettings(num_steps=90_000, batch_size=16)
    # Evaluation of the detector at the end, with the classes of the test; evaluation.path "" skips
    # it. Proposals and temperature that are None are those of the training, objectness "none".
    evaluation: EvaluationSettings = may_change(
        EvaluationSettings(regions="localizer", detection=own_detection(chunk=100))
    )

    def __post_init__(self):
        super().__post_init__()
        if self.evaluation.detection.fuses and not self.detector.pyramid_blocks:
            raise ConfigError(
                "evaluation.detection.base_fusion, novel_fusion: the scores of a detector whose "
                "tower is trained cannot be fused with those of a frozen one; set both to None, or "
                "detector.pyramid_blocks"
            )

    @property
    def scores(self) -> ScoreSettings:
        """Settings of the detector's scores: those of its evaluation and, if None, its training."""
        own = DetectionSettings(temperature=self.detector.temperature, objectness="none")
        return completed(
            ScoreSettings(self.evaluation.proposals, self.evaluation.detection),
            ScoreSettings(self.detector.proposals, own),
        )


TrainingSettings = (
    TrainClipSettings
    | PretrainSettings
    | DistillSettings
    | TrainLocalizerSettings
    | TrainDetectorSettings
)


@dataclasses.dataclass(frozen=True)
class EvaluateSettings(JobSettings):
    """Evaluation of models on the same images."""

    # Name of the job.
    job: Literal["evaluate"] = "evaluate"
    # Precision of float32 products: reproducible metrics matter more than speed. No effect on
    # bfloat16.
    matmul_precision: MatmulPrecision = "highest"
    # Model directories by their names in the results, e.g. {"student": "workdir/model"}.
    models: dict[str, str] = dataclasses.field(default_factory=lambda: {"student": "workdir/model"})
    # Type of all models and their localizers, as in the settings of models. The paper's tables were
    # computed in float32; for comparison to the last digit: --config.dtype=float32
    dtype: Dtype = "auto"
    evaluation: EvaluationSettings = EvaluationSettings()


@dataclasses.dataclass(frozen=True)
class ScenesExperimentSettings(JobSettings):
    """Synthetic experiment: teacher, localizer, RegionCLIP, table. The job sets all paths."""

    # Name of the job.
    job: Literal["scenes_experiment"] = "scenes_experiment"
    # Seed of every random draw except the images: initial weights, sampling order, boxes.
    seed: Seed = 0
    scenes: ScenesSettings = ScenesSettings()
    # Scenes with boxes, for the localizer, which uses only boxes of base shapes.
    num_labelled: Count = 3000
    train_clip: TrainClipSettings = TrainClipSettings()
    train_localizer: TrainLocalizerSettings = TrainLocalizerSettings()
    pretrain: PretrainSettings = PretrainSettings()
    # Recognition of ground-truth boxes.
    evaluation: EvaluationSettings = EvaluationSettings()
    # Detection on the localizer's proposals.
    zero_shot: EvaluationSettings = EvaluationSettings()


@dataclasses.dataclass(frozen=True)
class ScenesViTSettings(JobSettings):
    """Synthetic experiment with a ViT: CLIP, RegionCLIP, CLIPSelf, both. The job sets all paths."""

    # Name of the job.
    job: Literal["scenes_vit"] = "scenes_vit"
    # Runs on the same images: seeds of initial weights, sampling order and boxes.
    seeds: tuple[Seed, ...] = (0, 1, 2)
    scenes: ScenesSettings = ScenesSettings()
    train_clip: TrainClipSettings = TrainClipSettings()
    # From CLIP, and once more from CLIPSelf.
    pretrain: PretrainSettings = PretrainSettings()
    distill: DistillSettings = DistillSettings()
    # Recognition of ground-truth boxes.
    evaluation: EvaluationSettings = EvaluationSettings()

    def __post_init__(self):
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(
                f"seeds: expected one or more different seeds, found {self.seeds}; every seed is a "
                "run with a folder of its own"
            )


@dataclasses.dataclass(frozen=True)
class ScenesDetectionSettings(JobSettings):
    """Synthetic experiment with trained detectors. The job sets all paths."""

    # Name of the job.
    job: Literal["scenes_detection"] = "scenes_detection"
    # As in the synthetic experiment.
    seed: Seed = 0
    scenes: ScenesSettings = ScenesSettings()
    # Scenes with boxes, for the localizer and the detectors, which use only boxes of base shapes.
    num_labelled: Count = 3000
    train_clip: TrainClipSettings = TrainClipSettings()
    train_localizer: TrainLocalizerSettings = TrainLocalizerSettings()
    pretrain: PretrainSettings = PretrainSettings()
    train_detector: TrainDetectorSettings = TrainDetectorSettings()
    # Frozen parameters of the detector whose image tower starts from random weights.
    random_frozen_patterns: tuple[str, ...] = ("^text/", "^logit_scale")
