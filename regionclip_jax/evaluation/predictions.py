"""Convert predictions and boxes to COCO's format, ``[x, y, width, height]`` in original pixels.

Predictions are in pixels of the original images (``steps.predict_step``). The boxes of a batch are
in canvas pixels.
"""

from collections.abc import Sequence

import numpy as np

from regionclip_jax.evaluation.masks import encode_mask, paste_mask
from regionclip_jax.structures import DetectionBatch, Detections


def coco_results(
    batch: DetectionBatch, detections: Detections, row: int, category_ids: Sequence[int]
) -> list[dict]:
    """Return the detections of one image as COCO results, in JSON values.

    Args:
        batch: the batch, for the image's id and size.
        detections: NumPy arrays, pixels of the original images.
        row: row of the image.
        category_ids: by class index.

    Returns:
        Each ``{"image_id", "category_id", "bbox", "score"}``, and "segmentation" of a detector that
        predicts masks.

    Raises:
        ValueError: a class index beyond ``category_ids``, or numbers that are not finite.
    """
    image_id = int(batch.image_ids[row])
    keep = np.asarray(detections.mask[row], bool)
    boxes = np.asarray(detections.boxes[row], np.float64)[keep]
    scores = np.asarray(detections.scores[row], np.float64)[keep]
    classes = np.asarray(detections.classes[row])[keep]
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError(
            f"image {image_id}: a predicted box or score is not finite; the model's parameters or "
            "its input are broken"
        )
    if classes.size and not (0 <= classes.min() and classes.max() < len(category_ids)):
        raise ValueError(
            f"image {image_id}: predicted class {classes.max()} with {len(category_ids)} category "
            "ids; pass the ids of the classes the model was given"
        )
    results = [
        {
            "image_id": image_id,
            "category_id": int(category_ids[class_index]),
            "bbox": box.tolist(),
            "score": float(score),
        }
        for box, score, class_index in zip(_to_xywh(boxes), scores, classes, strict=True)
    ]
    if detections.object_masks is not None:
        height, width = np.round(batch.sizes[row] / batch.scales[row]).astype(int)
        masks = np.asarray(detections.object_masks[row])[keep]
        for result, mask, box in zip(results, masks, boxes, strict=True):
            result["segmentation"] = encode_mask(paste_mask(mask, box, height, width))
    return results


def to_original_xywh(boxes: np.ndarray, *, sizes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Convert boxes of one image from the canvas to its original, clipped to the image.

    Args:
        boxes: [K, 4] xyxy, canvas pixels, such as its ground truth.
        sizes: [2] height and width of the image on the canvas.
        scales: [2] canvas pixels per original pixel, y and x.

    Returns:
        [K, 4] ``x, y, width, height``, original pixels.
    """
    height, width = sizes
    limit = np.array([width, height, width, height], np.float64)
    scale = np.asarray(scales, np.float64)[[1, 0, 1, 0]]
    return _to_xywh(np.clip(boxes, 0.0, limit) / scale)


def _to_xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
