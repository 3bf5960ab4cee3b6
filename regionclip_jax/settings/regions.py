"""Settings of regions: proposals, suppression, the objectives of the steps, and detection."""

import dataclasses
from typing import Literal

from regionclip_jax.settings.fields import ConfigError, Count, Section, may_change

# ops.roi_align explains them.
RoiAlignImpl = Literal["auto", "matmul", "matmul_rows", "gather"]
Templates = Literal["clip", "plain"]


@dataclasses.dataclass(frozen=True)
class ProposalSettings(Section):
    """How many boxes a localizer proposes. The defaults are the reference's for zero-shot."""

    # Proposals of an image.
    num_proposals: Count = 1000
    # Candidates of each level before suppression: 1000 of a pyramid's, 6000 of the one of a C4.
    pre_nms_topk: Count = 1000
    # IoU above which the weaker of two proposals is suppressed.
    nms_threshold: float = 0.9


@dataclasses.dataclass(frozen=True)
class NmsSettings(Section):
    """Suppression of detections within a class."""

    # "hard", or soft: "gaussian", "linear".
    method: Literal["hard", "gaussian", "linear"] = "hard"
    # IoU above which a detection is suppressed, or its score lowered ("linear").
    threshold: float = 0.5
    # Width of the Gaussian that lowers scores.
    sigma: float = 0.5
    # Lowered scores up to this are dropped.
    prune: float = 0.001


@dataclasses.dataclass(frozen=True)
class PretrainObjective(Section):
    """Regions, pseudo-labels and losses (paper section 3; docs/reference/pretraining.md)."""

    # Model directory whose localizer proposes regions, as in the paper; "" draws random boxes, as
    # the reference also offers.
    localizer: str = may_change("")
    # Proposals, or random boxes, of which the regions are sampled.
    proposals: ProposalSettings = ProposalSettings(num_proposals=300, nms_threshold=0.5)
    # Regions sampled of an image.
    num_regions: Count = 100
    # Corners of random boxes lie on a grid of this many pixels.
    box_grid: Count = 8
    # Shortest and longest side of random boxes, as shares of the image's; None draws as the
    # reference does, where slivers and nearly whole images are common.
    box_sides: tuple[float, float] | None = None
    # Temperature of the student's losses.
    temperature: float = 0.01
    # Temperature of the teacher's labels; fixed in the reference, whatever the student's is.
    teacher_temperature: float = 0.01
    # Regions whose best concept has a teacher probability above this are used.
    concept_threshold: float = 0.1
    # Images whose regions are each other's negatives; None means the global batch. The reference
    # computes the region losses per GPU: 3 of 96 images.
    images_per_group: int | None = 3
    # Weights of the three losses.
    image_text_weight: float = 1.0
    distillation_weight: float = 1.0
    contrastive_weight: float = 1.0
    # The canvas around an image is "invisible" to features and losses; "reference" lets it leak
    # into features, and the global feature covers the whole canvas.
    padding: Literal["invisible", "reference"] = "invisible"
    # Regions of each image that pass layer4 at once, rematerialised; None for all.
    regions_per_chunk: int | None = may_change(25)
    # Regions of each image that are compared with all concepts at once, rematerialised; None for
    # all. For large pools: docs/large_batches.md.
    regions_per_softmax: int | None = may_change(None)
    # Parts that the towers take the batch in, one after the other; the losses and the update are
    # those of the whole. More fit less memory, for one more forward pass; 1 is all at once.
    micro_batches: Count = may_change(1)
    # Texts that meet the images at once in the image-text loss, in a ring if there are several
    # devices; None makes the matrix of the whole batch. For large batches: docs/large_batches.md.
    image_text_chunk: int | None = may_change(None)
    # How RoIAlign is computed: ops.roi_align.
    roi_align_impl: RoiAlignImpl = may_change("auto")

    def __post_init__(self):
        super().__post_init__()
        if self.num_regions > self.proposals.num_proposals:
            raise ConfigError(
                f"num_regions: {self.num_regions} cannot be sampled from proposals.num_proposals "
                f"{self.proposals.num_proposals}; lower the one or raise the other"
            )
        if self.box_sides is not None and not 0 < self.box_sides[0] <= self.box_sides[1] <= 1:
            raise ConfigError(
                "box_sides: expected the shortest and the longest side as shares of the image's, "
                f"above 0 and at most 1, found {self.box_sides}"
            )


@dataclasses.dataclass(frozen=True)
class LocalizerObjective(Section):
    """Labelling and sampling of anchors (docs/reference/localizers.md#training)."""

    # Anchors sampled of an image.
    anchors_per_image: Count = 256
    # The largest share of positives among them.
    positive_fraction: float = 0.5
    # IoU below which an anchor is a negative, and from which it is a positive.
    negative_below: float = 0.3
    positive_from: float = 0.7

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.negative_below <= self.positive_from <= 1:
            raise ConfigError(
                f"negative_below: {self.negative_below} with positive_from {self.positive_from}; "
                "expected 0 <= negative_below <= positive_from <= 1"
            )


@dataclasses.dataclass(frozen=True)
class DetectorObjective(Section):
    """Head that is trained on boxes (paper section 3.4; docs/reference/training_detectors.md)."""

    # Model directory whose localizer proposes; "" means that of model.init_from.
    localizer: str = may_change("")
    # Proposals of the frozen localizer, as it is tested.
    proposals: ProposalSettings = ProposalSettings(pre_nms_topk=6000, nms_threshold=0.7)
    # Image tower: "pretrained" (model.init_from's, frozen norms), or "random" with live batch norms
    # and the text tower of model.init_from: what pretraining is compared with.
    image_tower: Literal["pretrained", "random"] = "pretrained"
    # Regions sampled of an image.
    samples_per_image: Count = 512
    # The largest share of positives among them.
    positive_fraction: float = 0.25
    # IoU with ground truth that makes a positive.
    positive_iou: float = 0.5
    # Temperature of the softmax over classes.
    temperature: float = 0.01
    # Weight of background regions in the classification loss.
    background_weight: float = 0.2
    # Power of the focal scaling; None is the weighted cross entropy, which divides by the sum of
    # the weights instead of the number of regions.
    focal_gamma: float | None = 0.5
    # Side of the rasters that object masks are kept as; None trains no mask head.
    mask_size: int | None = None
    # Class embeddings (.npz); "" embeds the classes' names with the text tower.
    vocabulary: str = may_change("")
    # "clip" for the 81 prompts of the paper, "plain" for a few short ones.
    templates: Templates = "clip"
    # Regions of each image that pass layer4 at once, rematerialised; None for all.
    regions_per_chunk: int | None = may_change(64)
    # How RoIAlign is computed: ops.roi_align.
    roi_align_impl: RoiAlignImpl = may_change("auto")

    def __post_init__(self):
        super().__post_init__()
        if self.image_tower == "random" and self.regions_per_chunk is not None:
            raise ConfigError(
                f"regions_per_chunk: {self.regions_per_chunk} with a random image tower, whose "
                "live norms need all regions at once; set it to None"
            )

    @property
    def max_positives(self) -> int:
        """Positives of an image, at most."""
        return int(self.samples_per_image * self.positive_fraction)

    @property
    def with_masks(self) -> bool:
        """Whether a mask head is trained."""
        return self.mask_size is not None


@dataclasses.dataclass(frozen=True)
class DetectionSettings(Section):
    """From regions to detections. The defaults are the reference's for COCO with proposals."""

    # Temperature of the softmax over classes.
    temperature: float = 0.01
    # Regions are cut out of the "features" (RegionCLIP) or of the pixels ("crops": plain CLIP on
    # each region, paper figure 1).
    embed_from: Literal["features", "crops"] = "features"
    # How objectness joins the probability: "reference" (root of the product with the raw logit, as
    # the reference does it), "sigmoid" (of its sigmoid, as was probably meant), or "none".
    objectness: Literal["reference", "sigmoid", "none"] = "reference"
    # Scores up to this are dropped.
    score_threshold: float = 0.001
    # Suppression within a class.
    nms: NmsSettings = NmsSettings()
    # Detections of an image, at most.
    max_detections: Count = 100
    # Report probabilities without objectness, which still orders (the reference's VIS; hard NMS).
    report_probabilities: bool = False
    # Regions of each image that pass layer4 at once; None for all.
    regions_per_chunk: int | None = None
    # How RoIAlign is computed: ops.roi_align.
    roi_align_impl: RoiAlignImpl = "auto"
