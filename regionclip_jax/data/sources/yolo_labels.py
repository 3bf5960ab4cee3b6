"""Source for YOLO's layouts: folders ``images`` and ``labels``, and a YAML file of the classes.

The images of a split are in ``images/{split}/``, in ``{split}/images/`` (Roboflow's exports), or in
the folder that the YAML file gives for the split. Their labels are in the folder of the same path
with ``labels`` in place of ``images``. Class names are in ``data.yaml``, in another YAML file if it
is the only one (``coco128.yaml``), or in ``classes.txt``.

``yolo_lines`` describes the lines of label files. An image without a label file has no boxes.
"""

import os
import pathlib
from reprlib import repr as shown  # of bounded depth and length

from regionclip_jax.data.sources.boxed_images import (
    MOST_ANNOTATION,
    BoxClipper,
    BoxedImage,
    BoxedImages,
    stack_boxes,
)
from regionclip_jax.data.sources.image_files import image_size
from regionclip_jax.data.sources.skipped import SkippedEntries
from regionclip_jax.data.sources.splits import require_split
from regionclip_jax.data.sources.yolo_lines import LabelLines, LineError, keypoint_columns
from regionclip_jax.text.names import read_names
from regionclip_jax.untrusted import read_bytes

# A file of thousands of classes fits; PyYAML reads about 100 kB each second.
_MOST_YAML = 2**20
_LONGEST_SCALAR = 1000
_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class YoloLabelsSource(BoxedImages):
    """Images with boxes, in the order of their names.

    Args:
        root: holds the folders and the file of names.
        split: such as ``"train"``; empty if ``images/`` itself holds the images.
        max_skipped_fraction: share of the images, and of the lines, that may be skipped.

    Raises:
        FileNotFoundError: no such folders, no names, or no label file at all.
        ValueError: not one distinct name for each class, too many skipped entries, or polygons that
            may be boxes.
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
        clipper = BoxClipper(lines)
        file = _yaml_file(self._root)
        shape = None if file is None else _read_yaml(file).get("kpt_shape")
        label_lines = LabelLines(len(self.category_names), keypoint_columns(shape, file))
        counts = {"images_without_label_file": 0}
        records, total = [], 0
        for number, path in enumerate(files, start=1):
            size = image_size(path)
            if size is None:
                images.add("unreadable", path.name)
                continue
            rows, text = [], ""
            if path.stem in with_labels:
                label = labels / f"{path.stem}.txt"
                try:
                    text = read_bytes(label, MOST_ANNOTATION).decode("utf-8-sig", "replace")
                except (OSError, ValueError):
                    images.add("without_usable_labels", label.name)
                    continue
            else:
                counts["images_without_label_file"] += 1
            for line_number, line in enumerate(text.splitlines(), start=1):
                if not line.strip():
                    continue
                total += 1
                name = f"{path.stem}.txt {line_number}: {line.strip()[:40]!r}"
                try:
                    (x1, y1, x2, y2), category = label_lines.read(line, name)
                except LineError as error:
                    lines.add(error.kind, name)
                    continue
                corners = (x1 * size[1], y1 * size[0], x2 * size[1], y2 * size[0])
                if (box := clipper.clip(corners, *size, name)) is not None:
                    rows.append((box, category, False, None))
            records.append(BoxedImage(number, path.name, *size, stack_boxes(rows)))
        images.require_few(folder, len(files), max_skipped_fraction, "replace or remove them")
        lines.require_few(
            labels,
            total,
            max_skipped_fraction,
            f"expected a class below {len(self.category_names)} and cx cy width height, or a "
            "polygon of at least three points, in fractions of the image; remove further columns",
        )
        clipper.require_pixels(labels)
        label_lines.require_polygons(labels)
        super().__init__(folder, records)
        self.report |= counts | clipper.counts | images.report | lines.report
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

    class Loader(yaml.SafeLoader):
        """Loader of values that are as large as their text: an alias may stand for any of them."""

        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias (*name); write what it stands for")
            node = super().compose_node(parent, index)
            # Numbers to base 60 take a time that grows with the square of their length.
            if isinstance(node, yaml.ScalarNode) and len(node.value) > _LONGEST_SCALAR:
                raise yaml.YAMLError(f"a value of more than {_LONGEST_SCALAR} characters")
            return node

    try:
        content = yaml.load(read_bytes(path, _MOST_YAML).decode("utf-8-sig"), Loader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error
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
            f"{shown(names)}"
        )
    return checked
