"""Several runs of the same models: means, and a Markdown table with standard deviations."""

import statistics
from collections.abc import Mapping, Sequence

# In the order of the rows.
METRICS = ("AP50_novel", "AP50_base", "AP50_all", "top1_novel", "top1_base", "top1_all")
_DIGITS = 1

# Metrics by model.
Run = Mapping[str, Mapping[str, float | None]]


def shared_metrics(runs: Sequence[Run], models: Sequence[str]) -> list[str]:
    """Return the ``METRICS`` that all models have in all runs."""
    return [
        metric
        for metric in METRICS
        if all(run[model].get(metric) is not None for run in runs for model in models)
    ]


def mean_metrics(runs: Sequence[Run], models: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the means of the shared metrics by model."""
    metrics = shared_metrics(runs, models)
    return {
        model: {metric: statistics.mean(_values(runs, model, metric)) for metric in metrics}
        for model in models
    }


def runs_table(
    runs: Sequence[Run], models: Sequence[str], differences: Mapping[str, tuple[str, str]]
) -> str:
    """Return the shared metrics as Markdown, a column for each model and for each difference.

    Args:
        models: of the first columns.
        differences: heading -> two models, the second minus the first of the same run.
    """
    title = f"{len(runs)} run{'s' * (len(runs) != 1)}, mean ± standard deviation"
    heads = [*models, *differences]
    lines = [f"| {title} | {' | '.join(heads)} |", "|---" + "|---:" * len(heads) + "|"]
    compared = dict.fromkeys([*models, *(name for pair in differences.values() for name in pair)])
    for metric in shared_metrics(runs, list(compared)):
        cells = [_cell(_values(runs, model, metric)) for model in models]
        for before, after in differences.values():
            pairs = zip(_values(runs, before, metric), _values(runs, after, metric), strict=True)
            cells.append(_cell([b - a for a, b in pairs], sign="+"))
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _values(runs: Sequence[Run], model: str, metric: str) -> list[float]:
    values = (run[model][metric] for run in runs)
    return [value for value in values if value is not None]


def _cell(values: list[float], sign: str = "") -> str:
    # One value has no deviation.
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.{_DIGITS}f} ± {deviation:.{_DIGITS}f}"
