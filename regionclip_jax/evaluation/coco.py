"""COCO average precision of boxes, per category and per group of categories, by pycocotools.

The open-vocabulary split reports the mean AP at IoU 0.5 over the novel, the base and all
categories. A category without ground truth has no AP and is left out of every mean, as in COCO's
own evaluation.
"""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

_AP_THRESHOLDS = np.round(np.arange(0.5, 1.0, 0.05), 2)  # of "AP", COCO's main number


def coco_ap50(
    ground_truth: Mapping | str | Path,
    results: Sequence[Mapping],
    *,
    category_groups: Mapping[str, Set[int]],
    iou_threshold: float = 0.5,
    max_detections: int = 100,
) -> dict[str, dict]:
    """Evaluate boxes against ground truth in COCO's format.

    Args:
        ground_truth: COCO instances (``images``, ``annotations``, ``categories``) or the path of
            such a JSON. An annotation without ``area`` gets that of its box, one without
            ``iscrowd`` is no crowd. Boxes are ``[x, y, width, height]`` in original pixels.
        results: ``{"image_id", "category_id", "bbox", "score"}`` each; may be empty.
        category_groups: group name -> category ids, e.g. ``{"novel": {...}, "base": {...}}``.
        iou_threshold: the threshold of the group numbers; they are called ``AP50_<group>`` for 0.5.
        max_detections: the best so many of an image and category count.

    Returns:
        ``{"summary": {"AP50_<group>": ..., "AP50": ..., "AP": ...}, "per_category": {name: {"AP50":
        ..., "AP": ...}}}`` in percent. ``AP`` is the mean over IoU 0.5 to 0.95. None where no
        category of the group has ground truth.

    Raises:
        ValueError: a result of an unknown image or category, a box or score that is not finite, a
            group with an unknown category, or a file that is not COCO instances.
    """
    dataset, where = _load(ground_truth)
    categories = {category["id"]: category["name"] for category in dataset["categories"]}
    for group, members in category_groups.items():
        if unknown := sorted(set(members) - categories.keys()):
            raise ValueError(
                f"{where}: group {group!r} names categories {unknown}, which are not among the "
                f"{len(categories)} of the ground truth; correct the split"
            )
    truth = [_annotation(annotation) for annotation in dataset["annotations"]]
    thresholds = np.union1d(_AP_THRESHOLDS, [iou_threshold])
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(
            _index(dataset, truth),
            _index(dataset, _detections(results, dataset, categories, where)),
            "bbox",
        )
        evaluation.params.iouThrs = thresholds
        evaluation.params.maxDets = [max_detections]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    # [threshold, recall, category, area, limit], -1 where a category has no ground truth.
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    at_one = _category_means(precision[np.isclose(thresholds, iou_threshold)])
    at_all = _category_means(precision[np.isin(thresholds, _AP_THRESHOLDS)])
    ids, label = evaluation.params.catIds, f"AP{100 * iou_threshold:g}"

    def group_mean(members) -> float | None:
        return _mean([at_one[i] for i, category in enumerate(ids) if category in members])

    summary = {f"{label}_{group}": group_mean(ids) for group, ids in category_groups.items()}
    summary |= {label: _mean(at_one), "AP": _mean(at_all)}
    per_category = {
        categories[category]: {label: at_one[i], "AP": at_all[i]} for i, category in enumerate(ids)
    }
    return {"summary": summary, "per_category": per_category}


def _load(ground_truth: Mapping | str | Path) -> tuple[Mapping, str]:
    where = "ground truth"
    if not isinstance(ground_truth, Mapping):
        where = str(ground_truth)
        ground_truth = json.loads(Path(ground_truth).read_text())
    for key in ("images", "annotations", "categories"):
        if not isinstance(ground_truth, Mapping) or key not in ground_truth:
            raise ValueError(
                f"{where}: no {key!r}; expected COCO instances with images, annotations, categories"
            )
    return ground_truth, where


def _annotation(annotation: Mapping) -> dict:
    _, _, width, height = annotation["bbox"]
    return {"area": width * height, "iscrowd": 0} | annotation


def _detections(results, dataset, categories, where) -> list[dict]:
    images = {image["id"] for image in dataset["images"]}
    detections = []
    for number, result in enumerate(results):
        if result["image_id"] not in images or result["category_id"] not in categories:
            raise ValueError(
                f"{where}: result {number} is of image {result['image_id']} and category "
                f"{result['category_id']}, at least one of which the ground truth lacks; evaluate "
                "against the file the predictions were made for"
            )
        if not np.isfinite([*result["bbox"], result["score"]]).all():
            raise ValueError(
                f"{where}: result {number} (image {result['image_id']}) has bbox {result['bbox']} "
                f"and score {result['score']}, expected finite numbers; the model's output is bad"
            )
        _, _, width, height = result["bbox"]
        detections.append(
            {
                "id": number + 1,
                "image_id": result["image_id"],
                "category_id": result["category_id"],
                "bbox": list(result["bbox"]),
                "score": result["score"],
                "area": width * height,
                "iscrowd": 0,
            }
        )
    return detections


def _index(dataset: Mapping, annotations: list[dict]) -> COCO:
    # Not COCO.loadRes, which fails on an empty list and writes into its argument.
    coco = COCO()
    coco.dataset = {
        "images": dataset["images"],
        "categories": dataset["categories"],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _category_means(precision: np.ndarray) -> list[float | None]:
    """Mean of precision [thresholds, recalls, categories] per category, percent."""
    means = []
    for category in range(precision.shape[2]):
        known = precision[:, :, category]
        known = known[known > -1]
        means.append(100.0 * float(known.mean()) if known.size else None)
    return means


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
