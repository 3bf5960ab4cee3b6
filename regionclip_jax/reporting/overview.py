"""Format the settings and parameters of a run as text."""

import json
from collections.abc import Mapping

from clu import parameter_overview


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
