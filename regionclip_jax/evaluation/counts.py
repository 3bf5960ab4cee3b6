"""Counts of an evaluation: the images, boxes and classes of a number, and the exceptions.

A number without them cannot be checked: a class without ground truth still competes for every
region, and an image without objects makes every detection on it wrong.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from regionclip_jax.data.sources.skipped import describe

_NUM_NAMED = 10
_NUM_REASONS = 3


class Counts(NamedTuple):
    """Images, boxes and classes that enter a number."""

    images: int
    # Part of ``images``; only AP has false detections there.
    images_without_boxes: int
    boxes: int
    # Group -> {"classes": ..., "classes_with_boxes": ..., "boxes": ...}.
    groups: dict[str, dict[str, int]]
    # Names of the classes without a box.
    classes_without_boxes: list[str]
    # Number of images or boxes by what happens to them, such as {"crowd_boxes_ignored": 3}.
    exceptions: dict[str, int]


def count(
    classes: Iterable[Sequence[int]],
    groups: Mapping[str, Set[int]],
    *,
    names: Sequence[str] = (),
    exceptions: Mapping[str, int] | None = None,
) -> Counts:
    """Count the boxes of images.

    Args:
        classes: class index of each box, for each image.
        groups: name -> class indices; the last one is "all".
        names: by class index; empty names no class.
        exceptions: as in ``Counts``; those that are 0 are dropped.
    """
    per_image = [np.asarray(some, np.int64) for some in classes]
    per_class = np.bincount(np.concatenate([*per_image, np.zeros(0, np.int64)]))
    boxes = {index: int(number) for index, number in enumerate(per_class) if number}
    return Counts(
        images=len(per_image),
        images_without_boxes=sum(not some.size for some in per_image),
        boxes=sum(boxes.values()),
        groups={
            group: {
                "classes": len(members),
                "classes_with_boxes": len(members & boxes.keys()),
                "boxes": sum(boxes.get(index, 0) for index in members),
            }
            for group, members in groups.items()
        },
        classes_without_boxes=[name for index, name in enumerate(names) if index not in boxes],
        exceptions={what: number for what, number in (exceptions or {}).items() if number},
    )


class Coverage(NamedTuple):
    """Counts of the numbers of an evaluation, and its skipped records.

    ``counts`` has an entry for each number, such as "AP". ``skipped`` is
    ``assembly.streams.DetectionPass.report``.
    """

    counts: dict[str, Counts]
    skipped: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        counts = {number: found._asdict() for number, found in self.counts.items()}
        return {**counts, "skipped": self.skipped}

    def text(self) -> str:
        """Return a line for each number, for the data, and for the classes without boxes."""
        lines = [_number_text(number, found) for number, found in self.counts.items()]
        if data := {what: n for what, n in self.skipped.get("data", {}).items() if n}:
            lines.append(f"data: {describe(data, {})}")
        if number := self.skipped.get("skipped_records"):
            reasons = "; ".join(self.skipped["reasons"][:_NUM_REASONS])
            more = "; ..." if number > _NUM_REASONS else ""
            lines.append(f"records that could not be read: {number} ({reasons}{more})")
        absent = next((f.classes_without_boxes for f in self.counts.values()), [])
        if absent:
            shown = ", ".join(absent[:_NUM_NAMED]) + (", ..." if len(absent) > _NUM_NAMED else "")
            lines.append(
                f"classes without boxes: {len(absent)} ({shown}). They have no number of their "
                "own, but compete with the others for every region; "
                "--config.evaluation.classes=with_boxes leaves them out"
            )
        return "\n".join(lines)


def coverage_text(coverages: Mapping[str, Coverage]) -> str:
    """Format the coverage of several models; models with the same text share it."""
    models: dict[str, list[str]] = {}
    for model, coverage in coverages.items():
        models.setdefault(coverage.text(), []).append(model)
    parts = []
    for text, names in models.items():
        head = f"counted for {', '.join(names)}:"
        parts.append("\n  ".join([head, *text.splitlines()]))
    return "\n".join(parts)


def _number_text(number: str, found: Counts) -> str:
    groups = "; ".join(
        f"{group}: {each['boxes']} boxes, {each['classes_with_boxes']} of {each['classes']} classes"
        for group, each in found.groups.items()
    )
    without = found.images_without_boxes
    images = f"{found.images} images" + (f" ({without} without boxes)" if without else "")
    exceptions = f"; {describe(found.exceptions, {})}" if found.exceptions else ""
    return f"{number}: {images}; {groups}{exceptions}"
