"""COCO's own layout: ``annotations/{captions,instances}_{split}.json``, pictures in ``{split}/``.

Annotations are held in memory, pictures are read when asked for.
"""

import json
import os
import pathlib

import numpy as np

from regionclip_jax.data.object_masks import rasterize
from regionclip_jax.data.records import DetectionRecord, ImageTextRecord, RecordError

NO_BOXES = (np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), [])


class CocoCaptionsSource:
    """Pictures with their captions, in ascending image id; pictures without a caption are left out.

    Attributes:
        report: counts of what was found, for a line at the start of a job.
        missing_images: names of the files that the annotations list but the folder lacks.

    Args:
        root: holds ``annotations/`` and the picture folder.
        split: such as ``"train2017"``.
        missing_limit: number of missing picture files to put up with.

    Raises:
        FileNotFoundError: no annotation file, no picture folder, or too many missing pictures.
        ValueError: the file has no captions.
    """

    def __init__(self, root: str | os.PathLike, split: str, missing_limit: int = 0):
        self._root, self._split = pathlib.Path(root), split
        path = self._root / "annotations" / f"captions_{split}.json"
        content = read_annotations(path)
        captions: dict[int, list[str]] = {}
        for annotation in content["annotations"]:
            if "caption" not in annotation:
                raise ValueError(
                    f"{path}: annotation {annotation.get('id')} has no caption, but "
                    f"{', '.join(sorted(annotation))}: give the captions file of the split"
                )
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        if not captions:
            raise ValueError(f"{path} has no captions: expected COCO's captions file of the split")
        names, self.missing_images = _list_images(content, self._root / split, missing_limit)
        self._records = [(name, tuple(captions[i])) for i, name in names.items() if i in captions]
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        self._sizes = np.array([sizes[i] for i in names if i in captions]).reshape(-1, 2)
        self.report = {
            "images": len(self._records),
            "captions": sum(len(texts) for _, texts in self._records),
            "images_without_caption": len(names) - len(self._records),
            "images_missing": len(self.missing_images),
        }

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> ImageTextRecord:
        name, captions = self._records[index]
        image = read_image(self._root / self._split / name, repr(self), name)
        return ImageTextRecord(name, image, captions)

    def sizes(self) -> np.ndarray:
        """(height, width) of all pictures, [N, 2], as the annotations give them."""
        return self._sizes

    def __repr__(self) -> str:
        return f"CocoCaptionsSource({str(self._root)!r}, {self._split!r})"


class CocoInstancesSource:
    """Pictures with their boxes, in ascending image id; pictures without boxes are kept.

    Classes are contiguous from 0 in the order of ascending category id. Boxes are clipped to the
    picture; what is empty then is dropped.

    Attributes:
        annotations_path: the annotation file.
        category_names: by class.
        category_ids: by class, as in the annotation file, for the official metrics.
        report: counts of what was found, clipped and dropped.
        missing_images: names of the files that the annotations list but the folder lacks.

    Args and Raises: as :class:`CocoCaptionsSource`, with ``instances_{split}.json``.

    Args:
        annotations: a file in COCO's format that lies anywhere; the pictures are then those of
            ``root/split``, or of ``root`` with an empty split.
        mask_size: side P of the rasters of object masks; None reads none.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        missing_limit: int = 0,
        *,
        annotations: str | os.PathLike | None = None,
        mask_size: int | None = None,
    ):
        self._root, self._split, self._mask_size = pathlib.Path(root), split, mask_size
        path = self._root / "annotations" / f"instances_{split}.json"
        if annotations is not None:
            path = pathlib.Path(annotations)
        self.annotations_path = path
        content = read_annotations(path)
        if not content.get("categories"):
            raise ValueError(
                f"{path} has no categories: expected COCO's instances file of the split"
            )
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_names = tuple(category["name"] for category in categories)
        self.category_ids = tuple(category["id"] for category in categories)
        names, self.missing_images = _list_images(content, self._root / split, missing_limit)
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        boxes, counts = read_boxes(path, content["annotations"], self.category_ids, sizes)
        self.report = counts
        self._records = [(i, name, *boxes.get(i, NO_BOXES)) for i, name in names.items()]
        self._sizes = sizes
        self.report |= {
            "images": len(self._records),
            "images_without_box": sum(i not in boxes for i in names),
            "images_missing": len(self.missing_images),
        }

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> DetectionRecord:
        image_id, name, boxes, classes, crowd, shapes = self._records[index]
        image = read_image(self._root / self._split / name, repr(self), name)
        masks = rasterize_all(shapes, boxes, crowd, self._mask_size, repr(self), name)
        return DetectionRecord(name, image, boxes, classes, crowd, image_id, masks=masks)

    def annotations(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, classes and crowd flags of a record."""
        return self._records[index][2:5]

    def sizes(self) -> np.ndarray:
        """(height, width) of all pictures, [N, 2], as the annotations give them."""
        return np.array([self._sizes[image_id] for image_id, *_ in self._records])

    def __repr__(self) -> str:
        return f"CocoInstancesSource({str(self._root)!r}, {self._split!r})"


def read_boxes(
    path: pathlib.Path, annotations: list, category_ids: tuple[int, ...], sizes: dict
) -> tuple[dict, dict[str, int]]:
    """Boxes of an annotation file, clipped to their pictures.

    Args:
        path: of the file, for errors.
        annotations: with ``image_id``, ``category_id``, ``bbox`` (x, y, width, height).
        category_ids: by class.
        sizes: image id -> (height, width).

    Returns:
        Image id -> (boxes [n, 4] xyxy, classes [n], crowd [n], segmentations); and counts for a
        report.

    Raises:
        ValueError: an annotation without a box, or of a category or an image that is not listed.
    """
    class_of = {category_id: i for i, category_id in enumerate(category_ids)}
    counts = {"boxes": 0, "crowd_boxes": 0, "boxes_clipped": 0, "boxes_dropped_empty": 0}
    rows: dict[int, list] = {}
    for annotation in annotations:
        image_id, category = annotation["image_id"], annotation.get("category_id")
        if "bbox" not in annotation or category not in class_of or image_id not in sizes:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} lacks a bbox, or its category "
                f"{category} or image {image_id} is not listed: repair the file"
            )
        height, width = sizes[image_id]
        x, y, w, h = annotation["bbox"]
        box = np.array([x, y, x + w, y + h], np.float64)
        clipped = box.clip(0, (width, height, width, height)).astype(np.float32)
        # Written so that a NaN counts as empty.
        if not (clipped[2] > clipped[0] and clipped[3] > clipped[1]):
            counts["boxes_dropped_empty"] += 1
            continue
        # COCO rounds to hundredths, so that many boxes end 0.01 outside; those do not count.
        counts["boxes_clipped"] += bool(np.abs(clipped - box).max() > 0.02)
        is_crowd = bool(annotation.get("iscrowd", 0))
        counts["crowd_boxes"] += is_crowd
        counts["boxes"] += 1
        shape = annotation.get("segmentation")
        rows.setdefault(image_id, []).append((clipped, class_of[category], is_crowd, shape))
    arrays = {
        image_id: (
            np.stack([box for box, _, _, _ in row]),
            np.array([index for _, index, _, _ in row], np.int32),
            np.array([crowd for _, _, crowd, _ in row], bool),
            [shape for _, _, _, shape in row],
        )
        for image_id, row in rows.items()
    }
    return arrays, counts


def rasterize_all(
    shapes: list,
    boxes: np.ndarray,
    crowd: np.ndarray,
    mask_size: int | None,
    source: str,
    key: str,
) -> np.ndarray | None:
    """Rasters [n, P, P] of an image's objects; crowds have empty ones. None without a size.

    Raises:
        RecordError: an object that is no crowd has no polygons.
    """
    if mask_size is None:
        return None
    masks = np.zeros((len(boxes), mask_size, mask_size), np.uint8)
    for row in np.flatnonzero(~crowd):
        try:
            masks[row] = rasterize(shapes[row], boxes[row], mask_size)
        except ValueError as error:
            raise RecordError(source, key, f"object {row}: {error}") from error
    return masks


def read_annotations(path: pathlib.Path) -> dict:
    """A file with ``images`` and ``annotations``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: expected COCO's layout, ROOT/annotations/ beside ROOT/SPLIT/; "
            "download the annotations or correct root and split"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): download it again") from error
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise ValueError(f"{path} has no images and annotations: expected a COCO annotation file")
    return content


def _list_images(
    content: dict, folder: pathlib.Path, missing_limit: int
) -> tuple[dict[int, str], tuple[str, ...]]:
    """File names by ascending image id, and those that the folder lacks."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist: expected the pictures of the split there; "
            "download and unpack them, or correct root and split"
        )
    for image in content["images"]:
        if "file_name" not in image:
            raise ValueError(
                f"the annotations of {folder} list image {image.get('id')} without a file_name: "
                "expected a COCO annotation file (LVIS files are not)"
            )
    present = {entry.name for entry in os.scandir(folder)}
    names = {image["id"]: image["file_name"] for image in content["images"]}
    missing = tuple(sorted(name for name in names.values() if name not in present))
    if len(missing) > missing_limit:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of {len(names)} pictures, more than missing_limit "
            f"{missing_limit}: {', '.join(missing[:5])}, ...; download them or raise the limit"
        )
    return {i: name for i, name in sorted(names.items()) if name in present}, missing


def read_image(path: pathlib.Path, source: str, key: str) -> bytes:
    """An encoded picture.

    Raises:
        RecordError: the file cannot be read; ``source`` and ``key`` name the record.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(source, key, f"cannot be read: {error}") from error
