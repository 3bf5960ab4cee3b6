"""LVIS v1 average precision of boxes by faster-coco-eval: the extra ``lvis``.

Source: docs/reference/evaluation.md#lvis.

LVIS labels each image with only some of its 1203 categories ("federated"), hence its rules:

- A detection counts only if its category was annotated in the image: the image has annotations of
  it, or lists it in ``neg_category_ids``. Otherwise it is ignored.
- If the image lists the category in ``not_exhaustive_category_ids``, unmatched detections are
  ignored.
- The best 300 detections of an image count, over all categories.
- APr, APc, APf are means over the categories of one frequency: rare, common, frequent in training.

The numbers equal those of the official tool, the lvis package, whose last release (0.5.3) does not
run with current NumPy. faster-coco-eval implements all of its rules but one: its limit of
detections is per image *and category*. So the best 300 are chosen here, before the other rules, as
in the official tool (ignored detections count towards the limit). In both tools, detections with
equal scores are sorted by image id, and in one image by their order in the results.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from regionclip_jax.data.sources.annotation_files import FREQUENCIES
from regionclip_jax.evaluation.ground_truth import (
    GroundTruth,
    as_detections,
    percent,
    require_masks,
)
from regionclip_jax.extras import require_extra

# Axes of a precision array: area, threshold (0.5 to 0.95), recall (0 to 1), category.
_AREAS = ("all", "small", "medium", "large")
_SIZES = {"APs": "small", "APm": "medium", "APl": "large"}
_AT_50, _AT_75, _SHAPE = 0, 5, (4, 10, 101)


def lvis_ap(
    truth: GroundTruth,
    results: Sequence[Mapping],
    *,
    max_detections: int = 300,
    compare: Literal["bbox", "segm"] = "bbox",
) -> dict[str, dict]:
    """Evaluate boxes by the rules of LVIS v1.

    Args:
        truth: of ``lvis_ground_truth``.
        results: each ``{"image_id", "category_id", "bbox", "score"}``; may be empty.
        max_detections: number of best detections counted for each image.
        compare: overlaps of boxes or of masks, as in ``evaluation.coco``.

    Returns:
        ``{"summary": {"AP": ..., "AP50": ..., "AP75": ..., "APs": ..., "APm": ..., "APl": ...,
        "APr": ..., "APc": ..., "APf": ...}, "per_category": {name: {"AP50": ..., "AP": ...}}}`` in
        percent. None if no category has such ground truth; a category without ground truth is
        excluded from every mean. Sizes are as in ``evaluation.coco``.

    Raises:
        MissingExtra: faster-coco-eval is not installed.
        ValueError: a result of an unknown image or category, or a box or score that is not finite.
    """
    detections = _best_of_each_image(as_detections(results, truth), max_detections)
    if compare == "segm":
        require_masks(truth, detections)
    annotated, detected = _by_category(truth.annotations), _by_category(detections)
    images = {image["id"]: image for image in truth.images}
    categories = sorted(truth.categories, key=lambda category: category["id"])
    # One category at a time, with the images that have entries of it: for all at once, the library
    # keeps a record of each of LVIS's 19,809 x 1,203 pairs of image and category.
    precision = np.full((*_SHAPE, len(categories)), -1.0)
    evaluate = _evaluator(max_detections, compare)
    for i, category in enumerate(categories):
        if boxes := annotated[category["id"]]:
            precision[..., i] = evaluate(category, images, boxes, detected[category["id"]])
    everywhere = precision[_AREAS.index("all")]
    summary = {
        "AP": percent(everywhere),
        "AP50": percent(everywhere[_AT_50]),
        "AP75": percent(everywhere[_AT_75]),
    }
    for name, size in _SIZES.items():
        summary[name] = percent(precision[_AREAS.index(size)])
    for frequency in FREQUENCIES:
        members = [i for i, c in enumerate(categories) if c["frequency"] == frequency]
        summary[f"AP{frequency}"] = percent(everywhere[..., members])
    per_category = {
        category["name"]: {
            "AP50": percent(everywhere[_AT_50, :, i]),
            "AP": percent(everywhere[..., i]),
        }
        for i, category in enumerate(categories)
    }
    return {"summary": summary, "per_category": per_category}


def _best_of_each_image(detections: list[dict], limit: int) -> list[dict]:
    of_image = defaultdict(list)
    for detection in detections:
        of_image[detection["image_id"]].append(detection)
    best = []
    for candidates in of_image.values():  # sorting is stable
        best += sorted(candidates, key=lambda detection: -detection["score"])[:limit]
    return best


def _by_category(entries: list[dict]) -> defaultdict[int, list[dict]]:
    groups = defaultdict(list)
    for entry in entries:
        groups[entry["category_id"]].append(entry)
    return groups


def _evaluator(
    max_detections: int, compare: str
) -> Callable[[Mapping, Mapping, list, list], np.ndarray]:
    """Return ``evaluate(category, images by id, annotations, detections)``.

    It gives the precision [area, threshold, recall].
    """
    require_extra("lvis", "LVIS's metric")
    from faster_coco_eval import COCO, COCOeval_faster

    def evaluate(category, images, annotations, detections):
        occupied = sorted({entry["image_id"] for entry in [*annotations, *detections]})
        federated = ("id", "neg_category_ids", "not_exhaustive_category_ids")
        if compare == "segm":
            federated += ("height", "width")
        shown = [{key: images[image][key] for key in federated} for image in occupied]

        def index(entries):
            content = {"images": shown, "categories": [category], "annotations": entries}
            return COCO(content, print_function=_silent)

        evaluation = COCOeval_faster(
            index(annotations),
            index(detections),
            compare,
            ranges={"small": [0, 32**2], "medium": [32**2, 96**2], "large": [96**2, 1e5**2]},
            lvis_style=True,
            print_function=_silent,
        )
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        # [threshold, recall, category, area, limit], with one category and one limit.
        return np.moveaxis(evaluation.eval["precision"][:, :, 0, :, 0], -1, 0)

    return evaluate


def _silent(*_) -> None:
    """Discard the library's progress messages, one set for each category."""
