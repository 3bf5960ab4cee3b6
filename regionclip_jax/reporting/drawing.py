"""Draw boxes with labels on an image.

Colour and line style (dashed = wrong) both encode the kind of a mark, for black-and-white prints
and colour-blind readers. The colours are those of Okabe and Ito.
"""

import colorsys
import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from regionclip_jax.reporting.lettering import draw_text, text_height, text_width

Kind = Literal["right", "wrong", "unjudged"]
COLOURS: dict[str, tuple[int, int, int]] = {
    "right": (0, 143, 104),
    "wrong": (206, 84, 0),
    "unjudged": (0, 102, 170),
}
# Colours of the first classes: Okabe and Ito's and similar ones, dark enough for
# white letters.
CLASS_COLOURS: tuple[tuple[int, int, int], ...] = (
    (0, 102, 170), (206, 84, 0), (0, 128, 96), (170, 60, 130), (140, 100, 0), (90, 60, 160),
    (0, 120, 150), (176, 32, 48), (70, 110, 20), (110, 80, 60),
)  # fmt: skip
# Luminance of a colour that has the contrast 4.5 with white letters (WCAG 2.1), and a little less.
_MOST_LUMINANCE = 0.18
_HALO = (255, 255, 255)
_LABEL_TEXT = (255, 255, 255)
_LEGEND_TEXT = (31, 36, 43)
_DASH = 5  # in line widths: dash and gap
Rectangle = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Mark:
    """Box with a label. ``box`` is xyxy in pixels of the image; without ``colour`` it has the
    colour of its kind."""

    box: Sequence[float | int]
    text: str
    kind: Kind = "unjudged"
    colour: tuple[int, int, int] | None = None


def draw_marks(
    image: np.ndarray, marks: Sequence[Mark], *, width: int | None = None
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Draw boxes and labels; labels avoid each other if there is space.

    Args:
        image: RGB uint8 [H, W, 3].
        marks: drawn in order; later ones are on top.
        width: width of the result in pixels; the image is resized first, so that lines and letters
            stay sharp on small images. None keeps the size.

    Returns:
        A new image of the same aspect ratio.

    Raises:
        ValueError: the image is not uint8 [H, W, 3].
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"drawing: expected a uint8 RGB image [H, W, 3], found {image.dtype} "
            f"{list(image.shape)}"
        )
    canvas = Image.fromarray(image)
    scale = 1.0 if width is None else width / canvas.width
    if width is not None:
        size = (width, max(1, round(canvas.height * scale)))
        canvas = canvas.resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    line, letters = line_width(canvas.size), letter_size(canvas.size)
    boxes = [_inside(mark.box, scale, canvas.size) for mark in marks]
    for mark, box in zip(marks, boxes, strict=True):
        _draw_box(draw, box, mark, line)
    placed: list[Rectangle] = []
    for mark, box in zip(marks, boxes, strict=True):
        if mark.text:
            placed.append(_draw_label(draw, mark, box, letters, line, canvas.size, placed))
    return np.asarray(canvas).copy()


def class_colour(row: int) -> tuple[int, int, int]:
    """Return the colour of a class by its row in the vocabulary; every class has its own.

    After ``CLASS_COLOURS`` follow hues in steps of the golden ratio, dark enough for white letters.
    """
    if row < len(CLASS_COLOURS):
        return CLASS_COLOURS[row]
    hue = (row * (math.sqrt(5) - 1) / 2) % 1
    value = 0.85 - 0.3 * ((row * 0.7548776662) % 1)
    while True:
        colour = colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * ((row * 0.5698402910) % 1), value)
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] <= _MOST_LUMINANCE:
            red, green, blue = (round(255 * c) for c in colour)
            return red, green, blue
        value *= 0.97


def add_legend(
    image: UInt8[np.ndarray, "H W 3"], entries: Sequence[tuple[str, tuple[int, int, int]]]
) -> UInt8[np.ndarray, "H2 W 3"]:
    """Return the image with a strip below it that has a text and a colour for each class.

    Args:
        entries: text and colour, in order; a text that is wider than the image is cut.
    """
    height, width = image.shape[:2]
    letters = letter_size((width, height))
    line, gap = text_height(letters) + letters // 2, letters
    places, x, row = [], gap, 0
    for text, _ in entries:
        needed = letters + gap // 2 + text_width(text, letters)
        if x > gap and x + needed + gap > width:
            x, row = gap, row + 1
        places.append((x, row))
        x += needed + 2 * gap
    strip = Image.new("RGB", (width, (row + 1) * line + letters // 2), _HALO)
    draw = ImageDraw.Draw(strip)
    for (text, colour), (x, row) in zip(entries, places, strict=True):
        middle = letters // 4 + (row + 0.5) * line
        draw.rectangle((x, middle - letters / 2, x + letters, middle + letters / 2), fill=colour)
        draw_text(draw, (x + letters + gap // 2, middle), text, _LEGEND_TEXT, letters)
    return np.concatenate([image, np.asarray(strip)])


def score_text(score: float, is_probability: bool) -> str:
    """Return a score for a label: a percentage if it is a probability, else a plain number."""
    return f"{score:.0%}" if is_probability else f"{score:.2f}"


def line_width(size: tuple[int, int]) -> int:
    """Return the width of lines: thin on large images, whose reader zooms out, but visible."""
    return max(2, round(min(min(size) / 110, 2 + min(size) / 300)))


def letter_size(size: tuple[int, int]) -> int:
    """Return the size of letters, a sixtieth to a twentieth of the image's short side."""
    return max(11, round(min(min(size) / 21, 10 + min(size) / 60)))


def _inside(box, scale: float, size: tuple[int, int]) -> Rectangle:
    x1, y1, x2, y2 = (float(value) * scale for value in box)
    right, bottom = size[0] - 1.0, size[1] - 1.0
    x1, y1 = min(max(x1, 0.0), right), min(max(y1, 0.0), bottom)
    return x1, y1, min(max(x2 - 1, x1), right), min(max(y2 - 1, y1), bottom)


def _draw_box(draw: ImageDraw.ImageDraw, box: Rectangle, mark: Mark, line: int) -> None:
    colour = _colour(mark)
    x1, y1, x2, y2 = box
    halo = (x1 - 1, y1 - 1, x2 + 1, y2 + 1)
    draw.rectangle(halo, outline=_HALO, width=line + 2)
    if mark.kind != "wrong":
        draw.rectangle(box, outline=colour, width=line)
        return
    for start, end in _dashes(x1, x2, _DASH * line):
        draw.rectangle((start, y1, end, min(y1 + line - 1, y2)), fill=colour)
        draw.rectangle((start, max(y2 - line + 1, y1), end, y2), fill=colour)
    for start, end in _dashes(y1, y2, _DASH * line):
        draw.rectangle((x1, start, min(x1 + line - 1, x2), end), fill=colour)
        draw.rectangle((max(x2 - line + 1, x1), start, x2, end), fill=colour)


def _colour(mark: Mark) -> tuple[int, int, int]:
    return mark.colour or COLOURS[mark.kind]


def _dashes(start: float, end: float, period: int) -> list[tuple[float, float]]:
    """Return the dashes of a line: every other of an odd number of parts, so corners are closed."""
    parts = max(1, 2 * round((end - start) / (2 * period)) + 1)
    edges = np.linspace(start, end, parts + 1)
    return [(float(edges[i]), float(edges[i + 1])) for i in range(0, parts, 2)]


def _draw_label(draw, mark, box, letters, line, size, placed) -> Rectangle:
    pad = max(3, letters // 4)
    width, height = text_width(mark.text, letters) + 2 * pad, text_height(letters) + pad
    x, y = _label_corner(box, width, height, line, size, placed)
    rectangle = (x, y, x + width, y + height)
    draw.rounded_rectangle(rectangle, radius=pad, fill=_colour(mark))
    draw_text(draw, (x + pad, y + height / 2), mark.text, _LABEL_TEXT, letters)
    return rectangle


def _label_corner(box, width, height, line, size, placed) -> tuple[float, float]:
    """Return a label's top left corner above, in or below its box, with the least overlap."""
    x1, y1, x2, y2 = box
    lefts = (x1, x2 - width)
    tops = (y1 - height - 1, y1 + line + 1, y2 - line - 1 - height, y2 + 2)
    candidates = [
        (min(max(x, 0.0), max(size[0] - width - 1.0, 0.0)), y)
        for y in tops
        for x in lefts
        if 0 <= y and y + height < size[1]
    ]
    if not candidates:
        candidates = [(min(max(x1, 0.0), max(size[0] - width - 1.0, 0.0)), 0.0)]

    def covered(corner) -> float:
        x, y = corner
        return math.fsum(
            max(0.0, min(x + width, r[2]) - max(x, r[0]))
            * max(0.0, min(y + height, r[3]) - max(y, r[1]))
            for r in placed
        )

    return min(candidates, key=covered)  # the first of the least covered
