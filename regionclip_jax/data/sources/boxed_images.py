"""Base class of sources with images in a folder and all boxes in memory; masks of their objects."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

from regionclip_jax.data.sources.image_files import read_image
from regionclip_jax.data.sources.records import DetectionRecord, RecordError

# Oversampling of the polygons; a cell is set if at least half of it is covered.
_FINER = 4


class Boxes(NamedTuple):
    """Boxes of one image, as in ``DetectionRecord``, with the outlines of its objects."""

    boxes: Float[np.ndarray, "G 4"]
    classes: Int[np.ndarray, " G"]
    crowd: Bool[np.ndarray, " G"]
    outlines: list


NO_BOXES = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), [])


class BoxedImage(NamedTuple):
    """Record before its image is read; ``name`` is relative to the folder."""

    image_id: int
    name: str
    height: int
    width: int
    boxes: Boxes


class BoxedImages:
    """Base class of sources of images with boxes; subclasses read the annotations.

    Attributes:
        category_names: by class.
        category_ids: by class, as in the annotation file, for the official metrics.
        metric: official metric of the data, "coco" or "lvis".
        frequencies: by class, "r", "c" or "f" (rare, common, frequent) in LVIS, else empty.
        report: counts of images and boxes, and of clipped, dropped and skipped ones.
        named: report key -> first few names of its entries.

    Args:
        folder: folder of the images.
        images: records in order.
        mask_size: side P of the object masks; None reads none.
    """

    category_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    metric: str = "coco"
    frequencies: tuple[str, ...] = ()
    report: dict[str, int]
    named: dict[str, list[str]]

    def __init__(
        self,
        folder: pathlib.Path,
        images: Sequence[BoxedImage],
        *,
        mask_size: int | None = None,
    ):
        self._folder, self._images, self._mask_size = folder, list(images), mask_size
        self.report = {
            "images": len(self._images),
            "images_without_box": sum(not len(p.boxes.boxes) for p in self._images),
            "boxes": sum(len(p.boxes.boxes) for p in self._images),
            "crowd_boxes": sum(int(p.boxes.crowd.sum()) for p in self._images),
        }
        self.named = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> DetectionRecord:
        image_id, name, _, _, boxes = self._images[index]
        image = read_image(self._folder / name, repr(self), name)
        masks = None
        if self._mask_size is not None:
            masks = _rasterize_all(boxes, self._mask_size, repr(self), name)
        return DetectionRecord(
            name, image, boxes.boxes, boxes.classes, boxes.crowd, image_id, masks=masks
        )

    def annotations(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return boxes, classes and crowd flags of a record."""
        return self._images[index].boxes[:3]

    def index_parts(self) -> Iterator[bytes]:
        """Yield names, sizes and boxes; see ``fingerprint``."""
        yield json.dumps(self.category_names).encode()
        for image in self._images:
            yield json.dumps([image.name, image.height, image.width]).encode()
            yield from (array.tobytes() for array in image.boxes[:3])

    def sizes(self) -> Int[np.ndarray, "N 2"]:
        """Return (height, width) of every image without opening it."""
        return np.array([(p.height, p.width) for p in self._images], np.int32).reshape(-1, 2)


def clip_box(
    corners: tuple[float, float, float, float], height: int, width: int
) -> Float[np.ndarray, " 4"] | None:
    """Clip a finite box ``(x1, y1, x2, y2)`` to its image; return None if nothing is left."""
    box = np.array(corners, np.float64).clip(0, (width, height, width, height)).astype(np.float32)
    return box if box[2] > box[0] and box[3] > box[1] else None


def stack_boxes(rows: Sequence[tuple[np.ndarray, int, bool, object]]) -> Boxes:
    """Stack rows of (box, class, crowd, outline) as arrays."""
    if not rows:
        return NO_BOXES
    boxes, classes, crowd, outlines = zip(*rows, strict=True)
    return Boxes(
        np.stack(boxes), np.array(classes, np.int32), np.array(crowd, bool), list(outlines)
    )


def _rasterize_all(
    boxes: Boxes, mask_size: int, source: str, key: str
) -> UInt8[np.ndarray, "G P P"]:
    """Return the masks of an image's objects; crowds have empty ones.

    Raises:
        RecordError: an object other than a crowd has no polygons.
    """
    masks = np.zeros((len(boxes.boxes), mask_size, mask_size), np.uint8)
    for row in np.flatnonzero(~boxes.crowd):
        try:
            masks[row] = rasterize(boxes.outlines[row], boxes.boxes[row], mask_size)
        except (ValueError, TypeError, OverflowError) as error:
            raise RecordError(source, key, f"object {row}: {error}") from error
    return masks


def rasterize(
    segmentation: object, box: Float[np.ndarray, " 4"], size: int
) -> UInt8[np.ndarray, "P P"]:
    """Return a mask of ``size`` x ``size`` cells over the box: 1 inside the object, else 0.

    Args:
        segmentation: COCO's list of polygons, ``[x1, y1, x2, y2, ...]`` in original pixels.
        box: xyxy in the same frame.

    Raises:
        ValueError: not a list of polygons of at least three points.
    """
    if (
        not isinstance(segmentation, list)
        or not segmentation
        or not all(isinstance(p, list) and len(p) >= 6 and not len(p) % 2 for p in segmentation)
    ):
        raise ValueError(
            "expected a segmentation of polygons of at least three points, found "
            f"{str(segmentation)[:60]!r}"
        )
    fine = size * _FINER
    scale = fine / np.maximum(box[2:] - box[:2], 1e-6)
    canvas = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(canvas)
    for polygon in segmentation:
        # PIL's coordinates have their origin at the centre of the first pixel.
        points = (np.array(polygon, np.float64).reshape(-1, 2) - box[:2]) * scale - 0.5
        draw.polygon([tuple(point) for point in points], fill=1)
    cells = np.asarray(canvas).reshape(size, _FINER, size, _FINER).sum((1, 3))
    return (2 * cells >= _FINER**2).astype(np.uint8)
