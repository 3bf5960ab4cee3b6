"""Measure RoIAlign, NMS, soft-NMS and attention in alternation with PyTorch's."""

from accelerator.measuring import arguments, measure, torch_runner
from accelerator.recorder import Recorder
from benchmarks import ops

_SMALL = dict(
    height=64, width=64, channels=4, crop=2, regions=[3], candidates=40, kept=10, scored=6,
    classes=[2, 3], tokens=30, heads=1,
)  # fmt: skip


def run(recorder: Recorder) -> None:
    sizes = _SMALL if recorder.small else dict(regions=[1000, 100])
    runner = torch_runner(recorder, "bfloat16", compiled=False)
    args = arguments(ops, dtype="bfloat16", implementations=["auto"], **sizes)
    _rows(recorder, args, runner)
    # The implementations that "auto" did not choose, and float32.
    others = ["matmul", "matmul_rows"] + (["gather"] if recorder.small else [])
    args = arguments(ops, dtype="bfloat16", implementations=others, **sizes)
    _rows(recorder, args, None, only="RoIAlign")
    args = arguments(ops, dtype="float32", implementations=["auto"], **sizes)
    runner = torch_runner(recorder, "float32", compiled=False)
    _rows(recorder, args, runner, only=("RoIAlign", "attention"))


def _rows(recorder: Recorder, args, runner, only: str | tuple[str, ...] = "") -> None:
    for work in ops.works(args, runner):
        if not work.name.startswith(only) or not recorder.has_time(f"{work.name}, {args.dtype}", 3):
            continue
        if not measure(recorder, work, 15, dtype=args.dtype):
            recorder.note(f"{work.name}, {args.dtype}: out of memory")
