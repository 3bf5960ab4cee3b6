"""Detection in a folder of images by the command, from the files to the results.

One image at a time, several at once, and several without annotated images, in alternation. Then
what the command does beside the computation: decoding, and drawing with writing, on one core.
"""

import argparse
import contextlib
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.data import draw_coco
from benchmarks.detection import add_model_arguments
from benchmarks.random_weights import draw_weights
from benchmarks.timing import Work, row_text, time_in_turns
from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer, save_localizer
from regionclip_jax.artifacts.model_card import LocalizerCard, ModelCard
from regionclip_jax.artifacts.model_checkpoint import abstract_variables, save_model
from regionclip_jax.commands import detect
from regionclip_jax.data.loading.decoding import read_any_image
from regionclip_jax.model import Detected
from regionclip_jax.models.presets import LOCALIZER_PRESETS, PRESETS
from regionclip_jax.reporting.detection_drawing import DRAWN_SCORE
from regionclip_jax.reporting.galleries import write_png

_ORIGIN = {"run": "benchmark"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--images", type=int, default=200, help="synthetic JPEGs of COCO's sizes")
    parser.add_argument("--batch", type=int, default=8, help="images computed at once")
    parser.add_argument("--classes", default="cat, dog, remote control", help="as of detect")
    parser.add_argument("--short_side", type=int, default=800, help="pixels to resize to")
    parser.add_argument("--max_long_side", type=int, default=1333)


def measure(args: argparse.Namespace) -> dict:
    """Print and return ``rows``, and ``drawn``, the number of annotated images."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        folder = Path(scratch)
        write_model(args, folder / "model")
        draw_coco(folder, args.images)
        drawn = folder / "drawn"  # the split of draw_coco
        files = sorted(drawn.iterdir())
        one, several = "batch 1", f"batch {args.batch}"
        options = {
            one: parse(args, folder, "one", "--batch_size=1"),
            several: parse(args, folder, "several", f"--batch_size={args.batch}"),
        }
        models = {name: detect.open_model(given) for name, given in options.items()}
        calls = {name: _call(*models[name], given) for name, given in options.items()}
        given = parse(args, folder, "undrawn", f"--batch_size={args.batch}", "--no_drawing")
        calls[f"{several}, --no_drawing"] = _call(*models[several], given)
        calls["decoding alone, one core"] = lambda: [read_any_image(file) for file in files]
        calls["drawing alone, one core"] = _drawing(*models[several], files, folder / "alone")
        timings, errors = time_in_turns(Work(one, calls.pop(one), calls), args.repeats)
        timings = {one: timings.pop("ours"), **timings}
        num_drawn = len(list((folder / "several").glob("*.png")))
    rows = []
    for name, timing in timings.items():
        rate = args.images / timing.median
        ratio = timings[one].median / timing.median
        row = {"name": name, "ours": timing.as_json(), "items": args.images, "unit": "images"}
        rows.append(row | {"items_per_s": rate, "ratio": ratio})
        print(f"{row_text(rows[-1])}, {ratio:.2f} times the rate of {one}")
    rows += [{"name": name, "ours": {"error": error}} for name, error in errors.items()]
    print(f"  {num_drawn} of {args.images} images have an annotated image")
    return {"rows": rows, "drawn": num_drawn}


def write_model(args: argparse.Namespace, directory: Path) -> None:
    """Write a model directory of random weights."""
    config, localizer = PRESETS[args.preset], LOCALIZER_PRESETS[args.localizer]
    variables = draw_weights(abstract_variables(config))
    save_model(directory, variables, ModelCard(config, _ORIGIN))
    variables = draw_weights(abstract_localizer(localizer))
    save_localizer(directory, variables, LocalizerCard(localizer, _ORIGIN))


def parse(args: argparse.Namespace, folder: Path, output: str, *flags: str) -> argparse.Namespace:
    """Return the options of the command on the images of the benchmark."""
    return detect.parse(
        [
            f"--checkpoint={folder / 'model'}", "--images", str(folder / "drawn"),
            f"--classes={args.classes}", f"--output={folder / output}",
            f"--short_side={args.short_side}", f"--max_long_side={args.max_long_side}", *flags,
        ]
    )  # fmt: skip


def _call(model, classes, options: argparse.Namespace) -> Callable[[], None]:
    paths = detect.list_inputs(options)

    def call() -> None:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            status = detect.detect_all(model, paths, classes, options)
        if status:
            raise RuntimeError(f"detect ended with the status {status}")

    return call


def _drawing(model, classes, files: list[Path], folder: Path) -> Callable[[], None]:
    """Return a call that draws what the first one detects, and writes the annotated images."""

    @functools.cache
    def detected() -> list[tuple[Path, np.ndarray, Detected]]:
        pixels = [read_any_image(file) for file in files]
        every = model.detect(pixels, classes)
        return [one for one in zip(files, pixels, every, strict=True) if is_drawn(one[2])]

    def is_drawn(found: Detected) -> bool:
        return len(found) > 0 and found.scores[0] > DRAWN_SCORE

    def call() -> None:
        for file, pixels, found in detected():
            drawn = found.draw(pixels, score=DRAWN_SCORE)
            write_png(folder / f"{file.name}.png", np.asarray(drawn))

    return call
