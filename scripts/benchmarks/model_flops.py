"""Count the model FLOPs of a step, independent of recomputation to save memory."""

from collections.abc import Callable

import jax

from regionclip_jax.compile_report.program_costs import count_flops
from regionclip_jax.ops.backend import tracing_for


def count_model_flops(step: Callable, *arguments) -> int:
    """Count the FLOPs of the matrix products and convolutions of a step built for counting.

    Such a step has no chunks and micro-batches, whose forward passes run twice, and uses RoIAlign
    by "gather", which multiplies no matrices: its interpolation is not counted. The step is traced
    for a GPU on any device, because TPUs multiply zeros to fill their lanes.
    """
    with tracing_for("gpu"):
        flops = count_flops(jax.make_jaxpr(step)(*arguments).jaxpr)
    # Functions jitted within the step were traced for a GPU too, and must not run on this device.
    jax.clear_caches()
    return flops
