"""Record facts: device, versions, and the rates of products and copies as a reference."""

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from accelerator.recorder import Recorder
from benchmarks.machine import describe_machine
from regionclip_jax.compile_report.chips import peak_flops

_PRODUCTS = (
    # Name, type, precision of the product.
    ("bfloat16", jnp.bfloat16, None),
    ("float32, default precision", jnp.float32, None),
    ("float32, highest precision", jnp.float32, "highest"),
)


def run(recorder: Recorder) -> None:
    machine = describe_machine()
    for name, value in machine.items():
        recorder.fact(name, value)
    device = jax.devices()[0]
    recorder.fact("platform_version", device.client.platform_version)
    recorder.fact("num_devices", jax.device_count())
    recorder.fact("matmul_precision", jax.config.jax_default_matmul_precision or "default")
    memory = (device.memory_stats() or {}).get("bytes_limit")
    recorder.fact("memory_bytes_for_jax", memory)
    if shutil.which("nvidia-smi"):
        recorder.fact("nvidia_smi", _nvidia_smi())
    for dtype in ("bfloat16", "float32"):
        recorder.fact(f"makers_peak_{dtype}", peak_flops(device.device_kind, dtype))
    recorder.fact("seconds_of_an_empty_program", _median(jax.jit(lambda x: x), jnp.zeros(())))

    on_cpu = jax.default_backend() == "cpu"
    side = 512 if recorder.small else 2048 if on_cpu else 8192
    for name, dtype, precision in _PRODUCTS:
        if recorder.has_time(f"product in {name}", 1):
            keys = jax.random.split(jax.random.key(0))
            left, right = (jax.random.normal(key, (side, side), dtype) for key in keys)
            multiply = jax.jit(lambda a, b, p=precision: jnp.matmul(a, b, precision=p))
            seconds = _median(multiply, left, right)
            rate = 2 * side**3 / seconds
            recorder.add({"name": f"product of {side} x {side}, {name}", "flops_per_s": rate})
            print(f"product of {side} x {side}, {name}: {rate / 1e12:.2f} TFLOP/s", flush=True)
    num = 2**22 if recorder.small else 2**26 if on_cpu else 2**30
    if recorder.has_time("copy", 1):
        numbers = jax.random.normal(jax.random.key(1), (num,), jnp.float32)
        # The data are read once and written once.
        rate = 2 * numbers.nbytes / _median(jax.jit(lambda x: x + 1), numbers)
        recorder.add({"name": f"copy of {numbers.nbytes / 2**20:.0f} MiB", "bytes_per_s": rate})
        print(f"copy: {rate / 1e9:.0f} GB/s read and written", flush=True)


def _median(function: Callable, *arguments, repeats: int = 7) -> float:
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _nvidia_smi() -> str:
    fields = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit"
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    return (done.stdout or done.stderr).strip()
