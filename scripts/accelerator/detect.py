"""Measure detection: images per second by type and batch, PyTorch's pipeline, and the stages."""

from accelerator.measuring import arguments, free, measure, torch_runner
from accelerator.recorder import Recorder, compile_together, is_out_of_memory
from benchmarks import detection
from benchmarks.machine import find_peak

# (type, images), in order of value.
_SIZES = (
    ("bfloat16", 1), ("bfloat16", 16), ("bfloat16", 4), ("float32", 1), ("float32", 16),
    ("float32", 4),
)  # fmt: skip
_SMALL_SIZES = (("bfloat16", 1), ("float32", 2))


def run(recorder: Recorder) -> None:
    sizes = _SMALL_SIZES if recorder.small else _SIZES
    stages_of = sizes[-1] if recorder.small else ("bfloat16", 4)
    peaks = {dtype: find_peak(dtype).flops for dtype in ("bfloat16", "float32")}
    for group in (sizes[:3], sizes[3:]):
        _measure_whole(recorder, group, peaks)
    _measure_stages(recorder, *stages_of)
    if not recorder.small:
        # Also networks by torch.compile, which takes a minute for each size.
        for size in sizes[:2]:
            if recorder.has_time(f"{_label(*size)}, torch compiled", 75):
                _measure_whole(recorder, [size], peaks, compiled=True)


def _label(dtype: str, images: int) -> str:
    return f"{dtype}, {images} images"


def _setup(recorder: Recorder, dtype: str, images: int) -> detection.Setup:
    small = dict(preset="scenes", localizer="small", height=64, width=96, regions=20, classes=4)
    changes = small if recorder.small else {}
    return detection.build(arguments(detection, dtype=dtype, images=images, **changes))


def _measure_whole(recorder: Recorder, sizes, peaks: dict[str, float], compiled=False) -> None:
    works = []
    for dtype, images in sizes:
        if recorder.has_time(_label(dtype, images), 8):
            setup = _setup(recorder, dtype, images)
            runner = torch_runner(recorder, dtype, compiled)
            theirs = detection.torch_columns(setup, runner) if runner else {}
            works.append((dtype, images, detection.whole(setup, theirs)))
    errors = compile_together(work.ours.compile for *_, work in works)
    for (dtype, images, work), error in zip(works, errors, strict=True):
        label = _label(dtype, images)
        if error is not None and not is_out_of_memory(error):
            recorder.add({"name": work.name, "size": label, "error": f"{error}"[:800]})
        elif recorder.has_time(label, 2):
            labels = dict(size=label, dtype=dtype, images=images)
            if error or not measure(recorder, work, 7, peaks[dtype], **labels):
                recorder.note(f"{label}: out of memory")
        free(work)


def _measure_stages(recorder: Recorder, dtype: str, images: int) -> None:
    label = _label(dtype, images)
    if not recorder.has_time(f"stages of {label}", 10):
        return
    setup = _setup(recorder, dtype, images)
    runner = torch_runner(recorder, dtype, compiled=False)
    theirs = detection.torch_columns(setup, runner) if runner else {}
    works = list(detection.stages(setup, theirs))
    compile_together(work.ours.compile for work in works)
    for work in works:
        if recorder.has_time(f"{label}: {work.name}", 2):
            if not measure(recorder, work, 7, part_of=label):
                recorder.note(f"{label}: {work.name}: out of memory")
        free(work)
