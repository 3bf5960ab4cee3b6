"""Detect objects by name; write a COCO dataset, JSON lines and annotated images.

    regionclip detect --checkpoint checkpoints/clip_rn50 --images photos/ \\
        --classes "cat, remote control" --output found

Proposals and scores have the settings of the model directory. A score is a probability, unless
--objectness is "reference". The model directory needs a localizer (regionclip convert --localizer
FILE or DIR). OUTPUT gets detections.json (a COCO dataset with scores), detections.jsonl (a line
for each image as it is done), NAME.png for every image NAME with a detection to draw, and NAME.mp4
for every video. The exit status is 1 if an image is missing.
"""

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regionclip_jax import __version__, load
from regionclip_jax.commands.detection_files import DetectionFiles
from regionclip_jax.commands.image_run import ImageRun
from regionclip_jax.commands.input_images import InputImage
from regionclip_jax.commands.options import add_require_platform, start
from regionclip_jax.data.loading.tiles import tile_boxes
from regionclip_jax.data.loading.video import VIDEO_ENDINGS, VideoWriter, frame_rate, is_video
from regionclip_jax.data.sources.image_files import COMMAND_ENDINGS, list_images, relative_names
from regionclip_jax.extras import require_extra
from regionclip_jax.failures import one_line
from regionclip_jax.files import locked_folder
from regionclip_jax.model import AnyVocabulary, Detected, RegionCLIP
from regionclip_jax.reporting.detection_drawing import DRAWN_SCORE, best_names
from regionclip_jax.reporting.galleries import write_png
from regionclip_jax.text.names import resolve_names

_OVERLAP = 0.2  # of tiles
# With several images at once, images of one canvas are looked for among this many batches.
_BATCHES_TOGETHER = 4


@one_line(ValueError)
def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    start(options)
    paths = list_inputs(options)
    model, classes = open_model(options)
    return detect_all(model, paths, classes, options)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; refuse numbers that none can have."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --checkpoint DIR --images PATH ... --output DIR [--classes NAMES] [FLAGS]",
    )
    parser.add_argument("--checkpoint", metavar="DIR", required=True, help="model directory")
    parser.add_argument(
        "--images", metavar="PATH", nargs="+", required=True,
        help="images and videos: files, folders (at any depth) or globs",
    )  # fmt: skip
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help='"cat, remote control", a names file (.txt with one name a line, .json with '
        "categories), or a vocabulary .npz; default: the model directory's own vocabulary.npz",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write")
    parser.add_argument(
        "--score",
        type=float,
        help=f"keep, and draw, scores above this (default: the directory's; drawn: {DRAWN_SCORE})",
    )
    parser.add_argument(
        "--max_boxes", type=int, help="most detections of an image (default: the directory's)"
    )
    parser.add_argument(
        "--best_names",
        action="store_true",
        help="keep only the best name of each box, as annotated images show it",
    )
    parser.add_argument(
        "--no_drawing", action="store_true", help="write no annotated images and videos"
    )
    parser.add_argument(
        "--objectness", choices=("reference", "sigmoid", "none"),
        help="use of the localizer's objectness in the scores (default: the model directory's); "
        "scores of the reference may exceed 1",
    )  # fmt: skip
    parser.add_argument(
        "--tile", type=int, help="also detect in square tiles of this many pixels, for large images"
    )
    parser.add_argument("--overlap", type=float, help="share that neighbours share (default: 0.2)")
    parser.add_argument("--every", type=int, default=1, help="use each such frame of a video")
    parser.add_argument("--batch_size", type=int, default=1, help="images computed at once")
    parser.add_argument("--short_side", type=int, default=800, help="pixels to resize to")
    parser.add_argument("--max_long_side", type=int, default=1333)
    add_require_platform(parser)
    options = parser.parse_args(arguments)
    if options.overlap is not None and options.tile is None:
        raise ValueError("--overlap: found no --tile, expected both")
    if options.tile is not None:
        tile_boxes(1, 1, options.tile, _overlap(options))  # refuses values that no image has
    for name in ("batch_size", "max_boxes", "every"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name}: found {getattr(options, name)}, expected 1 or more")
    return options


def list_inputs(options: argparse.Namespace) -> list[Path]:
    """Return the paths of images and videos."""
    endings = (*COMMAND_ENDINGS, *VIDEO_ENDINGS)
    paths = list_images(options.images, without=options.output, endings=endings)
    if any(map(is_video, paths)):
        require_extra("video", "reading videos")
    return paths


def open_model(options: argparse.Namespace) -> tuple[RegionCLIP, AnyVocabulary]:
    """Return a model that proposes regions, and its classes."""
    classes = options.classes
    if classes is not None and not classes.endswith(".npz"):
        classes = resolve_names(classes)
    model = load(
        options.checkpoint,
        short_side=options.short_side,
        max_long_side=options.max_long_side,
        batch_size=options.batch_size,
    )
    model.vocabulary(classes)
    model.require_proposals()
    return model, classes


def detect_all(
    model: RegionCLIP, paths: list[Path], classes: AnyVocabulary, options: argparse.Namespace
) -> int:
    """Detect on every image; return the exit status of ``ImageRun``."""
    output = Path(options.output)
    names = relative_names(paths)
    # The name with its ending, so that a.jpg and a.png do not overwrite each other.
    endings = ["mp4" if is_video(path) else "png" for path in paths]
    drawn_files = [output / f"{n}.{ending}" for n, ending in zip(names, endings, strict=True)]
    if not options.no_drawing:
        require_new(drawn_files, paths)
    output.mkdir(parents=True, exist_ok=True)
    settings = model.scores.detection
    files = DetectionFiles(
        output,
        tuple(model.vocabulary(classes).names),
        {
            "description": f"detections of regionclip_jax {__version__}",
            "checkpoint": {"directory": str(model.directory), **model.card.source},
            "folder": common_folder(paths[0], names[0]),
            "score_above": settings.score_threshold if options.score is None else options.score,
            "objectness": options.objectness or settings.objectness,
            "tile": options.tile,
            "overlap": None if options.tile is None else _overlap(options),
        },
        len(paths),
    )

    def save() -> None:
        files.save(run.skipped, run.is_complete())

    # Tiles of one image fill batches.
    one_by_one = options.batch_size == 1 or options.tile is not None
    together = 1 if one_by_one else _BATCHES_TOGETHER * options.batch_size
    run = ImageRun(paths, save, together, options.every)
    videos = _AnnotatedVideos(paths, drawn_files, options.every)

    def compute(images: list[InputImage]) -> list[Detected]:
        stated = {
            "objectness": options.objectness,
            "score_threshold": options.score,
            "max_detections": None if options.best_names else options.max_boxes,
        }
        pixels = [image.pixels for image in images]
        if options.tile is None:
            return model.detect(pixels, classes, **stated)
        tiles = {"tile": options.tile, "overlap": _overlap(options)}
        return [model.detect_tiles(one, classes, **tiles, **stated) for one in pixels]

    def write(image: InputImage, found: Detected) -> _Written:
        if options.best_names:
            found = found.rows(best_names(found.boxes)[: options.max_boxes])
        score = DRAWN_SCORE if options.score is None else options.score
        is_frame = image.frame is not None
        if options.no_drawing or not (is_frame or (len(found) > 0 and found.scores[0] > score)):
            return _Written(found)
        drawn = np.asarray(found.draw(image.pixels, score=score, legend=not is_frame))
        name = drawn_files[image.number].relative_to(output).as_posix()
        if is_frame:
            return _Written(found, name, drawn)
        write_png(drawn_files[image.number], drawn)
        return _Written(found, name)

    def record(image: InputImage, written: _Written) -> str:
        if written.frame is not None:
            videos.write(image, written.frame)
        number = image.number
        files.add(paths[number], names[number], written.drawn, written.found, image)
        if files.is_due():
            save()
        return f"{len(written.found)} detections"

    with locked_folder(output):
        files.begin()
        with contextlib.closing(videos):
            return run.run(compute, write, record, files.describe)


class _Written(NamedTuple):
    """Detections of an image that is annotated, if it is to be.

    ``drawn`` is the name of the annotated image or video, and ``frame`` the annotated frame of the
    latter, which is not written yet.
    """

    found: Detected
    drawn: str | None = None
    frame: np.ndarray | None = None


class _AnnotatedVideos:
    """Annotated videos, one after the other.

    Args:
        read, written: paths of all images and videos, and of their annotated ones.
        every: the part of the frames that is written, so that seconds stay seconds.
    """

    def __init__(self, read: Sequence[Path], written: Sequence[Path], every: int):
        self._read, self._written, self._every = read, written, every
        self._number, self._writer = -1, None

    def write(self, image: InputImage, drawn: np.ndarray) -> None:
        if image.number != self._number:
            self.close()
            rate = frame_rate(self._read[image.number]) / self._every
            self._number = image.number
            self._writer = VideoWriter(self._written[image.number], rate)
        assert self._writer is not None
        self._writer.write(drawn)

    def close(self) -> None:
        """End the last video."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _overlap(options) -> float:
    return _OVERLAP if options.overlap is None else options.overlap


def require_new(written: Sequence[Path], read: Sequence[Path]) -> None:
    """Refuse to write over an image that is read.

    Raises:
        ValueError: a path is in both.
    """
    inputs = {path.resolve() for path in read}
    for path in written:
        if path.resolve() in inputs:
            raise ValueError(
                f"--output: the annotated image {path} would replace one of the images; give "
                "another folder"
            )


def common_folder(path: Path, name: str) -> str:
    """Return the folder below which a path has this name."""
    return str(Path(os.path.abspath(path)).parents[name.count("/")])
