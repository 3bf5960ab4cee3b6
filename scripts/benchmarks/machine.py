"""Describe the machine of a benchmark: device, versions, commit, and the peak FLOPs of MFU."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from regionclip_jax.compile_report.chips import peak_flops

_PACKAGES = ("jax", "jaxlib", "flax", "torch", "torchvision")


class Peak(NamedTuple):
    """Peak FLOPs per second, and the source of the number."""

    flops: float
    source: str


def find_peak(dtype: str) -> Peak:
    """Return the vendor's peak if known, else the measured rate of a large matrix product."""
    kind = jax.devices()[0].device_kind
    known = peak_flops(kind, dtype)
    if known is not None:
        return Peak(known, f"the maker's dense peak of {kind}")
    side = 2048 if jax.default_backend() == "cpu" else 8192
    rate = _product_rate(side, jnp.dtype(dtype))
    return Peak(rate, f"measured in this run: a product of {side} x {side} matrices in {dtype}")


def _product_rate(side: int, dtype: jnp.dtype, repeats: int = 5) -> float:
    matrix = jnp.ones((side, side), dtype)
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(matrix, matrix))
    fastest = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * side**3 / fastest


def describe_machine() -> dict:
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "backend": jax.default_backend(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "cpus_allowed": available_cpus(),
        "versions": {"python": platform.python_version()}
        | {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": _commit(),
    }


def _processor() -> str:
    """Return the model of the CPU, which Python does not report on Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the checkout, with "+" if files differ from it."""

    def git(*arguments: str) -> str:
        root = Path(__file__).parents[2]
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
