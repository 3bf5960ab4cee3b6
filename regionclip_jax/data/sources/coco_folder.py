"""Sources for COCO's layout: ``annotations/{captions,instances}_{split}.json`` and ``{split}/``.

Annotations are held in memory, images are read on access.
"""

import os
import pathlib

import numpy as np
from jaxtyping import Int

from regionclip_jax.data.sources.boxed_images import NO_BOXES, BoxedImage, BoxedImages
from regionclip_jax.data.sources.coco_annotations import (
    read_annotations,
    read_boxes,
    read_categories,
    read_images,
    read_sized_images,
    require_annotations,
    require_pictures,
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
        content = read_annotations(path)
        folder = _require_folder(self._root / split)
        names, sizes, missing = read_images(content, folder)
        unusable = SkippedEntries("captions")
        captions: dict[int, list[str]] = {}
        for number, entry in enumerate(content["annotations"]):
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
            len(content["annotations"]),
            max_skipped_fraction,
            "give the captions file of the split, or repair it",
        )
        if not captions:
            raise ValueError(f"{path} has no captions: expected COCO's captions file of the split")
        require_pictures(path, content, folder, missing, max_skipped_fraction)
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

    def sizes(self) -> Int[np.ndarray, "N 2"] | None:
        """Return (height, width) of every image, or None if the file does not give all."""
        return self._sizes

    def __repr__(self) -> str:
        return f"CocoCaptionsSource({str(self._root)!r}, {self._split!r})"


class CocoInstancesSource(BoxedImages):
    """Images with boxes, by ascending image id; images without boxes are kept.

    Classes are contiguous from 0 by ascending category id. Boxes are clipped to the image; empty
    ones are dropped.

    Attributes:
        annotations_path: the annotation file.

    Args:
        root: holds ``annotations/`` and the image folder.
        split: such as ``"train2017"``.
        max_skipped_fraction: share of the images, and of the annotations, that may be skipped.
        annotations: a file in COCO's format at any path; its images are in ``root/split``, or in
            ``root`` with an empty split.
        mask_size: side P of the object masks; None reads none.

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
    ):
        self._root, self._split = pathlib.Path(root), split
        path = self._root / "annotations" / f"instances_{split}.json"
        if annotations is not None:
            path = pathlib.Path(annotations)
        self.annotations_path = path
        content = read_annotations(path)
        self.category_names, self.category_ids = read_categories(path, content)
        folder = _require_folder(self._root / split)
        names, sizes, missing = read_sized_images(content, folder)
        require_pictures(path, content, folder, missing, max_skipped_fraction)
        boxes, counts, unusable = read_boxes(content["annotations"], self.category_ids, sizes)
        require_annotations(path, content, unusable, max_skipped_fraction)
        pictures = [
            BoxedImage(i, name, *sizes[i], boxes.get(i, NO_BOXES)) for i, name in names.items()
        ]
        super().__init__(folder, pictures, mask_size=mask_size)
        self.report |= counts | missing.report | unusable.report
        self.named = missing.named | unusable.named

    def __repr__(self) -> str:
        return f"CocoInstancesSource({str(self._root)!r}, {self._split!r})"


def _require_folder(folder: pathlib.Path) -> pathlib.Path:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist: expected the pictures of the split there; "
            "download and unpack them, or correct root and split"
        )
    return folder
