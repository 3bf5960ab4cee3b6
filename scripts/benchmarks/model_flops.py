"""FLOPs that the numbers of a step need, whatever a program does to save memory."""

from collections.abc import Callable

import jax

from regionclip_jax.compile_report.program_costs import count_flops
from regionclip_jax.ops.backend import tracing_for


def count_model_flops(step: Callable, *arguments) -> int:
    """Of matrix products and convolutions of a step that is built for counting.

    That is without chunks and micro-batches, whose forward passes run twice, and with RoIAlign by
    "gather", which multiplies no matrices: its interpolation counts as none. As for a GPU, whatever
    the device: TPUs multiply zeros to fill their lanes.
    """
    with tracing_for("gpu"):
        flops = count_flops(jax.make_jaxpr(step)(*arguments).jaxpr)
    # What is jitted within the step was traced for it as well, and must not be run on this device.
    jax.clear_caches()
    return flops
