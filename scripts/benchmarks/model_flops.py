"""FLOPs that the numbers of a step need, whatever a program does to save memory."""

from collections.abc import Callable

import jax

from regionclip_jax.reporting.program_costs import count_flops


def count_model_flops(step: Callable, *arguments) -> int:
    """Of matrix products and convolutions of a step that is built for counting.

    That is without chunks and micro-batches, whose forward passes run twice, and with RoIAlign by
    "gather", which multiplies no matrices: its interpolation counts as none.
    """
    return count_flops(jax.make_jaxpr(step)(*arguments).jaxpr)
