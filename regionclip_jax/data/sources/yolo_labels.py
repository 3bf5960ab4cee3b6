"""Source for YOLO's layouts: folders ``images`` and ``labels``, and a YAML file of the classes.

The images of a split are in ``images/{split}/``, in ``{split}/images/`` (Roboflow's exports), or in
the folder that the YAML file gives for the split. Their labels are in the folder of the same path
with ``labels`` in place of ``images``. Class names are in ``data.yaml``, in another YAML file if it
is the only one (``coco128.yaml``), or in ``classes.txt``.

A line of a label file is ``class cx cy width height`` in fractions of the image, or ``class`` and a
polygon, which gives a box. An image without a label file has no boxes.
"""

import math
import os
import pathlib

from regionclip_jax.data.sources.boxed_images import (
    BoxedImage,
    BoxedImages,
    clip_box,
    stack_boxes,
)
from regionclip_jax.data.sources.image_files import image_size
from regionclip_jax.data.sources.skipped import SkippedEntries
from regionclip_jax.data.sources.splits import require_split
from regionclip_jax.text.names import read_names

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Fractions are at most 1, apart from rounding; far larger values are in pixels.
_LARGEST_SHARE = 1.5


class YoloLabelsSource(BoxedImages):
    """Images with boxes, in the order of their names.

    Args:
        root: holds the folders and the file of names.
        split: such as ``"train"``; empty if ``images/`` itself holds the images.
        max_skipped_fraction: share of the images, and of the lines, that may be skipped.

    Raises:
        FileNotFoundError: no such folders, no names, or no label file at all.
        ValueError: not one distinct name for each class, or too many skipped entries.
    """

    def __init__(self, root: str | os.PathLike, split: str, *, max_skipped_fraction: float = 0.0):
        self._root, self._split = pathlib.Path(root), split
        require_split(
            self._root,
            split,
            lambda root: sorted(_find_folders(root)),
            "YOLO's layout, images/SPLIT/ and labels/SPLIT/, or SPLIT/images/ and SPLIT/labels/",
        )
        folder = _find_folders(self._root)[split]
        labels = _labels_beside(folder)
        if not labels.is_dir():
            raise FileNotFoundError(
                f"{labels} does not exist: expected the labels of the images in {folder} there"
            )
        self.category_names = _read_names(self._root)
        self.category_ids = tuple(range(1, len(self.category_names) + 1))
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
        with_labels = {path.stem for path in labels.glob("*.txt")}
        if not with_labels & {path.stem for path in files}:
            raise FileNotFoundError(f"{labels} has no NAME.txt for any image in {folder}")
        images, lines = SkippedEntries("images"), SkippedEntries("lines")
        counts = {"images_without_label_file": 0, "boxes_dropped_empty": 0}
        records, total = [], 0
        for number, path in enumerate(files, start=1):
            size = image_size(path)
            if size is None:
                images.add("unreadable", path.name)
                continue
            rows, text = [], ""
            if path.stem in with_labels:
                label = labels / f"{path.stem}.txt"
                text = label.read_text(encoding="utf-8-sig", errors="replace")
            else:
                counts["images_without_label_file"] += 1
            for line_number, line in enumerate(text.splitlines(), start=1):
                if not line.strip():
                    continue
                total += 1
                found = _parse(line, len(self.category_names))
                if found is None:
                    lines.add("malformed", f"{path.stem}.txt {line_number}: {line.strip()[:40]!r}")
                    continue
                (x1, y1, x2, y2), category = found
                corners = (x1 * size[1], y1 * size[0], x2 * size[1], y2 * size[0])
                if (box := clip_box(corners, *size)) is None:
                    counts["boxes_dropped_empty"] += 1
                else:
                    rows.append((box, category, False, None))
            records.append(BoxedImage(number, path.name, *size, stack_boxes(rows)))
        images.require_few(folder, len(files), max_skipped_fraction, "replace or remove them")
        lines.require_few(
            labels,
            total,
            max_skipped_fraction,
            f"expected a class below {len(self.category_names)} and cx cy width height in shares "
            "of the image",
        )
        super().__init__(folder, records)
        self.report |= counts | images.report | lines.report
        self.named = images.named | lines.named

    def __repr__(self) -> str:
        return f"YoloLabelsSource({str(self._root)!r}, {self._split!r})"


def _find_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return the folders of images by split, also those of the YAML file."""
    found: dict[str, pathlib.Path] = {}
    if (images := root / "images").is_dir():
        found |= {path.name: path for path in images.iterdir() if path.is_dir()}
        if _has_images(images):
            found[""] = images
    for path in root.glob("*/images"):
        if _has_images(path):
            found.setdefault(path.parent.name, path)
    file = _yaml_file(root)
    content = {} if file is None else _read_yaml(file)
    base = content.get("path")
    for split in ("train", "val", "test"):
        name = content.get(split)
        if split in found or not isinstance(name, str):
            continue
        # Roboflow writes ../train/images for ROOT/train/images, and Ultralytics a base folder that
        # is relative to its own folder of data sets.
        names = [name.removeprefix("../"), name, *([f"{base}/{name}"] if base else [])]
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if folder is not None and "images" in pathlib.PurePath(name).parts:
            found[split] = folder
    return found


def _has_images(folder: pathlib.Path) -> bool:
    return any(path.suffix.lower() in _ENDINGS for path in folder.iterdir())


def _labels_beside(images: pathlib.Path) -> pathlib.Path:
    """Replace the last ``images`` in a path with ``labels``."""
    parts = list(images.parts)
    last = len(parts) - 1 - parts[::-1].index("images")
    return pathlib.Path(*parts[:last], "labels", *parts[last + 1 :])


def _yaml_file(root: pathlib.Path) -> pathlib.Path | None:
    if (path := root / "data.yaml").is_file():
        return path
    files = [*root.glob("*.yaml"), *root.glob("*.yml")]
    return files[0] if len(files) == 1 else None


def _read_yaml(path: pathlib.Path) -> dict:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    return content if isinstance(content, dict) else {}


def _read_names(root: pathlib.Path) -> tuple[str, ...]:
    """Return the class names by number."""
    if (path := _yaml_file(root)) is not None:
        names = _read_yaml(path).get("names")
        if isinstance(names, dict):
            names = [names.get(number) for number in range(len(names))]
    elif (path := root / "classes.txt").is_file():
        return read_names(path)
    else:
        raise FileNotFoundError(
            f"{root} has neither data.yaml nor classes.txt: expected the names of the classes "
            "there, in a YAML file with a list 'names' (coco128 comes without its coco128.yaml: "
            "copy it there), or one a line"
        )
    found = names if isinstance(names, list) else []
    checked = tuple(name for name in found if isinstance(name, str) and name.strip())
    if not checked or len(checked) < len(found) or len(set(checked)) < len(checked):
        raise ValueError(
            f"{path}: expected names, one a class and each once, numbered from 0, found "
            f"{str(names)[:90]}"
        )
    return checked


def _parse(line: str, num_classes: int) -> tuple[tuple[float, float, float, float], int] | None:
    """Return the corners in fractions of the image, and the class."""
    try:
        number, *values = (float(word) for word in line.split())
    except ValueError:
        return None
    if not all(map(math.isfinite, values)) or number not in range(num_classes):
        return None
    if len(values) == 4:
        cx, cy, width, height = values
        if width < 0 or height < 0 or max(map(abs, values)) > _LARGEST_SHARE:
            return None
        return (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2), int(number)
    if len(values) >= 6 and not len(values) % 2 and max(map(abs, values)) <= _LARGEST_SHARE:
        x, y = values[::2], values[1::2]
        return (min(x), min(y), max(x), max(y)), int(number)
    return None
