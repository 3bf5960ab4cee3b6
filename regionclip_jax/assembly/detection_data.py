"""Build the training set of a detector or localizer from settings, and its stream of batches."""

from collections.abc import Iterator
from pathlib import Path

import jax
from absl import logging

from regionclip_jax.assembly.sources import build_boxes_source
from regionclip_jax.assembly.streams import assign_buckets, counted
from regionclip_jax.data.loading.examples import Shard
from regionclip_jax.data.loading.order import epoch_order, repeat_factors
from regionclip_jax.data.loading.pipeline import detection_training_batches
from regionclip_jax.data.loading.training_set import TrainingSet
from regionclip_jax.data.sources.skipped import SkipCounter
from regionclip_jax.evaluation.datasets import LVIS_SPLIT, SPLITS, class_groups, classes_with_boxes
from regionclip_jax.settings import BoxDataSettings, ConfigError, config_context
from regionclip_jax.structures import DetectionBatch
from regionclip_jax.text.names import match_names, read_names

_ALL, _WITH_BOXES = "all", "with_boxes"
# Base classes by name: a split of ``evaluation.datasets`` and its groups.
_BASE = {f"{name}_base": (name, ("base",)) for name, groups in SPLITS.items() if "base" in groups}
_BASE |= {
    "coco_base": ("coco_48_17", ("base",)),
    "lvis_base": (LVIS_SPLIT, ("common", "frequent")),
}


def build_training_set(settings: BoxDataSettings, mask_size: int | None) -> TrainingSet:
    """Return the images with boxes of the trained classes; log the skipped ones.

    Raises:
        ConfigError: a class that the data lack, an image with too many boxes, or no boxes.
    """
    source = build_boxes_source(settings, "data", mask_size)
    names = _class_names(settings, source)
    with config_context("data"):
        training_set = TrainingSet(source, names, max_boxes=settings.max_boxes)
    report = ", ".join(f"{count} {what}" for what, count in training_set.report.items())
    logging.info("%r: %d classes; %s", training_set, len(names), report)
    if training_set.classes_without_box:
        logging.warning(
            "%d classes have no box to learn from: %s",
            len(training_set.classes_without_box),
            ", ".join(training_set.classes_without_box[:10]),
        )
    return training_set


def _class_names(settings: BoxDataSettings, source) -> tuple[str, ...]:
    if settings.classes == _ALL:
        return tuple(source.category_names)
    if settings.classes == _WITH_BOXES:
        found = classes_with_boxes(source)
        return tuple(name for i, name in enumerate(source.category_names) if i in found)
    if settings.classes in _BASE:
        split, groups = _BASE[settings.classes]
        with config_context(f"data.classes: {settings.classes!r}"):
            found = class_groups(source, split, chosen=groups)
        # In the order of the source, not of the groups.
        rows = sorted(row for group in groups for row in found[group])
        return tuple(source.category_names[row] for row in rows)
    path = Path(settings.classes)
    if not path.is_file():
        raise ConfigError(
            f"data.classes: {settings.classes!r} is neither a file nor one of "
            f"{sorted([_ALL, _WITH_BOXES, *_BASE])}; give a text file, one class a line"
        )
    with config_context("data.classes"):
        return match_names(read_names(path), source.category_names)


def stream(
    settings: BoxDataSettings,
    training_set: TrainingSet,
    *,
    batch_size: int,
    seed: int,
    start_record: int,
) -> Iterator[DetectionBatch]:
    """Yield this process's batches from a record count on; count and limit skipped records."""
    repeats = None
    with config_context("data"):
        if settings.repeat_threshold is not None:
            repeats = repeat_factors(
                [training_set.classes_of(i) for i in range(len(training_set))],
                len(training_set.category_names),
                settings.repeat_threshold,
            )
        buckets = assign_buckets(settings, training_set)
        counter = SkipCounter(settings.max_skipped_fraction, settings.min_skipped_records)
        batches = detection_training_batches(
            training_set,
            settings,
            Shard(batch_size, jax.process_index(), jax.process_count()),
            order=epoch_order(
                len(training_set),
                seed=seed,
                batch_size=batch_size,
                repeats=repeats,
                buckets=None if buckets is None else buckets.numbers,
            ),
            seed=seed,
            start_record=start_record,
            buckets=buckets,
        )
    return counted(batches, counter, lambda batch, texts: len(batch.mask), "data")
