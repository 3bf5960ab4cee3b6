"""Embed regions of images, with an .npz file for every image.

    regionclip embed regions --checkpoint checkpoints/clip_rn50 --images photos/ \\
        --output features

Regions are the localizer's proposals; with --classes the detections of these names; with --boxes
the boxes of a JSON {path or name of the image: [[x1, y1, x2, y2], ...]}. Each file is named by the
path of its image below the folder that holds all of them. It holds ``boxes`` [R, 4] in pixels of
the image and ``features`` [R, D], not normalized. Proposals have ``logits`` [R] (objectness),
detections ``classes`` [R], ``scores`` [R], ``probabilities`` [R, C] and ``names`` [C]. A row is the
same region in all arrays of a file. The exit status is 1 if an image is missing.
"""

import argparse
from pathlib import Path

import numpy as np

from regionclip_jax import load
from regionclip_jax.commands.image_run import ImageRun
from regionclip_jax.commands.input_images import InputImage
from regionclip_jax.commands.options import add_require_platform, start
from regionclip_jax.data.loading.letterbox import check_boxes
from regionclip_jax.data.sources.image_files import image_size, list_images, relative_names
from regionclip_jax.failures import one_line
from regionclip_jax.files import locked_folder, replaced_file
from regionclip_jax.model import RegionCLIP
from regionclip_jax.text.names import resolve_names
from regionclip_jax.untrusted import parse_json, read_bytes

_MOST_BOXES = 2**26  # bytes: some 700,000 boxes


@one_line(ValueError)
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", metavar="DIR", required=True, help="model directory")
    parser.add_argument(
        "--images", metavar="PATH", nargs="+", required=True, help="files, folders or globs"
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--boxes", metavar="JSON", help="given boxes by path or name")
    which.add_argument("--classes", metavar="NAMES", help="detections of these names, as detect.py")
    parser.add_argument("--num_proposals", type=int, default=100)
    parser.add_argument("--short_side", type=int, default=800, help="pixels to resize to")
    parser.add_argument("--max_long_side", type=int, default=1333)
    add_require_platform(parser)
    options = parser.parse_args(arguments)
    start(options)
    paths = list_images(options.images, without=options.output)
    given = None
    if options.boxes is not None:
        given = read_boxes(options.boxes, paths)
    classes = options.classes
    if classes is not None and not classes.endswith(".npz"):
        classes = resolve_names(classes)
    model = load(
        options.checkpoint, short_side=options.short_side, max_long_side=options.max_long_side
    )
    if given is None:
        model.require_proposals()
    return extract_all(model, paths, given, classes, options)


def read_boxes(file: str, paths: list[Path]) -> list[np.ndarray]:
    """Return the boxes of every image from a JSON {image: [[x1, y1, x2, y2], ...]}.

    An entry names an image by its path relative to the folder that holds all images, by its path as
    given, or by its file name alone.

    Raises:
        ValueError: no JSON object, an image without an entry, an entry of several images, an entry
            that occurs twice or is no list of boxes, or boxes that do not fit their image.
    """
    try:
        entries = parse_json(read_bytes(file, _MOST_BOXES))
        if not isinstance(entries, dict):
            raise ValueError(f"expected an entry for each image, found {type(entries).__name__}")
        boxes, used, missing = [], {}, []
        for path, name in zip(paths, relative_names(paths), strict=True):
            key = next((key for key in (name, str(path), path.name) if key in entries), None)
            if key is None:
                missing.append(name)
                continue
            if key in used:
                raise ValueError(
                    f"the entry {key!r} is the one of two images, {used[key]} and {name}; name the "
                    "images in it by these paths"
                )
            used[key] = name
            try:
                boxes.append(check_boxes(entries[key], image_size(path)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"the entry {key!r}: {error}") from error
        if missing:
            raise ValueError(
                f"no boxes for {len(missing)} images such as {missing[:3]}; "
                "add them (an empty list for none), or leave the images out"
            )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {error}") from error
    return boxes


def extract_all(model: RegionCLIP, paths: list[Path], given, classes, options) -> int:
    """Embed regions of every image; return the exit status of ``ImageRun``."""
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    names = relative_names(paths)
    run = ImageRun(paths)

    def compute(images: list[InputImage]) -> list[dict]:
        (image,) = images
        boxes = None if given is None else given[image.number]
        return [features_of(model, image.pixels, boxes, classes, options.num_proposals)]

    def write(image: InputImage, arrays: dict) -> str:
        # The name with its ending, so that a.jpg and a.png do not overwrite each other.
        with replaced_file(output / f"{names[image.number]}.npz") as file:
            np.savez(file, **arrays)
        return f"{len(arrays['boxes'])} regions"

    with locked_folder(output):
        return run.run(
            compute, write, lambda image, said: said, lambda: f"one .npz file each: {output}"
        )


def features_of(model: RegionCLIP, image, boxes, classes, num_proposals: int) -> dict:
    """Return the arrays of one image's file."""
    if classes is not None:
        found = model.detect(image, classes)
        features = model.encode_regions(image, found.boxes)
        vocabulary = model.vocabulary(classes)
        return {
            "boxes": found.boxes,
            "features": features,
            "classes": found.classes,
            "scores": found.scores,
            "probabilities": model.classify(features, vocabulary),
            "names": np.array(vocabulary.names),
        }
    if boxes is not None:
        return {"boxes": boxes, "features": model.encode_regions(image, boxes)}
    proposed = model.propose(image, num_proposals=num_proposals)
    return {
        "boxes": proposed.boxes,
        "features": model.encode_regions(image, proposed.boxes),
        "logits": proposed.logits,
    }
