"""LVIS v1: ``annotations/lvis_v1_{split}.json`` beside COCO's folders of pictures.

LVIS divides COCO's pictures anew, so those of one split lie in several folders; the last two parts
of ``coco_url`` say where: ``train2017/000000000009.jpg``.
"""

import os
import pathlib

import numpy as np

from regionclip_jax.data.records import DetectionRecord
from regionclip_jax.data.sources.coco_folder import (
    NO_BOXES,
    rasterize_all,
    read_annotations,
    read_boxes,
    read_image,
)


class LvisInstancesSource:
    """Pictures with their boxes, in ascending image id.

    All pictures of the file are there, also those in which only the absence of categories is
    annotated. (The reference leaves out pictures without boxes in its evaluation too, where their
    false detections should count: spec 5.5.)

    Attributes:
        annotations_path: the annotation file.
        category_names: by class, as in the file.
        category_ids: by class.
        report: counts of what was found, clipped and dropped.

    Args:
        root: holds ``annotations/`` and the picture folders.
        split: ``"train"`` or ``"val"``.
        mask_size: side P of the rasters of object masks; None reads none.

    Raises:
        FileNotFoundError: no annotation file, or a picture is missing.
        ValueError: the file is not one of LVIS v1.
    """

    def __init__(self, root: str | os.PathLike, split: str, *, mask_size: int | None = None):
        self._root, self._split, self._mask_size = pathlib.Path(root), split, mask_size
        path = self.annotations_path = self._root / "annotations" / f"lvis_v1_{split}.json"
        content = read_annotations(path)
        for image in content["images"]:
            if "coco_url" not in image or "neg_category_ids" not in image:
                raise ValueError(
                    f"{path}: image {image.get('id')}: expected coco_url and neg_category_ids, as "
                    f"in lvis_v1_*.json, found {sorted(image)}; give the original file"
                )
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_names = tuple(category["name"] for category in categories)
        self.category_ids = tuple(category["id"] for category in categories)
        files = {i["id"]: "/".join(i["coco_url"].split("/")[-2:]) for i in content["images"]}
        missing = sorted(name for name in files.values() if not (self._root / name).is_file())
        if missing:
            raise FileNotFoundError(
                f"{self._root} lacks {len(missing)} of {len(files)} pictures of {path.name}: "
                f"{', '.join(missing[:5])}, ...; unpack COCO's train2017 and val2017 there"
            )
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        boxes, self.report = read_boxes(path, content["annotations"], self.category_ids, sizes)
        self._records = [(i, name, *boxes.get(i, NO_BOXES)) for i, name in sorted(files.items())]
        self._sizes = sizes
        self.report |= {"images": len(files)}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> DetectionRecord:
        image_id, name, boxes, classes, crowd, shapes = self._records[index]
        image = read_image(self._root / name, repr(self), name)
        masks = rasterize_all(shapes, boxes, crowd, self._mask_size, repr(self), name)
        return DetectionRecord(name, image, boxes, classes, crowd, image_id, masks=masks)

    def annotations(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, classes and crowd flags of a record."""
        return self._records[index][2:5]

    def sizes(self) -> np.ndarray:
        """(height, width) of all pictures, [N, 2], as the annotations give them."""
        return np.array([self._sizes[image_id] for image_id, *_ in self._records])

    def __repr__(self) -> str:
        return f"LvisInstancesSource({str(self._root)!r}, {self._split!r})"
