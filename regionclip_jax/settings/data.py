"""Settings of data: sources, sizes of images, batches, and how many records may be unusable."""

import dataclasses
from typing import Literal

from regionclip_jax.settings.fields import ConfigError, Count, Section, may_change

ResizeMethod = Literal["bicubic_truncate", "bicubic_uncapped", "bilinear_round"]
CaptionSource = Literal[
    "coco_folder", "caption_table", "webdataset", "tsv_pairs", "tfds", "array_record"
]
BoxSource = Literal[
    "coco_folder", "lvis_folder", "pascal_voc", "yolo_labels", "tfds", "array_record"
]
# Multiples of 32 that hold every image of the paper's resize: those of 4:3, all longer ones, and an
# epoch's rest. On COCO's sizes 8.4% of the pixels are padding, with the 4:3 ones left out 17%, in
# batches of any shape 51% (docs/static_shapes.md).
PAPER_CANVASES = ((800, 1088), (1088, 800), (800, 1344), (1344, 800), (1344, 1344))


@dataclasses.dataclass(frozen=True)
class MixturePart(Section):
    """One of several sources, each sampled in epochs of its own."""

    # As of the data themselves.
    source: CaptionSource
    path: str = may_change()
    split: str = ""
    # Its share of the records is this over the sum of all weights, whatever the sources' lengths.
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class LoadingSettings(Section):
    """How records become batches, and how many of them may be unusable."""

    # Static canvas sizes (height, width); a batch takes the smallest that holds all its images.
    # Each is one more compilation; docs/static_shapes.md measures how many are worth it.
    canvas_sizes: tuple[tuple[int, int], ...] = PAPER_CANVASES
    # Batches of images that need the same canvas, where a source knows sizes without opening
    # images; several processes can have several canvases only so.
    group_by_canvas: bool = True
    # Probability of a mirrored image.
    flip_probability: float = 0.5
    # Threads that read and decode, in each process and each worker.
    num_threads: Count = may_change(16)
    # Worker processes; 0 reads in threads of the training process.
    num_workers: int = may_change(0)
    # The run stops when more than this share of what a source lists, or of the records seen, could
    # not be used: a web-scale set has broken files, and a run should neither die of them nor hide
    # them ...
    fault_fraction: float = may_change(0.01)
    # ... and at least this many of them.
    fault_minimum: int = may_change(100)


@dataclasses.dataclass(frozen=True)
class CaptionDataSettings(LoadingSettings):
    """Images with captions, as batches."""

    # Layouts of the sources are in docs/data_sources.md.
    source: CaptionSource = "coco_folder"
    # Folder (or table, or .tsv file) of the source.
    path: str = may_change("")
    # Split of a COCO folder or of TFDS, e.g. "train2017"; "" for the other sources.
    split: str = ""
    # Several sources in place of the one above, whose path is then ""; () for that one. For
    # example (dict(source="array_record", path="data/cc3m", weight=3), dict(source="coco_folder",
    # path="data/coco", split="train2017", weight=1)).
    mixture: tuple[MixturePart, ...] = ()
    # Short sides to choose from for each sample, and the cap of the long side, in pixels; None
    # keeps images as they are. (The reference's pretraining has one.)
    short_sides: tuple[int, ...] | None = (800,)
    max_long_side: int | None = 1333
    # "bicubic_truncate" (the reference's pretraining), "bicubic_uncapped" (the same, with its
    # oversight for long images) or "bilinear_round" (its detection).
    resize_method: ResizeMethod = "bicubic_truncate"
    # Mirror also where the caption says left or right, as the reference does (3 of 1,000 captions
    # of COCO).
    flip_directional_captions: bool = True
    # Tokens a caption is cut or padded to, at most 77; a cut caption keeps its end token.
    context_length: int = 77

    def __post_init__(self):
        super().__post_init__()
        if self.mixture and self.path:
            raise ConfigError(
                f"path: {self.path!r} beside mixture, which has its own paths; set path to '' or "
                "mixture to ()"
            )


@dataclasses.dataclass(frozen=True)
class BoxDataSettings(LoadingSettings):
    """Images with boxes, as batches to train on."""

    # Layouts of the sources are in docs/data_sources.md.
    source: BoxSource = "coco_folder"
    # Folder of the source.
    path: str = may_change("")
    # Split, e.g. "train2017"; "" where the source has none.
    split: str = ""
    # An annotation file in COCO's format anywhere, whose images lie in `path`; "" for the source's
    # own layout.
    annotations: str = may_change("")
    # Classes that are trained: "all"; those "with_boxes" in the file, so that a class without any
    # is a novel one; the base classes "coco_base" (48), "lvis_base" (866) or "scenes_base" (12); or
    # a text file with one name a line. Boxes of others are as if not there.
    classes: str = "coco_base"
    # Short sides to choose from for each sample, and the cap of the long side; None keeps images
    # as they are.
    short_sides: tuple[int, ...] | None = (640, 672, 704, 736, 768, 800)
    max_long_side: int | None = 1333
    # Large-scale jitter instead: smallest and largest factor of the canvas that an image fills.
    jitter: tuple[float, float] | None = None
    # As of captions.
    resize_method: ResizeMethod = "bilinear_round"
    # Rows for boxes of an image; an image with more is refused at the start. (Images of COCO have
    # less than 100.)
    max_boxes: Count = 100
    # Images of a class in less than this share of all come more often (LVIS: 0.001); None: never.
    repeat_threshold: float | None = None
    # As of captions; annotated sets have few broken files.
    fault_fraction: float = may_change(0.001)
    fault_minimum: int = may_change(10)


@dataclasses.dataclass(frozen=True)
class EvaluatedImages(Section):
    """Images with boxes that an evaluation takes in one pass."""

    # Layouts of the sources are in docs/data_sources.md.
    source: BoxSource = "coco_folder"
    # Folder of the source.
    path: str = ""
    # Split, e.g. "val2017"; "" where the source has none.
    split: str = ""
    # An annotation file in COCO's format anywhere, whose images lie in `path`; "" for the source's
    # own layout.
    annotations: str = ""
    # Groups of classes: "coco_48_17" and "scenes" (novel, base), "lvis" (rare, common, frequent, by
    # LVIS's metrics), "trained" (base: what the detector was trained on), a text file with the base
    # classes, one a line (novel: all others of the data), or "none" for one group of all classes.
    class_split: str = "coco_48_17"
    # Short side and cap of the long side, in pixels; None keeps images as they are.
    short_side: int | None = 800
    max_long_side: int | None = 1333
    # As of captions.
    resize_method: ResizeMethod = "bilinear_round"
    # As of training.
    canvas_sizes: tuple[tuple[int, int], ...] = PAPER_CANVASES
    # Images of the global batch.
    batch_size: Count = 1
    # Rows for ground-truth boxes of an image; more in one image are an error. (Images of COCO have
    # less than 100, those of LVIS more than 300.)
    max_boxes: int = 100
    # Threads that read and decode, in each process.
    num_threads: Count = 8
    # The run stops when more than this share of the images, or of the annotations, could not be
    # used.
    fault_fraction: float = 0.0
