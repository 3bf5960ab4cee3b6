"""Detections as a dataset in COCO's JSON format, with a score for each annotation.

docs/using_models.md#use-from-the-shell names programs that open such a file.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def coco_categories(names: Sequence[str]) -> list[dict]:
    """Return the categories of a vocabulary; ids are rows of the vocabulary, from 1."""
    return [{"id": row + 1, "name": name, "supercategory": ""} for row, name in enumerate(names)]


def coco_image(image_id: int, file_name: str, size: tuple[int, int]) -> dict:
    """Return the entry of an image of ``size`` (height, width)."""
    height, width = size
    return {"id": image_id, "file_name": file_name, "height": height, "width": width}


def coco_annotations(
    boxes: Float[np.ndarray, "K 4"],
    scores: Float[np.ndarray, " K"],
    classes: Int[np.ndarray, " K"],
    *,
    image_id: int,
    first_id: int,
) -> list[dict]:
    """Return the annotations of an image.

    Args:
        boxes: xyxy in pixels of the image; they become x, y, width, height.
        scores, classes: of the boxes; classes are rows of the vocabulary.
        image_id: id of the image.
        first_id: id of the first annotation, at least 1: pycocotools takes 0 for no match.
    """
    annotations = []
    for number, (box, score, row) in enumerate(zip(boxes, scores, classes, strict=True)):
        x1, y1, x2, y2 = (round(float(side), 2) for side in box)
        width, height = round(x2 - x1, 2), round(y2 - y1, 2)
        annotations.append(
            {
                "id": first_id + number,
                "image_id": image_id,
                "category_id": int(row) + 1,
                "bbox": [x1, y1, width, height],
                "area": round(width * height, 2),
                "iscrowd": 0,
                "segmentation": [],  # some readers require the key
                "score": round(float(score), 6),
            }
        )
    return annotations
