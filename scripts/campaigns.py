#!/usr/bin/env python3
"""Try to break the promises of SECURITY.md, and count.

  python scripts/campaigns.py --quick                 some trials of every campaign
  python scripts/campaigns.py kills --workdir DIR     kill -9 at random moments, then resume
  python scripts/campaigns.py signals --workdir DIR   SIGTERM and SIGINT at random moments
  python scripts/campaigns.py damage --workdir DIR    damaged checkpoints, models and shards
  python scripts/campaigns.py fuzz --workdir DIR      mutated records and images
  python scripts/campaigns.py attacks --workdir DIR   files that were made to do harm

Without a name all campaigns run in full. The seed and the number of a trial decide all of it: after
"BROKEN kills pretrain 17", `kills --only "pretrain 17"` repeats that trial. A start with the same
--workdir goes on with the trials that are missing. The exit status is 1 if any promise is broken.
Needs Linux.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Trainings of seconds mostly compile. JAX reads both when it is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from absl import logging  # noqa: E402

from campaigns import attacks, damage, fuzz, kills, trainings  # noqa: E402
from campaigns.children import Limits, Trial, run_trials  # noqa: E402
from campaigns.report import Progress, Results, attack_table, table  # noqa: E402

# Trials of all parts together: in full, and with --quick.
COUNTS = {
    "kills": (100, 1),
    "signals": (25, 1),
    "damage": (300, 8),
    "fuzz": (10_000, 20),  # of fuzz.NUM_RECORDS records each
    "attacks": (len(attacks.trials()), 40),
}
PARTS = {
    "kills": trainings.NAMES,
    "signals": trainings.NAMES,
    "damage": damage.PARTS,
    "fuzz": fuzz.PARTS,
    "attacks": tuple(attacks.READERS),
}
WITH_TRAININGS = ("kills", "signals", "damage")
# Campaigns and parts whose trials fork commands, which have a limit of time each; the others run in
# workers, which start the threads of Orbax.
WITH_COMMANDS = {
    *((name, part) for name in ("kills", "signals") for part in trainings.NAMES),
    ("damage", "checkpoints"),
}
# Longer than a trial takes on a loaded machine; a trial beyond it counts as a hang.
_LIMITS = Limits(120.0)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    logging.set_verbosity(logging.ERROR)
    print(f"seed {args.seed}")
    workdir = args.workdir or Path(tempfile.mkdtemp())
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        results = Results(workdir / "results.jsonl", args.seed)
        chosen = {name: list(trials_of(name, args)) for name in args.campaigns}
        run_campaigns(chosen, results, args, workdir.resolve())
        wanted = {trial for trials in chosen.values() for trial in trials}
        found = [result for trial, result in results.results.items() if trial in wanted]
        if "attacks" in chosen:
            print(attack_table(found))
        print(table(found))
        broken = [result for result in results.broken() if Trial(*result["trial"]) in wanted]
    finally:
        # Not TemporaryDirectory, which would also be removed at the end of each child.
        if args.workdir is None:
            shutil.rmtree(workdir)
    print(f"{len(broken)} of {len(wanted)} trials broke a promise")
    return 1 if broken else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("campaigns", nargs="*", help=f"of {', '.join(COUNTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="few trials, for each commit")
    parser.add_argument("--trials", type=int, help="number of trials of each campaign")
    parser.add_argument("--only", metavar="PART NUMBER", help="repeat one trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--workdir", type=Path, help="keeps results and broken trials")
    args = parser.parse_args(arguments)
    if unknown := set(args.campaigns) - COUNTS.keys():
        parser.error(f"unknown campaigns {sorted(unknown)}: give some of {list(COUNTS)}")
    args.campaigns = args.campaigns or list(COUNTS)
    if args.only is not None and len(args.campaigns) != 1:
        parser.error("--only needs the name of its campaign")
    return args


def trials_of(campaign: str, args: argparse.Namespace) -> Iterator[Trial]:
    """Yield the trials of a campaign, spread over its parts."""
    parts = PARTS[campaign]
    if args.only is not None:
        part, _, number = args.only.rpartition(" ")
        if part not in parts or not number.isdigit():
            sys.exit(f"campaigns: --only: expected one of {list(parts)} and a number")
        yield Trial(campaign, part, int(number))
        return
    count = args.trials or COUNTS[campaign][args.quick]
    if campaign == "attacks":
        # Each reader and attack exists once.
        every = attacks.trials()
        yield from every[:: max(1, len(every) // count)]
        return
    for number in range(count):
        yield Trial(campaign, parts[number % len(parts)], number)


def run_campaigns(
    chosen: dict[str, list[Trial]], results: Results, args: argparse.Namespace, workdir: Path
) -> None:
    """Run the trials that have no result yet."""
    missing = {name: results.missing(trials) for name, trials in chosen.items()}
    functions: dict[str, Callable[[Trial], dict]] = {
        "fuzz": lambda trial: fuzz.fuzz(args.seed, trial)
    }
    if missing.get("attacks"):
        model = trainings.Trainings(workdir / "trainings").start
        functions["attacks"] = lambda trial: attacks.attack(model, trial)
    if any(missing.get(name) for name in WITH_TRAININGS):
        functions |= with_trainings(missing, args, workdir)
    for name, trials in missing.items():
        progress = Progress(name, len(trials))
        commands = [trial for trial in trials if trial[:2] in WITH_COMMANDS]
        for trial in commands:
            results.add(trial, functions[name](trial))
            progress.advance()
        others = [trial for trial in trials if trial not in set(commands)]
        attacking = name == "attacks"
        for trial, result in run_trials(
            others,
            functions[name],
            num_workers=args.processes,
            limits=attacks.LIMITS if attacking else _LIMITS,
            folder=workdir,
            fresh=attacking,
        ):
            if attacking:
                result["attack"] = attacks.name_of(trial)
            results.add(trial, result)
            progress.advance()


def with_trainings(
    missing: dict[str, list[Trial]], args: argparse.Namespace, workdir: Path
) -> dict[str, Callable[[Trial], dict]]:
    """Run the trainings that the trials need without interruption; return the campaigns."""
    runs = trainings.Trainings(workdir / "trainings")
    needed = {trial.part for name in ("kills", "signals") for trial in missing.get(name, ())} or {
        "pretrain"
    }
    if "detector" in needed:
        needed.add("localizer")  # which the detector's training reads
    references = {}
    for name in (name for name in trainings.NAMES if name in needed):
        references[name] = kills.measure(runs, name)
        print(f"{name}: uninterrupted run of {references[name].end:.1f} s", flush=True)
    return {
        "kills": lambda trial: kills.kill(runs, references, args.seed, trial),
        "signals": lambda trial: kills.interrupt(runs, references, args.seed, trial),
        "damage": lambda trial: damage.damage(runs, references, args.seed, trial),
    }


if __name__ == "__main__":
    sys.exit(main())
