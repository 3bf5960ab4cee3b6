"""Vendors' specifications of TPUs and GPUs.

GPUs are SXM modules; FLOPs are dense. PCIe cards are slower and not included.
"""

import dataclasses
from typing import Literal

Kind = Literal["tpu", "gpu"]


@dataclasses.dataclass(frozen=True)
class Chip:
    """Specification per second: FLOPs in bf16 and fp32, bytes of memory and links; memory size.

    ``fp32_flops`` are for JAX's default precision of fp32: bf16 on TPUs, TF32 on GPUs.
    ``link_bytes`` are those of all links of a chip within a slice or a host, one way;
    ``network_bytes`` those between hosts of GPUs, one adapter of 400 Gb/s (A100: 200) per GPU. A
    TPU slice is one network.
    """

    kind: Kind
    flops: float
    fp32_flops: float
    memory_bytes: float
    link_bytes: float
    network_bytes: float
    memory: float  # bytes available to a program

    def peak(self, dtype: str) -> float:
        """Return the FLOPs per second of "float32" or "bfloat16"."""
        return self.fp32_flops if dtype == "float32" else self.flops


def _tpu(flops: float, memory_bytes: float, link_bytes: float, gibibytes: int) -> Chip:
    return Chip("tpu", flops, flops, memory_bytes, link_bytes, link_bytes, gibibytes * 2**30)


CHIPS = {
    "v4": _tpu(275e12, 1228e9, 300e9, 32),
    "v5e": _tpu(197e12, 819e9, 200e9, 16),
    "v5p": _tpu(459e12, 2765e9, 600e9, 95),
    "v6e": _tpu(918e12, 1640e9, 448e9, 32),
    "a100": Chip("gpu", 312e12, 156e12, 2039e9, 300e9, 25e9, 79 * 2**30),
    "h100": Chip("gpu", 989e12, 494.5e12, 3350e9, 450e9, 50e9, 79 * 2**30),
    "h200": Chip("gpu", 989e12, 494.5e12, 4800e9, 450e9, 50e9, 140 * 2**30),
}

# JAX's names of TPU chips.
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
    """Return the specified matrix FLOPs per second of a device; None if unknown.

    Args:
        device_kind: JAX's name of the device, e.g. "NVIDIA H100 80GB HBM3".
        dtype: "float32" or "bfloat16".
    """
    if device_kind in _TPU_KINDS:
        return CHIPS[_TPU_KINDS[device_kind]].peak(dtype)
    words = set(device_kind.lower().replace("-", " ").split())
    if words & {"pcie", "nvl"}:
        return None
    found = [chip for name, chip in CHIPS.items() if chip.kind == "gpu" and name in words]
    return found[0].peak(dtype) if found else None
