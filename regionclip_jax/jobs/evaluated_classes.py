"""Classes of an evaluation: names, ids, groups, and batches without other classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regionclip_jax.data.scenes.vocabulary import BASE_SHAPES, NOVEL_SHAPES
from regionclip_jax.jobs.assembly import config_context
from regionclip_jax.settings import ConfigError, EvaluatedImages
from regionclip_jax.structures import DetectionBatch
from regionclip_jax.text.categories import (
    COCO_BASE_48,
    COCO_NOVEL_17,
    lvis_groups,
    read_lvis_categories,
)
from regionclip_jax.text.prompts import prepare_class_name

LVIS, TRAINED = "lvis", "trained"
_SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "scenes": {"novel": tuple(NOVEL_SHAPES), "base": tuple(BASE_SHAPES)},
    "coco_48_17": {"novel": COCO_NOVEL_17, "base": COCO_BASE_48},
    "none": {},
    # The annotation file assigns every class to one of the three groups.
    LVIS: {},
}


class Classes(NamedTuple):
    """Evaluated classes: ``groups`` by class index, ``source_rows`` are rows in the source."""

    names: tuple[str, ...]
    source_names: tuple[str, ...]
    ids: tuple[int, ...]
    source_rows: tuple[int, ...]
    groups: dict[str, set[int]]


def choose_classes(
    source, settings: EvaluatedImages, trained: Sequence[str] | None = None
) -> Classes:
    """Return the source's classes, or those of the split.

    Args:
        trained: training classes of the detector or localizer, if known.

    Raises:
        ConfigError: the split names classes that the source lacks, or is not of its kind.
    """
    source_names = tuple(source.category_names)
    if not source_names:
        raise ConfigError(f"evaluation.path: {source!r} names no categories; use detection data")
    ids = tuple(getattr(source, "category_ids", range(1, len(source_names) + 1)))
    groups = _groups(settings.class_split, source_names, trained)
    wanted = {name for members in groups.values() for name in members}
    if unknown := sorted(wanted - set(source_names)):
        raise ConfigError(
            f"evaluation.class_split: {settings.class_split!r} names {unknown[:5]}, which "
            f"{source!r} does not have; choose another split or 'none'"
        )
    rows = [row for row, name in enumerate(source_names) if not wanted or name in wanted]
    chosen = tuple(source_names[row] for row in rows)
    names = tuple(prepare_class_name(name) for name in chosen)
    if settings.class_split == LVIS:
        groups, searched = _frequencies(source), names
    else:
        searched = chosen
    by_index = {
        group: {searched.index(name) for name in members} for group, members in groups.items()
    }
    return Classes(
        names=names,
        source_names=chosen,
        ids=tuple(int(ids[row]) for row in rows),
        source_rows=tuple(rows),
        groups=by_index | {"all": set(range(len(chosen)))},
    )


def _groups(
    split: str, source_names: tuple[str, ...], trained: Sequence[str] | None
) -> dict[str, tuple[str, ...]]:
    if split == TRAINED:
        if trained is None:
            raise ConfigError(
                "evaluation.class_split: 'trained' needs a detector or localizer that was trained "
                "here, and this model does not say on which classes; choose another split"
            )
        known = {prepare_class_name(name) for name in trained}
        base = tuple(name for name in source_names if prepare_class_name(name) in known)
    elif (path := Path(split)).is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        base = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    elif split in _SPLITS:
        return _SPLITS[split]
    else:
        raise ConfigError(
            f"evaluation.class_split: {split!r} is neither a file nor one of "
            f"{sorted([TRAINED, *_SPLITS])}; give a text file with the base classes, one a line"
        )
    novel = tuple(name for name in source_names if name not in base)
    return {group: names for group, names in (("novel", novel), ("base", base)) if names}


def _frequencies(source) -> dict[str, tuple[str, ...]]:
    path = getattr(source, "annotations_path", None)
    if path is None:
        raise ConfigError(
            f"evaluation.class_split: 'lvis' needs an LVIS annotation file, which {source!r} does "
            "not have; use source 'lvis_folder', or another split"
        )
    with config_context("evaluation.path"):
        return lvis_groups(read_lvis_categories(path))


def keep_only(batch: DetectionBatch, classes: Classes) -> DetectionBatch:
    """Return the batch without boxes of other classes; its classes index ``classes``."""
    index = np.full(max(classes.source_rows) + 2, -1)
    index[list(classes.source_rows)] = np.arange(len(classes.source_rows))
    mapped = index[np.minimum(batch.classes, len(index) - 1)]
    keep = batch.box_mask & (mapped >= 0)
    return batch.replace(classes=np.where(keep, mapped, 0).astype(np.int32), box_mask=keep)
