"""Read annotation files in COCO's and LVIS's format: the one reader of these files.

A source reads its records from the file, and skips and counts unusable entries. An evaluation reads
its ground truth from the same content (``evaluation.ground_truth``), and refuses such entries. Both
judge an annotation by ``find_defect``.

Ids, sizes, areas, boxes and ``iscrowd`` that a tool wrote as text become numbers here, once.

Skipped ``images``: entries without id or file name, repeated ids, missing files, and files without
a readable header if the entry has no size. Skipped ``annotations``: an unlisted image or category,
a box without four finite numbers, with a negative size or outside its image, an area that is no
number, an ``iscrowd`` other than 0 and 1. Boxes without area are dropped and counted, but not as
skipped.
"""

import math
import pathlib
import re
from collections.abc import Callable, Container, Mapping
from reprlib import repr as shown  # of bounded depth and length
from typing import NamedTuple

from regionclip_jax.data.sources.boxed_images import (
    NO_BOXES,
    BoxClipper,
    BoxedImage,
    BoxedImages,
    Boxes,
    stack_boxes,
)
from regionclip_jax.data.sources.image_files import image_size, present_files
from regionclip_jax.data.sources.skipped import SkippedEntries
from regionclip_jax.data.sources.splits import find_files_elsewhere
from regionclip_jax.untrusted import read_large_json

# Keys of numbers, by list.
_NUMBERS = {
    "images": ("id", "height", "width"),
    "annotations": ("image_id", "category_id", "area", "iscrowd"),
    "categories": ("id",),
}
_DECIMAL = re.compile(r"\s*[-+]?(\d+|\d+\.\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)
# Ids stay on the host, as NumPy's 64-bit integers.
_ID_LIMITS = -(2**63), 2**63 - 1
# Keys of an LVIS image: LVIS labels each image with some of its categories only.
FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
# Frequency of an LVIS category: rare, common, frequent (in at most 10, at most 100, or more
# training images).
FREQUENCIES = ("r", "c", "f")


class AnnotationFile(NamedTuple):
    """Content of an annotation file, as stored; entries may be unusable."""

    where: str  # names the file in messages
    images: list
    annotations: list
    categories: list  # empty in a file of captions

    @property
    def is_lvis(self) -> bool:
        """True if an entry has a key of LVIS's format."""
        return any("frequency" in c for c in self.categories if isinstance(c, dict)) or any(
            key in image for image in self.images if isinstance(image, dict)
            for key in FEDERATED_KEYS
        )  # fmt: skip


class Categories(NamedTuple):
    """Categories of a file by ascending id."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    frequencies: tuple[str, ...]  # of LVIS; empty in COCO's files


class Defect(NamedTuple):
    """Reason why an annotation is unusable: a key for counts, and a text."""

    kind: str
    text: str


def read_annotation_file(path: pathlib.Path) -> AnnotationFile:
    """Read a file with lists of ``images`` and ``annotations``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or without these lists.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: expected an annotation file in COCO's format; correct its path"
        )
    return as_annotation_file(str(path), read_large_json(path, "download it again"))


def as_annotation_file(where: str, content: object) -> AnnotationFile:
    """Return the lists of an annotation file's content, with numbers instead of their texts.

    Raises:
        ValueError: no lists of images and annotations; the message names ``where``.
    """
    lists = content if isinstance(content, Mapping) else {}
    for key in ("images", "annotations"):
        if not isinstance(lists.get(key), list):
            raise ValueError(
                f"{where} has no list {key!r}: expected a COCO annotation file, with lists of "
                "images and annotations"
            )
    categories = lists.get("categories")
    return AnnotationFile(
        where,
        [_with_numbers(entry, "images") for entry in lists["images"]],
        [_with_numbers(entry, "annotations") for entry in lists["annotations"]],
        [_with_numbers(entry, "categories") for entry in categories]
        if isinstance(categories, list)
        else [],
    )


def _with_numbers(entry: object, kind: str) -> object:
    """Return an entry with numbers where it has their texts; most entries stay as they are."""
    if not isinstance(entry, dict):
        return entry
    changed: dict[str, object] = {}
    if str in map(type, entry.values()):  # rare in annotations, of which there may be millions
        keys = (key for key in _NUMBERS[kind] if type(entry.get(key)) is str)
        changed = {key: _number(entry[key]) for key in keys}
    box = entry.get("bbox")
    if type(box) is list and str in map(type, box):
        changed["bbox"] = [_number(value) if type(value) is str else value for value in box]
    return {**entry, **changed} if changed else entry


def _number(text: str) -> int | float | str:
    """Return the number that a text holds; other texts stay as they are."""
    if not (match := _DECIMAL.fullmatch(text)):
        return text
    return float(text) if match[2] or "." in match[1] else int(text)


def read_categories(file: AnnotationFile) -> Categories:
    """Return the categories by ascending id.

    Raises:
        ValueError: no category, a repeated one, or one without a name and an integer id; or some
            have LVIS's frequency and others none or an unknown one.
    """
    if not file.categories:
        raise ValueError(
            f"{file.where} has no categories: expected COCO's instances file of the split"
        )
    by_id: dict[int, dict] = {}
    names: set[str] = set()
    for category in file.categories:
        entry = category if isinstance(category, dict) else {}
        number, name = whole_number(entry.get("id")), entry.get("name")
        if number is None or not isinstance(name, str) or not name.strip():
            raise ValueError(
                f"{file.where}: expected categories with id and name, found {shown(category)}"
            )
        if number in by_id or name in names:
            raise ValueError(
                f"{file.where}: category {number} {name!r}: its id or name is there twice; give "
                "each its own"
            )
        by_id[number] = entry
        names.add(name)
    ids = tuple(sorted(by_id))
    frequencies: tuple[str, ...] = ()
    if any("frequency" in entry for entry in by_id.values()):
        for number in ids:
            if by_id[number].get("frequency") not in FREQUENCIES:
                raise ValueError(
                    f"{file.where}: category {number}: 'frequency': expected one of {FREQUENCIES}, "
                    f"found {shown(by_id[number].get('frequency'))}; give the original "
                    "lvis_v1_*.json"
                )
        frequencies = tuple(by_id[number]["frequency"] for number in ids)
    return Categories(tuple(by_id[number]["name"] for number in ids), ids, frequencies)


class AnnotatedImages(BoxedImages):
    """Base class of sources of images with boxes from one annotation file, by ascending image id.

    Classes are contiguous from 0 by ascending category id. Boxes are clipped to the image; empty
    ones are dropped.

    Attributes:
        annotation_file: the content of the file, if ``keep_file``.

    Args:
        file: the annotation file.
        folder: folder of the images.
        name_of: image -> name of its file (default: its ``file_name``).
        max_skipped_fraction: share of the images, and of the annotations, that may be skipped.
        mask_size: side P of the object masks; None reads none.
        keep_file: keep the content, which an evaluation reads its ground truth from.

    Raises:
        ValueError: the file has no categories, or too many entries are skipped.
    """

    annotation_file: AnnotationFile | None = None

    def __init__(
        self,
        file: AnnotationFile,
        folder: pathlib.Path,
        *,
        name_of: Callable[[dict], object] | None = None,
        max_skipped_fraction: float = 0.0,
        mask_size: int | None = None,
        keep_file: bool = False,
    ):
        self.category_names, self.category_ids, self.frequencies = read_categories(file)
        self.metric = "lvis" if file.is_lvis else "coco"
        names, sizes, missing = read_sized_images(file, folder, name_of)
        require_images(file, folder, missing, max_skipped_fraction)
        boxes, counts, unusable = read_boxes(file, self.category_ids, sizes)
        require_annotations(file, unusable, max_skipped_fraction)
        images = [
            BoxedImage(i, name, *sizes[i], boxes.get(i, NO_BOXES)) for i, name in names.items()
        ]
        super().__init__(folder, images, mask_size=mask_size)
        self.report |= counts | missing.report | unusable.report
        self.named = missing.named | unusable.named
        if keep_file:
            self.annotation_file = file


def read_images(
    file: AnnotationFile, folder: pathlib.Path
) -> tuple[dict[int, str], dict[int, tuple[int, int] | None], SkippedEntries]:
    """Read the list of images of a file whose annotations need no sizes.

    Args:
        folder: folder of the relative file names.

    Returns:
        File names of the present images by ascending id; (height, width) of all listed images, or
        None; and the skipped images.
    """
    return _read_images(file, folder, _file_name)


def read_sized_images(
    file: AnnotationFile,
    folder: pathlib.Path,
    name_of: Callable[[dict], object] | None = None,
) -> tuple[dict[int, str], dict[int, tuple[int, int]], SkippedEntries]:
    """Read the list of images; sizes that the file lacks come from the headers of the images.

    Args:
        folder: folder of the relative file names.
        name_of: image -> name of its file (default: its ``file_name``).

    Returns:
        File names of the present images by ascending id; (height, width) of all images that the
        file lists with a size or that are present; and the skipped images.
    """
    names, listed, skipped = _read_images(file, folder, name_of or _file_name)
    sizes = {i: size for i, size in listed.items() if size is not None}
    for image_id, name in list(names.items()):
        if image_id in sizes:
            continue
        # Some tools write no sizes.
        if (size := image_size(folder / name)) is not None:
            sizes[image_id] = size
        else:
            del names[image_id]
            skipped.add("without_size_and_unreadable", name)
    return names, sizes, skipped


def _file_name(image: dict) -> object:
    return image.get("file_name")


def _read_images(
    file: AnnotationFile,
    folder: pathlib.Path,
    name_of: Callable[[dict], object],
) -> tuple[dict[int, str], dict[int, tuple[int, int] | None], SkippedEntries]:
    skipped = SkippedEntries("images")
    names: dict[int, str] = {}
    sizes: dict[int, tuple[int, int] | None] = {}
    for number, image in enumerate(file.images):
        entry = image if isinstance(image, dict) else {}
        image_id, name = whole_number(entry.get("id")), name_of(entry)
        height, width = (
            whole_number(entry.get("height")) or 0,
            whole_number(entry.get("width")) or 0,
        )
        size = (height, width) if height > 0 and width > 0 else None
        if image_id is None or not isinstance(name, str):
            label = name if isinstance(name, str) else f"#{number}"
            skipped.add("without_id_or_name", f"{label}: id {shown(entry.get('id'))}")
        elif image_id in names:
            skipped.add("of_an_id_that_is_there_twice", f"{image_id}: {name}")
        else:
            names[image_id], sizes[image_id] = name, size
    present = present_files(folder, names.values())
    for name in sorted(name for name in names.values() if name not in present):
        skipped.add("missing", name)
    there = {image_id: name for image_id, name in sorted(names.items()) if name in present}
    return there, sizes, skipped


def require_images(
    file: AnnotationFile, folder: pathlib.Path, skipped: SkippedEntries, limit: float
) -> None:
    """Raise ValueError if more than a share ``limit`` of the images is skipped."""
    skipped.require_few(
        file.where,
        len(file.images),
        limit,
        f"{_find_images(skipped, folder)}, or correct the file",
    )


def _find_images(skipped: SkippedEntries, folder: pathlib.Path) -> str:
    if missing := skipped.named.get("images_missing"):
        return find_files_elsewhere(folder, missing[0])
    if "images_without_id_or_name" in skipped.report:
        return "give each image its own integer id and a file name"
    return "repair the images"


def read_boxes(
    file: AnnotationFile, category_ids: tuple[int, ...], sizes: Mapping[int, tuple[int, int]]
) -> tuple[dict[int, Boxes], dict[str, int], SkippedEntries]:
    """Read the boxes of an annotation file, clipped to their images.

    Args:
        file: its annotations have ``image_id``, ``category_id``, ``bbox`` (x, y, width, height).
        category_ids: by class.
        sizes: image id -> (height, width).

    Returns:
        Boxes by image id; counts of clipped and dropped boxes; and the skipped annotations.

    Raises:
        ValueError: the boxes together have another format.
    """
    class_of = {category_id: i for i, category_id in enumerate(category_ids)}
    skipped = SkippedEntries("annotations")
    clipper = BoxClipper(skipped)
    rows: dict[int, list] = {}
    for number, annotation in enumerate(file.annotations):
        entry = annotation if isinstance(annotation, dict) else {}
        if defect := find_defect(entry, sizes, class_of):
            skipped.add(defect.kind, f"{_name(entry, number)}{defect.text}")
            continue
        image_id, category_id = whole_number(entry["image_id"]), whole_number(entry["category_id"])
        corners = _corners(entry["bbox"])
        # ``find_defect`` has seen all three.
        assert image_id is not None and category_id is not None and corners is not None
        box = clipper.clip(corners, *sizes[image_id], _name(entry, number))
        if box is not None:
            crowd, outline = bool(entry.get("iscrowd")), entry.get("segmentation")
            rows.setdefault(image_id, []).append((box, class_of[category_id], crowd, outline))
    clipper.require_pixels(f"{file.where}: 'bbox'")
    boxes = {image_id: stack_boxes(some) for image_id, some in rows.items()}
    return boxes, clipper.counts, skipped


def _name(annotation: Mapping, number: int) -> object:
    return annotation.get("id", f"#{number}")


def find_defect(
    annotation: Mapping, images: Container[int], categories: Container[int]
) -> Defect | None:
    """Return the reason why an annotation with a box is unusable, or None.

    Args:
        images: ids of the listed images.
        categories: ids of the listed categories.
    """
    box, image, category = (annotation.get(key) for key in ("bbox", "image_id", "category_id"))
    if _corners(box) is None:
        text = ": 'bbox': expected [x, y, width, height], finite and not negative, found "
        return Defect("without_usable_box", text + shown(box))
    image_id, category_id = whole_number(image), whole_number(category)
    if image_id is None or image_id not in images:
        text = f": 'image_id': found {shown(image)}, which is not listed"
        return Defect("of_an_unknown_image", text)
    if category_id is None or category_id not in categories:
        text = f": 'category_id': found {shown(category)}, which is not listed"
        return Defect("of_an_unknown_category", text)
    crowd, area = annotation.get("iscrowd"), annotation.get("area")
    if crowd is not None and crowd not in (0, 1):
        text = f": 'iscrowd': expected 0 or 1, found {shown(crowd)}"
        return Defect("with_unusable_iscrowd", text)
    if area is not None and not (isinstance(area, int | float) and 0 <= area < math.inf):
        text = f": 'area': expected a number of pixels, found {shown(area)}"
        return Defect("with_unusable_area", text)
    return None


def require_annotations(file: AnnotationFile, skipped: SkippedEntries, limit: float) -> None:
    """Raise ValueError if more than a share ``limit`` of the annotations is skipped."""
    skipped.require_few(
        file.where,
        len(file.annotations),
        limit,
        "give the annotation file of these images, or repair it",
    )


def _corners(bbox: object) -> tuple[float, float, float, float] | None:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    try:
        x, y, width, height = (float(v) for v in bbox if type(v) in (int, float))
    except (ValueError, OverflowError):
        return None
    if not all(map(math.isfinite, (x, y, width, height))) or width < 0 or height < 0:
        return None
    return x, y, x + width, y + height


def whole_number(value: object) -> int | None:
    """Return an id or size as an integer, also if a tool wrote it as 7.0; None for other values."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and _ID_LIMITS[0] <= value <= _ID_LIMITS[1] else None
