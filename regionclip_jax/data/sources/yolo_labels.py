"""Source for YOLO's layout: ``images/{split}/`` and ``labels/{split}/*.txt``.

Class names are in ``data.yaml`` or ``classes.txt``. ``yolo_lines`` describes the lines of label
files. An image without a label file has no boxes.
"""

import os
import pathlib

from regionclip_jax.data.sources.boxed_images import (
    BoxClipper,
    BoxedImage,
    BoxedImages,
    stack_boxes,
)
from regionclip_jax.data.sources.image_files import image_size
from regionclip_jax.data.sources.skipped import SkippedEntries
from regionclip_jax.data.sources.yolo_lines import LabelLines, LineError, keypoint_columns
from regionclip_jax.text.names import read_names

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class YoloLabelsSource(BoxedImages):
    """Images with boxes, in the order of their names.

    Args:
        root: holds ``images/``, ``labels/`` and the file of names.
        split: folder in both, such as ``"train"``; empty if ``images/`` itself holds the images.
        max_skipped_fraction: share of the images, and of the lines, that may be skipped.

    Raises:
        FileNotFoundError: no such folders, no names, or no label file at all.
        ValueError: not one distinct name for each class, too many skipped entries, or polygons that
            may be boxes.
    """

    def __init__(self, root: str | os.PathLike, split: str, *, max_skipped_fraction: float = 0.0):
        self._root, self._split = pathlib.Path(root), split
        folder, labels = self._root / "images" / split, self._root / "labels" / split
        for path in (folder, labels):
            if not path.is_dir():
                raise FileNotFoundError(
                    f"{path} does not exist: expected YOLO's layout, images/SPLIT/ and "
                    "labels/SPLIT/; correct root and split"
                )
        self.category_names = _read_names(self._root)
        self.category_ids = tuple(range(1, len(self.category_names) + 1))
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
        with_labels = {path.stem for path in labels.glob("*.txt")}
        if not with_labels & {path.stem for path in files}:
            raise FileNotFoundError(f"{labels} has no NAME.txt for any image in {folder}")
        images, lines = SkippedEntries("images"), SkippedEntries("lines")
        clipper = BoxClipper(lines)
        label_lines = LabelLines(len(self.category_names), keypoint_columns(self._root))
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
                text = label.read_text(encoding="utf-8", errors="replace")
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


def _read_names(root: pathlib.Path) -> tuple[str, ...]:
    """Return the class names by number."""
    import yaml

    if (path := root / "data.yaml").is_file():
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict):
            names = [names.get(number) for number in range(len(names))]
    elif (path := root / "classes.txt").is_file():
        return read_names(path)
    else:
        raise FileNotFoundError(
            f"{root} has neither data.yaml nor classes.txt: expected the names of the classes there"
        )
    found = names if isinstance(names, list) else []
    checked = tuple(name for name in found if isinstance(name, str) and name.strip())
    if not checked or len(checked) < len(found) or len(set(checked)) < len(checked):
        raise ValueError(
            f"{path}: expected names, one a class and each once, numbered from 0, found "
            f"{str(names)[:90]}"
        )
    return checked
