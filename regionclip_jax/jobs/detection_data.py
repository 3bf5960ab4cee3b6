"""Build the training set of a detector or localizer from settings, and its stream of batches."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import logging

from regionclip_jax.data.loading.examples import Shard
from regionclip_jax.data.loading.order import epoch_order, repeat_factors
from regionclip_jax.data.loading.pipeline import detection_training_batches
from regionclip_jax.data.loading.training_set import TrainingSet
from regionclip_jax.data.scenes.vocabulary import BASE_SHAPES
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.data.sources.skipped import SkipCounter
from regionclip_jax.jobs.assembly import blame
from regionclip_jax.jobs.streams import assign_buckets, build_boxes_source, counted
from regionclip_jax.settings import BoxDataSettings, ConfigError
from regionclip_jax.structures import DetectionBatch
from regionclip_jax.text.categories import COCO_BASE_48, lvis_groups, read_lvis_categories

_ALL, _WITH_BOXES, _LVIS_BASE = "all", "with_boxes", "lvis_base"
_BASE = {"coco_base": COCO_BASE_48, "scenes_base": tuple(BASE_SHAPES)}


def build_training_set(settings: BoxDataSettings, mask_size: int | None) -> TrainingSet:
    """Return the images with boxes of the trained classes; log the skipped ones.

    Raises:
        ConfigError: a class that the data lack, an image with too many boxes, or no boxes.
    """
    source = build_boxes_source(settings, "data", mask_size)
    names = _class_names(settings, source)
    with blame("data"):
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
        found = set()
        for index in range(len(source)):
            # An unreadable record is counted when it is sampled.
            with contextlib.suppress(RecordError):
                _, classes, crowd = source.annotations(index)
                found.update(classes[~crowd].tolist())
        return tuple(name for i, name in enumerate(source.category_names) if i in found)
    if settings.classes in _BASE:
        wanted = set(_BASE[settings.classes])
        if missing := sorted(wanted - set(source.category_names)):
            raise ConfigError(
                f"data.classes: {settings.classes!r} names {missing[:5]}, which {source!r} does "
                "not have; choose 'all', or a text file with your base classes, one a line"
            )
        # In the order of the annotation file, not of the list.
        return tuple(name for name in source.category_names if name in wanted)
    if settings.classes == _LVIS_BASE:
        with blame("data.classes"):
            groups = lvis_groups(read_lvis_categories(source.annotations_path))
        wanted = {*groups["common"], *groups["frequent"]}
        return tuple(name for name in source.category_names if name in wanted)
    path = Path(settings.classes)
    if not path.is_file():
        raise ConfigError(
            f"data.classes: {settings.classes!r} is neither a file nor one of "
            f"{sorted([_ALL, _WITH_BOXES, _LVIS_BASE, *_BASE])}; give a text file, one class a line"
        )
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return tuple(name for name in names if name)


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
    with blame("data"):
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
