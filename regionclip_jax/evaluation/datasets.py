"""Data sets of an evaluation: a source with its classes, their groups, and the official metric.

Data in a known layout need no entry here: a source states its classes and its metric. A named split
of classes is one entry of ``SPLITS``.
"""

import contextlib
import dataclasses
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from regionclip_jax.data.scenes.vocabulary import BASE_SHAPES, NOVEL_SHAPES
from regionclip_jax.data.sources.records import RecordError, Source
from regionclip_jax.evaluation.ground_truth import (
    GroundTruth,
    coco_ground_truth,
    keep_categories,
    lvis_ground_truth,
)
from regionclip_jax.settings import ConfigError, EvaluatedClasses
from regionclip_jax.structures import DetectionBatch
from regionclip_jax.text.categories import COCO_BASE_48, COCO_NOVEL_17
from regionclip_jax.text.names import read_names, tokenized_text
from regionclip_jax.text.prompts import prepare_class_name

Metric = Literal["coco", "lvis"]

# Named splits of classes: group -> names. "lvis" and "trained" depend on the data or the model.
SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "scenes": {"novel": tuple(NOVEL_SHAPES), "base": tuple(BASE_SHAPES)},
    "coco_48_17": {"novel": COCO_NOVEL_17, "base": COCO_BASE_48},
    "none": {},
}
LVIS_SPLIT, TRAINED_SPLIT = "lvis", "trained"
LVIS_GROUPS = {"r": "rare", "c": "common", "f": "frequent"}


class _HasCategories(Protocol):
    @property
    def category_names(self) -> Sequence[str]: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images with boxes, and what their evaluation needs; classes are indices into ``names``."""

    source: Source
    # Names in words, for prompts, and as in the source.
    names: tuple[str, ...]
    source_names: tuple[str, ...]
    # Category ids of the results.
    ids: tuple[int, ...]
    # Classes of the source.
    source_rows: tuple[int, ...]
    # Group -> classes; the last one is "all".
    groups: Mapping[str, frozenset[int]]
    metric: Metric
    # The split names a part of the source's classes: images without their boxes do not count, as in
    # the reference.
    is_part: bool

    def ground_truth(self) -> GroundTruth | None:
        """Return the checked content of the annotation file; None if the source has no file.

        The file has areas and crowds, which batches lack.

        Raises:
            ConfigError: the file does not fit the metric.
        """
        file = getattr(self.source, "annotation_file", None)
        if file is None:
            return None
        check = {"coco": coco_ground_truth, "lvis": lvis_ground_truth}[self.metric]
        try:
            return check(file)
        except ValueError as error:
            raise ConfigError(f"evaluation.path: {error}") from error

    def keep_ground_truth(self, truth: GroundTruth) -> GroundTruth:
        """Return the ground truth of the evaluated classes and of the images that count."""
        if len(self.names) == len(truth.categories) and not self.is_part:
            return truth
        return keep_categories(truth, self.source_names, keep_images=not self.is_part)

    def keep_classes(self, batch: DetectionBatch) -> DetectionBatch:
        """Return the batch without boxes of other classes; its classes index ``names``."""
        index = np.full(max(self.source_rows) + 2, -1)
        index[list(self.source_rows)] = np.arange(len(self.source_rows))
        mapped = index[np.minimum(batch.classes, len(index) - 1)]
        keep = batch.box_mask & (mapped >= 0)
        return batch.replace(classes=np.where(keep, mapped, 0).astype(np.int32), box_mask=keep)


def open_dataset(
    source: Source,
    split: str,
    trained: Sequence[str] | None = None,
    classes: EvaluatedClasses = "all",
) -> Dataset:
    """Return the source as a data set, with the classes of the split or all classes.

    Args:
        source: detection records with ``category_names``; perhaps ``category_ids``, ``metric`` and
            ``annotation_file`` (``data.sources.boxed_images``).
        split: as ``class_groups``.
        trained: training classes of the detector or localizer, if known.
        classes: "with_boxes" leaves out the classes without a box, which needs the annotations of
            all records.

    Raises:
        ConfigError: the source names no categories, or the split does not fit it.
    """
    source_names = tuple(source.category_names)
    if not source_names:
        raise ConfigError(f"evaluation.path: {source!r} names no categories; use detection data")
    ids = tuple(getattr(source, "category_ids", range(1, len(source_names) + 1)))
    metric = getattr(source, "metric", "coco")
    try:
        groups = class_groups(source, split, trained)
    except ValueError as error:
        raise ConfigError(f"evaluation.class_split: {error}") from error
    wanted = sorted({row for rows in groups.values() for row in rows})
    rows = tuple(wanted or range(len(source_names)))
    is_part = len(rows) < len(source_names)
    if metric == "lvis" and (is_part or classes != "all"):
        raise ConfigError(
            f"evaluation.class_split: {split!r} with evaluation.classes {classes!r} has "
            f"{len(rows) if is_part else 'a part'} of the {len(source_names)} classes of "
            f"{source!r}, but LVIS's metric needs all; choose class_split 'lvis', or a file of "
            "base classes, and classes 'all'"
        )
    if classes == "with_boxes":
        with_boxes = classes_with_boxes(source)
        rows = tuple(row for row in rows if row in with_boxes)
        if not rows:
            raise ConfigError(
                f"evaluation.classes: no class of {source!r} and the split {split!r} has a box; "
                "give annotated images, or set it to 'all'"
            )
    names = tuple(prepare_class_name(source_names[row]) for row in rows)
    words = [tokenized_text(name) for name in names]
    if len(set(words)) < len(words):
        double = next(word for word in words if words.count(word) > 1)
        raise ConfigError(
            f"evaluation.path: {words.count(double)} classes of {source!r} are {double!r} in "
            "words; give each its own name"
        )
    index = {row: i for i, row in enumerate(rows)}
    by_index = {
        group: frozenset(index[row] for row in members if row in index)
        for group, members in groups.items()
    }
    # A group without a class has no number.
    by_index = {group: members for group, members in by_index.items() if members}
    return Dataset(
        source=source,
        names=names,
        source_names=tuple(source_names[row] for row in rows),
        ids=tuple(int(ids[row]) for row in rows),
        source_rows=rows,
        groups=by_index | {"all": frozenset(range(len(rows)))},
        metric=metric,
        is_part=is_part,
    )


def classes_with_boxes(source) -> set[int]:
    """Return the classes with a box that is no crowd, from the annotations of all records."""
    found: set[int] = set()
    for index in range(len(source)):
        # An unreadable record is counted when it is sampled.
        with contextlib.suppress(RecordError):
            _, classes, crowd = source.annotations(index)
            found.update(classes[~crowd].tolist())
    return found


def class_groups(
    source: _HasCategories,
    split: str,
    trained: Sequence[str] | None = None,
    chosen: Container[str] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Return the groups of a split: name -> classes of the source, in its order.

    Names are compared as the tokenizer reads them: "hot_dog" in the data is "hot dog" in a list.

    Args:
        source: its ``category_names`` and, for "lvis", its ``frequencies``.
        split: a name of ``SPLITS``; "lvis" (rare, common, frequent); "trained" (base: the classes
            of ``trained``); or a text file with the base classes, one per line (novel: the others).
        chosen: groups of a named split, whose classes the source must have; None means all.

    Raises:
        ValueError: no such split, or it names classes that the source lacks.
    """
    words = [tokenized_text(name) for name in source.category_names]
    if split == LVIS_SPLIT:
        return _by_frequency(source)
    if split == TRAINED_SPLIT:
        if trained is None:
            raise ValueError(
                "'trained' needs a detector or localizer that was trained here, and this model "
                "does not say on which classes; choose another split"
            )
        known = {tokenized_text(name) for name in trained}
        return _base_and_novel(words, known & set(words))
    if (path := Path(split)).is_file():
        base = {tokenized_text(name) for name in read_names(path)}
        _require_known(source, split, base - set(words))
        return _base_and_novel(words, base)
    if split not in SPLITS:
        raise ValueError(
            f"{split!r} is neither a file nor one of {sorted([LVIS_SPLIT, TRAINED_SPLIT, *SPLITS])}"
            "; give a text file with the base classes, one a line"
        )
    groups = {
        group: {tokenized_text(name) for name in names}
        for group, names in SPLITS[split].items()
        if chosen is None or group in chosen
    }
    for names in groups.values():
        _require_known(source, split, names - set(words))
    return {
        group: tuple(row for row, name in enumerate(words) if name in names)
        for group, names in groups.items()
    }


def _by_frequency(source: _HasCategories) -> dict[str, tuple[int, ...]]:
    frequencies = getattr(source, "frequencies", ())
    if not frequencies:
        raise ValueError(
            f"'lvis' needs an LVIS annotation file, which {source!r} does not have; use source "
            "'lvis_folder', or another split"
        )
    return {
        group: tuple(row for row, letter in enumerate(frequencies) if letter == wanted)
        for wanted, group in LVIS_GROUPS.items()
    }


def _base_and_novel(words: Sequence[str], base: set[str]) -> dict[str, tuple[int, ...]]:
    groups = {
        "novel": tuple(row for row, name in enumerate(words) if name not in base),
        "base": tuple(row for row, name in enumerate(words) if name in base),
    }
    return {group: rows for group, rows in groups.items() if rows}


def _require_known(source: _HasCategories, split: str, unknown: set[str]) -> None:
    if unknown:
        raise ValueError(
            f"{split!r} names {sorted(unknown)[:5]}, which {source!r} does not have; choose "
            "another, or a text file with your base classes, one a line"
        )
