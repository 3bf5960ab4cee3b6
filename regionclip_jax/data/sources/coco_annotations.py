"""Read annotation files in COCO's format; unusable entries are skipped and counted.

Skipped ``images``: entries without id, file name or size, repeated ids, and missing files. Skipped
``annotations``: an unlisted image or category, or a box without four finite numbers or with a
negative size. Boxes without area inside their image are dropped and counted, but not as skipped.
"""

import json
import math
import pathlib
from collections.abc import Callable, Mapping

from regionclip_jax.data.sources.boxed_images import Boxes, clip_box, stack_boxes
from regionclip_jax.data.sources.image_files import present_files
from regionclip_jax.data.sources.skipped import SkippedEntries

# COCO rounds to hundredths, so many boxes end 0.01 outside; those do not count as clipped.
_ROUNDING = 0.02


def read_annotations(path: pathlib.Path) -> dict:
    """Read a file with lists of ``images`` and ``annotations``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or without these lists.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: expected COCO's layout, ROOT/annotations/ beside ROOT/SPLIT/; "
            "download the annotations or correct root and split"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8 or not JSON
        raise ValueError(f"{path} is not JSON ({error}): download it again") from error
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations")
    ):
        raise ValueError(
            f"{path} has no lists of images and annotations: expected a COCO annotation file"
        )
    return content


def read_categories(path: pathlib.Path, content: dict) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names and ids of the categories by ascending id.

    Raises:
        ValueError: no category, a repeated one, or one without a name and an integer id.
    """
    categories = content.get("categories")
    if not isinstance(categories, list) or not categories:
        raise ValueError(f"{path} has no categories: expected COCO's instances file of the split")
    by_id: dict[int, str] = {}
    for category in categories:
        entry = category if isinstance(category, dict) else {}
        number, name = _whole(entry.get("id")), entry.get("name")
        if number is None or not isinstance(name, str) or not name.strip():
            raise ValueError(f"{path}: expected categories with id and name, found {category!r}")
        if number in by_id or name in by_id.values():
            raise ValueError(
                f"{path}: category {number} {name!r}: its id or name is there twice; give each its "
                "own"
            )
        by_id[number] = name
    return tuple(by_id[number] for number in sorted(by_id)), tuple(sorted(by_id))


def read_images(
    content: dict, folder: pathlib.Path
) -> tuple[dict[int, str], dict[int, tuple[int, int] | None], SkippedEntries]:
    """Read the list of images of a file whose annotations need no sizes.

    Args:
        folder: folder of the relative file names.

    Returns:
        File names of the present images by ascending id; (height, width) of all listed images, or
        None; and the skipped images.
    """
    return _read_images(content, folder, _file_name, need_sizes=False)


def read_sized_images(
    content: dict, folder: pathlib.Path, name_of: Callable[[dict], object] | None = None
) -> tuple[dict[int, str], dict[int, tuple[int, int]], SkippedEntries]:
    """Read the list of images, and skip images without a size.

    Args:
        folder: folder of the relative file names.
        name_of: image -> name of its file (default: its ``file_name``).

    Returns:
        File names of the present images by ascending id; (height, width) of all listed images; and
        the skipped images.
    """
    names, sizes, left_out = _read_images(content, folder, name_of or _file_name, need_sizes=True)
    return names, {i: size for i, size in sizes.items() if size is not None}, left_out


def _file_name(image: dict) -> object:
    return image.get("file_name")


def _read_images(
    content: dict, folder: pathlib.Path, name_of: Callable[[dict], object], *, need_sizes: bool
) -> tuple[dict[int, str], dict[int, tuple[int, int] | None], SkippedEntries]:
    left_out = SkippedEntries("images")
    names: dict[int, str] = {}
    sizes: dict[int, tuple[int, int] | None] = {}
    for number, image in enumerate(content["images"]):
        entry = image if isinstance(image, dict) else {}
        image_id, name = _whole(entry.get("id")), name_of(entry)
        height, width = _whole(entry.get("height")) or 0, _whole(entry.get("width")) or 0
        size = (height, width) if height > 0 and width > 0 else None
        if image_id is None or not isinstance(name, str) or (need_sizes and size is None):
            left_out.add("without_id_name_or_size", name if isinstance(name, str) else f"#{number}")
        elif image_id in names:
            left_out.add("of_an_id_that_is_there_twice", f"{image_id}: {name}")
        else:
            names[image_id], sizes[image_id] = name, size
    present = present_files(folder, names.values())
    for name in sorted(name for name in names.values() if name not in present):
        left_out.add("missing", name)
    there = {image_id: name for image_id, name in sorted(names.items()) if name in present}
    return there, sizes, left_out


def require_pictures(
    path: pathlib.Path, content: dict, folder: pathlib.Path, left_out: SkippedEntries, limit: float
) -> None:
    """Raise ValueError if more than a share ``limit`` of the images is skipped."""
    left_out.require_few(
        path,
        len(content["images"]),
        limit,
        f"download and unpack the pictures into {folder}, or correct the file",
    )


def read_boxes(
    annotations: list, category_ids: tuple[int, ...], sizes: Mapping[int, tuple[int, int]]
) -> tuple[dict[int, Boxes], dict[str, int], SkippedEntries]:
    """Read the boxes of an annotation file, clipped to their images.

    Args:
        annotations: with ``image_id``, ``category_id``, ``bbox`` (x, y, width, height).
        category_ids: by class.
        sizes: image id -> (height, width).

    Returns:
        Boxes by image id; counts of clipped and dropped boxes; and the skipped annotations.
    """
    class_of = {category_id: i for i, category_id in enumerate(category_ids)}
    counts = {"boxes_clipped": 0, "boxes_dropped_empty": 0}
    left_out = SkippedEntries("annotations")
    rows: dict[int, list] = {}
    for number, annotation in enumerate(annotations):
        entry = annotation if isinstance(annotation, dict) else {}
        image_id, category = _whole(entry.get("image_id")), _whole(entry.get("category_id"))
        corners = _corners(entry.get("bbox"))
        name = entry.get("id", f"#{number}")
        if corners is None:
            left_out.add("without_usable_box", name)
        elif image_id is None or image_id not in sizes:
            left_out.add("of_an_unknown_image", f"{name}: {image_id}")
        elif category is None or category not in class_of:
            left_out.add("of_an_unknown_category", f"{name}: {category}")
        elif (box := clip_box(corners, *sizes[image_id])) is None:
            counts["boxes_dropped_empty"] += 1
        else:
            moved = max(abs(float(new) - old) for new, old in zip(box, corners, strict=True))
            counts["boxes_clipped"] += moved > _ROUNDING
            row = (box, class_of[category], bool(entry.get("iscrowd")), entry.get("segmentation"))
            rows.setdefault(image_id, []).append(row)
    return {image_id: stack_boxes(some) for image_id, some in rows.items()}, counts, left_out


def require_annotations(
    path: pathlib.Path, content: dict, left_out: SkippedEntries, limit: float
) -> None:
    """Raise ValueError if more than a share ``limit`` of the annotations is skipped."""
    left_out.require_few(
        path,
        len(content["annotations"]),
        limit,
        "give the annotation file of these pictures, or repair it",
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


def _whole(value: object) -> int | None:
    """Return an id or size as an integer, also if a tool wrote it as 7.0; None for other values."""
    if type(value) is int:
        return value
    return int(value) if type(value) is float and value.is_integer() else None
