"""Write a model for other programs: its weights, or a program that detects objects.

    regionclip export models/vit_b16 --format safetensors --output models/vit_b16_hf
    regionclip export models/rn50 --format regionclip_pth --output rn50.pth
    regionclip export models/rn50 --format stablehlo --names "cat, dog" --output pets.stablehlo

Weights: openclip and safetensors (transformers) are directories; regionclip_pth is a file for the
PyTorch reference. Programs run without this package, for one list of names or, with --vocabulary
input, for any embeddings: stablehlo detects; onnx is a directory of towers, recognition of given
boxes, and detection. docs/export.md says which format has which model.
"""

import argparse
from pathlib import Path
from typing import Any

from regionclip_jax import load
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.commands.options import add_require_platform, start
from regionclip_jax.export.onnx import COMPUTATION, write_onnx
from regionclip_jax.export.programs import Program, detection_program
from regionclip_jax.export.stablehlo import write_stablehlo
from regionclip_jax.export.weights import WEIGHT_FORMATS, export_weights
from regionclip_jax.failures import one_line
from regionclip_jax.hub import local_directory
from regionclip_jax.model import RegionCLIP
from regionclip_jax.text.names import resolve_names

_COMMON = {"model", "format", "output", "require_platform"}
_CLASSES = {"names", "vocabulary", "num_names", "size"}
_DETECTION = {"score", "max_boxes", "num_proposals"}
# Options of each format of programs, besides those of every format.
PROGRAM_OPTIONS = {
    "stablehlo": {*_CLASSES, *_DETECTION},
    "onnx": {*_CLASSES, *_DETECTION, "num_boxes"},
}
_SIZE, _NUM_BOXES = 800, 100


@one_line(ValueError)
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s MODEL --format FORMAT --output PATH [FLAGS]",
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help="model directory, or hf://owner/name")
    parser.add_argument("--format", choices=(*WEIGHT_FORMATS, *PROGRAM_OPTIONS), required=True)
    parser.add_argument("--output", metavar="PATH", required=True, help="directory or file")
    program = parser.add_argument_group("programs")
    program.add_argument(
        "--names", "--names-file", metavar="NAMES",
        help='"cat, remote control", a names file or a vocabulary .npz; default: the model\'s own',
    )  # fmt: skip
    program.add_argument("--vocabulary", choices=("input",), help="embeddings are an input")
    program.add_argument("--num_names", type=int, metavar="C", help="rows of that input")
    program.add_argument("--size", type=int, help=f"side of the canvas (default: {_SIZE} pixels)")
    program.add_argument("--score", type=float, help="drop scores up to this")
    program.add_argument("--max_boxes", type=int, help="largest number of detections")
    program.add_argument("--num_proposals", type=int, help="proposals of the localizer")
    program.add_argument("--num_boxes", type=int, help=f"boxes of onnx (default: {_NUM_BOXES})")
    add_require_platform(parser)
    options = parser.parse_args(arguments)
    allowed = _COMMON | PROGRAM_OPTIONS.get(options.format, set())
    for name in sorted(vars(options).keys() - allowed):
        if getattr(options, name) is not None:
            others = [each for each, own in PROGRAM_OPTIONS.items() if name in own]
            parser.error(f"--{name}: expected --format {' or '.join(others)}")
    if (options.vocabulary is None) != (options.num_names is None):
        parser.error("--vocabulary input and --num_names go together")
    if options.vocabulary is not None and options.names is not None:
        parser.error("--names: expected none, as the embeddings are an input")
    start(options)
    if options.format in WEIGHT_FORMATS:
        exported = export_weights(local_directory(options.model), options.format, options.output)
        print(exported.summary())
    else:
        _export_program(options)
    print(f"written: {options.output}")
    return 0


def _export_program(options: argparse.Namespace) -> None:
    side = _SIZE if options.size is None else options.size
    model = load(options.model, short_side=side, max_long_side=side)
    names = options.names
    if names is not None and not names.endswith(".npz"):
        names = resolve_names(names)
    rows = options.num_names
    classes = model.vocabulary(names) if rows is None else rows
    output = Path(options.output)
    if options.format == "stablehlo":
        paths = write_stablehlo(model, _detection(model, classes, side, options), output)
    else:
        # Without a localizer, detection is left out, but refused if a flag states it.
        stated = any(getattr(options, name) is not None for name in _DETECTION)
        detection = None
        if model.has_localizer or stated:
            detection = _detection(model, classes, side, options, **COMPUTATION)
        else:
            print("note: no detection.onnx, as the model has no localizer to find regions with")
        boxes = _NUM_BOXES if options.num_boxes is None else options.num_boxes
        paths = write_onnx(model, classes, side, boxes, output, detection)
    for path in paths:
        print(f"{path}: {path.stat().st_size:,} bytes")


def _detection(
    model: RegionCLIP,
    classes: Vocabulary | int,
    side: int,
    options: argparse.Namespace,
    **computation: Any,
) -> Program:
    return detection_program(
        model,
        classes,
        side,
        score_threshold=options.score,
        max_detections=options.max_boxes,
        num_proposals=options.num_proposals,
        **computation,
    )
