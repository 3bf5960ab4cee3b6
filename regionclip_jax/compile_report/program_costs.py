"""Costs of a step on absent devices: FLOPs, and a lower bound of the time.

A roofline is a bound: no program is faster, and few are as fast.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.extend.core

from regionclip_jax.compile_report.chips import Chip


def count_flops(jaxpr: jax.extend.core.Jaxpr) -> int:
    """Count the FLOPs of all matrix products and convolutions, two per multiply-add.

    The body of a scan counts as often as it runs. The most expensive branch of a cond and a while
    loop count once (none of our loops multiplies matrices). The zeros that a strided convolution's
    gradient inserts are excluded; those of padding count, as is usual. Equations with unused
    results are excluded, because they are not compiled.
    """
    total = 0
    for equation in _needed(jaxpr):
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * _size(equation) * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            total += 2 * _convolution_products(equation)
        elif name == "scan":
            total += params["length"] * count_flops(params["jaxpr"].jaxpr)
        elif name == "cond":
            total += max(count_flops(branch.jaxpr) for branch in params["branches"])
        else:
            total += sum(count_flops(inner) for inner in _inner(params))
    return total


def _needed(jaxpr: jax.extend.core.Jaxpr) -> list:
    """Return the equations that contribute to a result, last first."""
    literal = jax.extend.core.Literal
    wanted = {var for var in jaxpr.outvars if not isinstance(var, literal)}
    needed = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not wanted.isdisjoint(equation.outvars):
            needed.append(equation)
            wanted.update(var for var in equation.invars if not isinstance(var, literal))
    return needed


def _size(equation) -> int:
    return math.prod(equation.outvars[0].aval.shape)


def _convolution_products(equation) -> int:
    """Count the multiplications of a convolution without the zeros of ``lhs_dilation``."""
    params = equation.params
    kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    _, inputs, *window = params["dimension_numbers"].rhs_spec
    batch, features, *places = params["dimension_numbers"].out_spec
    total = kernel[inputs] * out[batch] * out[features]
    for axis, place, stride, (before, _), hole, step in zip(
        window,
        places,
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        strict=True,
    ):
        total *= sum(
            (number * stride + tap * step - before) % hole == 0
            for number in range(out[place])
            for tap in range(kernel[axis])
        )
    return total


def _inner(params: dict) -> Iterator[jax.extend.core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, jax.extend.core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, jax.extend.core.Jaxpr):
                yield item


class Roofline(NamedTuple):
    """Lower bounds of the seconds of each part of a step, on one chip."""

    compute: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        """Seconds of a step if compute and memory overlap, and communication does not."""
        return max(self.compute, self.memory) + self.links


def roofline(
    flops: float,
    memory_bytes: float,
    sent_bytes: float,
    *,
    chip: Chip,
    dtype: str,
    over_network: bool = False,
) -> Roofline:
    """Return the roofline of one chip's share of a step.

    Args:
        flops, memory_bytes, sent_bytes: one chip's share.
        dtype: dtype of the products, "float32" or "bfloat16".
        over_network: several hosts take part, so GPUs use adapters instead of links.
    """
    links = chip.network_bytes if over_network else chip.link_bytes
    return Roofline(flops / chip.peak(dtype), memory_bytes / chip.memory_bytes, sent_bytes / links)


def scaling(time: Roofline, num_devices: int) -> dict[int, float]:
    """Return the weak scaling efficiency relative to one chip, for 1, 2, 4, ... chips.

    The bytes that a chip sends in rings of n chips grow as (n - 1) / n.
    """
    alone = max(time.compute, time.memory)
    whole = (num_devices - 1) / num_devices if num_devices > 1 else 1.0
    counts = [2**k for k in range(num_devices.bit_length()) if 2**k <= num_devices]
    return {n: alone / (alone + time.links * (n - 1) / n / whole) for n in counts}
