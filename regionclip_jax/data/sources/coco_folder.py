"""Sources for COCO's layout: ``annotations/{captions,instances}_{split}.json`` and ``{split}/``.

Annotations are held in memory, images are read on access.
"""

import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from regionclip_jax.data.sources.annotation_files import (
    AnnotatedImages,
    read_annotation_file,
    read_images,
    require_images,
)
from regionclip_jax.data.sources.image_files import read_image
from regionclip_jax.data.sources.records import ImageTextRecord
from regionclip_jax.data.sources.skipped import SkippedEntries
from regionclip_jax.data.sources.splits import require_split


class CocoCaptionsSource:
    """Images with captions, by ascending image id; images without a caption are excluded.

    Attributes:
        report: counts of images, captions and skipped entries.
        named: report key -> first few names of its entries.

    Args:
        root: holds ``annotations/`` and the image folder.
        split: such as ``"train2017"``.
        max_skipped_fraction: share of the images, and of the captions, that may be skipped.

    Raises:
        FileNotFoundError: no annotation file or no image folder.
        ValueError: the file has no captions, or too many entries are skipped.
    """

    def __init__(self, root: str | os.PathLike, split: str, *, max_skipped_fraction: float = 0.0):
        self._root, self._split = pathlib.Path(root), split
        path = _annotations_of(self._root, "captions", split)
        file = read_annotation_file(path)
        folder = _folder_of_images(self._root, split)
        names, sizes, missing = read_images(file, folder)
        unusable = SkippedEntries("captions")
        captions: dict[int, list[str]] = {}
        for number, entry in enumerate(file.annotations):
            entry = entry if isinstance(entry, dict) else {}
            text, image_id = entry.get("caption"), entry.get("image_id")
            name = entry.get("id", f"#{number}")
            if not isinstance(text, str):
                unusable.add("that_are_no_text", f"{name}: {sorted(entry)}")
            elif not text.strip():
                unusable.add("blank", name)
            elif type(image_id) is not int or image_id not in sizes:
                unusable.add("of_an_unknown_image", f"{name}: {image_id}")
            else:
                captions.setdefault(image_id, []).append(text)
        unusable.require_few(
            path,
            len(file.annotations),
            max_skipped_fraction,
            "give the captions file of the split, or repair it",
        )
        if not captions:
            raise ValueError(f"{path} has no captions: expected COCO's captions file of the split")
        require_images(file, folder, missing, max_skipped_fraction)
        ids = [image_id for image_id in names if image_id in captions]
        self._records = [(names[image_id], tuple(captions[image_id])) for image_id in ids]
        known = [sizes[image_id] for image_id in ids]
        self._sizes = None if None in known else np.array(known, np.int32).reshape(-1, 2)
        self.report = {
            "images": len(self._records),
            "captions": sum(len(texts) for _, texts in self._records),
            "images_without_caption": len(names) - len(self._records),
            **missing.report,
            **unusable.report,
        }
        self.named = missing.named | unusable.named

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> ImageTextRecord:
        name, captions = self._records[index]
        image = read_image(self._root / self._split / name, repr(self), name)
        return ImageTextRecord(name, image, captions)

    def index_parts(self) -> Iterator[bytes]:
        """Yield names and captions; see ``fingerprint``."""
        return (json.dumps(record).encode() for record in self._records)

    def sizes(self) -> Int[np.ndarray, "N 2"] | None:
        """Return (height, width) of every image, or None if the file does not give all."""
        return self._sizes

    def __repr__(self) -> str:
        return f"CocoCaptionsSource({str(self._root)!r}, {self._split!r})"


class CocoInstancesSource(AnnotatedImages):
    """Images with boxes, by ascending image id; images without boxes are kept.

    Args:
        root: holds ``annotations/`` and the image folder.
        split: such as ``"train2017"``.
        max_skipped_fraction: share of the images, and of the annotations, that may be skipped.
        annotations: a file in COCO's format at any path; its images are in ``root/split`` if there
            is such a folder, else in ``root``.
        mask_size: side P of the object masks; None reads none.
        keep_file: keep the file's content as ``annotation_file``, for an evaluation.

    Raises:
        FileNotFoundError: no annotation file or no image folder.
        ValueError: the file has no instances, or too many entries are skipped.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        *,
        max_skipped_fraction: float = 0.0,
        annotations: str | os.PathLike | None = None,
        mask_size: int | None = None,
        keep_file: bool = False,
    ):
        self._root, self._split = pathlib.Path(root), split
        if annotations is None:
            path = _annotations_of(self._root, "instances", split)
            folder = _folder_of_images(self._root, split)
        else:
            path, folder = pathlib.Path(annotations), self._root / split
            if not folder.is_dir():
                folder = self._root
        super().__init__(
            read_annotation_file(path),
            folder,
            max_skipped_fraction=max_skipped_fraction,
            mask_size=mask_size,
            keep_file=keep_file,
        )

    def __repr__(self) -> str:
        return f"CocoInstancesSource({str(self._root)!r}, {self._split!r})"


def _annotations_of(root: pathlib.Path, kind: str, split: str) -> pathlib.Path:
    """Return the annotation file of a split, ``kind`` "captions" or "instances"."""

    def find_splits(root: pathlib.Path) -> list[str]:
        files = sorted((root / "annotations").glob(f"{kind}_*.json"))
        return [file.stem.removeprefix(f"{kind}_") for file in files]

    hint = ""
    found = [*root.glob("*.json"), *root.glob("*/*.json")]
    if kind == "instances" and found:
        # Such as the exports of Roboflow and CVAT.
        file = min(found, key=lambda file: (split not in file.parent.name, file))
        hint = f"to read {file}, set annotations to it, and path to the folder of its images"
    layout = f"COCO's layout, annotations/{kind}_{split}.json beside the folder {split}/"
    require_split(root, split, find_splits, layout, hint)
    return root / "annotations" / f"{kind}_{split}.json"


def _folder_of_images(root: pathlib.Path, split: str) -> pathlib.Path:
    folder = root / split
    if folder.is_dir():
        return folder
    inner = next((path for path in sorted(root.glob(f"*/{split}")) if path.is_dir()), None)
    raise FileNotFoundError(
        f"{folder} does not exist: expected the images of the split there; "
        + (f"move {inner} there, or link it" if inner else "download and unpack them there")
    )
