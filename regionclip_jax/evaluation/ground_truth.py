"""Check annotations and results before evaluation, because the evaluators do not.

pycocotools keeps the last of two images with one id, and counts a box that matches annotation 0 as
false. It reads an LVIS file as if all images were labelled with all categories. Here such files are
refused or, if nothing is lost, corrected. ``data.sources.annotation_files`` opens the files.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from reprlib import repr as shown  # of bounded depth and length
from typing import NamedTuple

import numpy as np

from regionclip_jax.data.sources.annotation_files import (
    FEDERATED_KEYS,
    FREQUENCIES,
    AnnotationFile,
    find_defect,
    whole_number,
)
from regionclip_jax.data.sources.object_masks import read_runs, require_near


class GroundTruth(NamedTuple):
    """Annotations of boxes ``[x, y, width, height]`` in original pixels."""

    where: str  # names the ground truth in messages
    images: list[Mapping]
    categories: list[Mapping]
    annotations: list[dict]  # numbered from 1; image_id, category_id, bbox, area, iscrowd


def coco_ground_truth(file: AnnotationFile) -> GroundTruth:
    """Return the ground truth of COCO instances.

    An annotation without ``area`` gets that of its box, one without ``iscrowd`` is no crowd.

    Raises:
        ValueError: a missing key, an invalid value, an unknown image or category, a repeated id,
            crowds alone, or an LVIS file.
    """
    _require_objects(file)
    marks = [("category", c, "frequency") for c in file.categories if "frequency" in c]
    marks += [("image", i, key) for i in file.images for key in FEDERATED_KEYS if key in i]
    if marks:
        kind, entry, key = marks[0]
        raise ValueError(
            f"{file.where}: {kind} {entry.get('id')} has {key!r}: this is an LVIS file, whose "
            "images are labelled with some of the categories only, and COCO's rules would count "
            "detections of the others as wrong; evaluate it with evaluation.lvis"
        )
    return _checked(file)


def lvis_ground_truth(file: AnnotationFile) -> GroundTruth:
    """Return the ground truth of LVIS v1 annotations.

    Raises:
        ValueError: as ``coco_ground_truth``; or this is a COCO file, a category has no frequency,
            an image lacks its negative or non-exhaustive categories, or an annotation is a crowd.
    """
    _require_objects(file)
    remedy = "evaluate COCO files with evaluation.coco, LVIS with the original lvis_v1_*.json"
    for category in file.categories:
        if category.get("frequency") not in FREQUENCIES:
            raise ValueError(
                f"{file.where}: category {category.get('id')}: 'frequency': expected one of "
                f"{FREQUENCIES}, found {shown(category.get('frequency'))}; {remedy}"
            )
    for image in file.images:
        if missing := [key for key in FEDERATED_KEYS if key not in image]:
            raise ValueError(
                f"{file.where}: image {image.get('id')}: no {missing[0]!r}, without which absence "
                f"cannot be told from not having looked; {remedy}"
            )
        for key in FEDERATED_KEYS:
            # The evaluator would not know another type, and ignore the detections.
            if not isinstance(image[key], list) or not all(type(c) is int for c in image[key]):
                raise ValueError(
                    f"{file.where}: image {image.get('id')}: {key!r}: expected a list of integers, "
                    f"found {shown(image[key])}; {remedy}"
                )
    for annotation in file.annotations:
        if annotation.get("iscrowd") or annotation.get("ignore"):
            raise ValueError(
                f"{file.where}: annotation {annotation.get('id')} is marked as crowd or to be "
                f"ignored; LVIS v1 knows neither; {remedy}"
            )
    return _checked(file)


def keep_categories(
    truth: GroundTruth, names: Collection[str], *, keep_images: bool = False
) -> GroundTruth:
    """Return the part of the ground truth with the given categories.

    Source: docs/reference/evaluation.md#annotation-files. This makes the ground truth of the 65, 48
    or 17 categories of the open-vocabulary split from a file of all 80. Ids stay, images without an
    annotation of these categories (crowd regions count) are dropped. Predictions are needed for the
    remaining images.

    Args:
        keep_images: keep also the images without an annotation.

    Raises:
        ValueError: the ground truth lacks one of the categories.
    """
    known = {category["name"] for category in truth.categories}
    if unknown := sorted(set(names) - known):
        raise ValueError(
            f"{truth.where}: no categories {unknown[:5]} among the {len(known)}; choose an "
            "annotation file that has all of the split"
        )
    categories = [c for c in truth.categories if c["name"] in set(names)]
    kept = {category["id"] for category in categories}
    annotations = [a for a in truth.annotations if a["category_id"] in kept]
    occupied = {annotation["image_id"] for annotation in annotations}
    images = [image for image in truth.images if keep_images or image["id"] in occupied]
    return GroundTruth(truth.where, images, categories, annotations)


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
    """Raise ValueError for an annotation or result without a mask, or an image without a size."""
    for image in truth.images:
        if None in (whole_number(image.get("height")), whole_number(image.get("width"))):
            raise ValueError(
                f"{truth.where}: image {image['id']} has no 'height' and 'width', which mask AP "
                "needs; evaluate boxes, or give all sizes"
            )
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


def _require_objects(file: AnnotationFile) -> None:
    for kind in ("images", "annotations", "categories"):
        for number, entry in enumerate(getattr(file, kind)):
            if not isinstance(entry, Mapping):
                raise ValueError(
                    f"{file.where}: {kind}, entry {number}: expected a JSON object, found "
                    f"{shown(entry)}; remove the entry"
                )


def _checked(file: AnnotationFile) -> GroundTruth:
    images = _unique_ids(file.where, "image", file.images)
    categories = _unique_ids(file.where, "category", file.categories)
    _unique_ids(file.where, "annotation", file.annotations)
    found = [category.get("name") for category in file.categories]
    if unnamed := sum(not isinstance(name, str) for name in found):
        raise ValueError(f"{file.where}: {unnamed} of kind category have no 'name'; name them")
    names = Counter(found)
    if double := [name for name, count in names.items() if count > 1]:
        raise ValueError(
            f"{file.where}: {names[double[0]]} categories have the name {double[0]!r}; give each "
            "its own"
        )
    sizes = {
        image["id"]: (whole_number(image.get("height")), whole_number(image.get("width")))
        for image in file.images
    }
    annotations = []
    for number, annotation in enumerate(file.annotations, start=1):
        text = None
        if defect := find_defect(annotation, images, categories):
            text = defect.text
        elif outline := annotation.get("segmentation"):
            text = _damage_of(outline, *sizes[annotation["image_id"]])
        if text:
            raise ValueError(
                f"{file.where}: annotation {annotation['id']}{text}; remove the annotation, or "
                "repair it"
            )
        box, area = annotation["bbox"], annotation.get("area")
        annotations.append(
            {
                "id": number,  # not the file's: 0 would read as "no match"
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": list(box),
                "area": box[2] * box[3] if area is None else area,
                "iscrowd": int(annotation.get("iscrowd") or 0),
            }
        )
        if "segmentation" in annotation:
            annotations[-1]["segmentation"] = annotation["segmentation"]
    if annotations and all(annotation["iscrowd"] for annotation in annotations):
        raise ValueError(
            f"{file.where}: all {len(annotations)} annotations have iscrowd = 1: groups, which do "
            "not count as objects, so nothing is left to evaluate; set it to 0 for single objects"
        )
    return GroundTruth(file.where, list(file.images), list(file.categories), annotations)


def _damage_of(outline: object, height: int | None, width: int | None) -> str | None:
    """Return what is wrong with run lengths or polygons: pycocotools checks neither.

    It may crash, and it needs memory for the whole length of a polygon's outline.
    """
    try:
        if isinstance(outline, Mapping):
            if height is None or width is None:
                height, width = outline["size"]
            read_runs(outline, height, width)
        elif isinstance(outline, list):
            for polygon in outline:
                if isinstance(polygon, list):
                    require_near(polygon)
    except (ValueError, TypeError, KeyError) as error:
        return f": 'segmentation': {error}"
    return None


def _unique_ids(where: str, kind: str, entries: Sequence[Mapping]) -> set:
    ids = [entry.get("id") for entry in entries]
    if None in ids:
        raise ValueError(f"{where}: {ids.count(None)} of kind {kind} have no 'id'; number them")
    for number, entry_id in enumerate(ids):
        # Nothing refers to the id of an annotation, so it may be a text.
        if whole_number(entry_id) is None and not (
            kind == "annotation" and isinstance(entry_id, str)
        ):
            raise ValueError(
                f"{where}: {kind} number {number}: 'id': expected an integer of 64 bits, found "
                f"{shown(entry_id)} ({type(entry_id).__name__}); number them anew"
            )
    counts = Counter(ids)
    if double := [entry_id for entry_id, count in counts.items() if count > 1]:
        raise ValueError(
            f"{where}: {kind} id {double[0]} occurs {counts[double[0]]} times ({len(double)} such "
            "ids); ids must be unique: remove the doubles, or number anew if files were merged"
        )
    return set(counts)
