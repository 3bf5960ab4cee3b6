"""Measure rows of the benchmarks within the limits of time and memory of a part."""

import argparse
import importlib.util

import jax

from accelerator.parts import TORCH
from accelerator.recorder import Recorder, is_out_of_memory
from benchmarks.timing import Program, Work, measure_row, row_text


def arguments(module, **changes) -> argparse.Namespace:
    """Return the default arguments of a mode of ``scripts/benchmark.py`` with ``changes``."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    parser.set_defaults(dtype="float32")
    args = parser.parse_args([])
    unknown = set(changes) - set(vars(args))
    if unknown:
        raise ValueError(f"{module.__name__} has no arguments {sorted(unknown)}")
    return argparse.Namespace(**vars(args) | changes)


def torch_runner(recorder: Recorder, dtype: str, compiled: bool):
    """Return PyTorch on the same device; None if it is missing, or (with a note) unsupported."""
    missing = [name for name in TORCH if importlib.util.find_spec(name) is None]
    if missing:
        return None
    from benchmarks.torch_layers import TorchRunner

    try:
        return TorchRunner(dtype, compiled)
    except SystemExit as error:
        recorder.note(f"no comparison with PyTorch: {error}")
        return None


def measure(
    recorder: Recorder, work: Work, repeats: int, peak: float | None = None, **labels
) -> bool:
    """Time a row, print it and record it; return False if the device ran out of memory.

    Labels are recorded with the row. Other errors are recorded with the row and not raised.
    """
    try:
        row = labels | measure_row(work, repeats, peak)
    except Exception as error:
        if is_out_of_memory(error):
            return False
        recorder.add(
            labels | {"name": work.name, "error": f"{type(error).__name__}: {error}"[:800]}
        )
        print(f"{work.name}: failed: {error}", flush=True)
        return True
    stats = jax.devices()[0].memory_stats() or {}
    row["device_peak_bytes_so_far"] = stats.get("peak_bytes_in_use")
    recorder.add(row)
    said = ", ".join(str(value) for value in labels.values())
    print(f"{said}\n{row_text(row)}" if said else row_text(row), flush=True)
    return True


def free(work: Work) -> None:
    """Release a row's arrays and program before the next row needs the device's memory."""
    if isinstance(work.ours, Program):
        work.ours.close()
