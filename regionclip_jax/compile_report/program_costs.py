"""What a step costs on devices that are not here: operations, and time at best.

A roofline is a bound: no program is faster, and few are as fast.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.extend.core

from regionclip_jax.compile_report.chips import Chip


def count_flops(jaxpr: jax.extend.core.Jaxpr) -> int:
    """FLOPs of all matrix products and convolutions, two a multiplication with its addition.

    Bodies of scans count as often as they run, of branches the dearest, of while loops once (none
    of ours multiplies matrices). The zeros that a strided convolution's gradient puts in between
    are left out; those of padding count, as is usual. So are equations whose results nobody needs,
    which are not compiled.
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
    """The equations that lead to a result, last first."""
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
    """Multiplications of a convolution, without those by what ``lhs_dilation`` puts in between."""
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
    """Seconds of a step that each part takes at least, on one chip."""

    compute: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        """If computing and reading overlap and nothing travels meanwhile."""
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
    """Of one chip's share of a step.

    Args:
        dtype: "float32" or "bfloat16", of its products.
        over_network: chips of several hosts take part, GPUs over adapters instead of their links.
    """
    links = chip.network_bytes if over_network else chip.link_bytes
    return Roofline(flops / chip.peak(dtype), memory_bytes / chip.memory_bytes, sent_bytes / links)


def scaling(time: Roofline, num_devices: int) -> dict[int, float]:
    """Efficiency against one chip with the same share of the batch, for 1, 2, 4, ... chips.

    What a chip sends in rings of n chips grows as (n - 1) / n.
    """
    alone = max(time.compute, time.memory)
    whole = (num_devices - 1) / num_devices if num_devices > 1 else 1.0
    counts = [2**k for k in range(num_devices.bit_length()) if 2**k <= num_devices]
    return {n: alone / (alone + time.links * (n - 1) / n / whole) for n in counts}
