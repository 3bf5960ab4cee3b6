"""Compare the stored arrays of the reference with this device, at three precisions.

The comparisons are those of the tests (``tests/parity``). Only "highest" must meet the CPU's
tolerances; the others show the errors of the fast types.
"""

import jax
import jax.numpy as jnp

from accelerator.recorder import Recorder, is_out_of_memory
from parity.families import FAMILIES

# Name, type of the computation, precision of products.
MODES = (
    ("highest", jnp.float32, "highest"),
    ("bfloat16", jnp.bfloat16, "default"),
    ("default", jnp.float32, "default"),
)
# Families that cover every mechanism in a test on two CPU cores.
_SMALL = ("nms", "box_coder", "text", "losses")


def run(recorder: Recorder) -> None:
    """Compare every family in every mode.

    Raises:
        RuntimeError: at the end, if a family exceeds its tolerance at the highest precision.
    """
    failed = []
    for mode, dtype, precision in MODES:
        for name, family in FAMILIES.items():
            if recorder.small and name not in _SMALL:
                continue
            if mode == "bfloat16" and not family.takes_dtype:
                continue
            if not recorder.has_time(f"{name}, {mode}", 3):
                continue
            if not _compare(recorder, mode, name, family, dtype, precision) and mode == "highest":
                failed.append(name)
    if failed:
        raise RuntimeError(f"at the highest precision beyond their tolerances: {failed}")


def _compare(recorder: Recorder, mode: str, name: str, family, dtype, precision) -> bool:
    """Record a family's comparisons; return True if all are within their tolerances."""
    row = {"name": name, "mode": mode}
    try:
        with jax.default_matmul_precision(precision):
            comparisons = family.compare(dtype)
    except Exception as error:
        kind = "out of memory" if is_out_of_memory(error) else type(error).__name__
        recorder.add(row | {"error": f"{kind}: {str(error)[:500]}"})
        print(f"{name}, {mode}: failed: {kind}: {error}", flush=True)
        return False
    worst = max(comparisons, key=lambda c: c.error / c.tolerance if c.tolerance else c.error)
    failed = [c._asdict() for c in comparisons if not c.ok]
    matched = [c for c in comparisons if "matched" in c.name]
    row |= {
        "compared": len(comparisons),
        "worst": worst._asdict(),
        "beyond": failed,
        "unmatched_detections": max((c.error for c in matched), default=None),
    }
    recorder.add(row)
    print(
        f"{name}, {mode}: {len(comparisons)} compared, {len(failed)} beyond their tolerance; "
        f"worst {worst.name}: {worst.error:.2g} (tolerance {worst.tolerance:.2g})",
        flush=True,
    )
    return not failed
