"""Base class of sources with images in a folder and all boxes in memory."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from regionclip_jax.data.sources.image_files import read_image
from regionclip_jax.data.sources.object_masks import object_mask
from regionclip_jax.data.sources.records import DetectionRecord, RecordError
from regionclip_jax.data.sources.skipped import SkippedEntries
from regionclip_jax.ops.host_boxes import BoxFit

# Largest file of one image's annotations, in bytes: for 100,000 objects.
MOST_ANNOTATION = 2**24
# COCO rounds to hundredths, so many boxes end 0.01 outside; those do not count as clipped.
_ROUNDING = 0.02


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
        mask_size: side P of the object masks; None: records have none.

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
        self._folder, self._images, self.mask_size = folder, list(images), mask_size
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
        image_id, name, height, width, boxes = self._images[index]
        image = read_image(self._folder / name, repr(self), name)
        masks = None
        if self.mask_size is not None:
            masks = self._masks(self._images[index], self.mask_size)
        return DetectionRecord(
            name,
            image,
            boxes.boxes,
            boxes.classes,
            boxes.crowd,
            image_id,
            masks=masks,
            size=(height, width),
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

    def _masks(self, image: BoxedImage, mask_size: int) -> UInt8[np.ndarray, "G P P"]:
        """Return the masks of an image's objects; crowds have empty ones."""
        boxes, crowd, outlines = image.boxes.boxes, image.boxes.crowd, image.boxes.outlines
        masks = np.zeros((len(boxes), mask_size, mask_size), np.uint8)
        for row in np.flatnonzero(~crowd):
            try:
                size = image.height, image.width
                masks[row] = object_mask(outlines[row], boxes[row], size, mask_size)
            except ValueError as error:
                raise RecordError(repr(self), image.name, f"object {row}: {error}") from error
        return masks


def clip_box(
    corners: tuple[float, float, float, float], height: int, width: int
) -> Float[np.ndarray, " 4"] | None:
    """Clip a finite box ``(x1, y1, x2, y2)`` to its image; return None if nothing is left."""
    # Faster than NumPy's clip, for the million boxes of a data set.
    limits = (width, height, width, height)
    clipped = [min(max(value, 0.0), limit) for value, limit in zip(corners, limits, strict=True)]
    box = np.array(clipped, np.float32)
    return box if box[2] > box[0] and box[3] > box[1] else None


class BoxClipper:
    """Clip the boxes of a data set to their images; count, name and judge them.

    Attributes:
        counts: numbers of clipped boxes and of dropped boxes without area.

    Args:
        skipped: gets the boxes that lie wholly outside their image.
    """

    def __init__(self, skipped: SkippedEntries):
        self._skipped, self._fit = skipped, BoxFit()
        self.counts = {"boxes_clipped": 0, "boxes_dropped_empty": 0}

    def clip(
        self, corners: tuple[float, float, float, float], height: int, width: int, name: object
    ) -> Float[np.ndarray, " 4"] | None:
        """Return the clipped box ``(x1, y1, x2, y2)``; None if it is dropped or skipped.

        Args:
            name: names the box in messages.
        """
        x1, y1, x2, y2 = corners
        box = clip_box(corners, height, width)
        if x2 - x1 <= _ROUNDING or y2 - y1 <= _ROUNDING:
            self.counts["boxes_dropped_empty"] += box is None
            return box
        if not self._fit.add(corners, height, width) or box is None:
            found = ", ".join(f"{value:.6g}" for value in corners)
            self._skipped.add(
                "outside_their_image", f"{name}: {found} in {height} x {width} (height x width)"
            )
            return None
        moved = max(abs(new - old) for new, old in zip(box.tolist(), corners, strict=True))
        self.counts["boxes_clipped"] += moved > _ROUNDING
        return box

    def require_pixels(self, where: object) -> None:
        """Raise ValueError if all boxes together have another format; ``where`` names the file."""
        if problem := self._fit.problem():
            raise ValueError(f"{where}: {problem}")


def stack_boxes(rows: Sequence[tuple[np.ndarray, int, bool, object]]) -> Boxes:
    """Stack rows of (box, class, crowd, outline) as arrays."""
    if not rows:
        return NO_BOXES
    boxes, classes, crowd, outlines = zip(*rows, strict=True)
    return Boxes(
        np.stack(boxes), np.array(classes, np.int32), np.array(crowd, bool), list(outlines)
    )
