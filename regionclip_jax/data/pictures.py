"""Letterbox users' images and boxes on few canvas sizes, in batches of few shapes."""

import dataclasses
import glob
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from regionclip_jax.data.canvas import Size, place_on_canvas, smallest_canvas
from regionclip_jax.data.images import decode_image, to_rgb
from regionclip_jax.data.transforms import resize_short_side, scale_boxes
from regionclip_jax.structures import DetectionBatch

Picture = np.ndarray | Image.Image | str | Path
_FEWEST_ROWS = 25


@dataclasses.dataclass(frozen=True)
class Placed:
    """Letterboxed image: canvas, size on it, and canvas pixels per original pixel (y, x)."""

    canvas: UInt8[np.ndarray, "H W 3"]
    size: tuple[int, int]
    scale: Float[np.ndarray, " 2"]


def place(picture: Picture, short_side: int, max_long_side: int, resize_method: str) -> Placed:
    """Letterbox an image: resize it by a method of ``resized_size``, on the smallest canvas.

    Raises:
        RecordError: the file is not an image.
        ValueError: the array is not an image.
        FileNotFoundError: no such file.
    """
    original = read_picture(picture)
    resized = resize_short_side(original, short_side, max_long_side, resize_method)
    size = smallest_canvas(canvas_sizes(short_side, max_long_side), *resized.shape[:2])
    canvas = np.zeros((*size, 3), np.uint8)
    place_on_canvas(resized, canvas)
    scale = np.divide(resized.shape[:2], original.shape[:2], dtype=np.float32)
    return Placed(canvas, resized.shape[:2], scale)


def read_picture(image: Picture) -> np.ndarray:
    """Return an image as RGB uint8 [H, W, 3].

    Raises:
        RecordError: the file is not an image.
        ValueError: the array is not an image.
    """
    if isinstance(image, str | Path):
        path = Path(image)
        return decode_image(
            path.read_bytes(), source=str(path.parent), key=path.name, apply_orientation=True
        )
    if isinstance(image, Image.Image):
        return to_rgb(image)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.shape[2:] or (3,)) != (3,):
        raise ValueError(
            f"image: expected RGB uint8 [H, W, 3] or gray [H, W], found {pixels.dtype} "
            f"{list(pixels.shape)}; convert it, e.g. with PIL's convert('RGB')"
        )
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def list_pictures(given: Sequence[str]) -> list[Path]:
    """Return the files of paths, folders (not recursive) and glob patterns.

    Raises:
        FileNotFoundError: one of them matches no file.
    """
    found: list[Path] = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            some = sorted(p for p in path.iterdir() if p.suffix.lower() in _ENDINGS)
        elif path.exists():
            some = [path]
        else:
            some = sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())
        if not some:
            raise FileNotFoundError(
                f"{name}: expected a picture, a folder with pictures ({', '.join(_ENDINGS)}), or a "
                "pattern such as 'photos/*.jpg', found none"
            )
        found += some
    return list(dict.fromkeys(found))


def canvas_sizes(short_side: int, max_long_side: int) -> tuple[Size, ...]:
    """Return landscape and portrait canvases, multiples of 32, for 4:3 and longer images."""
    short, middle, long = (
        -(-side // 32) * 32
        for side in (short_side, round(short_side * 4 / 3), max(short_side, max_long_side))
    )
    lying = {(short, min(middle, long)), (short, long)}
    return tuple(sorted(lying | {(width, height) for height, width in lying}))


def check_boxes(boxes) -> Float[np.ndarray, "R 4"]:
    """Return boxes as float32 [R, 4].

    Raises:
        ValueError: another shape, or a box that is not finite or has no area.
    """
    boxes = np.asarray(boxes, np.float32)
    if boxes.size == 0:
        return np.zeros((0, 4), np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"boxes: expected [R, 4] as x1, y1, x2, y2, found the shape {list(boxes.shape)}"
        )
    good = np.isfinite(boxes).all(1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"boxes: row {row} is {boxes[row].tolist()}, expected finite x1 < x2 and y1 < y2 in "
            "pixels of the picture (not x, y, width, height)"
        )
    return boxes


def make_batch(
    pictures: Sequence[Placed], boxes: Sequence[np.ndarray], size: int = 1
) -> DetectionBatch:
    """Return a batch of images of one canvas size, with scaled boxes, padded to ``size`` images.

    Args:
        boxes: xyxy boxes of each image in original pixels. Their rows are padded to one of few
            numbers, so that few programs are compiled.
    """
    rows = _region_rows(max(map(len, boxes)))
    batch = DetectionBatch(
        images=np.zeros((size, *pictures[0].canvas.shape), np.uint8),
        sizes=np.zeros((size, 2), np.int32),
        boxes=np.zeros((size, rows, 4), np.float32),
        classes=np.zeros((size, rows), np.int32),
        box_mask=np.zeros((size, rows), bool),
        image_ids=np.arange(size, dtype=np.int32),
        scales=np.ones((size, 2), np.float32),
        mask=np.arange(size) < len(pictures),
    )
    for row, (placed, own) in enumerate(zip(pictures, boxes, strict=True)):
        batch.images[row], batch.sizes[row] = placed.canvas, placed.size
        batch.boxes[row, : len(own)] = scale_boxes(own, *placed.scale.tolist())
        batch.box_mask[row, : len(own)] = True
        batch.scales[row] = placed.scale
    return batch


def _region_rows(number: int) -> int:
    rows = _FEWEST_ROWS
    while rows < number:
        rows *= 2
    return rows
