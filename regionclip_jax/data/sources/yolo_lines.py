"""Lines of YOLO's label files: ``class`` and numbers in fractions of the image.

The numbers are one of:

- ``cx cy width height``;
- such a box with keypoints, if ``kpt_shape`` of the YAML file gives their number and columns;
- a polygon of at least three points, which gives a box.

Numbers that may be a polygon or a box with further columns (confidence and track, keypoints) are
refused.
"""

import math
import pathlib
from typing import NamedTuple

# Fractions are at most 1, apart from rounding; far larger values are in pixels.
_LARGEST_SHARE = 1.5
# Labelling tools round, so the points of a polygon may lie this far outside the image.
_ROUNDING = 0.01
# Numbers of a box, and of a triangle.
_OF_BOX, _OF_TRIANGLE = 4, 6


class LineError(ValueError):
    """A line cannot be read.

    Args:
        kind: the reason, as a key for counts.
    """

    def __init__(self, kind: str):
        super().__init__(kind)
        self.kind = kind


class Labelled(NamedTuple):
    """Box ``(x1, y1, x2, y2)`` in fractions of the image, and its class."""

    corners: tuple[float, float, float, float]
    category: int


class LabelLines:
    """Read the lines of a data set, and judge its polygons together: they may be further columns.

    A traced polygon has any number of points, and its first four numbers are rarely a box in the
    image that holds all the others. If all polygons have one length and such a box, they are
    refused.

    Args:
        num_classes: number of classes.
        columns: columns of keypoints after each box (``keypoint_columns``).
    """

    def __init__(self, num_classes: int, columns: int):
        self._num_classes, self._columns = num_classes, columns
        self._first: str | None = None
        self._lengths: set[int] = set()
        self._may_be_columns = True

    def read(self, line: str, name: str) -> Labelled:
        """Return the box of a line; ``name`` names the line in messages.

        Raises:
            LineError: the line is none of the forms above.
        """
        try:
            number, *values = (float(word) for word in line.split())
        except ValueError as error:
            raise LineError("malformed") from error
        if not all(map(math.isfinite, values)) or number not in range(self._num_classes):
            raise LineError("malformed")
        if self._columns or len(values) == _OF_BOX:
            return Labelled(self._box(values), int(number))
        if len(values) < _OF_TRIANGLE or len(values) % 2:
            raise LineError("that_are_neither_box_nor_polygon")
        if not all(-_ROUNDING <= value <= 1 + _ROUNDING for value in values):
            raise LineError("of_polygons_outside_0_to_1")
        may_be_columns = _may_be_columns(values)
        if len(values) == _OF_TRIANGLE and may_be_columns and {0.0, 1.0} & set(values[_OF_BOX:]):
            raise LineError("of_a_box_with_confidence_and_track_or_a_triangle")
        self._first = self._first or name
        self._lengths.add(len(values))
        self._may_be_columns &= may_be_columns and len(self._lengths) == 1
        x, y = values[::2], values[1::2]
        return Labelled((min(x), min(y), max(x), max(y)), int(number))

    def _box(self, values: list[float]) -> tuple[float, float, float, float]:
        if len(values) != _OF_BOX + self._columns:
            raise LineError("without_the_columns_of_kpt_shape")
        box = values[:_OF_BOX]
        if min(box[2:]) < 0 or max(map(abs, box)) > _LARGEST_SHARE:
            raise LineError("malformed")
        return _corners(box)

    def require_polygons(self, where: pathlib.Path) -> None:
        """Raise ValueError if all polygons may be boxes; ``where`` names the label files."""
        if self._first is None or not self._may_be_columns:
            return
        (length,) = self._lengths
        raise ValueError(
            f"{where}: each line of more than {_OF_BOX} numbers has {length}, and its first four "
            f"may be a box and the others further columns, as in {self._first}. Remove such "
            f"columns; for keypoints write kpt_shape: [{(length - _OF_BOX) // 2}, 2] into "
            "the YAML file; for polygons repeat the first point of one of them at its end"
        )


def keypoint_columns(shape: object, where: object) -> int:
    """Return the number of columns of keypoints after a box, from ``kpt_shape`` of a YAML file.

    Args:
        shape: value of the key; None without it.
        where: names the file in the error.

    Raises:
        ValueError: the value is not [number of keypoints, 2 or 3].
    """
    match shape:
        case None:
            return 0
        case [int(number), 2 | 3 as columns] if number > 0:
            return number * columns
    raise ValueError(
        f"{where}: kpt_shape: expected [number of keypoints, 2 or 3], found {str(shape)[:60]}"
    )


def _corners(box: list[float]) -> tuple[float, float, float, float]:
    cx, cy, width, height = box
    return cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2


def _may_be_columns(values: list[float]) -> bool:
    """Return True if the first four numbers are a box in the image, and the others no more points.

    Two others may have any value, more may be keypoints, which the box holds.
    """
    low, high = -_ROUNDING, 1 + _ROUNDING
    x1, y1, x2, y2 = _corners(values[:_OF_BOX])
    if min(x1, y1) < low or max(x2, y2) > high:
        return False
    if len(values) == _OF_TRIANGLE:
        return True
    points = zip(values[_OF_BOX::2], values[_OF_BOX + 1 :: 2], strict=True)
    return all(
        # A keypoint at the origin is not visible.
        (x, y) == (0, 0) or (x1 + low <= x <= x2 - low and y1 + low <= y <= y2 - low)
        for x, y in points
    )
