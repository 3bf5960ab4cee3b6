"""The sections of recipes: what each key means."""

import dataclasses
from typing import Literal

from regionclip_jax.config.parsing import Count

Dtype = Literal["auto", "bfloat16", "float32"]


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """A CLIP model, such as the teacher, of which no gradient is taken."""

    # Name in models.presets; must agree with the card of `init_from`.
    preset: str
    # Model directory (scripts/convert_checkpoint.py or a training job writes one); "" starts fresh.
    init_from: str
    # Type of the computation: "float32", "bfloat16", or "auto": bfloat16 on GPUs and TPUs, float32
    # on CPUs. Trained parameters, their gradients, the optimizer's state, batch statistics and
    # losses are float32 in any case. A teacher keeps its kernels in this type; so does a localizer
    # that proposes, in the type of the model that it proposes for.
    dtype: Dtype


@dataclasses.dataclass(frozen=True)
class TrainedModelSection(ModelSection):
    """A CLIP model that is trained."""

    # What the blocks of both towers keep for the backward pass, where they are trained: "all" that
    # it asks for; the outputs of convolutions and dense layers ("products"); or their inputs alone
    # ("block_inputs"), for one more forward pass. Changes memory and time: docs/large_batches.md.
    kept_activations: str


@dataclasses.dataclass(frozen=True)
class MixturePart:
    """One of several sources, each visited in epochs of its own."""

    # As in DataSection.
    source: str
    path: str
    split: str
    # Its share of the records is this over the sum of all weights, whatever the sources' lengths.
    weight: float


@dataclasses.dataclass(frozen=True)
class DataSection:
    """Pictures with captions, as batches."""

    # "coco_folder", "caption_table", "webdataset", "tsv_pairs", "tfds" or "array_record"; their
    # layouts are in docs/data_sources.md.
    source: str
    # Folder (or table, or .tsv file) of the source.
    path: str
    # Split of a COCO folder or of TFDS, e.g. "train2017"; "" for the other sources.
    split: str
    # Several sources in place of the one above, whose path is then ""; () for that one.
    mixture: tuple[MixturePart, ...]
    # Short sides to choose from at each visit, and the cap of the long side, in pixels; None keeps
    # pictures as they are. (The reference's pretraining has one.)
    short_sides: tuple[int, ...] | None
    max_long_side: int | None
    # "bicubic_truncate" (the reference's pretraining), "bicubic_uncapped" (the same, with its
    # oversight for long pictures) or "bilinear_round" (its detection).
    resize_method: str
    # Static canvas sizes (height, width); a batch takes the smallest that holds all its pictures.
    # Each is one more compilation; docs/static_shapes.md measures how many are worth it.
    canvas_sizes: tuple[tuple[int, int], ...]
    # Batches of pictures that need the same canvas, where a source knows sizes without opening
    # pictures; several processes can have several canvases only so.
    group_by_canvas: bool
    # Probability of a mirrored picture.
    flip_probability: float
    # Mirror also where the caption says left or right, as the reference does.
    flip_directional_captions: bool
    # Tokens a caption is cut or padded to, at most 77; a cut caption keeps its end token.
    context_length: int
    # Threads that read and decode, in each process and each worker.
    num_threads: Count
    # Worker processes; 0 reads in threads of the training process.
    num_workers: int
    # The run stops when more than this share of what a source lists, or of the records seen, could
    # not be used ...
    fault_fraction: float
    # ... and at least this many of them.
    fault_minimum: int


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    """Optimizer, schedule, and what is trained."""

    # "sgd" (the reference's, coupled decay) or "adamw".
    kind: str
    learning_rate: float
    # "multistep" or "cosine".
    schedule: str
    # multistep: steps at which the rate is multiplied by gamma, and the factor warm-up starts from.
    boundaries: tuple[int, ...]
    gamma: float
    warmup_factor: float
    # Steps of linear warm-up.
    warmup_steps: int
    momentum: float
    weight_decay: float
    # Largest L2 norm of any one gradient tensor; None for no clipping.
    clip_per_tensor_norm: float | None
    # Parameters whose path matches are not decayed.
    no_decay_patterns: tuple[str, ...]
    # Parameters whose path matches are not trained.
    frozen_patterns: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RunSection:
    """How long, how large, how often."""

    num_steps: Count
    # Images of the global batch, which is split over all devices.
    batch_size: Count
    # Devices that share one copy of parameters and optimizer state; 1: each device has its own.
    fsdp: Count
    seed: int
    log_every: Count
    checkpoint_every: Count
    checkpoints_to_keep: Count


@dataclasses.dataclass(frozen=True)
class ConceptsSection:
    """The concept pool."""

    # Text file, one name a line (what follows a tab or comma is ignored); "" for the scenes' own.
    names_file: str
    # "clip" for the 81 prompts of the paper, "plain" for a few short ones.
    templates: str


@dataclasses.dataclass(frozen=True)
class RegionsSection:
    """Regions, pseudo-labels and losses (paper section 3; docs/reference/pretraining.md)."""

    # Model directory whose localizer proposes regions, as in the paper; "" draws random boxes, as
    # the reference also offers.
    localizer: str
    # Proposals or random boxes of a picture, and how many of them are sampled.
    num_proposals: Count
    num_regions: Count
    # Of a localizer: candidates of each level before suppression, and its IoU threshold.
    pre_nms_topk: Count
    proposal_nms_threshold: float
    # Corners of random boxes lie on a grid of this many pixels.
    box_grid: Count
    # Shortest and longest side of random boxes, as shares of the picture's; None draws as the
    # reference does, where slivers and nearly whole pictures are common.
    box_sides: tuple[float, float] | None
    # Temperature of the student's losses, and of the teacher's labels.
    temperature: float
    teacher_temperature: float
    # Regions whose best concept has a teacher probability above this are used.
    concept_threshold: float
    # Images whose regions are each other's negatives; None means the global batch. The reference
    # computes the region losses per GPU.
    images_per_group: int | None
    # Regions of each picture that are compared with all concepts at once, rematerialised; None for
    # all. For large pools: docs/large_batches.md.
    regions_per_softmax: int | None
    # Parts that the towers take the batch in, one after the other; the losses and the update are
    # those of the whole. More fit less memory, for one more forward pass; 1 is all at once.
    micro_batches: Count
    # Texts that meet the pictures at once in the image-text loss, in a ring if there are several
    # devices; None makes the matrix of the whole batch. For large batches: docs/large_batches.md.
    image_text_chunk: int | None
    image_text_weight: float
    distillation_weight: float
    contrastive_weight: float
    # What a canvas shows beside its picture is "invisible" to features and losses; "reference" lets
    # it leak into features, and the global feature covers the whole canvas.
    padding: str
    # Regions of each picture that pass layer4 at once, rematerialised; None for all.
    regions_per_chunk: int | None
    # "auto", "matmul", "matmul_rows" or "gather" (ops.roi_align).
    roi_align: str


@dataclasses.dataclass(frozen=True)
class EvaluationSection:
    """Zero-shot recognition of given boxes, or detection, with the official metrics."""

    # "coco_folder", "lvis_folder", "pascal_voc", "yolo_labels", "tfds" or "array_record", its
    # folder and split; the layouts are in docs/data_sources.md.
    source: str
    path: str
    split: str
    # As in DetectionDataSection.
    annotations: str
    # Groups of classes: "coco_48_17" and "scenes" (novel, base), "lvis" (rare, common, frequent, by
    # LVIS's metrics), "trained" (base: what the detector was trained on), a text file with the base
    # classes, one a line (novel: all others of the data), or "none" for one group of all classes.
    class_split: str
    # Class embeddings (.npz) to use; "" embeds the data's class names with the model's text tower.
    vocabulary: str
    short_side: int | None
    max_long_side: int | None
    resize_method: str
    canvas_sizes: tuple[tuple[int, int], ...]
    batch_size: Count
    # Rows for ground-truth boxes of an image; more in one image are an error.
    max_boxes: int
    # Where to look: "ground_truth", "localizer" or "windows" (sliding ones).
    regions: str
    # Model directory whose localizer proposes; "" means that of the model itself.
    localizer: str
    # Proposals of a picture; candidates of each level before suppression; its IoU threshold.
    num_proposals: Count
    pre_nms_topk: Count
    proposal_nms_threshold: float
    # Sides of the windows as shares of the picture's.
    window_sides: tuple[float, ...]
    # Regions are cut out of the "features" (RegionCLIP) or of the pixels ("crops": plain CLIP on
    # each region, paper figure 1).
    embed_from: str
    temperature: float
    # How objectness joins the probability: "reference" (root of the product with the raw logit, as
    # the reference does it), "sigmoid" (of its sigmoid, as was probably meant), or "none".
    objectness: str
    # Scores up to this are dropped.
    score_threshold: float
    # Suppression within a class: "hard", or soft: "gaussian", "linear".
    nms: str
    nms_threshold: float
    soft_nms_sigma: float
    soft_nms_prune: float
    max_detections: Count
    regions_per_chunk: int | None
    roi_align: str
    templates: str
    num_threads: Count
    # The run stops when more than this share of the images, or of the annotations, could not be
    # used.
    fault_fraction: float


@dataclasses.dataclass(frozen=True)
class DetectionDataSection:
    """Pictures with boxes, as batches to train on."""

    # As in EvaluationSection.
    source: str
    path: str
    split: str
    # An annotation file in COCO's format anywhere, whose pictures lie in `path`; "" for the
    # source's own layout.
    annotations: str
    # Classes that are trained: "all"; those "with_boxes" in the file, so that a class without any
    # is a novel one; the base classes "coco_base" (48), "lvis_base" (866) or "scenes_base" (12); or
    # a text file with one name a line. Boxes of others are as if not there.
    classes: str
    # Short sides to choose from at each visit, and the cap of the long side; None keeps pictures
    # as they are.
    short_sides: tuple[int, ...] | None
    max_long_side: int | None
    # Large-scale jitter instead: smallest and largest factor of the canvas that a picture fills.
    jitter: tuple[float, float] | None
    resize_method: str
    canvas_sizes: tuple[tuple[int, int], ...]
    flip_probability: float
    # Rows for boxes of an image; an image with more is refused at the start.
    max_boxes: Count
    # Images of a class in less than this share of all come more often (LVIS: 0.001); None: never.
    repeat_threshold: float | None
    # As in DataSection; by the canvas needed at the largest short side.
    group_by_canvas: bool
    num_threads: Count
    num_workers: int
    fault_fraction: float
    fault_minimum: int


@dataclasses.dataclass(frozen=True)
class LocalizerSection:
    """A region proposal network to train."""

    # Name in models.localizer_presets.
    preset: str
    # Model directory to start from: its localizer, or else (a CLIP trunk) its image tower; "" is
    # random.
    init_from: str
    # "all" of that localizer, or its "trunk" alone, such as one trained on ImageNet.
    init_part: str
    # "frozen" (the reference's) or "live": a random start needs live batch norms.
    norm: str
    # As in ModelSection.
    dtype: Dtype
    # As in TrainedModelSection, of the trunk.
    kept_activations: str


@dataclasses.dataclass(frozen=True)
class AnchorsSection:
    """Labelling and sampling of anchors (docs/reference/localizers.md#training)."""

    # Sampled of an image, and the largest share of positives among them.
    anchors_per_image: Count
    positive_fraction: float
    # IoU below which an anchor is a negative, and from which it is a positive.
    negative_below: float
    positive_from: float


@dataclasses.dataclass(frozen=True)
class DetectorSection:
    """Head that is trained on boxes (paper section 3.4; docs/reference/training_detectors.md)."""

    # Model directory whose localizer proposes; "" means that of model.init_from.
    localizer: str
    # Image tower: "pretrained" (model.init_from's, frozen norms), or "random" with live batch norms
    # and the text tower of model.init_from: what pretraining is compared with.
    image_tower: str
    num_proposals: Count
    pre_nms_topk: Count
    proposal_nms_threshold: float
    # Regions sampled of an image, the largest share of positives, and the IoU that makes one.
    samples_per_image: Count
    positive_fraction: float
    positive_iou: float
    temperature: float
    # Weight of background regions in the classification loss.
    background_weight: float
    # Power of the focal scaling; None is the weighted cross entropy, which divides by the sum of
    # the weights instead of the number of regions.
    focal_gamma: float | None
    # Side of the rasters that object masks are kept as; None trains no mask head.
    mask_size: int | None
    # Class embeddings (.npz); "" embeds the classes' names with the text tower.
    vocabulary: str
    templates: str
    regions_per_chunk: int | None
    roi_align: str


@dataclasses.dataclass(frozen=True)
class ScenesSection:
    """The drawn world of the embedded experiment (data.scenes)."""

    seed: int
    # Side of the square pictures in pixels.
    side: int
    # Number of pictures: single things seen from near and far, scenes, and held-out scenes.
    num_closeups: Count
    num_scenes: Count
    num_test: Count
    # Things a picture, smallest and largest, and their size as a share of the side.
    closeup_things: tuple[int, int]
    closeup_sizes: tuple[float, float]
    scene_things: tuple[int, int]
    scene_sizes: tuple[float, float]
    # Largest share of the smaller thing that may be covered.
    overlap: float
    # Probability that a thing shows its category's typical colour, and likewise its texture.
    typicality: float
    # Random strokes behind the things.
    clutter: int
