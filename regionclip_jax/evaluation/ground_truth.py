"""Check annotations and results before evaluation, because the evaluators do not.

pycocotools keeps the last of two images with one id, and counts a box that matches annotation 0 as
false. It reads an LVIS file as if all images were labelled with all categories. Here such files are
refused or, if nothing is lost, corrected.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")  # keys of an LVIS image
FREQUENCIES = ("r", "c", "f")  # frequency of an LVIS category: rare, common, frequent


class GroundTruth(NamedTuple):
    """Annotations of boxes ``[x, y, width, height]`` in original pixels."""

    where: str  # names the ground truth in messages
    images: list[Mapping]
    categories: list[Mapping]
    annotations: list[dict]  # numbered from 1; image_id, category_id, bbox, area, iscrowd


def read_coco(ground_truth: Mapping | str | Path) -> GroundTruth:
    """Read COCO instances from a mapping or the path of a JSON.

    An annotation without ``area`` gets that of its box, one without ``iscrowd`` is no crowd.

    Raises:
        ValueError: a missing key, an invalid box, an unknown image or category, a repeated id, or
            an LVIS file.
    """
    where, content = _open(ground_truth)
    _refuse_lvis(where, content)
    return _checked(where, content)


def read_lvis(ground_truth: Mapping | str | Path) -> GroundTruth:
    """Read LVIS v1 annotations from a mapping or the path of a JSON.

    Raises:
        ValueError: as ``read_coco``; or this is a COCO file, a category has no frequency, an image
            lacks its negative or non-exhaustive categories, or an annotation is a crowd.
    """
    where, content = _open(ground_truth)
    what = "evaluate COCO files with evaluation.coco, LVIS with the original lvis_v1_*.json"
    for category in content["categories"]:
        if category.get("frequency") not in FREQUENCIES:
            raise ValueError(
                f"{where}: category {category.get('id')}: 'frequency': expected one of "
                f"{FREQUENCIES}, found {category.get('frequency')!r}; {what}"
            )
    for image in content["images"]:
        if missing := [key for key in _FEDERATED_KEYS if key not in image]:
            raise ValueError(
                f"{where}: image {image.get('id')}: no {missing[0]!r}, without which absence "
                f"cannot be told from not having looked; {what}"
            )
    for annotation in content["annotations"]:
        if annotation.get("iscrowd") or annotation.get("ignore"):
            raise ValueError(
                f"{where}: annotation {annotation.get('id')} is marked as crowd or to be ignored; "
                f"LVIS v1 knows neither; {what}"
            )
    return _checked(where, content)


def keep_categories(ground_truth: Mapping | str | Path, names: Collection[str]) -> dict:
    """Return the part of COCO instances with the given categories.

    Source: docs/reference/evaluation.md#annotation-files. This makes the ground truth of the 65, 48
    or 17 categories of the open-vocabulary split from a file of all 80. Ids stay, images without an
    annotation of these categories are dropped. Predictions are needed for the remaining images.

    Returns:
        ``images``, ``annotations`` (crowd regions too) and ``categories`` in the order of the file.

    Raises:
        ValueError: the ground truth is not COCO instances or lacks one of the categories.
    """
    where, content = _open(ground_truth)
    _refuse_lvis(where, content)
    known = {category.get("name") for category in content["categories"]}
    if unknown := sorted(set(names) - known):
        raise ValueError(
            f"{where}: no categories {unknown[:5]} among the {len(content['categories'])}; choose "
            "an annotation file that has all of the split"
        )
    categories = [c for c in content["categories"] if c.get("name") in set(names)]
    kept = {category["id"] for category in categories}
    annotations = [a for a in content["annotations"] if a["category_id"] in kept]
    occupied = {annotation["image_id"] for annotation in annotations}
    images = [image for image in content["images"] if image["id"] in occupied]
    return {"images": images, "annotations": annotations, "categories": categories}


def as_detections(results: Sequence[Mapping], truth: GroundTruth) -> list[dict]:
    """Convert results in COCO's format to annotations, in the given order.

    Raises:
        ValueError: a result of an image or category that the ground truth lacks, or a box or score
            that is not finite.
    """
    images = {image["id"] for image in truth.images}
    categories = {category["id"] for category in truth.categories}
    detections = []
    for number, result in enumerate(results):
        if result["image_id"] not in images or result["category_id"] not in categories:
            raise ValueError(
                f"{truth.where}: result {number} is of image {result['image_id']} and category "
                f"{result['category_id']}, at least one of which the ground truth lacks; evaluate "
                "against the file the predictions were made for"
            )
        if not all(map(math.isfinite, (*result["bbox"], result["score"]))):
            raise ValueError(
                f"{truth.where}: result {number} (image {result['image_id']}) has bbox "
                f"{result['bbox']} and score {result['score']}, expected finite numbers; the "
                "model's output is bad"
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
        if "segmentation" in result:
            detections[-1]["segmentation"] = result["segmentation"]
    return detections


def require_masks(truth: GroundTruth, detections: Sequence[Mapping]) -> None:
    """Raise ValueError for an annotation or result without a mask."""
    for kind, entries in (("annotation", truth.annotations), ("result", detections)):
        for entry in entries:
            if not entry.get("segmentation"):
                raise ValueError(
                    f"{truth.where}: {kind} {entry['id']} of image {entry['image_id']} has no "
                    "'segmentation', which mask AP needs; evaluate boxes, or give all masks"
                )


def percent(precision: np.ndarray) -> float | None:
    """Return the mean of the valid entries (> -1, as in the evaluators), in percent."""
    known = precision[precision > -1]
    return 100.0 * float(known.mean()) if known.size else None


def _open(ground_truth: Mapping | str | Path) -> tuple[str, Mapping]:
    where = "ground truth"
    if not isinstance(ground_truth, Mapping):
        where = str(ground_truth)
        ground_truth = json.loads(Path(ground_truth).read_text(encoding="utf-8"))
    for key in ("images", "annotations", "categories"):
        if not isinstance(ground_truth, Mapping) or key not in ground_truth:
            raise ValueError(
                f"{where}: no {key!r}; expected COCO instances with images, annotations, categories"
            )
    return where, ground_truth


def _refuse_lvis(where: str, content: Mapping) -> None:
    marks = [("category", c, "frequency") for c in content["categories"] if "frequency" in c]
    marks += [("image", i, key) for i in content["images"] for key in _FEDERATED_KEYS if key in i]
    if marks:
        kind, entry, key = marks[0]
        raise ValueError(
            f"{where}: {kind} {entry.get('id')} has {key!r}: this is an LVIS file, whose images "
            "are labelled with some of the categories only, and COCO's rules would count finds of "
            "the others as wrong; evaluate it with evaluation.lvis"
        )


def _checked(where: str, content: Mapping) -> GroundTruth:
    images = _unique_ids(where, "image", content["images"])
    categories = _unique_ids(where, "category", content["categories"])
    _unique_ids(where, "annotation", content["annotations"])
    names = Counter(category.get("name") for category in content["categories"])
    if None in names:
        raise ValueError(f"{where}: {names[None]} of kind category have no 'name'; name them")
    if double := [name for name, count in names.items() if count > 1]:
        raise ValueError(
            f"{where}: {names[double[0]]} categories have the name {double[0]!r}; give each its own"
        )
    annotations = []
    for number, annotation in enumerate(content["annotations"], start=1):
        image, category = annotation.get("image_id"), annotation.get("category_id")
        if image not in images or category not in categories:
            raise ValueError(
                f"{where}: annotation {annotation['id']} is of image {image} and category "
                f"{category}, at least one of which the file lacks; remove it or add what it names"
            )
        box = annotation.get("bbox")
        if not isinstance(box, Sequence) or len(box) != 4 or not all(map(math.isfinite, box)):
            raise ValueError(
                f"{where}: annotation {annotation['id']}: 'bbox': expected [x, y, width, height], "
                f"found {box!r}; choose a file with boxes (instances) or remove the annotation"
            )
        annotations.append(
            {
                "id": number,  # not the file's: 0 would read as "no match"
                "image_id": image,
                "category_id": category,
                "bbox": list(box),
                "area": annotation.get("area", box[2] * box[3]),
                "iscrowd": annotation.get("iscrowd", 0),
            }
        )
        if "segmentation" in annotation:
            annotations[-1]["segmentation"] = annotation["segmentation"]
    return GroundTruth(where, list(content["images"]), list(content["categories"]), annotations)


def _unique_ids(where: str, kind: str, entries: Sequence[Mapping]) -> set:
    counts = Counter(entry.get("id") for entry in entries)
    if None in counts:
        raise ValueError(f"{where}: {counts[None]} of kind {kind} have no 'id'; number them")
    if double := [entry_id for entry_id, count in counts.items() if count > 1]:
        raise ValueError(
            f"{where}: {kind} id {double[0]} occurs {counts[double[0]]} times ({len(double)} such "
            "ids); ids must be unique: remove the doubles, or number anew if files were merged"
        )
    return set(counts)
