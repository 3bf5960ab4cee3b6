"""Source for LVIS v1: ``annotations/lvis_v1_{split}.json`` beside COCO's folders of images.

LVIS has its own splits, so the images of one split are in several folders of COCO. The last two
parts of ``coco_url`` give the path: ``train2017/000000000009.jpg``.
"""

import os
import pathlib

from regionclip_jax.data.sources.annotation_files import AnnotatedImages, read_annotation_file
from regionclip_jax.data.sources.splits import require_split


class LvisInstancesSource(AnnotatedImages):
    """Images with boxes, by ascending image id.

    All images of the file are included, also images with only negative categories. (The reference
    drops images without boxes in its evaluation too, where their false detections should count:
    docs/reference/evaluation.md#lvis.)

    Args:
        root: holds ``annotations/`` and the image folders.
        split: ``"train"`` or ``"val"``.
        max_skipped_fraction: share of the images, and of the annotations, that may be skipped.
        mask_size: side P of the object masks; None reads none.
        keep_file: keep the file's content as ``annotation_file``, for an evaluation.

    Raises:
        FileNotFoundError: no annotation file.
        ValueError: not a file of LVIS v1, or too many skipped entries.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        *,
        max_skipped_fraction: float = 0.0,
        mask_size: int | None = None,
        keep_file: bool = False,
    ):
        self._root, self._split = pathlib.Path(root), split
        require_split(
            self._root,
            split,
            _find_splits,
            f"LVIS's layout, annotations/lvis_v1_{split}.json beside COCO's folders of images",
        )
        path = self._root / "annotations" / f"lvis_v1_{split}.json"
        file = read_annotation_file(path)
        for image in file.images:
            if isinstance(image, dict) and not {"coco_url", "neg_category_ids"} <= image.keys():
                raise ValueError(
                    f"{path}: image {image.get('id')}: expected coco_url and neg_category_ids, as "
                    f"in lvis_v1_*.json, found {sorted(image)}; give the original file"
                )
        super().__init__(
            file,
            self._root,
            name_of=_name_of,
            max_skipped_fraction=max_skipped_fraction,
            mask_size=mask_size,
            keep_file=keep_file,
        )

    def __repr__(self) -> str:
        return f"LvisInstancesSource({str(self._root)!r}, {self._split!r})"


def _find_splits(root: pathlib.Path) -> list[str]:
    files = sorted((root / "annotations").glob("lvis_v1_*.json"))
    return [file.stem.removeprefix("lvis_v1_") for file in files]


def _name_of(image: dict) -> str | None:
    url = image.get("coco_url")
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) else None
