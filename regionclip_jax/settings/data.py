"""Settings of data: sources, image sizes, batches, limits of skipped records, and scenes."""

import dataclasses
from typing import Literal

from regionclip_jax.settings.fields import (
    ConfigError,
    Count,
    PartOfSide,
    Positive,
    Section,
    Seed,
    Share,
    Side,
    Tokens,
    Whole,
    Workers,
    may_change,
    require_ascending,
)

ResizeMethod = Literal["bicubic_truncate", "bicubic_uncapped", "bilinear_round"]
CaptionSource = Literal[
    "coco_folder", "caption_table", "webdataset", "tsv_pairs", "tfds", "array_record"
]
# A folder of image files, or a source of captions, which are not used.
ImageSource = Literal["image_folder", CaptionSource]
BoxSource = Literal[
    "coco_folder", "lvis_folder", "pascal_voc", "yolo_labels", "tfds", "array_record"
]
EvaluatedClasses = Literal["all", "with_boxes"]
# Multiples of 32 that hold every image of the paper's resize: 4:3 images, all longer ones, and the
# mixed batch at the end of an epoch. With COCO's sizes 8.4% of the pixels are padding, without the
# 4:3 canvases 17%, with ungrouped batches 51% (docs/static_shapes.md).
PAPER_CANVASES = ((800, 1088), (1088, 800), (800, 1344), (1344, 800), (1344, 1344))


@dataclasses.dataclass(frozen=True)
class MixturePart(Section):
    """One of several sources, each sampled in its own epochs."""

    # As in the data settings.
    source: CaptionSource
    path: str = may_change()
    split: str = ""
    # Share of the records: this weight over the sum of all weights, for sources of any length.
    weight: Positive = 1.0


@dataclasses.dataclass(frozen=True)
class LoadingSettings(Section):
    """Batching of records, and limits of skipped records."""

    # Static canvas sizes (height, width); a batch takes the smallest that holds all its images.
    # Each size is one more compilation; docs/static_shapes.md measures the benefit.
    canvas_sizes: tuple[tuple[Side, Side], ...] = PAPER_CANVASES
    # Group images that need the same canvas into batches, if the source knows sizes without opening
    # images. Several processes need this for several canvases.
    group_by_canvas: bool = True
    # Probability of a mirrored image.
    flip_probability: Share = 0.5
    # Threads that read and decode, in each process and each worker.
    num_threads: Workers = may_change(16)
    # Worker processes; 0 reads in threads of the training process.
    num_workers: Workers = may_change(0)
    # The run stops if more than this share of a source's entries, or of the records read, is
    # skipped. A web-scale set has broken files; a run should tolerate a few and report them.
    max_skipped_fraction: Share = may_change(0.01)
    # The share of skipped records is checked from this number of skipped records on.
    min_skipped_records: Whole = may_change(100)


@dataclasses.dataclass(frozen=True)
class CaptionDataSettings(LoadingSettings):
    """Images with captions, as batches."""

    # Format of the source: docs/data_sources.md.
    source: CaptionSource = "coco_folder"
    # Folder (or table, or .tsv file) of the source.
    path: str = may_change("")
    # Split of a COCO folder or of TFDS, e.g. "train2017"; "" for the other sources.
    split: str = ""
    # Several sources instead of the one above, whose path is then ""; () uses that one. For example
    # (dict(source="array_record", path="data/cc3m", weight=3), dict(source="coco_folder",
    # path="data/coco", split="train2017", weight=1)).
    mixture: tuple[MixturePart, ...] = ()
    # Short sides, of which one is drawn for each sample, and the largest long side, in pixels; None
    # keeps the sizes of images. (The reference's pretraining has one short side.)
    short_sides: tuple[Side, ...] | None = (800,)
    max_long_side: Side | None = 1333
    # "bicubic_truncate" (the reference's pretraining), "bicubic_uncapped" (the same, with its bug
    # for long images) or "bilinear_round" (its detection).
    resize_method: ResizeMethod = "bicubic_truncate"
    # Mirror also images whose caption mentions left or right, like the reference (3 of 1,000
    # captions of COCO).
    flip_directional_captions: bool = True
    # Tokens a caption is cut or padded to, at most 77; a cut caption keeps its end token.
    context_length: Tokens = 77

    def __post_init__(self):
        super().__post_init__()
        if self.mixture and self.path:
            raise ConfigError(
                f"path: {self.path!r} beside mixture, which has its own paths; set path to '' or "
                "mixture to ()"
            )


@dataclasses.dataclass(frozen=True)
class ImageDataSettings(LoadingSettings):
    """Images alone, as batches."""

    # "image_folder", or a source of images with captions, which are not used: docs/data_sources.md.
    source: ImageSource = "coco_folder"
    # Folder (or table, or .tsv file) of the source.
    path: str = may_change("")
    # Split of a COCO folder or of TFDS, e.g. "train2017"; "" for the other sources.
    split: str = ""
    # As in the settings of captions. Equal numbers give the longest side of every image.
    short_sides: tuple[Side, ...] | None = (1024,)
    max_long_side: Side | None = 1024
    # As in the settings of captions.
    resize_method: ResizeMethod = "bicubic_truncate"


@dataclasses.dataclass(frozen=True)
class BoxDataSettings(LoadingSettings):
    """Images with boxes, as batches for training."""

    # Format of the source: docs/data_sources.md.
    source: BoxSource = "coco_folder"
    # Folder of the source.
    path: str = may_change("")
    # Split, e.g. "train2017"; "" if the source has none.
    split: str = ""
    # Annotation file in COCO's format at any path, for the images in `path`; "" for the source's
    # own layout.
    annotations: str = may_change("")
    # Trained classes: "all"; the classes "with_boxes" in the file, so that a class without boxes is
    # novel; the base classes "coco_base" (48), "lvis_base" (866), or "NAME_base" of a named split;
    # or a text file with one name per line. Boxes of other classes are ignored.
    classes: str = "coco_base"
    # Short sides, of which one is drawn for each sample, and the largest long side, in pixels; None
    # keeps the sizes of images.
    short_sides: tuple[Side, ...] | None = (640, 672, 704, 736, 768, 800)
    max_long_side: Side | None = 1333
    # Large-scale jitter instead of short sides: smallest and largest image scale relative to the
    # canvas.
    jitter: tuple[Positive, Positive] | None = None
    # As in the settings of captions.
    resize_method: ResizeMethod = "bilinear_round"
    # Box rows of an image; an image with more boxes is refused at the start. (Images of COCO have
    # less than 100.)
    max_boxes: Count = 100
    # Images of classes in less than this share of the images are repeated (LVIS: 0.001); None
    # repeats none.
    repeat_threshold: Share | None = None
    # As in the settings of captions; annotated sets have few broken files.
    max_skipped_fraction: Share = may_change(0.001)
    min_skipped_records: Whole = may_change(10)

    def __post_init__(self):
        super().__post_init__()
        require_ascending(self, "jitter")


@dataclasses.dataclass(frozen=True)
class EvaluatedImages(Section):
    """Images with boxes, evaluated in one pass."""

    # Format of the source: docs/data_sources.md.
    source: BoxSource = "coco_folder"
    # Folder of the source.
    path: str = ""
    # Split, e.g. "val2017"; "" if the source has none.
    split: str = ""
    # Annotation file in COCO's format at any path, for the images in `path`; "" for the source's
    # own layout.
    annotations: str = ""
    # Groups of classes: a named split of evaluation.datasets, such as "coco_48_17" (novel, base) or
    # "none" for one group; "lvis" (rare, common, frequent); "trained" (base: classes the detector
    # was trained on); or a text file with the base classes, one per line (novel: all others of the
    # data). The metric is that of the data: LVIS's for files in its format, else COCO's.
    class_split: str = "coco_48_17"
    # Short side and largest long side, in pixels; None keeps the sizes of images.
    short_side: Side | None = 800
    max_long_side: Side | None = 1333
    # As in the settings of captions.
    resize_method: ResizeMethod = "bilinear_round"
    # As in training.
    canvas_sizes: tuple[tuple[Side, Side], ...] = PAPER_CANVASES
    # Images of the global batch.
    batch_size: Count = 1
    # Ground-truth box rows of an image; more boxes in one image are an error. (Images of COCO have
    # less than 100, those of LVIS more than 300.)
    max_boxes: Count = 100
    # Threads that read and decode, in each process.
    num_threads: Workers = 8
    # The run stops if more than this share of the images, or of the annotations, is skipped.
    max_skipped_fraction: Share = 0.0


@dataclasses.dataclass(frozen=True)
class ScenesSettings(Section):
    """Synthetic scenes (data.scenes)."""

    # Seed of every draw.
    seed: Seed = 0
    # Side of the square images in pixels.
    side: Side = 96
    # Close-ups of single objects, like the web images of a CLIP.
    num_closeups: Count = 8000
    # Scenes of several smaller objects, for pretraining RegionCLIP.
    num_scenes: Count = 6000
    # Held-out scenes for the test.
    num_test: Count = 800
    # Smallest and largest number of objects of an image, and their size as a share of the side.
    closeup_objects: tuple[Count, Count] = (1, 1)
    closeup_sizes: tuple[PartOfSide, PartOfSide] = (0.4, 0.95)
    scene_objects: tuple[Count, Count] = (2, 4)
    scene_sizes: tuple[PartOfSide, PartOfSide] = (0.3, 0.55)
    # Largest overlap of two objects, as a share of the smaller one.
    overlap: Share = 0.2
    # Probability that an object has its category's typical colour, and likewise its texture.
    typicality: Share = 0.8
    # Number of distractor lines behind the objects.
    clutter: Whole = 5

    def __post_init__(self):
        super().__post_init__()
        require_ascending(self, "closeup_objects", "closeup_sizes", "scene_objects", "scene_sizes")
