"""What a step costs on devices that are not here: operations, bytes between chips, time at best.

From a traced function (``count_flops``) and from its compiled program's text (``collectives``). A
roofline is a bound: no program is faster, and few are as fast. Numbers of the chips are their
maker's.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.extend.core


@dataclasses.dataclass(frozen=True)
class Chip:
    """What its maker says of a TPU chip, a second: bf16 FLOPs, bytes of memory, bytes of links.

    ``link_bytes`` are of all links of the chip between chips, one way.
    """

    flops: float
    memory_bytes: float
    link_bytes: float
    memory: float  # bytes it has


CHIPS = {
    "v4": Chip(275e12, 1228e9, 300e9, 32 * 2**30),
    "v5e": Chip(197e12, 819e9, 200e9, 16 * 2**30),
    "v5p": Chip(459e12, 2765e9, 600e9, 95 * 2**30),
    "v6e": Chip(918e12, 1640e9, 448e9, 32 * 2**30),
}


# Dense FLOPs a second of GPUs as modules on a board (SXM): bf16, and fp32 in TF32.
_GPU_PEAKS = {"H200": (989e12, 494.5e12), "H100": (989e12, 494.5e12), "A100": (312e12, 156e12)}
# What JAX calls TPU chips.
_TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """What its maker says of a device's matrix products, FLOPs a second, dense; None if unknown.

    Args:
        device_kind: as JAX calls it, e.g. "NVIDIA H100 80GB HBM3".
        dtype: "float32" (in TF32 on GPUs; TPUs multiply it as bf16) or "bfloat16".
    """
    if device_kind in _TPU_KINDS:
        return CHIPS[_TPU_KINDS[device_kind]].flops
    # Cards for a slot are slower, and not in the table.
    words = set(device_kind.replace("-", " ").split())
    if words & {"PCIe", "NVL"}:
        return None
    found = [peaks for name, peaks in _GPU_PEAKS.items() if name in words]
    return found[0][dtype == "float32"] if found else None


def count_flops(jaxpr: jax.extend.core.Jaxpr) -> int:
    """FLOPs of all matrix products and convolutions, two a multiplication with its addition.

    Bodies of scans count as often as they run, of branches the dearest, of while loops once (none
    of ours multiplies matrices). The zeros that a strided convolution's gradient puts in between
    are left out; those of padding count, as is usual.
    """
    total = 0
    for equation in jaxpr.eqns:
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


class Collective(NamedTuple):
    """All operations of a kind in one step, on one chip."""

    count: int
    # Of their results; of what is scattered, before it is.
    num_bytes: int
    # That one chip sends, where they go round in rings.
    sent_bytes: float


_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_SHARE_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(rf"= (.+?) ({'|'.join(_KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:body|to_apply|calls)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r" constant\((\d+)\)")
_ARRAY = re.compile(r"\b([a-z]+)(\d+)\w*\[([\d,]*)\]")


def collectives(hlo: str, num_devices: int) -> dict[str, Collective]:
    """The collectives of a compiled program by kind, those in loops as often as these run.

    Args:
        hlo: its text, ``compiled.as_text()``.
        num_devices: for operations that do not say how many take part.
    """
    entry, bodies = _computations(hlo)
    found: dict[str, list[tuple[int, float, float]]] = {}

    def visit(name: str, times: int) -> None:
        for line in bodies[name]:
            if match := _OPERATION.search(line):
                kind = match[2]
                group = _group_size(line, num_devices)
                size = _bytes(match[1], is_start=match[3] is not None and kind != "all-reduce")
                if kind == "reduce-scatter":
                    size *= group
                sent = size * _SHARE_SENT[kind](group)
                found.setdefault(kind, []).append((times, times * size, times * sent))
            trips = _trips(line, bodies) if " while(" in line else 1
            for single, several in _CALLED.findall(line):
                for callee in [single] if single else several.replace("%", "").split(", "):
                    if callee in bodies:
                        visit(callee, times * trips)

    visit(entry, 1)
    return {
        kind: Collective(*(sum(column) for column in zip(*rows, strict=True)))
        for kind, rows in sorted(found.items())
    }


def _computations(hlo: str) -> tuple[str, dict[str, list[str]]]:
    bodies: dict[str, list[str]] = {}
    entry = current = None
    for line in hlo.splitlines():
        if match := _HEADER.match(line):
            current = match[2]
            bodies[current] = []
            entry = current if match[1] else entry
        elif current is not None:
            bodies[current].append(line)
    if entry is None:
        raise ValueError("expected the text of a compiled program, found none with an ENTRY")
    return entry, bodies


def _trips(loop: str, bodies: dict[str, list[str]]) -> int:
    """How often a loop runs: what it states, or what its counter is to stay below, else once.

    A TPU's compiler states nothing; a loop whose end depends on data has no such counter.
    """
    if stated := _TRIPS.search(loop):
        return int(stated[1])
    named = _CONDITION.search(loop)
    condition = bodies.get(named[1], []) if named else []
    limits = _CONSTANT.findall("\n".join(condition))
    counts = any("ROOT" in line and "direction=LT" in line for line in condition)
    return int(limits[0]) if counts and len(limits) == 1 else 1


def _bytes(shape: str, is_start: bool) -> int:
    """Of all arrays of a shape; the start of an operation names what goes in before what comes."""
    sizes = [
        max(int(bits), 8) // 8 * math.prod(int(side) for side in sides.split(",") if side)
        for kind, bits, sides in _ARRAY.findall(shape.replace("pred[", "u8["))
        if kind in ("f", "bf", "s", "u")
    ]
    return max(sizes, default=0) if is_start else sum(sizes)


def _group_size(line: str, num_devices: int) -> int:
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    return num_devices


class Roofline(NamedTuple):
    """Seconds of a step that each part takes at least, on one chip."""

    compute: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        """If computing and reading overlap and nothing travels meanwhile."""
        return max(self.compute, self.memory) + self.links


def roofline(chip: Chip, flops: float, memory_bytes: float, sent_bytes: float) -> Roofline:
    """Of one chip's share of a step."""
    return Roofline(
        flops / chip.flops, memory_bytes / chip.memory_bytes, sent_bytes / chip.link_bytes
    )


def scaling(time: Roofline, num_devices: int) -> dict[int, float]:
    """Efficiency against one chip with the same share of the batch, for 1, 2, 4, ... chips.

    What a chip sends in rings of n chips grows as (n - 1) / n.
    """
    alone = max(time.compute, time.memory)
    whole = (num_devices - 1) / num_devices if num_devices > 1 else 1.0
    counts = [2**k for k in range(num_devices.bit_length()) if 2**k <= num_devices]
    return {n: alone / (alone + time.links * (n - 1) / n / whole) for n in counts}
