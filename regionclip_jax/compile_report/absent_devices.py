"""Absent devices as targets of compilation: slices of TPUs, hosts of GPUs.

The TPU compiler is in libtpu, the GPU compiler in JAX's CUDA plugin; neither needs the device.
"""

import os
import re
from typing import NamedTuple

from jax.experimental import topologies

from regionclip_jax.compile_report.chips import CHIPS, Chip
from regionclip_jax.settings import ConfigError


class Topology(NamedTuple):
    """Devices of one kind on one or several hosts."""

    name: str
    chip: Chip
    devices: list
    several_hosts: bool

    @property
    def compiler_options(self) -> dict[str, bool | int]:
        """Options without autotuning, which needs a GPU, and Triton, which needs autotuning."""
        if self.chip.kind == "tpu":
            return {}
        return {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def describe_topology(name: str) -> Topology:
    """Return the devices of a topology.

    Args:
        name: kind of chip, a colon, and a slice of TPUs (``v5e:16x16``), a number of GPUs of one
            host (``h100:8``) or hosts and GPUs of each (``h100:4x8``).

    Raises:
        ConfigError: there is no such topology, or the compiler is not installed.
    """
    kind, _, grid = name.partition(":")
    known = CHIPS.get(kind)
    pattern = r"\d+(x\d+)*" if known and known.kind == "tpu" else r"[1-9]\d*(x[1-9]\d*)?"
    if known is None or not re.fullmatch(pattern, grid):
        raise ConfigError(
            f"--topology: {name!r}, expected one of {sorted(CHIPS)}, a colon and the grid of TPU "
            "chips, such as v5e:16x16, or the number of GPUs, such as h100:8 (of a host) or "
            "h100:4x8 (of four)"
        )
    if known.kind == "tpu":
        return Topology(name, known, _tpus(name), several_hosts=False)
    sides = [int(side) for side in grid.split("x")]
    hosts, each = sides if len(sides) == 2 else (1, *sides)
    return Topology(name, known, _gpus(name, kind, hosts, each), several_hosts=hosts > 1)


def _tpus(name: str) -> list:
    # No chip is used, so another process, such as a training on this host, may use the library.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return list(topologies.get_topology_desc(name, "tpu").devices)
    except Exception as error:  # libtpu raises many types, or it is missing
        raise ConfigError(
            f"--topology: {name!r} cannot be described ({error}); it needs libtpu "
            '(pip install -e ".[tpu]") and a grid that this kind of chip comes in'
        ) from error


def _gpus(name: str, kind: str, hosts: int, each: int) -> list:
    try:
        described = topologies.get_topology_desc(
            "", "cuda", target_config=_target(kind), topology=f"1x{hosts}x{each}"
        )
        return list(described.devices)
    except Exception as error:  # the plugin raises many types, or it is missing
        raise ConfigError(
            f"--topology: {name!r} cannot be described ({error}); it needs JAX's CUDA plugin "
            '(pip install -e ".[gpu]"; its NVIDIA libraries and a driver are not needed for this) '
            "and, where there is no GPU, JAX_PLATFORMS=cpu"
        ) from error


# Properties XLA would query from a GPU: multiprocessors, bytes of shared memory of each and at most
# of a block, bytes of L2 cache, compute capability, clock rate in GHz, and device name.
_GPUS = {
    "a100": (108, 167936, 166912, 40 * 2**20, (8, 0), 1.41, "NVIDIA A100-SXM4-80GB"),
    "h100": (132, 233472, 232448, 50 * 2**20, (9, 0), 1.98, "NVIDIA H100 80GB HBM3"),
    "h200": (132, 233472, 232448, 50 * 2**20, (9, 0), 1.98, "NVIDIA H200"),
}


def _target(kind: str) -> str:
    """Return XLA's description of a GPU, as text of a protocol buffer."""
    multiprocessors, shared, shared_by_block, cache, (major, minor), clock, called = _GPUS[kind]
    device = {
        "core_count": multiprocessors,
        "fpus_per_core": 64 if kind == "a100" else 128,
        "clock_rate_ghz": clock,
        "device_memory_size": int(CHIPS[kind].memory),
        "memory_bandwidth": int(CHIPS[kind].memory_bytes),
        "l2_cache_size": cache,
        "shared_memory_per_core": shared,
        "shared_memory_per_block": 48 * 2**10,
        "shared_memory_per_block_optin": shared_by_block,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "threads_per_warp": 32,
        "threads_per_block_limit": 1024,
        "threads_per_core_limit": 2048,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
    }
    fields = "\n".join(f"  {name}: {value}" for name, value in device.items())
    return (
        f"gpu_device_info {{\n{fields}\n"
        f"  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 8 }\n"
        "runtime_version { major: 12 minor: 9 }\n"
        f'device_description_str: "{called}"\n'
    )
