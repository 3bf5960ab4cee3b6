"""Time rows of a benchmark: ours and PyTorch's calls in alternation, and their rates."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax


class Program:
    """Function with its arguments, compiled before its first run.

    Args:
        function: traced by ``jax.jit``.
        arguments: arrays, or trees of them.
        carries_first: donate the first argument, and replace it in the next call by the first of
            two results, like the state of a training.
    """

    def __init__(self, function: Callable, *arguments: Any, carries_first: bool = False):
        self._jitted = jax.jit(function, donate_argnums=0 if carries_first else ())
        self._arguments = arguments
        self._carries_first = carries_first
        self._compiled: jax.stages.Compiled | None = None
        # Includes tracing; longer if several programs compile at once.
        self.compile_seconds = 0.0

    def compile(self) -> None:
        """Trace and compile once; thread-safe."""
        if self._compiled is None:
            began = time.perf_counter()
            self._compiled = self._jitted.lower(*self._arguments).compile()
            self.compile_seconds = time.perf_counter() - began

    def __call__(self) -> Any:
        self.compile()
        result = self._compiled(*self._arguments)
        if self._carries_first:
            state, result = result
            self._arguments = state, *self._arguments[1:]
        return result

    def close(self) -> None:
        """Release the arguments and the compiled program."""
        self._arguments = ()
        self._compiled = None

    def memory_bytes(self) -> int | None:
        """Return the compiler's bytes of arguments, results and temporaries; None if unknown."""
        self.compile()
        found = self._compiled.memory_analysis()
        if found is None:
            return None
        results = found.output_size_in_bytes - found.alias_size_in_bytes
        return found.argument_size_in_bytes + results + found.temp_size_in_bytes


@dataclasses.dataclass(frozen=True)
class Work:
    """Row of a benchmark: a name and its timed calls.

    ``ours`` returns JAX arrays (or host values). The calls in PyTorch, by the name of their column
    ("torch", "torch compiled"), wait for their device themselves.
    """

    name: str
    ours: Callable
    theirs: dict[str, Callable] = dataclasses.field(default_factory=dict)
    # Number of items per call, and their name.
    items: int | None = None
    unit: str = ""
    # Counts the model FLOPs of a whole step, without a program's recomputation.
    model_flops: Callable[[], int] | None = None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of each run; ``first`` includes compilation and is not one of ``runs``."""

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


def time_in_turns(work: Work, repeats: int) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time "ours" and PyTorch's columns in alternation, so that a busy machine slows all of them.

    Returns:
        Timings by column, and the errors of PyTorch's columns whose first call failed, such as out
        of memory. An error of ours is raised.
    """
    calls = {"ours": lambda: jax.block_until_ready(work.ours())} | work.theirs
    first, errors = {}, {}
    for name, call in calls.items():
        try:
            first[name] = _seconds(call)
        except Exception as error:
            if name == "ours":
                raise
            errors[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    runs = {name: [] for name in first}
    for _ in range(repeats):
        for name in runs:
            runs[name].append(_seconds(calls[name]))
    return {name: Timing(first[name], tuple(runs[name])) for name in runs}, errors


def _seconds(call: Callable) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure_row(work: Work, repeats: int, peak: float | None) -> dict:
    """Time a row and return it as JSON.

    Args:
        peak: peak FLOPs per second for the utilization; None for rows without FLOPs.
    """
    timings, errors = time_in_turns(work, repeats)
    ours = timings["ours"].median
    row = {"name": work.name, "ours": timings["ours"].as_json()}
    for name, timing in timings.items():
        if name != "ours":
            row[name] = timing.as_json() | {"ratio": timing.median / ours}
    row |= {name: {"error": error} for name, error in errors.items()}
    if work.items is not None:
        row["items"], row["unit"] = work.items, work.unit
        row["items_per_s"] = work.items / ours
    if isinstance(work.ours, Program):
        row["memory_bytes"] = work.ours.memory_bytes()
        row["compile_s"] = work.ours.compile_seconds
    if work.model_flops is not None and peak is not None:
        row["model_flops"] = work.model_flops()
        row["flops_per_s"] = row["model_flops"] / ours
        row["utilization"] = row["flops_per_s"] / peak
    return row


def row_text(row: dict) -> str:
    """Return a row as readable lines: times, then rates."""
    line = f"  {row['name']:46s} {_timing_text(row['ours'])}"
    for name, timing in row.items():
        if name.startswith("torch"):
            said = f" failed: {timing['error']}" if "error" in timing else (
                f" {_timing_text(timing)}  {timing['ratio']:.2f} x ours"
            )  # fmt: skip
            line += f"\n  {'  ' + name:46s}{said}"
    facts = []
    if "items_per_s" in row:
        facts.append(f"{row['items_per_s']:.1f} {row['unit']}/s")
    if "utilization" in row:
        facts.append(f"{row['model_flops'] / 1e9:.1f} model GFLOPs")
        facts.append(f"{row['flops_per_s'] / 1e12:.3f} TFLOP/s")
        facts.append(f"MFU {row['utilization']:.1%}")
    if row.get("memory_bytes"):
        facts.append(f"{row['memory_bytes'] / 2**20:.0f} MiB")
    return f"{line}\n    {', '.join(facts)}" if facts else line


def _timing_text(timing: dict) -> str:
    spread = f"{timing['lowest_s'] * 1e3:.2f} to {timing['highest_s'] * 1e3:.2f}"
    return f"{timing['median_s'] * 1e3:10.2f} ms ({spread}), first call {timing['first_s']:.2f} s"


def run_rows(works: Iterable[Work], repeats: int, peak: float | None) -> list[dict]:
    """Time every row and print it at once."""
    rows = []
    for work in works:
        rows.append(measure_row(work, repeats, peak))
        print(row_text(rows[-1]), flush=True)
    return rows
