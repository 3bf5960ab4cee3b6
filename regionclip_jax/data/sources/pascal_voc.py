"""Source for Pascal VOC: ``ImageSets/Main/{split}.txt``, ``Annotations/*.xml``, ``JPEGImages/``.

Two layouts of other tools are read too. Without ``ImageSets`` the empty split is all of
``Annotations``. A folder ``{split}/`` may hold the annotations beside their images (Roboflow).

Corners in the files count pixels from 1 and include the last one. As in the reference, 1 is
subtracted from xmin and ymin. Objects marked ``difficult`` are counted and kept.

The file's ``size`` decides on the orientation of an image (``image_files``). An image of another
size is skipped. A file without a size, or with zeros, gets that of the image.
"""

import math
import os
import pathlib
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple
from xml.parsers import expat

from regionclip_jax.data.sources.boxed_images import (
    MOST_ANNOTATION,
    BoxClipper,
    BoxedImage,
    BoxedImages,
    stack_boxes,
)
from regionclip_jax.data.sources.image_files import Size, image_size, size_mismatch
from regionclip_jax.data.sources.skipped import SkippedEntries
from regionclip_jax.data.sources.splits import require_split
from regionclip_jax.untrusted import read_bytes

_MOST_LIST = 2**26  # bytes of a split's list: millions of names


class PascalVocSource(BoxedImages):
    """Images with boxes, in the order of the split's list; classes in alphabetic order.

    Args:
        root: such as ``VOCdevkit/VOC2012``.
        split: such as ``"trainval"``; empty for a root without lists.
        max_skipped_fraction: share of the images, and of the objects, that may be skipped.

    Raises:
        FileNotFoundError: no such split.
        ValueError: too many entries are skipped, no object has a name, or the boxes together have
            another format.
    """

    def __init__(self, root: str | os.PathLike, split: str, *, max_skipped_fraction: float = 0.0):
        self._root, self._split = pathlib.Path(root), split
        require_split(
            self._root,
            split,
            _find_splits,
            "Pascal VOC's layout, ImageSets/Main/SPLIT.txt, Annotations/ and JPEGImages/, or "
            "SPLIT/*.xml beside the images",
        )
        path, names, annotations, folder = _read_list(self._root, split)
        images, objects = SkippedEntries("images"), SkippedEntries("objects")
        clipper, difficult = BoxClipper(objects), 0
        records, total = [], 0
        for name in names:
            annotation = _parse(annotations / f"{name}.xml")
            if annotation is None:
                images.add("without_usable_annotation", name)
                continue
            file_name = f"{name}.jpg"
            if not (folder / file_name).is_file():
                file_name = pathlib.PurePath(annotation.findtext("filename") or file_name).name
            annotated = _size(annotation)
            size = image_size(folder / file_name, annotated)
            if size is None:
                images.add("missing_or_unreadable", file_name)
                continue
            if annotated is not None and (text := size_mismatch(size, annotated)):
                images.add("of_another_size", f"{file_name}: {text}")
                continue
            rows = []
            for number, entry in enumerate(annotation.iter("object")):
                total += 1
                corners, category = _corners(entry), (entry.findtext("name") or "").strip()
                if corners is None or not category:
                    objects.add("without_name_or_usable_box", f"{name}: {number}")
                elif (box := clipper.clip(corners, *size, f"{name}: {number}")) is not None:
                    difficult += (entry.findtext("difficult") or "").strip() == "1"
                    rows.append((box, category))
            records.append((file_name, size, rows))
        images.require_few(path, len(names), max_skipped_fraction, "complete the folder")
        clipper.require_pixels(f"{annotations}: 'bndbox'")
        objects.require_few(path, total, max_skipped_fraction, f"repair the files in {annotations}")
        self.category_names = tuple(
            sorted({category for _, _, rows in records for _, category in rows})
        )
        if not self.category_names:
            raise ValueError(f"{path}: no image of the list has an object in {annotations}")
        self.category_ids = tuple(range(1, len(self.category_names) + 1))
        class_of = {name: i for i, name in enumerate(self.category_names)}
        super().__init__(
            folder,
            [
                BoxedImage(
                    number,
                    name,
                    height,
                    width,
                    stack_boxes([(box, class_of[category], False, None) for box, category in rows]),
                )
                for number, (name, (height, width), rows) in enumerate(records, start=1)
            ],
        )
        self.report |= {"boxes_difficult": difficult, **clipper.counts}
        self.report |= images.report | objects.report
        self.named = images.named | objects.named

    def __repr__(self) -> str:
        return f"PascalVocSource({str(self._root)!r}, {self._split!r})"


def _find_splits(root: pathlib.Path) -> list[str]:
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    found = [path.stem for path in lists]
    if not found and (root / "Annotations").is_dir():
        found = [""]
    beside = {path.parent.name for path in root.glob("*/*.xml")} - {"Annotations"}
    return [*found, *sorted(beside - set(found))]


class _List(NamedTuple):
    """Names of a split's images; ``path`` is their list, or the folder that is listed instead."""

    path: pathlib.Path
    names: list[str]
    annotations: pathlib.Path
    images: pathlib.Path


def _read_list(root: pathlib.Path, split: str) -> _List:
    path, annotations = root / "ImageSets" / "Main" / f"{split}.txt", root / "Annotations"
    if path.is_file():
        lines = read_bytes(path, _MOST_LIST).decode("utf-8-sig", "replace").splitlines()
        # The list of a single class has a second column.
        names = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
        return _List(path, names, annotations, root / "JPEGImages")
    path = root / split if split else annotations
    names = sorted(file.stem for file in path.glob("*.xml"))
    if split:
        return _List(path, names, path, path)
    others = root / "JPEGImages", root / "images"
    return _List(path, names, path, next((path for path in others if path.is_dir()), others[0]))


def _parse(path: pathlib.Path) -> ElementTree.Element | None:
    """Return the tree of a file; None if it is unreadable, too long or declares a document type."""
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_) -> None:
        raise ValueError("a document type, which could blow up a small file")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(read_bytes(path, MOST_ANNOTATION), True)
        return builder.close()
    except (OSError, ValueError, LookupError, expat.ExpatError):  # LookupError: unknown encoding
        return None


def _size(annotation: ElementTree.Element) -> Size | None:
    try:
        height, width = (
            int(annotation.findtext(f"size/{key}") or 0) for key in ("height", "width")
        )
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None


def _corners(entry: ElementTree.Element) -> tuple[float, float, float, float] | None:
    try:
        x1, y1, x2, y2 = (
            float(entry.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError:
        return None
    if not all(map(math.isfinite, (x1, y1, x2, y2))) or x2 < x1 or y2 < y1:
        return None
    return x1 - 1, y1 - 1, x2, y2
