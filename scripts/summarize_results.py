"""Mean and spread over runs: a Markdown table from several results.json.

python scripts/summarize_results.py workdir/seed0 workdir/seed1 workdir/seed2
"""

import argparse
import statistics
from pathlib import Path

from regionclip_jax.artifacts.results import read_results

METRICS = ("AP50_novel", "AP50_base", "AP50_all", "top1_novel", "top1_base", "top1_all")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=Path, help="folders that hold a results.json")
    arguments = parser.parse_args()
    runs = [read_results(folder / "results.json") for folder in arguments.workdirs]
    print(f"| {len(runs)} runs, mean ± standard deviation | teacher | student | difference |")
    print("|---|---:|---:|---:|")
    for metric in METRICS:
        columns = [[run[model][metric] for run in runs] for model in ("teacher", "student")]
        columns.append([after - before for before, after in zip(*columns, strict=True)])
        cells = [_cell(values) for values in columns[:2]] + [_cell(columns[2], signed=True)]
        print(f"| {metric} | {' | '.join(cells)} |")


def _cell(values: list[float], signed: bool = False) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{'+' if signed else ''}.1f} ± {spread:.1f}"


if __name__ == "__main__":
    main()
