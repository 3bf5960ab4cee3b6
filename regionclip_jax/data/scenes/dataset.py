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
# Directories that earlier versions wrote are kept, so their descriptions must stay equal.
_KEYS_ON_DISK = {"num_objects": "num_things"}


@dataclasses.dataclass(frozen=True)
class SceneImages:
    """Parameters of a set of synthetic images; image i is a pure function of these and i."""

    # Distinguishes sets with the same seed.
    stream: int
    seed: int
    side: int
    num_objects: tuple[int, int]
    sizes: tuple[float, float]
    overlap: float
    typicality: float
    clutter: int


def draw_record(images: SceneImages, index: int, with_boxes: bool):
    """Return an image with its caption, and on request with boxes and classes."""
    rng = np.random.default_rng((images.seed, images.stream, index))
    layout = draw_layout(
        rng,
        images.side,
        images.num_objects,
        images.sizes,
        images.overlap,
        images.typicality,
    )
    pixels, boxes, visible = render(layout, images.side, images.clutter, rng)
    caption = describe(layout, visible, rng)
    file = io.BytesIO()
    # Uncompressed: image noise hardly compresses, and each image is read many times.
    Image.fromarray(pixels).save(file, "BMP")
    key = f"{images.stream}-{index}"
    if not with_boxes:
        return ImageTextRecord(key=key, image=file.getvalue(), captions=(caption,))
    classes = np.array([SHAPES.index(item.shape) for item in layout.objects], np.int32)
    return DetectionRecord(
        key=key,
        image=file.getvalue(),
        boxes=boxes[visible],
        classes=classes[visible],
        crowd=np.zeros(int(visible.sum()), bool),
        image_id=index + 1,
        captions=(caption,),
    )


def write_scenes(
    directory: Path, parts: dict[str, tuple[SceneImages, int]], *, with_boxes: bool
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
        "parts": {name: _describe(images, count) for name, (images, count) in parts.items()},
    }
    write_array_record(_draw_all(parts, with_boxes), directory, _SHARD_SIZE, description)


def _describe(images: SceneImages, count: int) -> dict:
    parameters = dataclasses.asdict(images).items()
    return {_KEYS_ON_DISK.get(key, key): value for key, value in parameters} | {"count": count}


def _draw_all(parts, with_boxes: bool) -> Iterator:
    jobs = [
        (images, start, min(_CHUNK, count - start), with_boxes)
        for images, count in parts.values()
        for start in range(0, count, _CHUNK)
    ]
    workers = min(os.cpu_count() or 1, len(jobs))
    # Spawned, not forked: the caller has JAX's threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        for chunk in pool.map(_draw_chunk, jobs):
            yield from chunk


def _draw_chunk(job) -> list:
    images, start, count, with_boxes = job
    return [draw_record(images, start + i, with_boxes) for i in range(count)]
