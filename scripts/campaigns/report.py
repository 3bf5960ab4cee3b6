"""Results of trials: a file of JSON lines that a later start goes on from, progress, the table."""

import collections
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from campaigns.children import Trial

# Outcomes that keep the promise; any other one breaks it.
GOOD = frozenset(("bit-equal", "refused", "fell back", "skipped", "read"))
_SECONDS_BETWEEN_LINES = 10


class Results:
    """Results in a file, one JSON object a line.

    Args:
        path: file to continue or to make.
        seed: seed of the trials; results of another seed are refused.
    """

    def __init__(self, path: Path, seed: int):
        self._path, self._seed = path, seed
        self.results: dict[Trial, dict] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            result = json.loads(line)
            if result["seed"] != seed:
                sys.exit(f"campaigns: {path} has seed {result['seed']}, not {seed}: delete it")
            self.results[Trial(*result["trial"])] = result

    def add(self, trial: Trial, result: dict) -> None:
        result = {"seed": self._seed, "trial": trial, **result}
        self.results[trial] = result
        with self._path.open("a") as file:
            file.write(json.dumps(result) + "\n")
        if result["outcome"] not in GOOD:
            print(f"BROKEN {' '.join(map(str, trial))}: {result['outcome']}: {_text(result)}")

    def missing(self, trials: Iterable[Trial]) -> list[Trial]:
        """Return the trials without a result."""
        return [trial for trial in trials if trial not in self.results]

    def broken(self) -> list[dict]:
        return [result for result in self.results.values() if result["outcome"] not in GOOD]


class Progress:
    """Lines with the rate and the time left, every ten seconds and at the end."""

    def __init__(self, what: str, total: int):
        self._what, self._total = what, total
        self._begin = self._last = time.monotonic()
        self._done = 0

    def advance(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES and self._done < self._total:
            return
        self._last = now
        rate = self._done / max(now - self._begin, 1e-9)
        left = (self._total - self._done) / rate
        print(
            f"{self._what}: {self._done} of {self._total}, {rate:.3g} a second, {left:.0f} s left",
            flush=True,
        )


def table(results: Iterable[dict]) -> str:
    """Return one row for each campaign and part: trials, outcomes, and what was counted."""
    rows: dict[tuple[str, str], list[dict]] = collections.defaultdict(list)
    for result in results:
        rows[result["trial"][0], result["trial"][1]].append(result)
    lines = [("campaign", "part", "trials", "broken", "outcomes", "counted")]
    for (campaign, part), found in rows.items():
        outcomes = collections.Counter(result["outcome"] for result in found)
        broken = sum(count for outcome, count in outcomes.items() if outcome not in GOOD)
        listed = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        lines.append((campaign, part, str(len(found)), str(broken), listed, _counted(found)))
    return _aligned(lines)


def attack_table(results: Iterable[dict]) -> str:
    """Return one row for each attack, with the outcome of every reader that met it."""
    rows = collections.defaultdict(list)
    for result in results:
        if "attack" in result:
            rows[result["attack"]].append(result)
    lines = [("attack", "readers", "broken", "outcomes", "most seconds", "most MB")]
    for attack, found in rows.items():
        broken = [result for result in found if result["outcome"] not in GOOD]
        outcomes = collections.Counter(
            result["outcome"] if result["outcome"] in GOOD
            else f"{result['outcome']} ({result['trial'][1]})"
            for result in found
        )  # fmt: skip
        lines.append(
            (
                attack,
                str(len(found)),
                str(len(broken)),
                ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()),
                f"{max(result.get('seconds', 0) for result in found):.1f}",
                str(max(result.get("megabytes", 0) for result in found)),
            )
        )
    return _aligned(lines)


def _aligned(lines: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _counted(results: list[dict]) -> str:
    parts = []
    for key in ("records", "mutated"):
        if total := sum(result.get(key, 0) for result in results):
            parts.append(f"{total} {key}")
    if seconds := [r["seconds_to_end"] for r in results if "seconds_to_end" in r]:
        parts.append(f"at most {max(seconds):.1f} s to the end")
    return ", ".join(parts)


def _text(result: dict) -> str:
    kept = {key: result[key] for key in ("moment", "damage", "attack", "text") if key in result}
    return "; ".join(str(value) for value in kept.values())
