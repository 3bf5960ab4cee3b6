"""Write the data sets of the synthetic experiment as records."""

import concurrent.futures
import dataclasses
import io
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from regionclip_jax.data.prepare.writers import write_array_record
from regionclip_jax.data.scenes.layout import draw_layout
from regionclip_jax.data.scenes.render import render
from regionclip_jax.data.scenes.sentences import describe
from regionclip_jax.data.scenes.vocabulary import SHAPES
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord

_SHARD_SIZE = 4096
_CHUNK = 128


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Parameters of a set of synthetic images; image i is a pure function of these and i."""

    # Distinguishes sets with the same seed.
    stream: int
    seed: int
    side: int
    num_things: tuple[int, int]
    sizes: tuple[float, float]
    overlap: float
    typicality: float
    clutter: int


def draw_record(pictures: Pictures, index: int, with_boxes: bool):
    """Return an image with its caption, and on request with boxes and classes."""
    rng = np.random.default_rng((pictures.seed, pictures.stream, index))
    layout = draw_layout(
        rng,
        pictures.side,
        pictures.num_things,
        pictures.sizes,
        pictures.overlap,
        pictures.typicality,
    )
    pixels, boxes, visible = render(layout, pictures.side, pictures.clutter, rng)
    caption = describe(layout, visible, rng)
    file = io.BytesIO()
    # Uncompressed: image noise hardly compresses, and each image is read many times.
    Image.fromarray(pixels).save(file, "BMP")
    key = f"{pictures.stream}-{index}"
    if not with_boxes:
        return ImageTextRecord(key=key, image=file.getvalue(), captions=(caption,))
    classes = np.array([SHAPES.index(thing.shape) for thing in layout.things], np.int32)
    return DetectionRecord(
        key=key,
        image=file.getvalue(),
        boxes=boxes[visible],
        classes=classes[visible],
        crowd=np.zeros(int(visible.sum()), bool),
        image_id=index + 1,
        captions=(caption,),
    )


def write_pictures(
    directory: Path, parts: dict[str, tuple[Pictures, int]], *, with_boxes: bool
) -> None:
    """Draw a data set of several kinds of images and write it; a complete one is kept.

    Args:
        parts: name -> (parameters, number of images).
        with_boxes: write detection records, for evaluation; otherwise images and captions only.
    """
    description = {
        "world": "scenes",
        "format": 1,
        "category_names": list(SHAPES),
        "with_boxes": with_boxes,
        "parts": {n: {**dataclasses.asdict(p), "count": c} for n, (p, c) in parts.items()},
    }
    write_array_record(_draw_all(parts, with_boxes), directory, _SHARD_SIZE, description)


def _draw_all(parts, with_boxes: bool) -> Iterator:
    jobs = [
        (pictures, start, min(_CHUNK, count - start), with_boxes)
        for pictures, count in parts.values()
        for start in range(0, count, _CHUNK)
    ]
    workers = min(os.cpu_count() or 1, len(jobs))
    # Spawned, not forked: the caller has JAX's threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        for chunk in pool.map(_draw_chunk, jobs):
            yield from chunk


def _draw_chunk(job) -> list:
    pictures, start, count, with_boxes = job
    return [draw_record(pictures, start + i, with_boxes) for i in range(count)]
