"""Judge detections at IoU 0.5: right, ignored, or an error of one of TIDE's kinds.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020.
A false detection has the first of these kinds whose condition holds. "Own" is its largest IoU with
an object of its class, "other" its largest IoU with an object of another class.

- localization: 0.1 <= own < 0.5
- classification: 0.5 <= other
- duplicate: 0.5 <= own, so the object has a detection with a higher score
- background: own and other < 0.1
- both: all the rest, 0.1 <= other < 0.5

An object without a right detection is lost to the kind of the best detection of the first two kinds
on it, also if this detection is ignored. Without one it is missed.

The order of the kinds, and the choice of the best one, are those of the authors' tool (tidecv
1.0.1). Right and ignored are those of the official metrics (``evaluation.coco``,
``evaluation.lvis``).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from regionclip_jax.evaluation.ground_truth import GroundTruth

KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
RIGHT, IGNORED = -1, -2
FOREGROUND, NEARBY = 0.5, 0.1  # IoU


class Judged(NamedTuple):
    """Detections of all images, best score first, and objects; crowds are no objects.

    Categories are indices into ``GroundTruth.categories``.
    """

    num_categories: int
    # RIGHT, IGNORED or an index of ``KINDS``. An ignored detection has a kind only with an object.
    kinds: Int[np.ndarray, " D"]
    categories: Int[np.ndarray, " D"]
    areas: Float[np.ndarray, " D"]
    counts: Bool[np.ndarray, " D"]  # not ignored
    # Object of a right detection, and of one that would detect it if its error were corrected; else
    # -1. No two detections have the same.
    objects: Int[np.ndarray, " D"]
    object_categories: Int[np.ndarray, " G"]
    object_areas: Float[np.ndarray, " G"]


def judge(
    truth: GroundTruth, results: Sequence[Mapping], *, max_detections: int, federated: bool
) -> Judged:
    """Judge results in COCO's format by their boxes.

    Args:
        truth: of ``coco_ground_truth`` or ``lvis_ground_truth``.
        results: of images and categories of ``truth``, with finite numbers.
        max_detections: number of best detections counted for each image and category; if
            ``federated`` for each image.
        federated: by LVIS's rules: detections of a category that was not verified in the image are
            ignored, and unmatched ones of a category whose objects are not all annotated.
    """
    image_rows = {image["id"]: n for n, image in enumerate(_by_id(truth.images))}
    columns = {category["id"]: n for n, category in enumerate(truth.categories)}
    found = _boxes(results, image_rows, columns)
    scores = np.array([result["score"] for result in results], np.float64)
    # Equal scores are sorted as in the official metrics.
    order = np.lexsort((np.arange(len(scores)), found.images, -scores))
    limited = found.images if federated else found.pairs(len(columns))
    found = found.at(order[_places(limited[order]) < max_detections])

    annotated = _boxes(truth.annotations, image_rows, columns)
    areas = np.array([a["area"] for a in truth.annotations], np.float64)
    is_crowd = np.array([bool(a["iscrowd"]) for a in truth.annotations], bool)
    objects, crowds = annotated.at(np.flatnonzero(~is_crowd)), annotated.at(is_crowd)
    overlap = _overlap(found, objects, crowds, len(image_rows))

    right = overlap.matched >= 0
    ignored = overlap.on_crowd & ~right
    if federated:
        pairs = found.pairs(len(columns))
        absent = _listed(truth, "neg_category_ids", columns)
        ignored |= ~np.isin(pairs, np.concatenate([objects.pairs(len(columns)), absent]))
        partial = _listed(truth, "not_exhaustive_category_ids", columns)
        ignored |= np.isin(pairs, partial) & ~right
    own, other = overlap.own, overlap.other
    kinds = np.select(
        [
            right,
            (own >= NEARBY) & (own < FOREGROUND),
            other >= FOREGROUND,
            own >= FOREGROUND,
            other < NEARBY,  # and own, by the conditions above
        ],
        [RIGHT, LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
        BOTH,
    )
    places = np.select(
        [right, kinds == LOCALIZATION, kinds == CLASSIFICATION],
        [overlap.matched, overlap.own_object, overlap.other_object],
        -1,
    )
    # Right detections first: nothing else can detect their objects.
    rows = np.concatenate([np.flatnonzero(right), np.flatnonzero(~right & (places >= 0))])
    _, first = np.unique(places[rows], return_index=True)
    best = np.zeros(len(kinds), bool)
    best[rows[first]] = True
    return Judged(
        num_categories=len(columns),
        kinds=np.where(ignored & ~best, IGNORED, kinds),
        categories=found.categories,
        areas=found.boxes[:, 2] * found.boxes[:, 3],
        counts=~ignored,
        objects=np.where(best, places, -1),
        object_categories=objects.categories,
        object_areas=areas[~is_crowd],
    )


class _Boxes(NamedTuple):
    images: Int[np.ndarray, " N"]
    categories: Int[np.ndarray, " N"]
    boxes: Float[np.ndarray, "N 4"]  # x, y, width, height

    def at(self, rows: np.ndarray) -> "_Boxes":
        return _Boxes(*(array[rows] for array in self))

    def pairs(self, num_categories: int) -> Int[np.ndarray, " N"]:
        """Return a number for each pair of image and category."""
        return self.images * num_categories + self.categories

    def rows_by_image(self, num_images: int) -> list[np.ndarray]:
        order = np.argsort(self.images, kind="stable")
        return np.split(order, np.searchsorted(self.images[order], np.arange(1, num_images)))


class _Overlap(NamedTuple):
    """Detections and the objects of their images; objects are -1 where there is none."""

    matched: Int[np.ndarray, " D"]
    own: Float[np.ndarray, " D"]
    own_object: Int[np.ndarray, " D"]
    other: Float[np.ndarray, " D"]
    other_object: Int[np.ndarray, " D"]
    on_crowd: Bool[np.ndarray, " D"]


def _overlap(found: _Boxes, objects: _Boxes, crowds: _Boxes, num_images: int) -> _Overlap:
    count = len(found.images)
    overlap = _Overlap(
        np.full(count, -1), np.zeros(count), np.full(count, -1),
        np.zeros(count), np.full(count, -1), np.zeros(count, bool),
    )  # fmt: skip
    grouped = (boxes.rows_by_image(num_images) for boxes in (found, objects, crowds))
    for rows, here, crowded in zip(*grouped, strict=True):
        if not len(rows):
            continue
        some = found.at(rows)
        if len(here):
            every, some_objects = np.arange(len(rows)), objects.at(here)
            ious = _ious(some, some_objects, crowd=False)
            same = some.categories[:, None] == some_objects.categories
            own, other = np.where(same, ious, 0.0), np.where(same, 0.0, ious)
            matched = _match(own)
            overlap.matched[rows] = np.where(matched >= 0, here[matched], -1)
            best = own.argmax(axis=1)
            overlap.own[rows], overlap.own_object[rows] = own[every, best], here[best]
            best = other.argmax(axis=1)
            overlap.other[rows], overlap.other_object[rows] = other[every, best], here[best]
        if len(crowded):
            some_crowds = crowds.at(crowded)
            same = some.categories[:, None] == some_crowds.categories
            on_crowd = same & (_ious(some, some_crowds, crowd=True) >= FOREGROUND)
            overlap.on_crowd[rows] = on_crowd.any(axis=1)
    return overlap


def _match(own: Float[np.ndarray, "D G"]) -> Int[np.ndarray, " D"]:
    """Match each detection, best first, to the unmatched object with the largest IoU, or to -1."""
    matched = np.full(len(own), -1)
    possible = own >= FOREGROUND
    last = own.shape[1] - 1
    # A turn for each match, as most detections have no match.
    while (rows := possible.any(axis=1)).any():
        row = rows.argmax()
        ious = np.where(possible[row], own[row], -1.0)
        best = last - ious[::-1].argmax()  # the last of equal ones, as pycocotools
        matched[row] = best
        possible[row] = possible[:, best] = False
    return matched


def _ious(boxes: _Boxes, others: _Boxes, *, crowd: bool) -> Float[np.ndarray, "N M"]:
    """Return pycocotools' IoU; with ``crowd`` the common part of the first box."""
    crowds = np.full(len(others.boxes), crowd, np.uint8)
    return np.asarray(coco_mask.iou(boxes.boxes, others.boxes, crowds))


def _boxes(entries: Sequence[Mapping], image_rows: Mapping, columns: Mapping) -> _Boxes:
    return _Boxes(
        np.array([image_rows[entry["image_id"]] for entry in entries], np.int64),
        np.array([columns[entry["category_id"]] for entry in entries], np.int64),
        np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4),
    )


def _by_id(images: Sequence[Mapping]) -> list[Mapping]:
    return sorted(images, key=lambda image: image["id"])


def _places(groups: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Return the place of each entry among the entries of its group, from 0."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    places = np.empty(len(groups), np.int64)
    places[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered, side="left")
    return places


def _listed(truth: GroundTruth, key: str, columns: Mapping) -> Int[np.ndarray, " N"]:
    """Return ``_Boxes.pairs`` of the images and the categories that they list under ``key``."""
    return np.array(
        [
            row * len(columns) + columns[category]
            for row, image in enumerate(_by_id(truth.images))
            for category in image[key]
            if category in columns
        ],
        np.int64,
    )
