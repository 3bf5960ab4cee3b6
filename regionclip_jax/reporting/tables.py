"""Tables of metrics: rows of metrics, columns of models, and the difference of two models."""

from collections.abc import Mapping
from typing import Literal

_MISSING = "-"


def comparison_table(
    models: Mapping[str, Mapping[str, float | None]],
    *,
    style: Literal["text", "markdown"] = "text",
    digits: int = 1,
) -> str:
    """Compare models, ``{"teacher": {"AP50_novel": 31.4, ...}, "student": {...}}``.

    Args:
        models: columns in order. Metrics appear in the order of their first occurrence; None or a
            missing metric is shown as ``-``.
        style: ``"text"`` for a terminal, ``"markdown"`` for a README.
        digits: decimal places.

    Returns:
        The table without a final line break. With exactly two models a last column holds the second
        minus the first, signed.

    Raises:
        ValueError: no models, or an unknown style.
    """
    if not models:
        raise ValueError("table: no models to compare; pass at least one column")
    names = list(models)
    rows = [["", *names]]
    if len(names) == 2:
        rows[0].append("difference")
    for metric in dict.fromkeys(metric for column in models.values() for metric in column):
        values = [models[name].get(metric) for name in names]
        row = [metric, *(_number(value, digits) for value in values)]
        if len(names) == 2:
            row.append(_difference(values, digits))
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    if style == "text":
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
        return "\n".join([lines[0], rule, *lines[1:]])
    if style == "markdown":
        lines = [f"| {' | '.join(_aligned(row, widths))} |" for row in rows]
        rule = "|".join(
            "-" * (width + 2) if i == 0 else "-" * (width + 1) + ":"
            for i, width in enumerate(widths)
        )
        return "\n".join([lines[0], f"|{rule}|", *lines[1:]])
    raise ValueError(f"table: style must be 'text' or 'markdown', found {style!r}")


def _number(value: float | None, digits: int) -> str:
    return _MISSING if value is None else f"{value:.{digits}f}"


def _difference(values: list[float | None], digits: int) -> str:
    if None in values:
        return _MISSING
    # From the rounded numbers, so that the difference agrees with the shown columns.
    difference = round(values[1], digits) - round(values[0], digits)
    return f"{difference:+.{digits}f}"


def _aligned(row: list[str], widths: list[int]) -> list[str]:
    first, *rest = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
