"""Text of a run: tables of metrics, its settings, its parameters."""

import json
from collections.abc import Mapping

from clu import parameter_overview

_MISSING = "-"
_DIGITS = 1


def comparison_table(models: Mapping[str, Mapping[str, float | None]]) -> str:
    """Compare models, ``{"teacher": {"AP50_novel": 31.4, ...}, "student": {...}}``.

    Args:
        models: columns in order. Metrics appear in the order of their first occurrence; None or a
            missing metric is shown as ``-``.

    Returns:
        The table without a final line break. With exactly two models a last column holds the second
        minus the first, signed.

    Raises:
        ValueError: no models.
    """
    if not models:
        raise ValueError("table: no models to compare; pass at least one column")
    names = list(models)
    rows = [["", *names]]
    if len(names) == 2:
        rows[0].append("difference")
    for metric in dict.fromkeys(metric for column in models.values() for metric in column):
        values = [models[name].get(metric) for name in names]
        row = [metric, *(_number(value) for value in values)]
        if len(names) == 2:
            row.append(_difference(values))
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], rule, *lines[1:]])


def _number(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.{_DIGITS}f}"


def _difference(values: list[float | None]) -> str:
    if None in values:
        return _MISSING
    # From the rounded numbers, so that the difference agrees with the shown columns.
    difference = round(values[1], _DIGITS) - round(values[0], _DIGITS)
    return f"{difference:+.{_DIGITS}f}"


def _aligned(row: list[str], widths: list[int]) -> list[str]:
    first, *rest = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]


def settings_text(settings: Mapping[str, object]) -> str:
    """Format nested settings, one ``name: value`` per line, indented by section."""
    return "\n".join(_lines(settings, indent=0))


def parameters_text(params) -> str:
    """Return a table of the parameters by path: shape, dtype, number; the total below.

    Args:
        params: nested dict of arrays or ``jax.ShapeDtypeStruct``.
    """
    return parameter_overview.get_parameter_overview(params, include_stats=False)


def as_markdown(text: str) -> str:
    """Wrap text so that it keeps its columns in TensorBoard's Markdown view."""
    return f"```\n{text}\n```"


def _lines(settings: Mapping[str, object], indent: int) -> list[str]:
    lines = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            lines.append(f"{'  ' * indent}{name}:")
            lines += _lines(value, indent + 1)
        else:
            shown = value if isinstance(value, str) else json.dumps(value, default=str)
            lines.append(f"{'  ' * indent}{name}: {shown}")
    return lines
