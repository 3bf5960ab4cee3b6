"""Draw charts of horizontal bars in groups, each bar with its text, in columns on a page."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from regionclip_jax.reporting.galleries import FAINT, INK, MARGIN, PAPER, RULE, broken_lines
from regionclip_jax.reporting.lettering import draw_text, text_width

Colour = tuple[int, int, int]
_BAR, _BAR_GAP, _GROUP_GAP = 15, 4, 15  # heights
_LONGEST = 300  # bar
_GAP = 14  # between label, bar and text
_GUTTER = 56  # between charts
_LINE = 20  # of the subtitle
_TITLE, _TEXT, _NOTE = 26, 15, 13  # sizes of letters


@dataclasses.dataclass(frozen=True)
class Bar:
    """Parts with a length of at least 0 and a colour; the text stands behind them."""

    parts: tuple[tuple[float, Colour], ...]
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Group:
    """Bars with a label, and a note below it."""

    label: str
    note: str
    bars: tuple[Bar, ...]


@dataclasses.dataclass(frozen=True)
class Chart:
    """Groups of bars on one scale, with a legend of the colours."""

    title: str
    legend: Mapping[str, Colour]
    groups: tuple[Group, ...]


def draw_charts(
    columns: Sequence[Sequence[Chart]], *, title: str, subtitle: str = ""
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw columns of charts on a page.

    Args:
        columns: at least one, each with at least one chart.
        title: title of the page.
        subtitle: text below the title, wrapped to the page.

    Returns:
        The page, RGB.
    """
    layouts = [[_Layout(chart) for chart in column] for column in columns]
    widths = [max(layout.width for layout in column) for column in layouts]
    inner = max(sum(widths) + _GUTTER * (len(widths) - 1), round(text_width(title, _TITLE)))
    lines = broken_lines(subtitle, inner)
    top = MARGIN + 36 + _LINE * len(lines) + 18
    bottom = max(sum(layout.height for layout in column) for column in layouts)
    page = Image.new("RGB", (inner + 2 * MARGIN, top + bottom + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    draw_text(draw, (MARGIN, MARGIN + 14), title, INK, _TITLE)
    for number, line in enumerate(lines):
        draw_text(draw, (MARGIN, MARGIN + 46 + _LINE * number), line, FAINT, _TEXT)
    x = MARGIN
    for column, width in zip(layouts, widths, strict=True):
        y = top
        for layout in column:
            layout.draw(draw, x, y, width)
            y += layout.height
        x += width + _GUTTER
    return np.asarray(page).copy()


class _Layout:
    def __init__(self, chart: Chart):
        self._chart = chart
        bars = [bar for group in chart.groups for bar in group.bars]
        labels = [text_width(group.label, _TEXT) for group in chart.groups]
        notes = [text_width(group.note, _NOTE) for group in chart.groups]
        self._left = round(max([*labels, *notes, 0])) + _GAP
        self._scale = _LONGEST / (max([_length(bar) for bar in bars], default=0) or 1)
        ends = [_length(bar) * self._scale + _GAP + text_width(bar.text, _NOTE) for bar in bars]
        legend = sum(30 + text_width(name, _NOTE) for name in chart.legend)
        self.width = round(
            max(self._left + max(ends, default=0), legend, text_width(chart.title, _TEXT))
        )
        self._heights = [
            max(len(group.bars) * (_BAR + _BAR_GAP), 2 * _LINE) + _GROUP_GAP
            for group in chart.groups
        ]
        self._top = 2 * _LINE + 22
        self.height = self._top + sum(self._heights)

    def draw(self, draw: ImageDraw.ImageDraw, x: int, y: int, width: int) -> None:
        draw_text(draw, (x, y + 8), self._chart.title, INK, _TEXT)
        place = float(x)
        for name, colour in self._chart.legend.items():
            draw.rectangle((place, y + 28, place + 11, y + 39), fill=colour)
            draw_text(draw, (place + 17, y + 34), name, INK, _NOTE)
            place += 30 + text_width(name, _NOTE)
        y += self._top
        start = x + self._left
        for group, height in zip(self._chart.groups, self._heights, strict=True):
            line = y - _GROUP_GAP // 2
            draw.line((x, line, x + width, line), fill=RULE)
            draw_text(draw, (x, y + _BAR // 2), group.label, INK, _TEXT)
            draw_text(draw, (x, y + _BAR // 2 + 18), group.note, FAINT, _NOTE)
            for number, bar in enumerate(group.bars):
                self._draw_bar(draw, bar, start, y + number * (_BAR + _BAR_GAP))
            y += height

    def _draw_bar(self, draw: ImageDraw.ImageDraw, bar: Bar, x: float, y: int) -> None:
        for length, colour in bar.parts:
            end = x + length * self._scale
            if round(end) > round(x):
                draw.rectangle((round(x), y, round(end) - 1, y + _BAR - 1), fill=colour)
            x = end
        draw_text(draw, (x + _GAP // 2, y + _BAR // 2), bar.text, INK, _NOTE)


def _length(bar: Bar) -> float:
    return sum(length for length, _ in bar.parts)
