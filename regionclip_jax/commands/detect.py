"""Detect objects by name, and write JSON and annotated images.

    regionclip detect --checkpoint checkpoints/clip_rn50 --images photos/ \\
        --classes "cat, remote control" --output found

Proposals and scores have the settings of the model directory. A score is a probability, unless
--objectness is "reference". The model directory needs a localizer (regionclip convert --localizer
FILE or DIR). OUTPUT gets detections.json, which always holds the images done so far, and NAME.png
for every image NAME with a detection. The exit status is 1 if an image is missing.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from regionclip_jax import load
from regionclip_jax.commands.image_run import ImageRun
from regionclip_jax.commands.options import add_require_platform, start
from regionclip_jax.data.sources.image_files import list_images, relative_names
from regionclip_jax.failures import one_line
from regionclip_jax.files import locked_folder, replace_text
from regionclip_jax.model import Detected, RegionCLIP
from regionclip_jax.reporting.drawing import CLASS_COLOURS, Mark, draw_marks, score_text
from regionclip_jax.reporting.galleries import write_png
from regionclip_jax.text.names import resolve_names


@one_line(ValueError)
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", metavar="DIR", required=True, help="model directory")
    parser.add_argument(
        "--images", metavar="PATH", nargs="+", required=True, help="files, folders or globs"
    )
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help='"cat, remote control", a names file (.txt with one name a line, .json with '
        "categories), or a vocabulary .npz; default: the model directory's own vocabulary.npz",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write")
    parser.add_argument("--score", type=float, default=0.5, help="keep scores above this")
    parser.add_argument("--max_boxes", type=int, default=30, help="most boxes of an image")
    parser.add_argument(
        "--all_names",
        action="store_true",
        help="keep several names of one box (default: the best of each box)",
    )
    parser.add_argument(
        "--objectness", choices=("reference", "sigmoid", "none"),
        help="use of the localizer's objectness in the scores (default: the model directory's); "
        "scores of the reference may exceed 1",
    )  # fmt: skip
    parser.add_argument("--short_side", type=int, default=800, help="pixels to resize to")
    parser.add_argument("--max_long_side", type=int, default=1333)
    add_require_platform(parser)
    options = parser.parse_args(arguments)
    start(options)
    paths = list_images(options.images)
    classes = options.classes
    if classes is not None and not classes.endswith(".npz"):
        classes = resolve_names(classes)
    model = load(
        options.checkpoint, short_side=options.short_side, max_long_side=options.max_long_side
    )
    model.vocabulary(classes)
    model.require_localizer()
    return detect_all(model, paths, classes, options)


def detect_all(model: RegionCLIP, paths: list[Path], classes, options) -> int:
    """Detect on every image; return the exit status of ``ImageRun``."""
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    names = relative_names(paths)
    settings = model.scores.detection
    if options.objectness is not None:
        settings = dataclasses.replace(settings, objectness=options.objectness)
    report = _Report(
        output / "detections.json",
        {
            "checkpoint": {"directory": str(model.directory), **model.card.source},
            "classes": list(model.vocabulary(classes).names),
            "boxes": "x1, y1, x2, y2 in pixels of the image, rotated as its EXIF data says",
            "score_above": options.score,
            "objectness": settings.objectness,
            "num_images": len(paths),
        },
    )
    run = ImageRun(paths, report.save)
    report.skipped = run.skipped

    def process(number: int, image: np.ndarray) -> str:
        found = model.detect(image, classes, objectness=options.objectness)
        kept = choose(found, options.score, options.max_boxes, options.all_names)
        # The name with its ending, so that a.jpg and a.png do not overwrite each other.
        drawn = f"{names[number]}.png" if kept else None
        with run.writing:
            if drawn:
                marks = [
                    Mark(
                        found.boxes[k].tolist(),
                        f"{found.names[k]} {score_text(found.scores[k], settings)}",
                        colour=CLASS_COLOURS[found.classes[k] % len(CLASS_COLOURS)],
                    )
                    for k in reversed(kept)
                ]
                write_png(output / drawn, draw_marks(image, marks))
            detections = [
                {
                    "box": [round(v, 2) for v in found.boxes[k].tolist()],
                    "score": round(float(found.scores[k]), 6),
                    "class": found.names[k],
                }
                for k in kept
            ]
            report.add({"file": str(paths[number]), "drawn": drawn, "detections": detections})
        return f"{len(kept)} detections"

    with locked_folder(output):
        return run.run(process, report.describe)


class _Report:
    """The file detections.json, valid at any time, with the images done so far.

    Writing takes longer with every image. So a write waits until ten times the duration of the last
    one has passed. A process that is killed loses the images of that time at most.
    """

    def __init__(self, path: Path, head: dict):
        self.skipped: list[str] = []
        self._path, self._head = path, head
        self._images: list[dict] = []
        self._next_write, self._num_written = 0.0, -1

    def add(self, image: dict) -> None:
        self._images.append(image)
        if time.monotonic() >= self._next_write:
            self.save()

    def save(self) -> None:
        """Write the images that are not in the file."""
        num_known = len(self._images) + len(self.skipped)
        if num_known == self._num_written:
            return
        began = time.monotonic()
        content = {
            **self._head,
            "complete": num_known == self._head["num_images"],
            "images": self._images,
            "skipped": self.skipped,
        }
        replace_text(self._path, json.dumps(content, indent=1) + "\n")
        ended = time.monotonic()
        self._next_write, self._num_written = ended + 10 * (ended - began), num_known

    def describe(self) -> str:
        total = sum(len(image["detections"]) for image in self._images)
        return f"{total} detections: {self._path}"


def choose(found: Detected, score: float, max_boxes: int, all_names: bool) -> list[int]:
    """Return the rows to keep, best first.

    Like the reference's visualizer, keep only the best of several names of the same box, unless
    ``all_names`` is set.
    """
    kept, seen = [], set()
    for row in range(len(found)):
        box = tuple(found.boxes[row].tolist())
        if found.scores[row] > score and (all_names or box not in seen):
            kept.append(row)
        seen.add(box)
    return kept[:max_boxes]
