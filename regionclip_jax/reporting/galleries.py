"""Draw grids of images: the same scene with the predictions of several models."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from regionclip_jax.files import replaced_file
from regionclip_jax.reporting.drawing import COLOURS, Mark, draw_marks
from regionclip_jax.reporting.lettering import draw_text, text_width

PAPER, INK, FAINT, RULE = (255, 255, 255), (31, 36, 43), (105, 114, 125), (222, 226, 231)
MARGIN = 28  # around the page
_GAP = 16  # between the images of one example
_GUTTER = 46  # between examples
_LINE = 20  # of the subtitle
_PANEL_WIDTH = 300
_PANELS_PER_ROW = 4  # at most; a row holds whole examples, at least one
_LEGEND = {"right": "right", "wrong": "wrong", "unjudged": "not judged"}


@dataclasses.dataclass(frozen=True)
class Panel:
    """Image (RGB uint8 [H, W, 3]) with the marks of one model, in pixels of the image."""

    image: np.ndarray
    marks: tuple[Mark, ...] = ()


def draw_gallery(
    examples: Sequence[Sequence[Panel]],
    *,
    columns: Sequence[str],
    title: str,
    subtitle: str = "",
    rows: Sequence[str] = (),
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw examples in a grid, each as a group of panels with one panel per model.

    The caption of a panel is its model and, if boxes are judged, the number of right ones.

    Args:
        examples: for each example, a panel for each of ``columns``; one image shape per row.
        columns: names of the models, e.g. ``("teacher", "student")``.
        title: title of the page.
        subtitle: text below the title, such as metrics, wrapped to the page.
        rows: headings of the first rows.

    Returns:
        The page, RGB.

    Raises:
        ValueError: no examples, or an example whose number of panels differs from the columns.
    """
    if not examples:
        raise ValueError("gallery: no examples; pass at least one")
    for number, example in enumerate(examples):
        if len(example) != len(columns):
            raise ValueError(
                f"gallery: example {number} has {len(example)} panels, expected one for each of "
                f"{tuple(columns)}"
            )
    tiles = [
        [draw_marks(panel.image, panel.marks, width=_PANEL_WIDTH) for panel in example]
        for example in examples
    ]
    per_row = min(max(_PANELS_PER_ROW // len(columns), 1), len(examples))
    starts = range(0, len(examples), per_row)
    heights = [max(t.shape[0] for tile in tiles[i : i + per_row] for t in tile) for i in starts]
    group_width = len(columns) * _PANEL_WIDTH + (len(columns) - 1) * _GAP
    caption_height, heading = 27, 34 if rows else 0
    kinds = [k for k in COLOURS if any(m.kind == k for e in examples for p in e for m in p.marks)]
    inner_width = per_row * group_width + (per_row - 1) * _GUTTER
    head = _Head(title, subtitle, kinds, inner_width)
    width = 2 * MARGIN + max(inner_width, head.width)
    height = head.height + _GUTTER // 2
    height += sum(heading + h + caption_height + _GUTTER // 2 for h in heights)

    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    head.draw(draw, width)
    y = head.height
    for start, row_height in zip(starts, heights, strict=True):
        if rows:
            name = rows[start // per_row] if start // per_row < len(rows) else ""
            draw_text(draw, (MARGIN, y + heading // 2 - 2), name, INK, 20)
            y += heading
        for place, number in enumerate(range(start, min(start + per_row, len(examples)))):
            for column, name in enumerate(columns):
                x = MARGIN + place * (group_width + _GUTTER) + column * (_PANEL_WIDTH + _GAP)
                tile = Image.fromarray(tiles[number][column])
                _draw_caption(draw, x, y, tile.width, name, examples[number][column].marks)
                page.paste(tile, (x, y + caption_height))
                edge = (x, y + caption_height, x + tile.width - 1, y + caption_height + tile.height)
                draw.rectangle((*edge[:3], edge[3] - 1), outline=RULE)
        y += row_height + caption_height + _GUTTER // 2
    return np.asarray(page).copy()


def write_png(path: str | Path, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write an image as PNG; create missing directories."""
    with replaced_file(path) as file:
        Image.fromarray(image).save(file, format="PNG")


def _draw_caption(draw, x: int, y: int, width: int, name: str, marks: Sequence[Mark]) -> None:
    middle = y + 13
    draw_text(draw, (x, middle), name, INK, 16)
    judged = [mark for mark in marks if mark.kind != "unjudged"]
    if judged:
        right = sum(mark.kind == "right" for mark in judged)
        colour = COLOURS["right"] if right == len(judged) else FAINT
        text = f"{right} of {len(judged)} right"
        draw_text(draw, (x + width - text_width(text, 14), middle), text, colour, 14)


class _Head:
    """Title, subtitle and the legend of the kinds of marks that occur."""

    def __init__(self, title: str, subtitle: str, kinds: Sequence[str], width: int):
        self._title, self._kinds = title, kinds
        self._legend_width = sum(self._entry_width(kind) for kind in kinds)
        self.width = round(text_width(title, 26) + self._legend_width)
        self._lines = broken_lines(subtitle, max(width, self.width))
        self.height = MARGIN + 36 + _LINE * len(self._lines) + (18 if self._lines else 12)

    def draw(self, draw: ImageDraw.ImageDraw, width: int) -> None:
        draw_text(draw, (MARGIN, MARGIN + 14), self._title, INK, 26)
        for number, line in enumerate(self._lines):
            place = (MARGIN, MARGIN + 46 + _LINE * number)
            draw_text(draw, place, line, FAINT, 15)
        x = width - MARGIN - self._legend_width
        y = MARGIN + 14
        for kind in self._kinds:
            x += 22
            if kind == "wrong":
                for left in (0, 8, 16):
                    draw.rectangle((x + left, y - 1, x + left + 4, y + 2), fill=COLOURS[kind])
            else:
                draw.rectangle((x, y - 1, x + 20, y + 2), fill=COLOURS[kind])
            draw_text(draw, (x + 28, y), _LEGEND[kind], INK, 15)
            x += self._entry_width(kind) - 22

    @staticmethod
    def _entry_width(kind: str) -> int:
        return round(50 + text_width(_LEGEND[kind], 15))


def broken_lines(text: str, width: int) -> list[str]:
    """Wrap text to lines; a word longer than a line, such as a path, is split."""
    lines: list[str] = []

    def length(text: str) -> float:
        return text_width(text, 15)

    for word in text.split():
        if lines and length(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if length(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
