"""Settings of regions: proposals, suppression, the objectives of the steps, and detection."""

import dataclasses
from typing import Annotated, Literal

from regionclip_jax.settings.fields import (
    ConfigError,
    Count,
    NotNegative,
    PartOfSide,
    Positive,
    Range,
    Score,
    Section,
    Share,
    Side,
    Temperature,
    may_change,
    require_ascending,
    require_stated,
    unstated,
)

# Documented in ops.roi_align.
RoiAlignImpl = Literal["auto", "matmul", "matmul_rows", "gather"]
Templates = Literal["clip", "plain"]
NmsMethod = Literal["hard", "gaussian", "linear"]
EmbedFrom = Literal["features", "crops"]
Objectness = Literal["reference", "sigmoid", "none"]
ScoreActivation = Literal["softmax", "sigmoid"]


@dataclasses.dataclass(frozen=True)
class ProposalSettings(Section):
    """Proposals of a localizer. The defaults are the reference's for zero-shot detection.

    None is the model's own number: it is accepted in an evaluation and in a model directory.
    """

    # Proposals of an image. None: the model's own.
    num_proposals: Count | None = 1000
    # Candidates of each level before suppression: 1000 with a pyramid, 6000 with a single level.
    # None: the model's own.
    pre_nms_topk: Count | None = 1000
    # IoU above which the lower-scored of two proposals is suppressed. None: the model's own.
    nms_threshold: Share | None = 0.9
    # IoU above which a candidate votes for the box of a proposal, with its objectness as weight
    # (ops.proposals). 1, where none votes, is the reference's. None: the model's own.
    voting_threshold: Share | None = 1.0


@dataclasses.dataclass(frozen=True)
class NmsSettings(Section):
    """Suppression of detections within a class; None as in ``ProposalSettings``."""

    # "hard", or soft: "gaussian", "linear". None: the model's own.
    method: NmsMethod | None = "hard"
    # IoU above which a detection is suppressed, or its score lowered ("linear"). None: the model's
    # own.
    threshold: Share | None = 0.5
    # Width of the Gaussian that lowers scores. None: the model's own.
    sigma: Positive | None = 0.5
    # Detections with a lowered score up to this are dropped. None: the model's own.
    prune: Score | None = 0.001


@dataclasses.dataclass(frozen=True)
class PretrainObjective(Section):
    """Regions, pseudo-labels and losses (paper section 3; docs/reference/pretraining.md)."""

    # Model directory of the localizer that proposes regions, as in the paper; "" draws random
    # boxes, an option of the reference.
    localizer: str = may_change("")
    # Proposals, or random boxes, from which the regions are sampled.
    proposals: ProposalSettings = ProposalSettings(num_proposals=300, nms_threshold=0.5)
    # Regions sampled from each image.
    num_regions: Count = 100
    # Corners of random boxes lie on a grid of this many pixels.
    box_grid: Count = 8
    # Shortest and longest side of random boxes, as fractions of the image's; None draws like the
    # reference, with many very thin or very large boxes.
    box_sides: tuple[PartOfSide, PartOfSide] | None = None
    # Temperature of the student's losses, but for sigmoids.
    temperature: Temperature = 0.01
    # Temperature of the teacher's labels; fixed in the reference, independent of the student's.
    teacher_temperature: Temperature = 0.01
    # Only regions whose best concept has a teacher probability above this are used.
    concept_threshold: Share = 0.1
    # Number of images whose regions are each other's negatives; None: the global batch. The
    # reference computes the region losses per GPU: 3 of 96 images.
    images_per_group: Count | None = 3
    # Weights of the three losses.
    image_text_weight: NotNegative = 1.0
    distillation_weight: NotNegative = 1.0
    contrastive_weight: NotNegative = 1.0
    # Contrastive loss of regions: "softmax" over the labels of a group (the paper's), or "sigmoid"
    # of each region and concept alone, with the student's learned temperature and bias.
    region_activation: ScoreActivation = "softmax"
    # Sigmoid of regions only: number of concepts with which a group is compared, its labels and
    # random others, on average; None for the whole pool.
    sigmoid_concepts: Count | None = 100
    # Image-text loss: "softmax" (CLIP's), or "sigmoid" of each pair of the global batch alone
    # (SigLIP's), with the student's learned temperature and bias.
    image_text_activation: ScoreActivation = "softmax"
    # Padding of the canvas: "invisible" to features and losses; with "reference" it leaks into
    # features, and the global feature covers the whole canvas.
    padding: Literal["invisible", "reference"] = "invisible"
    # Regions of each image that pass layer4 at once, rematerialized; None for all.
    regions_per_chunk: Count | None = may_change(25)
    # Regions of each image that are compared with all concepts at once, rematerialized; None for
    # all. For large pools: docs/large_batches.md.
    regions_per_softmax: Count | None = may_change(None)
    # Number of sequential parts of the batch in the towers; losses and update are those of the
    # whole batch. More parts need less memory, and one more forward pass; 1 is the whole batch.
    micro_batches: Count = may_change(1)
    # Texts compared with the images at once in the image-text loss, in a ring over several devices;
    # None computes the matrix of the whole batch. For large batches: docs/large_batches.md.
    image_text_chunk: Count | None = may_change(None)
    # Implementation of RoIAlign: ops.roi_align.
    roi_align_impl: RoiAlignImpl = may_change("auto")

    def __post_init__(self):
        super().__post_init__()
        require_stated(self.proposals, "proposals")
        if self.num_regions > (self.proposals.num_proposals or 0):
            raise ConfigError(
                f"num_regions: {self.num_regions} cannot be sampled from proposals.num_proposals "
                f"{self.proposals.num_proposals}; lower the one or raise the other"
            )
        require_ascending(self, "box_sides")

    @property
    def has_sigmoid(self) -> bool:
        """True if a loss depends on the student's learned temperature and bias."""
        return "sigmoid" in (self.region_activation, self.image_text_activation)


@dataclasses.dataclass(frozen=True)
class DistillObjective(Section):
    """Boxes of distillation from the teacher's crops (CLIPSelf; docs/reference/distillation.md)."""

    # Source of the boxes: "patches", the cells of a random grid, or "proposals" of a localizer.
    boxes: Literal["patches", "proposals"] = "patches"
    # Boxes sampled from each image, at most.
    boxes_per_image: Count = 20
    # Patches only: largest number of rows and of columns of a grid. Neither number is more than
    # twice the other.
    max_split: Annotated[int, Range(1, 64, noun="a whole number")] = 6
    # Proposals only: model directory of the localizer.
    localizer: str = may_change("")
    # Proposals only: those of an image, from which the boxes are sampled.
    proposals: ProposalSettings = ProposalSettings(num_proposals=300, nms_threshold=0.5)
    # Proposals only: a box with a smaller area than a square of the first side, or a larger one
    # than that of the second, is dropped. In pixels of the canvas.
    box_sides: tuple[Side, Side] = (8, 1024)
    # Proposals only: the teacher's crop is this many times as wide and as high as the box.
    crop_scale: Positive = 1.5
    # Crops of each image that pass the teacher at once; None for all.
    crops_per_chunk: Count | None = may_change(None)
    # Implementation of RoIAlign: ops.roi_align.
    roi_align_impl: RoiAlignImpl = may_change("auto")

    def __post_init__(self):
        super().__post_init__()
        require_stated(self.proposals, "proposals")
        require_ascending(self, "box_sides")
        proposed = self.proposals.num_proposals or 0
        if self.boxes == "proposals" and self.boxes_per_image > proposed:
            raise ConfigError(
                f"boxes_per_image: {self.boxes_per_image} cannot be sampled from "
                f"proposals.num_proposals {proposed}; lower the one or raise the other"
            )
        if self.boxes == "patches" and self.localizer:
            raise ConfigError(
                f"localizer: {self.localizer!r} with boxes 'patches', which need none; set boxes "
                "to 'proposals', or localizer to ''"
            )


@dataclasses.dataclass(frozen=True)
class LocalizerObjective(Section):
    """Labelling and sampling of anchors (docs/reference/localizers.md#training)."""

    # Anchors sampled from each image.
    anchors_per_image: Count = 256
    # Largest share of positives among them.
    positive_fraction: Share = 0.5
    # IoU below which an anchor is negative, and IoU from which it is positive.
    negative_below: Share = 0.3
    positive_from: Share = 0.7

    def __post_init__(self):
        super().__post_init__()
        if self.negative_below > self.positive_from:
            raise ConfigError(
                f"negative_below: {self.negative_below} with positive_from {self.positive_from}; "
                "expected at most positive_from"
            )


@dataclasses.dataclass(frozen=True)
class DetectorObjective(Section):
    """Detector trained on boxes (paper section 3.4; docs/reference/training_detectors.md)."""

    # Model directory of the localizer; "" uses that of model.init_from.
    localizer: str = may_change("")
    # Proposals of the frozen localizer, the same as in tests.
    proposals: ProposalSettings = ProposalSettings(pre_nms_topk=6000, nms_threshold=0.7)
    # Image tower: "pretrained" (model.init_from's, frozen norms), or "random" with live batch norms
    # and the text tower of model.init_from, as the baseline of pretraining.
    image_tower: Literal["pretrained", "random"] = "pretrained"
    # Four blocks of a frozen ViT, from 0 and ascending, whose maps become a feature pyramid with a
    # proposal network and heads of its own (F-ViT); () refines and classifies the regions of the
    # tower itself.
    pyramid_blocks: tuple[Count, ...] = ()
    # Regions sampled from each image.
    samples_per_image: Count = 512
    # Largest share of positives among them.
    positive_fraction: Share = 0.25
    # IoU with ground truth from which a region is positive.
    positive_iou: Share = 0.5
    # Temperature of the softmax over classes; with a pyramid the initial one, which is learned.
    temperature: Temperature = 0.01
    # Weight of background regions in the classification loss.
    background_weight: NotNegative = 0.2
    # Power of the focal scaling; None is the weighted cross entropy, which divides by the sum of
    # the weights instead of the number of regions.
    focal_gamma: NotNegative | None = 0.5
    # Side of the object masks in cells; None trains no mask head.
    mask_size: Side | None = None
    # Class embeddings (.npz); "" embeds the class names with the text tower.
    vocabulary: str = may_change("")
    # "clip" for the 81 prompts of the paper, "plain" for a few short ones.
    templates: Templates = "clip"
    # Regions of each image that pass layer4 at once, rematerialized; None for all.
    regions_per_chunk: Count | None = may_change(64)
    # Implementation of RoIAlign: ops.roi_align.
    roi_align_impl: RoiAlignImpl = may_change("auto")

    def __post_init__(self):
        super().__post_init__()
        require_stated(self.proposals, "proposals")
        blocks = self.pyramid_blocks
        if blocks and (len(blocks) != 4 or list(blocks) != sorted(set(blocks))):
            raise ConfigError(
                f"pyramid_blocks: expected four ascending numbers of blocks, found {blocks}; "
                "F-ViT has (3, 5, 7, 11) of 12 blocks, (6, 10, 14, 23) of 24"
            )
        if blocks and (self.localizer or self.image_tower == "random"):
            raise ConfigError(
                f"pyramid_blocks: {blocks} with localizer {self.localizer!r} and image_tower "
                f"{self.image_tower!r}; a pyramid has a proposal network of its own on a frozen "
                "tower: set localizer to '' and image_tower to 'pretrained'"
            )
        if blocks and self.regions_per_chunk is not None:
            raise ConfigError(
                f"regions_per_chunk: {self.regions_per_chunk} with a pyramid, whose heads have "
                "live norms, which need all regions at once; set it to None"
            )
        if self.image_tower == "random" and self.regions_per_chunk is not None:
            raise ConfigError(
                f"regions_per_chunk: {self.regions_per_chunk} with a random image tower, whose "
                "live norms need all regions at once; set it to None"
            )

    @property
    def max_positives(self) -> int:
        """Largest number of positives of an image."""
        return int(self.samples_per_image * self.positive_fraction)

    @property
    def with_masks(self) -> bool:
        """True if a mask head is trained."""
        return self.mask_size is not None


@dataclasses.dataclass(frozen=True)
class DetectionSettings(Section):
    """Scoring and suppression of regions. Defaults: the reference's for COCO with proposals.

    None as in ``ProposalSettings``.
    """

    # Divisor of the cosines of regions and classes. None: the model's own.
    temperature: Temperature | None = 0.01
    # Embed regions from the "features" of the image (RegionCLIP) or from "crops" of its pixels
    # (plain CLIP on each region, paper figure 1). None: the model's own.
    embed_from: EmbedFrom | None = "features"
    # Score from objectness and probability: "reference" (root of the product with the raw logit,
    # like the reference), "sigmoid" (with the logit's sigmoid, as probably intended), or "none".
    # None: the model's own.
    objectness: Objectness | None = "reference"
    # Detections with a score up to this are dropped. None: the model's own.
    score_threshold: Score | None = 0.001
    # Suppression within a class.
    nms: NmsSettings = NmsSettings()
    # Largest number of detections of an image. None: the model's own.
    max_detections: Count | None = 100
    # Report probabilities without objectness, which still ranks (the reference's VIS; hard NMS).
    # None: the model's own.
    report_probabilities: bool | None = False
    # Probabilities from cosines: "softmax" over the classes and the background, or "sigmoid" of
    # each class alone, as SigLIP was trained. None: the model's own.
    score_activation: ScoreActivation | None = "softmax"
    # Summand of the cosines over the temperature; only a sigmoid depends on it. None: the model's.
    score_bias: Score | None = 0.0
    # Exponent of the frozen tower's own probability in the score of a class that the detector was
    # trained on, and of any other ("novel") class; the rest to 1 is the exponent of the detector's
    # probability. Only for a detector on a pyramid, whose ``temperature`` is that of the tower's
    # probability. None: the model's own.
    base_fusion: Share | None = 0.0
    novel_fusion: Share | None = 0.0
    # Regions of each image that pass layer4 at once; None for all.
    regions_per_chunk: Count | None = may_change(None)
    # Implementation of RoIAlign: ops.roi_align.
    roi_align_impl: RoiAlignImpl = may_change("auto")

    @property
    def fuses(self) -> bool:
        """True if scores depend on a frozen tower's own probabilities."""
        return bool(self.base_fusion or self.novel_fusion)

    @property
    def gives_probabilities(self) -> bool:
        """False for the reference's product with a raw logit, which may exceed 1."""
        return self.objectness != "reference" or bool(self.report_probabilities)


@dataclasses.dataclass(frozen=True)
class ScoreSettings(Section):
    """Settings that a model's scores depend on, as its directory states them."""

    proposals: ProposalSettings = unstated(ProposalSettings)
    detection: DetectionSettings = unstated(DetectionSettings)
