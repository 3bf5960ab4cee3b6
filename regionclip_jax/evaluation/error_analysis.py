"""AP50 that each kind of error costs: the points gained if all errors of the kind were corrected.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020.
The corrections are:

- classification, localization: the detection gets the class, or the box, of its object. An object
  lost to this kind is then detected, and all other detections of the kind are removed.
- both, duplicate, background: the detections are removed.
- missed: the objects are removed, which stretches the curve of precision over all recalls.
- false positives: all false detections are removed.
- false negatives: all objects without a detection are removed.

Each is corrected alone, so the points do not add up to 100 - AP50. All kinds together give an AP50
of 100. A class whose objects are all removed has 100 without a false detection, and 0 with one.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from regionclip_jax.evaluation.error_kinds import (
    CLASSIFICATION,
    KINDS,
    LOCALIZATION,
    MISSED,
    RIGHT,
    Judged,
    judge,
)
from regionclip_jax.evaluation.ground_truth import GroundTruth

FALSE_POSITIVES, FALSE_NEGATIVES = "false positives", "false negatives"
COSTS = (*KINDS, FALSE_POSITIVES, FALSE_NEGATIVES)
DETECTION_KINDS = KINDS[:-1]
# An object is detected, or lost to one of three kinds.
OUTCOMES = ("detected", "classification", "localization", "missed")
SIZES = ("small", "medium", "large")
_SIZE_LIMITS = (32**2, 96**2)  # areas in pixels
_RECALLS = np.linspace(0.0, 1.0, 101)
_DIGITS = 4


class Errors(NamedTuple):
    """Errors of a model, in points of AP50 and in numbers."""

    # Group of classes -> AP50 in percent; None without objects.
    ap50: dict[str, float | None]
    # Group -> ``COSTS`` -> points of AP50.
    lost: dict[str, dict[str, float | None]]
    # ``DETECTION_KINDS`` -> ``SIZES`` -> number, by the areas of the boxes.
    false_detections: dict[str, dict[str, int]]
    # ``OUTCOMES`` -> ``SIZES`` -> number, by the annotated areas.
    objects: dict[str, dict[str, int]]
    # Class -> {"AP50": percent, "lost": {cost: points}, "false_detections": {kind: number},
    # "objects": {outcome: number}}, the lowest AP50 first; without what is 0. Detections are those
    # that have the class, objects those of the class.
    per_class: dict[str, dict[str, Any]]

    def text(self) -> str:
        """Return one line with the AP50 that each kind costs, the most expensive first."""
        ap50, lost = self.ap50["all"], self.lost["all"]
        if ap50 is None:
            return "no objects"
        ordered = sorted(KINDS, key=lambda kind: -(lost[kind] or 0.0))
        costs = ", ".join(f"{kind} {lost[kind]:.1f}" for kind in ordered)
        return f"AP50 {ap50:.1f}, lost to {costs}"


def find_errors(
    truth: GroundTruth,
    results: Sequence[Mapping],
    *,
    category_groups: Mapping[str, Set[int]],
    max_detections: int,
    federated: bool,
) -> Errors:
    """Return the errors of results in COCO's format.

    Args:
        truth, results, max_detections, federated: as ``error_kinds.judge``.
        category_groups: group name -> category ids; one group is "all".
    """
    judged = judge(truth, results, max_detections=max_detections, federated=federated)
    ap50 = average_precision(judged, corrected(judged, ()))
    cases = [corrected(judged, {kind}) for kind in range(len(KINDS))]
    cases += [_without_false_positives(judged), _without_false_negatives(judged)]
    # [cost, category]; NaN for categories without objects.
    lost = np.stack([average_precision(judged, case) for case in cases]) - ap50
    ids = np.array([category["id"] for category in truth.categories], np.int64)
    rows = {group: np.isin(ids, sorted(some)) for group, some in category_groups.items()}
    points = np.nan_to_num(lost).round(_DIGITS)
    detections, objects = _count_false_detections(judged), _count_objects(judged)
    return Errors(
        ap50={group: _mean(ap50[some]) for group, some in rows.items()},
        lost={
            group: {cost: _mean(each[some]) for cost, each in zip(COSTS, lost, strict=True)}
            for group, some in rows.items()
        },
        false_detections=_by_size(DETECTION_KINDS, detections),
        objects=_by_size(OUTCOMES, objects),
        per_class={
            truth.categories[row]["name"]: {
                "AP50": None if np.isnan(ap50[row]) else round(float(ap50[row]), _DIGITS),
                "lost": _nonzero(COSTS, points[:, row]),
                "false_detections": _nonzero(DETECTION_KINDS, detections[..., row].sum(axis=1)),
                "objects": _nonzero(OUTCOMES, objects[..., row].sum(axis=1)),
            }
            for row in np.argsort(ap50, kind="stable")  # NaN last
        },
    )


class Case(NamedTuple):
    """Detections and objects after a correction, in the order of ``Judged``."""

    kept: Bool[np.ndarray, " D"]
    right: Bool[np.ndarray, " D"]
    categories: Int[np.ndarray, " D"]
    kept_objects: Bool[np.ndarray, " G"]


def corrected(judged: Judged, kinds: Collection[int]) -> Case:
    """Return the detections and objects after the correction of all errors of the kinds."""
    affected = np.isin(judged.kinds, sorted(kinds))
    right = (judged.kinds == RIGHT) | (affected & (judged.objects >= 0))
    categories = judged.categories.copy()
    categories[right] = judged.object_categories[judged.objects[right]]
    objects = np.ones(len(judged.object_categories), bool)
    if MISSED in kinds:
        objects = _kinds_of_objects(judged) != MISSED
    return Case(right | (judged.counts & ~affected), right, categories, objects)


def _without_false_positives(judged: Judged) -> Case:
    case = corrected(judged, ())
    return case._replace(kept=case.right)


def _without_false_negatives(judged: Judged) -> Case:
    detected = _kinds_of_objects(judged) == RIGHT
    return corrected(judged, ())._replace(kept_objects=detected)


def average_precision(judged: Judged, case: Case) -> Float[np.ndarray, " C"]:
    """Return the AP50 of each category in percent, NaN for one without objects in ``judged``."""
    size = judged.num_categories
    present = np.bincount(judged.object_categories, minlength=size) > 0
    num_objects = np.bincount(judged.object_categories[case.kept_objects], minlength=size)
    categories, right = case.categories[case.kept], case.right[case.kept]
    # Short integers are sorted in linear time.
    order = np.argsort(categories.astype(np.min_scalar_type(size)), kind="stable")
    starts = np.searchsorted(categories[order], np.arange(size + 1))
    right = right[order]
    result = np.full(size, np.nan)
    for category in np.flatnonzero(present):
        mine = right[starts[category] : starts[category + 1]]
        result[category] = _area(mine, int(num_objects[category]))
    return result


def _area(right: Bool[np.ndarray, " N"], num_objects: int) -> float:
    """Return COCO's AP in percent: the mean precision at 101 recalls."""
    if not num_objects:
        return 0.0 if len(right) else 100.0
    places = right.nonzero()[0]
    number = np.arange(1, len(places) + 1)
    precision = np.zeros(len(places) + 1)  # 0 at recalls that are not reached
    precision[:-1] = np.maximum.accumulate((number / (places + 1))[::-1])[::-1]
    reached = np.searchsorted(number / num_objects, _RECALLS)
    return 100.0 * float(precision[reached].sum()) / len(_RECALLS)


def _kinds_of_objects(judged: Judged) -> Int[np.ndarray, " G"]:
    """Return RIGHT for a detected object, else the kind that it is lost to."""
    kinds = np.full(len(judged.object_categories), MISSED)
    chosen = judged.objects >= 0
    kinds[judged.objects[chosen]] = judged.kinds[chosen]
    return kinds


def _count_false_detections(judged: Judged) -> Int[np.ndarray, "K S C"]:
    wrong = judged.counts & (judged.kinds != RIGHT)
    return np.stack(
        [
            _count(judged, judged.areas, judged.categories, wrong & (judged.kinds == kind))
            for kind in range(len(DETECTION_KINDS))
        ]
    )


def _count_objects(judged: Judged) -> Int[np.ndarray, "O S C"]:
    found = _kinds_of_objects(judged)
    return np.stack(
        [
            _count(judged, judged.object_areas, judged.object_categories, found == kind)
            for kind in (RIGHT, CLASSIFICATION, LOCALIZATION, MISSED)
        ]
    )


def _count(judged: Judged, areas, categories, chosen) -> Int[np.ndarray, "S C"]:
    sizes = np.searchsorted(_SIZE_LIMITS, areas[chosen], side="right")
    counts = np.zeros((len(SIZES), judged.num_categories), np.int64)
    np.add.at(counts, (sizes, categories[chosen]), 1)
    return counts


def _by_size(names: Sequence[str], counts: Int[np.ndarray, "N S C"]) -> dict[str, dict[str, int]]:
    numbers = counts.sum(axis=2).tolist()
    return {
        name: dict(zip(SIZES, some, strict=True)) for name, some in zip(names, numbers, strict=True)
    }


def _nonzero(names: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    return {name: value for name, value in zip(names, values.tolist(), strict=True) if value}


def _mean(values: Float[np.ndarray, " C"]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
