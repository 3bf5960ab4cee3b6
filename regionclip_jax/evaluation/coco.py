"""COCO average precision of boxes, per category and per group of categories, by pycocotools.

The open-vocabulary split reports the mean AP at IoU 0.5 over the novel, the base and all categories
(docs/reference/evaluation.md#coco-metrics; in percent and returned, while the reference logs
fractions). A category without ground truth has no AP and is excluded from every mean, as in COCO's
own evaluation.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence, Set
from typing import Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from regionclip_jax.evaluation.ground_truth import (
    GroundTruth,
    as_detections,
    percent,
    require_masks,
)

_SIZES = {"APs": "small", "APm": "medium", "APl": "large"}


def coco_ap50(
    truth: GroundTruth,
    results: Sequence[Mapping],
    *,
    category_groups: Mapping[str, Set[int]],
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    compare: Literal["bbox", "segm"] = "bbox",
) -> dict[str, dict]:
    """Evaluate boxes against ground truth in COCO's format.

    Detections with equal scores are sorted by image id, and in one image by their order in
    ``results``, so the same results give the same numbers.

    Args:
        truth: of ``coco_ground_truth``.
        results: each ``{"image_id", "category_id", "bbox", "score"}``; may be empty.
        category_groups: group name -> category ids, e.g. ``{"novel": {...}, "base": {...}}``.
        iou_threshold: IoU threshold of the group metrics, called ``AP50_<group>`` for 0.5.
        max_detections: number of best detections counted for each image and category.
        compare: overlaps of boxes, or of masks (``segmentation`` of annotations and results; images
            then need ``height`` and ``width``).

    Returns:
        ``{"summary": {"AP50_<group>": ..., "AP": ..., "AP50": ..., "AP75": ..., "APs": ...,
        "APm": ..., "APl": ...}, "per_category": {name: {"AP50": ..., "AP": ...}}}`` in percent.
        ``AP`` is the mean over IoU 0.5 to 0.95; s, m, l are objects with an ``area`` below 32²,
        below 96² and above, in pixels (in COCO's files that of the mask). None if no category has
        such ground truth.

    Raises:
        ValueError: a result of an unknown image or category, a box or score that is not finite, a
            group with an unknown category, or a missing mask with ``compare="segm"``.
    """
    categories = {category["id"]: category["name"] for category in truth.categories}
    for group, members in category_groups.items():
        if unknown := sorted(set(members) - categories.keys()):
            raise ValueError(
                f"{truth.where}: group {group!r} names categories {unknown}, which are not among "
                f"the {len(categories)} of the ground truth; correct the split"
            )
    detections = as_detections(results, truth)
    if compare == "segm":
        require_masks(truth, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_index(truth, truth.annotations), _index(truth, detections), compare)
        standard = evaluation.params.iouThrs
        thresholds = standard
        if not np.isclose(standard, iou_threshold).any():
            thresholds = np.append(standard, iou_threshold)
        evaluation.params.iouThrs = thresholds
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    # [threshold, recall, category, area, limit]; -1 for a category without ground truth.
    precision = evaluation.eval["precision"][..., 0]
    area = evaluation.params.areaRngLbl.index
    everywhere = precision[: len(standard), ..., area("all")]

    def at(threshold: float) -> np.ndarray:
        return precision[np.isclose(thresholds, threshold), ..., area("all")]

    ids, label = np.array(evaluation.params.catIds, int), f"AP{100 * iou_threshold:g}"
    chosen = at(iou_threshold)
    summary = {
        f"{label}_{group}": percent(chosen[..., np.isin(ids, sorted(members))])
        for group, members in category_groups.items()
    }
    summary |= {label: percent(chosen), "AP": percent(everywhere)}
    summary |= {"AP50": percent(at(0.5)), "AP75": percent(at(0.75))}
    for name, size in _SIZES.items():
        summary[name] = percent(precision[: len(standard), ..., area(size)])
    per_category = {
        categories[category]: {label: percent(chosen[..., i]), "AP": percent(everywhere[..., i])}
        for i, category in enumerate(ids)
    }
    return {"summary": summary, "per_category": per_category}


def _index(truth: GroundTruth, annotations: list[dict]) -> COCO:
    # Not COCO.loadRes, which fails on an empty list and writes into its argument.
    coco = COCO()
    coco.dataset = {
        "images": truth.images,
        "categories": truth.categories,
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
