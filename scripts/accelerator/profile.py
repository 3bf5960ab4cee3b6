"""Profile one pretraining step and one detection, and list their kernels."""

import collections
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from accelerator.measuring import arguments
from accelerator.recorder import Recorder
from benchmarks import detection, pretraining

_NUM_KERNELS = 25
_LARGEST_TRACE = 10 * 2**20


def run(recorder: Recorder) -> None:
    small = recorder.small
    sizes = dict(preset="scenes", height=64, width=96, regions=5, images=2) if small else {}
    pretrain = dict(images=24) | sizes | (dict(concepts=30) if small else {})
    detect = dict(images=1) | sizes | (dict(localizer="small", classes=4) if small else {})

    def pretraining_step() -> Callable:
        args = arguments(pretraining, dtype="bfloat16", **pretrain)
        return pretraining.whole_step(pretraining.build(args)).ours

    def one_detection() -> Callable:
        args = arguments(detection, dtype="bfloat16", **detect)
        return detection.whole(detection.build(args), {}).ours

    for name, make in (("pretrain", pretraining_step), ("detect", one_detection)):
        if recorder.has_time(f"profile of {name}", 8):
            _profile(recorder, name, make())


def _profile(recorder: Recorder, name: str, call: Callable) -> None:
    jax.block_until_ready(call())  # compiles
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (trace,) = Path(folder).rglob("*.xplane.pb")
        table = kernels(jax.profiler.ProfileData.from_file(str(trace)))
        if trace.stat().st_size <= _LARGEST_TRACE:
            shutil.copyfile(trace, recorder.folder / f"profile_{name}.xplane.pb")
        else:
            size = trace.stat().st_size / 2**20
            recorder.note(f"the trace of {name} is not kept: {size:.0f} MiB")
    total = sum(ms for _, _, ms in table)
    for kernel, calls, ms in table[:_NUM_KERNELS]:
        recorder.add({"name": kernel, "of": name, "calls": calls, "ms": ms, "share": ms / total})
        print(f"{name}: {ms:9.3f} ms {ms / total:6.1%} {calls:6d} x {kernel}", flush=True)
    recorder.fact(f"{name}_kernels", len(table))
    recorder.fact(f"{name}_kernel_ms", total)


def kernels(data: jax.profiler.ProfileData) -> list[tuple[str, int, float]]:
    """Return name, calls and milliseconds of the device's kernels, most time first."""
    calls, nanoseconds = collections.Counter(), collections.Counter()
    for event in _device_events(data):
        calls[event.name] += 1
        nanoseconds[event.name] += event.duration_ns
    return [(name, calls[name], ns / 1e6) for name, ns in nanoseconds.most_common()]


def _device_events(data: jax.profiler.ProfileData) -> Iterator:
    """Yield kernels of a GPU's streams, operations of a TPU, or XLA's operations on the CPU."""
    planes = list(data.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or planes:
        lines = list(plane.lines)
        streams = [line for line in lines if line.name.startswith("Stream")]
        operations = [line for line in lines if line.name == "XLA Ops"]
        for line in (streams or operations) if devices else lines:
            for event in line.events:
                # CPU threads also have events of their pool and of Python.
                if devices or (
                    not event.name.startswith("end: ") and "hlo_op" in dict(event.stats)
                ):
                    yield event
