"""Rows of a benchmark: ours and PyTorch's, timed in turns, and what they come to."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable

import jax


@dataclasses.dataclass(frozen=True)
class Work:
    """One row: a name, and what to call for it.

    ``ours`` returns JAX arrays (or nothing that has to be waited for). The same work in PyTorch, by
    the name of its column ("torch", "torch compiled"), waits for its device itself.
    """

    name: str
    ours: Callable
    theirs: dict[str, Callable] = dataclasses.field(default_factory=dict)
    # What a call gets through, and what these things are called.
    items: int | None = None
    unit: str = ""
    # Of a call, if it is a whole step: those that the numbers need, not those that a program does.
    model_flops: int | None = None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds. The first call compiles and is none of the others."""

    first: float
    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    def as_json(self) -> dict:
        return {
            "first_s": self.first,
            "median_s": self.median,
            "lowest_s": min(self.runs),
            "highest_s": max(self.runs),
            "runs_s": list(self.runs),
        }


def time_in_turns(work: Work, repeats: int) -> dict[str, Timing]:
    """ "ours" and the columns of PyTorch, repeat by repeat: what slows the machine slows all."""
    calls = {"ours": lambda: jax.block_until_ready(work.ours())} | work.theirs
    first = {name: _seconds(call) for name, call in calls.items()}
    runs = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            runs[name].append(_seconds(call))
    return {name: Timing(first[name], tuple(runs[name])) for name in calls}


def _seconds(call: Callable) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def describe_row(work: Work, timings: dict[str, Timing], peak: float | None) -> dict:
    """A row as JSON.

    Args:
        peak: FLOPs a second that the utilization is a share of; None where no row has FLOPs.
    """
    ours = timings["ours"].median
    row = {"name": work.name, "ours": timings["ours"].as_json()}
    for name, timing in timings.items():
        if name != "ours":
            row[name] = timing.as_json() | {"ratio": timing.median / ours}
    if work.items is not None:
        row["items"], row["unit"] = work.items, work.unit
        row["items_per_s"] = work.items / ours
    if work.model_flops is not None and peak is not None:
        row["model_flops"] = work.model_flops
        row["flops_per_s"] = work.model_flops / ours
        row["utilization"] = work.model_flops / ours / peak
    return row


def row_text(row: dict) -> str:
    """The same for people: a line, and one more of what the row comes to."""
    line = f"  {row['name']:46s} {_timing_text(row['ours'])}"
    for name, timing in row.items():
        if name.startswith("torch"):
            line += f"\n  {'  ' + name:46s} {_timing_text(timing)}  {timing['ratio']:.2f} x ours"
    facts = []
    if "items_per_s" in row:
        facts.append(f"{row['items_per_s']:.1f} {row['unit']}/s")
    if "utilization" in row:
        facts.append(f"{row['model_flops'] / 1e9:.1f} model GFLOPs")
        facts.append(f"{row['flops_per_s'] / 1e12:.3f} TFLOP/s")
        facts.append(f"MFU {row['utilization']:.1%}")
    return f"{line}\n    {', '.join(facts)}" if facts else line


def _timing_text(timing: dict) -> str:
    spread = f"{timing['lowest_s'] * 1e3:.2f} to {timing['highest_s'] * 1e3:.2f}"
    return f"{timing['median_s'] * 1e3:10.2f} ms ({spread}), first call {timing['first_s']:.2f} s"


def run_rows(works: Iterable[Work], repeats: int, peak: float | None) -> list[dict]:
    """Times every row and prints it at once."""
    rows = []
    for work in works:
        rows.append(describe_row(work, time_in_turns(work, repeats), peak))
        print(row_text(rows[-1]), flush=True)
    return rows
