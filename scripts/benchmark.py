"""Time the computations of this repository, and the same ones in PyTorch.

  python scripts/benchmark.py ops                  RoIAlign, NMS, soft-NMS at the paper's sizes
  python scripts/benchmark.py pretrain --images=2  one pretraining step and its parts
  python scripts/benchmark.py detect --images=1    detection of images and its stages
  python scripts/benchmark.py text                 the text tower
  python scripts/benchmark.py data --path=data/coco --split=train2017   reading and resizing
  python scripts/benchmark.py folder --batch=8     the command detect on a folder of images

--torch alternates PyTorch's calls with ours and prints the ratio of their time to ours. The first
call (compilation) is reported separately; the median of the repeats is printed with the lowest and
the highest. Compare lines of one run, not milliseconds of two machines. See docs/benchmarks.md.
"""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

from benchmarks import data, detection, folder, ops, pretraining, text
from benchmarks.machine import describe_machine, find_peak
from benchmarks.timing import run_rows
from regionclip_jax.settings import ConfigError

_MODES = {"ops": ops, "pretrain": pretraining, "detect": detection, "text": text}
_HOST_MODES = {"data": data, "folder": folder}  # whole runs, without a counterpart in PyTorch

_Help = argparse.ArgumentDefaultsHelpFormatter


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if getattr(args, "torch", False):
        # By default JAX allocates most of a GPU's memory at its first use.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    machine = describe_machine()
    print(f"{args.what} on {machine['device']}, {machine['cpus_allowed']} CPU cores")
    try:
        host = _HOST_MODES.get(args.what)
        result = measure_computing(args) if host is None else host.measure(args)
    except ConfigError as error:
        sys.exit(f"benchmark: {error}")
    if args.json:
        report = {"what": args.what, "arguments": vars(args) | {"json": str(args.json)}}
        args.json.write_text(json.dumps(report | machine | result, indent=1) + "\n")
    failed = [
        f"{row['name']}, {column}"
        for row in result["rows"]
        for column, timing in row.items()
        if isinstance(timing, dict) and "error" in timing
    ]
    if failed:
        sys.exit(f"benchmark: failed: {'; '.join(failed)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_subparsers(dest="what", required=True)
    for name, module in (_MODES | _HOST_MODES).items():
        mode = modes.add_parser(name, description=module.__doc__, formatter_class=_Help)
        module.add_arguments(mode)
        mode.add_argument("--repeats", type=int, default=5)
        mode.add_argument("--json", metavar="FILE", type=Path, help="write all numbers")
        if name in _MODES:
            mode.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
            mode.add_argument("--torch", action="store_true", help="alternate with PyTorch")
            mode.add_argument(
                "--torch_compile", action=argparse.BooleanOptionalAction,
                help="also time networks and steps with torch.compile (default: on a GPU)",
            )  # fmt: skip
    args = parser.parse_args(arguments)
    missing = [name for name in ("torch", "torchvision") if not importlib.util.find_spec(name)]
    if getattr(args, "torch", False) and missing:
        parser.error(f"--torch: {' and '.join(missing)} cannot be imported; pip install them")
    return args


def measure_computing(args: argparse.Namespace) -> dict:
    runner = None
    if args.torch:
        from benchmarks.torch_layers import TorchRunner

        runner = TorchRunner(args.dtype, args.torch_compile)
    peak = None
    if args.what != "ops":
        peak = find_peak(args.dtype)
        print(f"MFU is a share of {peak.flops / 1e12:.3f} TFLOP/s, {peak.source}")
    rows = run_rows(_MODES[args.what].works(args, runner), args.repeats, peak and peak.flops)
    result = {"peak": peak and peak._asdict(), "rows": rows}
    return result | {"torch_threads": runner.num_threads} if runner else result


if __name__ == "__main__":
    main()
