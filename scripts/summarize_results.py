"""Summarize several results.json as a Markdown table of means and standard deviations.

python scripts/summarize_results.py workdir/seed0 workdir/seed1 workdir/seed2
python scripts/summarize_results.py workdir/seed* --compare CLIP RegionCLIP --write all.json

The columns are the models of the runs, and the difference of two models if there are only two, or
with --compare. --write stores the means, and each run with its recipe, in one results.json; the
analysis of errors, which is long, stays in the runs.
"""

import argparse
from pathlib import Path

from regionclip_jax.artifacts.results import read_results, write_results
from regionclip_jax.reporting.runs import mean_metrics, runs_table

_NOT_MODELS = ("format", "details")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=Path, help="folders with a results.json")
    parser.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="two models")
    parser.add_argument("--write", type=Path, help="results.json to write, of all runs")
    arguments = parser.parse_args()
    paths = [folder / "results.json" for folder in arguments.workdirs]
    try:
        runs = [read_results(path) for path in paths]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    models = [name for name in runs[0] if name not in _NOT_MODELS]
    for path, run in zip(paths, runs, strict=True):
        if set(run) != set(runs[0]):
            found = [name for name in run if name not in _NOT_MODELS]
            parser.error(f"{path}: models {found}, but {paths[0]} has {models}; give runs of one")
    compared = arguments.compare or (models if len(models) == 2 else None)
    if compared and (unknown := set(compared) - set(models)):
        parser.error(f"--compare: {sorted(unknown)} are none of the models {models}")

    differences = {}
    if compared:
        head = "difference" if len(models) == 2 else " - ".join(compared[::-1])
        differences[head] = tuple(compared)
    print(runs_table(runs, models, differences))

    if arguments.write:
        for run in runs:
            run.get("details", {}).pop("errors", None)
        details = {"what": f"means of {len(runs)} runs", "runs": runs}
        write_results(arguments.write, mean_metrics(runs, models), details=details)
        print(f"\nwritten: {arguments.write}")


if __name__ == "__main__":
    main()
