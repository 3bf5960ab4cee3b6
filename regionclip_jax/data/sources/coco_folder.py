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
        path = self._root / "annotations" / f"captions_{split}.json"
        file = read_annotation_file(path)
        folder = _require_folder(self._root / split)
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
        annotations: a file in COCO's format at any path; its images are in ``root/split``, or in
            ``root`` with an empty split.
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
        path = self._root / "annotations" / f"instances_{split}.json"
        if annotations is not None:
            path = pathlib.Path(annotations)
        super().__init__(
            read_annotation_file(path),
            _require_folder(self._root / split),
            max_skipped_fraction=max_skipped_fraction,
            mask_size=mask_size,
            keep_file=keep_file,
        )

    def __repr__(self) -> str:
        return f"CocoInstancesSource({str(self._root)!r}, {self._split!r})"


def _require_folder(folder: pathlib.Path) -> pathlib.Path:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist: expected the images of the split there; "
            "download and unpack them, or correct root and split"
        )
    return folder
