"""Embed regions of images, with an .npz file for every image.

    regionclip embed regions --checkpoint checkpoints/clip_rn50 --images photos/ \\
        --output features

Regions are the localizer's proposals; with --classes the detections of these names; with --boxes
the boxes of a JSON {file name: [[x1, y1, x2, y2], ...]}. Each file holds ``boxes`` [R, 4] in pixels
of the image and ``features`` [R, D], not normalized. Proposals have ``logits`` [R] (objectness),
detections ``classes`` [R], ``scores`` [R], ``probabilities`` [R, C] and ``names`` [C]. A row is the
same region in all arrays of a file.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from regionclip_jax import load
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.commands.options import add_require_platform, start
from regionclip_jax.data.loading.decoding import read_any_image
from regionclip_jax.data.sources.image_files import list_images
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.files import replaced_file
from regionclip_jax.model import RegionCLIP
from regionclip_jax.reporting.progress import readable_seconds
from regionclip_jax.text.names import resolve_names


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
    which.add_argument("--boxes", metavar="JSON", help="given boxes by file name")
    which.add_argument("--classes", metavar="NAMES", help="detections of these names, as detect.py")
    parser.add_argument("--num_proposals", type=int, default=100)
    parser.add_argument("--short_side", type=int, default=800, help="pixels to resize to")
    parser.add_argument("--max_long_side", type=int, default=1333)
    add_require_platform(parser)
    options = parser.parse_args(arguments)
    try:
        start(options)
        paths = list_images(options.images)
        given = None
        if options.boxes is not None:
            given = json.loads(Path(options.boxes).read_text(encoding="utf-8-sig"))
            if missing := [path.name for path in paths if path.name not in given]:
                raise ValueError(
                    f"{options.boxes}: no boxes for {len(missing)} images such as {missing[:3]}; "
                    "add them (an empty list for none), or leave the images out"
                )
        classes = options.classes
        if classes is not None and not classes.endswith(".npz"):
            classes = resolve_names(classes)
        model = load(
            options.checkpoint, short_side=options.short_side, max_long_side=options.max_long_side
        )
        if given is None:
            model.require_localizer()
        return extract_all(model, paths, given, classes, options)
    except (CheckpointMismatch, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def extract_all(model: RegionCLIP, paths: list[Path], given, classes, options) -> int:
    """Embed regions of every image; return the exit status: 1 if the only image is unreadable."""
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    skipped, began = 0, time.monotonic()
    for number, path in enumerate(paths, start=1):
        try:
            image = read_any_image(path)
        except (RecordError, OSError) as error:
            skipped += 1
            print(f"skipped: {error}", file=sys.stderr)
            continue
        boxes = None if given is None else given[path.name]
        arrays = features_of(model, image, boxes, classes, options.num_proposals)
        # The name with its suffix, so that a.jpg and a.png do not overwrite each other.
        with replaced_file(output / f"{path.name}.npz") as file:
            np.savez(file, **arrays)
        spent = time.monotonic() - began
        left = spent / number * (len(paths) - number)
        print(
            f"{number}/{len(paths)} {path.name}: {len(arrays['boxes'])} regions | "
            f"{number / spent:.2f} images/s | {readable_seconds(left)} left",
            flush=True,
        )
    print(f"{len(paths) - skipped} images, {skipped} skipped: {output}")
    return 1 if len(paths) == 1 and skipped else 0


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
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        return {"boxes": boxes, "features": model.encode_regions(image, boxes)}
    proposed = model.propose(image, num_proposals=num_proposals)
    return {
        "boxes": proposed.boxes,
        "features": model.encode_regions(image, proposed.boxes),
        "logits": proposed.logits,
    }
