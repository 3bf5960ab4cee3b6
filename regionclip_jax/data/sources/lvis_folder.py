"""Source for LVIS v1: ``annotations/lvis_v1_{split}.json`` beside COCO's folders of images.

LVIS has its own splits, so the images of one split are in several folders of COCO. The last two
parts of ``coco_url`` give the path: ``train2017/000000000009.jpg``.
"""

import os
import pathlib

from regionclip_jax.data.sources.boxed_images import NO_BOXES, BoxedImage, BoxedImages
from regionclip_jax.data.sources.coco_annotations import (
    read_annotations,
    read_boxes,
    read_categories,
    read_sized_images,
    require_annotations,
    require_pictures,
)


class LvisInstancesSource(BoxedImages):
    """Images with boxes, by ascending image id.

    All images of the file are included, also images with only negative categories. (The reference
    drops images without boxes in its evaluation too, where their false detections should count:
    docs/reference/evaluation.md#lvis.)

    Attributes:
        annotations_path: the annotation file.

    Args:
        root: holds ``annotations/`` and the image folders.
        split: ``"train"`` or ``"val"``.
        max_skipped_fraction: share of the images, and of the annotations, that may be skipped.
        mask_size: side P of the object masks; None reads none.

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
    ):
        self._root, self._split = pathlib.Path(root), split
        path = self.annotations_path = self._root / "annotations" / f"lvis_v1_{split}.json"
        content = read_annotations(path)
        for image in content["images"]:
            if isinstance(image, dict) and not {"coco_url", "neg_category_ids"} <= image.keys():
                raise ValueError(
                    f"{path}: image {image.get('id')}: expected coco_url and neg_category_ids, as "
                    f"in lvis_v1_*.json, found {sorted(image)}; give the original file"
                )
        self.category_names, self.category_ids = read_categories(path, content)
        names, sizes, missing = read_sized_images(content, self._root, _name_of)
        require_pictures(path, content, self._root, missing, max_skipped_fraction)
        boxes, counts, unusable = read_boxes(content["annotations"], self.category_ids, sizes)
        require_annotations(path, content, unusable, max_skipped_fraction)
        pictures = [
            BoxedImage(i, name, *sizes[i], boxes.get(i, NO_BOXES)) for i, name in names.items()
        ]
        super().__init__(self._root, pictures, mask_size=mask_size)
        self.report |= counts | missing.report | unusable.report
        self.named = missing.named | unusable.named

    def __repr__(self) -> str:
        return f"LvisInstancesSource({str(self._root)!r}, {self._split!r})"


def _name_of(image: dict) -> str | None:
    url = image.get("coco_url")
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) else None
