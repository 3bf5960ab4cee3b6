"""Open sources of records from settings."""

import dataclasses
from pathlib import Path

from absl import logging

from regionclip_jax.data.loading.mixing import Mixture
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.array_record_format import DETECTION, IMAGE_TEXT
from regionclip_jax.data.sources.caption_table import CaptionTableSource
from regionclip_jax.data.sources.coco_folder import CocoCaptionsSource, CocoInstancesSource
from regionclip_jax.data.sources.image_folder import ImageFolderSource
from regionclip_jax.data.sources.lvis_folder import LvisInstancesSource
from regionclip_jax.data.sources.pascal_voc import PascalVocSource
from regionclip_jax.data.sources.skipped import describe
from regionclip_jax.data.sources.tfds import TfdsBoxesSource, TfdsCaptionsSource
from regionclip_jax.data.sources.tsv_pairs import TsvPairsSource
from regionclip_jax.data.sources.webdataset import WebDatasetSource
from regionclip_jax.data.sources.yolo_labels import YoloLabelsSource
from regionclip_jax.settings import (
    BoxDataSettings,
    CaptionDataSettings,
    ConfigError,
    EvaluatedImages,
    ImageDataSettings,
    choose,
    config_context,
)

_WITH_MASKS = ("coco_folder", "lvis_folder")


@dataclasses.dataclass(frozen=True)
class SourceChoice:
    """Settings that select and open a source; fields as in the data settings."""

    source: str
    path: str
    split: str
    max_skipped_fraction: float
    min_skipped_records: int = 100
    annotations: str = ""


def build_image_text_source(settings: CaptionDataSettings):
    """Return the source of a recipe, or its mixture of sources."""
    if not settings.mixture:
        return open_image_text_source(settings, "data")
    sources = [
        open_image_text_source(
            SourceChoice(part.source, part.path, part.split, settings.max_skipped_fraction),
            f"data.mixture[{number}]",
        )
        for number, part in enumerate(settings.mixture)
    ]
    with config_context("data.mixture"):
        mixture = Mixture(sources, [part.weight for part in settings.mixture])
    logging.info("mixture: of %d records %s", sum(mixture.shares), mixture.shares)
    return mixture


def build_image_source(settings: ImageDataSettings):
    """Return a source of images alone, or one with captions that are not read."""
    if settings.source != "image_folder":
        choice = SourceChoice(
            settings.source, settings.path, settings.split, settings.max_skipped_fraction
        )
        return open_image_text_source(choice, "data")
    _require_path(settings.path, settings.source, "data.path")
    with config_context("data"):
        source = ImageFolderSource(settings.path)
    _introduce(source, "data.path")
    return source


def open_image_text_source(settings: CaptionDataSettings | SourceChoice, key: str):
    """Open a source of images with captions.

    Args:
        key: key of the settings, for errors.
    """
    path, split = settings.path, settings.split
    share = {"max_skipped_fraction": settings.max_skipped_fraction}
    makers = {
        "array_record": lambda: ArrayRecordSource(path),
        "caption_table": lambda: CaptionTableSource(path, **share),
        "coco_folder": lambda: CocoCaptionsSource(path, split, **share),
        "tfds": lambda: TfdsCaptionsSource(path, split),
        "tsv_pairs": lambda: TsvPairsSource(path),
        "webdataset": lambda: WebDatasetSource(path, **share),
    }
    make = choose(makers, settings.source, f"{key}.source")
    _require_path(path, settings.source, f"{key}.path")
    with config_context(key):
        source = make()
    _require_kind(source, IMAGE_TEXT, f"{key}.path")
    _introduce(source, f"{key}.path")
    return source


def build_boxes_source(
    settings: EvaluatedImages | BoxDataSettings | SourceChoice,
    key: str,
    mask_size: int | None = None,
    keep_file: bool = False,
):
    """Open a source of images with boxes, for training or evaluation.

    Args:
        key: key of the settings, for errors.
        mask_size: side of the object masks in cells; None reads none.
        keep_file: keep the content of an annotation file, for its official metrics.
    """
    path, split = settings.path, settings.split
    share = {"max_skipped_fraction": settings.max_skipped_fraction}
    annotations = settings.annotations or None
    makers = {
        "array_record": lambda: ArrayRecordSource(path),
        "coco_folder": lambda: CocoInstancesSource(
            path, split, annotations=annotations, mask_size=mask_size, keep_file=keep_file, **share
        ),
        "lvis_folder": lambda: LvisInstancesSource(
            path, split, mask_size=mask_size, keep_file=keep_file, **share
        ),
        "pascal_voc": lambda: PascalVocSource(path, split, **share),
        "tfds": lambda: TfdsBoxesSource(path, split),
        "yolo_labels": lambda: YoloLabelsSource(path, split, **share),
    }
    make = choose(makers, settings.source, f"{key}.source")
    if annotations and settings.source != "coco_folder":
        raise ConfigError(f"{key}.annotations: only source 'coco_folder' takes a file of its own")
    if mask_size is not None and settings.source not in _WITH_MASKS:
        raise ConfigError(f"detector.mask_size: {settings.source} has no masks; set it to None")
    _require_path(path, settings.source, f"{key}.path")
    with config_context(key):
        source = make()
    _require_kind(source, DETECTION, f"{key}.path")
    _introduce(source, f"{key}.path")
    return source


def _require_path(path: str, source: str, key: str) -> None:
    if not path or not Path(path).exists():
        raise ConfigError(
            f"{key}: {path!r} does not exist; give the path of your {source} data, e.g. "
            f"--config.{key}=PATH"
        )


def _require_kind(source, kind: str, key: str) -> None:
    found = getattr(source, "kind", kind)
    if found != kind:
        raise ConfigError(f"{key}: {source!r} holds {found} records; give a folder of {kind} ones")


def _introduce(source, key: str) -> None:
    """Log a source's counts, including skipped entries; refuse one without records."""
    report = describe(getattr(source, "report", {}), getattr(source, "named", {}))
    logging.info("%r: %d records%s", source, len(source), f"; {report}" if report else "")
    if not len(source):
        raise ConfigError(f"{key}: {source!r} has no record that can be used; {report or 'empty'}")
