"""Measure the pretraining step by preset, type and batch, PyTorch's step, and the parts."""

import dataclasses

from accelerator.measuring import arguments, free, measure, torch_runner
from accelerator.recorder import Recorder, compile_together, is_out_of_memory
from benchmarks import pretraining
from benchmarks.machine import find_peak
from benchmarks.timing import Work


@dataclasses.dataclass(frozen=True)
class Size:
    preset: str
    dtype: str
    images: int
    # PyTorch's columns: "", "torch", or "torch compiled", which includes "torch".
    torch: str = ""
    # Regions of an image at once; 0 is all of them.
    chunk: int = 25

    @property
    def label(self) -> str:
        chunk = "" if self.chunk == 25 else ", all regions at once"
        torch = f", with {self.torch}" if self.torch else ""
        return f"{self.preset}, {self.dtype}, {self.images} images{chunk}{torch}"


# Groups compile together; groups and sizes are in order of value.
_GROUPS = (
    (
        Size("RN50", "bfloat16", 24, "torch compiled"),
        Size("RN50", "bfloat16", 96),
        Size("RN50", "bfloat16", 24, chunk=0),
        Size("RN50", "float32", 24),
    ),
    (Size("ViT-B/16", "bfloat16", 24), Size("RN50x4", "bfloat16", 24)),
    (
        Size("RN50", "bfloat16", 8),
        Size("RN50", "float32", 8),
        Size("RN50", "float32", 96),
        Size("ViT-B/16", "float32", 24),
        Size("RN50x4", "float32", 24),
    ),
    (
        Size("RN50", "float32", 24, "torch"),
        Size("ViT-B/16", "bfloat16", 24, "torch compiled"),
        Size("RN50x4", "bfloat16", 24, "torch compiled"),
    ),
)
_SMALL_GROUPS = (
    (Size("scenes", "bfloat16", 2), Size("scenes", "float32", 2, "torch", chunk=2)),
    (Size("scenes", "bfloat16", 4),),
)
# After this group the parts of the step are timed.
_PARTS_AFTER = 1
_PARTS_OF = Size("RN50", "bfloat16", 24)
_SMALL_PARTS_OF = Size("scenes", "bfloat16", 2)


def run(recorder: Recorder) -> None:
    peaks = {dtype: find_peak(dtype) for dtype in ("bfloat16", "float32")}
    for dtype, peak in peaks.items():
        recorder.fact(f"peak_{dtype}", peak._asdict())
    groups = _SMALL_GROUPS if recorder.small else _GROUPS
    parts_of = _SMALL_PARTS_OF if recorder.small else _PARTS_OF
    for number, group in enumerate(groups):
        group = [size for size in group if recorder.has_time(size.label, 10)]
        _measure_group(recorder, group, {name: peak.flops for name, peak in peaks.items()})
        if number == min(_PARTS_AFTER, len(groups) - 1):
            _measure_parts(recorder, parts_of)


def _setup(recorder: Recorder, size: Size) -> pretraining.Setup:
    small = dict(height=64, width=96, regions=5, concepts=30)
    # The largest canvas of a ViT's recipe.
    canvas = dict(height=752, width=752) if size.preset.startswith("ViT") else {}
    args = arguments(
        pretraining,
        preset=size.preset, dtype=size.dtype, images=size.images, chunk=size.chunk,
        **small if recorder.small else canvas,
    )  # fmt: skip
    return pretraining.build(args)


def _work(recorder: Recorder, size: Size) -> Work:
    runner = None
    if size.torch:
        runner = torch_runner(recorder, size.dtype, size.torch == "torch compiled")
    return pretraining.whole_step(_setup(recorder, size), runner)


def _measure_group(recorder: Recorder, sizes: list[Size], peaks: dict[str, float]) -> None:
    works = [_work(recorder, size) for size in sizes]
    errors = compile_together(work.ours.compile for work in works)
    for size, work, error in zip(sizes, works, errors, strict=True):
        if error is not None and not is_out_of_memory(error):
            recorder.add({"name": work.name, "size": size.label, "error": f"{error}"[:800]})
            print(f"{size.label}: failed: {error}", flush=True)
        elif recorder.has_time(size.label, 60 if size.torch == "torch compiled" else 3):
            _measure_or_halve(recorder, size, None if error else work, peaks[size.dtype])
        free(work)


def _measure_or_halve(recorder: Recorder, size: Size, work: Work | None, peak: float) -> None:
    """Measure a size; halve the number of images until the memory suffices."""
    while work is None or not measure(
        recorder, work, 5, peak,
        size=size.label, preset=size.preset, dtype=size.dtype, images=size.images,
    ):  # fmt: skip
        smaller = dataclasses.replace(size, images=size.images // 2)
        recorder.note(f"{size.label}: out of memory; next {smaller.images} images")
        if work is not None:
            free(work)
        if not smaller.images or not recorder.has_time(smaller.label, 15):
            return
        size, work = smaller, _work(recorder, smaller)


def _measure_parts(recorder: Recorder, size: Size) -> None:
    if not recorder.has_time(f"parts of {size.label}", 10):
        return
    works = list(pretraining.parts(_setup(recorder, size)))
    compile_together(work.ours.compile for work in works)
    for work in works:
        if recorder.has_time(f"{size.label}: {work.name}", 2):
            if not measure(recorder, work, 5, part_of=size.label):
                recorder.note(f"{size.label}: {work.name}: out of memory")
        free(work)
