"""Run a prediction function over batches and convert its predictions to COCO's format.

Coordinates: predictions are in pixels of the original images (``steps.predict_step``); COCO uses
``[x, y, width, height]``. The boxes of a batch are in canvas pixels; ``to_original_xywh`` converts
them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from regionclip_jax.evaluation.masks import encode_mask, paste_mask
from regionclip_jax.structures import DetectionBatch, Detections

# Results of one image as plain JSON values, which any gather of processes can transfer.
ImageRecord = dict[str, object]
PredictFn = Callable[[DetectionBatch], tuple[Detections, Int[np.ndarray, "B G"] | None]]


class Predictions(NamedTuple):
    """Predictions for all images of a data set, each image once, by increasing image id."""

    results: list[dict]  # COCO results: image_id, category_id, bbox xywh in original pixels, score
    # (and segmentation, if the detector predicts masks)
    predicted: Int[np.ndarray, " N"]  # best class of each ground-truth box, contiguous index
    actual: Int[np.ndarray, " N"]  # its true class; both empty when predict_fn gives no classes
    num_images: int


def run(
    predict_fn: PredictFn,
    batches: Iterable[DetectionBatch],
    *,
    category_ids: Sequence[int],
    gather: Callable[[list[ImageRecord]], list[ImageRecord]],
) -> Predictions:
    """Predict every image of ``batches``.

    Args:
        predict_fn: batch -> (Detections in pixels of the original images, best class per
            ground-truth box [B, G] or None), as numpy arrays.
        batches: batches of this process. Images with ``mask`` False are padding and dropped.
        category_ids: class index -> category id of the results.
        gather: records of this process -> records of all processes; identity for one process.
            Images seen by several processes (uneven shards) are counted once.

    Raises:
        ValueError: a class index beyond ``category_ids``, or numbers that are not finite.
    """
    records: list[ImageRecord] = []
    for batch in batches:
        detections, box_classes = predict_fn(batch)
        for row in np.flatnonzero(batch.mask):
            records.append(_image_record(batch, detections, box_classes, row, category_ids))
    unique = {}
    for record in gather(records):
        unique.setdefault(record["image_id"], record)
    ordered = [unique[image_id] for image_id in sorted(unique)]
    return Predictions(
        results=[result for record in ordered for result in record["results"]],
        predicted=_concatenated(ordered, "predicted"),
        actual=_concatenated(ordered, "actual"),
        num_images=len(ordered),
    )


def _image_record(batch, detections, box_classes, row, category_ids) -> ImageRecord:
    image_id = int(batch.image_ids[row])
    record: ImageRecord = {"image_id": image_id, "results": [], "predicted": [], "actual": []}
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
    masks = [None] * len(boxes)
    if detections.object_masks is not None:
        height, width = np.round(batch.sizes[row] / batch.scales[row]).astype(int)
        masks = [
            encode_mask(paste_mask(own, box, height, width))
            for own, box in zip(np.asarray(detections.object_masks[row])[keep], boxes, strict=True)
        ]
    for box, score, class_index, own in zip(_to_xywh(boxes), scores, classes, masks, strict=True):
        record["results"].append(
            {
                "image_id": image_id,
                "category_id": int(category_ids[class_index]),
                "bbox": box.tolist(),
                "score": float(score),
            }
        )
        if own is not None:
            record["results"][-1]["segmentation"] = own
    if box_classes is not None:
        real = np.asarray(batch.box_mask[row], bool)
        record["predicted"] = np.asarray(box_classes[row])[real].tolist()
        record["actual"] = np.asarray(batch.classes[row])[real].tolist()
    return record


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


def _concatenated(records: list[ImageRecord], key: str) -> np.ndarray:
    return np.array([value for record in records for value in record[key]], np.int64)
