"""Errors with known costs, and equality with a plain statement of TIDE's definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.data.sources.annotation_files import as_annotation_file
from regionclip_jax.evaluation.coco import coco_ap50
from regionclip_jax.evaluation.error_analysis import (
    COSTS,
    DETECTION_KINDS,
    OUTCOMES,
    SIZES,
    average_precision,
    corrected,
    find_errors,
)
from regionclip_jax.evaluation.error_kinds import KINDS, judge
from regionclip_jax.evaluation.ground_truth import coco_ground_truth, lvis_ground_truth
from regionclip_jax.evaluation.lvis import lvis_ap

CUP, OWL, ANT = 7, 3, 5
NAMES = {CUP: "cup", OWL: "owl", ANT: "ant"}
IMAGES = (4, 9, 2)
HERE, THERE, FAR = [0, 0, 10, 10], [100, 0, 10, 10], [300, 300, 10, 10]
NEAR_HERE = [0, 0, 10, 4]  # IoU 0.4 with HERE


def coco(annotations, images=IMAGES, names=NAMES):
    content = {
        "images": [{"id": image} for image in images],
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations, start=1)],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    }
    return coco_ground_truth(as_annotation_file("ground truth", content))


def lvis(annotations, absent=None, partial=None):
    content = {
        "images": [
            {
                "id": image,
                "neg_category_ids": (absent or {}).get(image, []),
                "not_exhaustive_category_ids": (partial or {}).get(image, []),
            }
            for image in IMAGES
        ],
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations, start=1)],
        "categories": [{"id": i, "name": name, "frequency": "f"} for i, name in NAMES.items()],
    }
    return lvis_ground_truth(as_annotation_file("ground truth", content))


def an_object(category, box, image=4, **more):
    return {"image_id": image, "category_id": category, "bbox": box, **more}


def detection(category, box, score, image=4):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def errors(truth, results, *, max_detections=100, groups=None):
    return find_errors(
        truth,
        results,
        category_groups=groups or {"all": set(NAMES)},
        max_detections=max_detections,
        federated="neg_category_ids" in truth.images[0],
    )


def lost(found, group="all"):
    """Return the costs that are not 0."""
    return {cost: points for cost, points in found.lost[group].items() if abs(points) > 1e-9}


def numbers(by_size):
    """Return the numbers of all sizes that are not 0."""
    return {kind: n for kind, sizes in by_size.items() if (n := sum(sizes.values()))}


def lost_objects(found):
    return {kind: n for kind, n in numbers(found.objects).items() if kind != "detected"}


RIGHT_OWL = an_object(OWL, THERE), detection(OWL, THERE, 0.5)


def test_right_detections_have_no_errors():
    found = errors(coco([RIGHT_OWL[0]]), [RIGHT_OWL[1]])
    assert found.ap50 == {"all": 100.0} and not lost(found)
    assert not numbers(found.false_detections) and numbers(found.objects) == {"detected": 1}
    assert found.per_class["owl"] == {
        "AP50": 100.0, "lost": {}, "false_detections": {}, "objects": {"detected": 1}
    }  # fmt: skip


def test_classification_the_detection_gets_the_class_of_its_object():
    truth = coco([an_object(CUP, HERE), RIGHT_OWL[0]])
    found = errors(truth, [detection(OWL, HERE, 0.9), RIGHT_OWL[1]])
    # The cup has AP 0. The owl has its false detection before the right one: AP 50.
    assert found.ap50["all"] == pytest.approx(25)
    assert lost(found) == pytest.approx(
        {"classification": 75, "false positives": 25, "false negatives": 50}
    )
    assert numbers(found.false_detections) == {"classification": 1}
    assert lost_objects(found) == {"classification": 1}
    assert found.per_class["owl"]["false_detections"] == {"classification": 1}
    assert found.per_class["cup"]["objects"] == {"classification": 1}
    assert found.per_class["owl"]["lost"] == {"classification": 50, "false positives": 50}


def test_localization_the_detection_gets_the_box_of_its_object():
    found = errors(coco([an_object(CUP, HERE)]), [detection(CUP, NEAR_HERE, 0.9)])
    # Without its only object, and with a false detection, the class keeps AP 0.
    assert found.ap50["all"] == 0 and lost(found) == {"localization": 100}
    assert numbers(found.false_detections) == numbers(found.objects) == {"localization": 1}


def test_both_the_detection_is_removed_and_the_object_is_missed():
    truth = coco([an_object(CUP, HERE), RIGHT_OWL[0]])
    found = errors(truth, [detection(OWL, NEAR_HERE, 0.9), RIGHT_OWL[1]])
    assert lost(found) == pytest.approx(
        {"both": 25, "missed": 50, "false positives": 25, "false negatives": 50}
    )
    assert numbers(found.false_detections) == {"both": 1}
    assert lost_objects(found) == {"missed": 1}


def test_duplicate_the_detection_is_removed():
    truth = coco([an_object(CUP, HERE), an_object(CUP, HERE, image=9)])
    results = [
        detection(CUP, HERE, 0.9),
        detection(CUP, [0, 0, 10, 9], 0.8),
        detection(CUP, HERE, 0.7, image=9),
    ]
    found = errors(truth, results)
    # Precision 1 up to recall 0.5 (51 of the 101 recalls), then 2/3.
    points = 100 - 100 * (51 + 50 * 2 / 3) / 101
    assert lost(found) == pytest.approx({"duplicate": points, "false positives": points})
    assert numbers(found.false_detections) == {"duplicate": 1}


@pytest.mark.parametrize("place", [detection(OWL, FAR, 0.9), detection(OWL, THERE, 0.9, image=2)])
def test_background_the_detection_is_removed(place):
    """Also in an image without objects."""
    found = errors(coco([RIGHT_OWL[0]]), [RIGHT_OWL[1], place])
    assert lost(found) == pytest.approx({"background": 50, "false positives": 50})
    assert numbers(found.false_detections) == {"background": 1}


def test_missed_the_object_is_removed():
    found = errors(coco([RIGHT_OWL[0], an_object(OWL, FAR)]), [RIGHT_OWL[1]])
    points = 100 * 50 / 101
    assert lost(found) == pytest.approx({"missed": points, "false negatives": points})
    assert lost_objects(found) == {"missed": 1}


def test_without_detections_all_is_lost_to_missed_objects():
    found = errors(coco([an_object(CUP, HERE), an_object(OWL, HERE)]), [])
    assert found.ap50["all"] == 0 and lost(found) == {"missed": 100, "false negatives": 100}


def test_without_objects_nothing_is_lost_and_false_detections_are_counted():
    found = errors(coco([]), [detection(CUP, HERE, 0.5)])
    assert found.ap50 == {"all": None} and set(found.lost["all"].values()) == {None}
    assert numbers(found.false_detections) == {"background": 1} and found.text() == "no objects"
    assert found.per_class["cup"] == {
        "AP50": None, "lost": {}, "false_detections": {"background": 1}, "objects": {}
    }  # fmt: skip
    assert errors(coco([]), []).ap50 == {"all": None}


def test_an_object_is_lost_to_the_best_detection_on_it():
    truth = coco([an_object(CUP, HERE)])
    results = [
        detection(OWL, HERE, 0.9),
        detection(CUP, NEAR_HERE, 0.8),
        detection(ANT, HERE, 0.7),
    ]
    found = errors(truth, results)
    assert lost_objects(found) == {"classification": 1}
    assert numbers(found.false_detections) == {"classification": 2, "localization": 1}
    # The corrected class stands before the detection with the wrong box.
    assert lost(found) == {"classification": 100}


def test_an_object_with_a_right_detection_gains_no_second_one():
    results = [detection(OWL, HERE, 0.9), detection(CUP, HERE, 0.8)]
    found = errors(coco([an_object(CUP, HERE), an_object(OWL, FAR)]), results)
    assert numbers(found.false_detections) == {"classification": 1}
    assert lost_objects(found) == {"missed": 1}
    # The owl is missed. Its class also has a false detection until that is removed.
    assert found.ap50["all"] == 50 and not lost(found).keys() & {"classification", "missed"}


def test_an_object_that_is_near_of_the_own_class_comes_before_one_of_another_class():
    """The order is TIDE's: a detection may have the conditions of both kinds."""
    truth = coco([an_object(CUP, HERE), an_object(OWL, NEAR_HERE)])
    found = errors(truth, [detection(CUP, NEAR_HERE, 0.9)])
    assert numbers(found.false_detections) == {"localization": 1}


@pytest.mark.parametrize(
    ("height", "kind"),
    [(0.9, "background"), (1, "localization"), (4.9, "localization"), (5, None)],
)
def test_the_limits_of_iou_belong_to_the_closer_kind(height, kind):
    found = errors(coco([an_object(CUP, HERE)]), [detection(CUP, [0, 0, 10, height], 0.9)])
    assert numbers(found.false_detections) == ({kind: 1} if kind else {})


@pytest.mark.parametrize("places", [[0, 2], [2, 0]])
def test_equal_overlaps_are_matched_as_in_the_official_metric(places):
    truth = coco([an_object(CUP, [x, 0, 10, 10]) for x in places])
    results = [detection(CUP, [1, 0, 10, 10], 0.9), detection(CUP, [-2, 0, 10, 10], 0.8)]
    found = errors(truth, results)
    assert lost_objects(found) == ({} if places == [0, 2] else {"missed": 1})
    official = coco_ap50(truth, results, category_groups={})["summary"]["AP50"]
    assert found.ap50["all"] == pytest.approx(official)


def test_detections_on_a_crowd_are_ignored():
    crowd = an_object(OWL, [300, 300, 50, 50], iscrowd=1)
    found = errors(coco([RIGHT_OWL[0], crowd]), [RIGHT_OWL[1], detection(OWL, FAR, 0.9)])
    assert found.ap50["all"] == 100 and not numbers(found.false_detections)
    # A crowd of another class is background.
    found = errors(coco([RIGHT_OWL[0], crowd]), [RIGHT_OWL[1], detection(CUP, FAR, 0.9)])
    assert numbers(found.false_detections) == {"background": 1}


def test_detections_of_categories_that_lvis_did_not_verify_are_ignored():
    results = [RIGHT_OWL[1], detection(OWL, FAR, 0.9, image=9)]
    assert errors(lvis([RIGHT_OWL[0]]), results).ap50["all"] == 100
    found = errors(lvis([RIGHT_OWL[0]], absent={9: [OWL]}), results)
    assert lost(found) == pytest.approx({"background": 50, "false positives": 50})


def test_unmatched_detections_are_ignored_where_lvis_annotated_some_objects():
    results = [RIGHT_OWL[1], detection(OWL, FAR, 0.9), detection(OWL, THERE, 0.4)]
    found = errors(lvis([RIGHT_OWL[0]], partial={4: [OWL]}), results)
    assert found.ap50["all"] == 100 and not numbers(found.false_detections)


def test_an_ignored_detection_is_no_false_one_but_explains_its_object():
    found = errors(lvis([an_object(CUP, HERE)]), [detection(OWL, HERE, 0.9)])
    assert not numbers(found.false_detections)
    assert lost_objects(found) == {"classification": 1}
    assert lost(found) == {"classification": 100, "false negatives": 100}


def test_the_limit_counts_detections_of_an_image_and_in_coco_of_a_category():
    results = [detection(CUP, FAR, 0.9), RIGHT_OWL[1]]
    for truth, expected in ((coco([RIGHT_OWL[0]]), 100), (lvis([RIGHT_OWL[0]]), 0)):
        assert errors(truth, results, max_detections=1).ap50["all"] == expected


def test_groups_have_their_own_costs():
    truth = coco([an_object(CUP, HERE), RIGHT_OWL[0]])
    groups = {"novel": {CUP}, "base": {OWL}, "ants": {ANT}, "all": set(NAMES)}
    found = errors(truth, [detection(OWL, HERE, 0.9), RIGHT_OWL[1]], groups=groups)
    assert found.ap50 == pytest.approx({"novel": 0, "base": 50, "ants": None, "all": 25})
    assert lost(found, "novel") == {"classification": 100, "false negatives": 100}
    assert lost(found, "base") == pytest.approx({"classification": 50, "false positives": 50})
    assert set(found.lost["ants"].values()) == {None}


def test_sizes_are_those_of_the_box_and_of_the_annotated_area():
    truth = coco([an_object(CUP, [0, 0, 200, 200], area=32**2), an_object(CUP, HERE, area=96**2)])
    results = [detection(OWL, [400, 0, side, side], 0.5) for side in (31, 32, 95, 96)]
    found = errors(truth, results)
    assert found.false_detections["background"] == {"small": 1, "medium": 2, "large": 1}
    assert found.objects["missed"] == {"small": 0, "medium": 1, "large": 1}
    assert tuple(found.false_detections["both"]) == SIZES


def test_the_line_names_the_most_expensive_kind_first():
    truth = coco([an_object(CUP, HERE), RIGHT_OWL[0]])
    line = errors(truth, [detection(OWL, NEAR_HERE, 0.9), RIGHT_OWL[1]]).text()
    assert line.startswith("AP50 25.0, lost to missed 50.0, both 25.0, classification 0.0, ")


def draw(rng, *, crowds=0.0):
    """Return annotations and results with distinct scores on a coarse grid, which gives ties."""

    def box():
        return np.concatenate([rng.integers(0, 12, 2), rng.integers(1, 9, 2)]).astype(float)

    annotations, results = [], []
    for image in IMAGES[: rng.integers(1, len(IMAGES) + 1)]:
        for _ in range(rng.integers(0, 5)):
            category, place = int(rng.choice(list(NAMES))), box()
            crowd = {"iscrowd": 1} if rng.random() < crowds else {}
            annotations.append(an_object(category, place.tolist(), image, **crowd))
            for _ in range(rng.integers(0, 4)):
                moved = place + rng.integers(-1, 2, 4)
                moved[2:] = np.maximum(moved[2:], 1)
                named = category if rng.random() < 0.6 else int(rng.choice(list(NAMES)))
                results.append(detection(named, moved.tolist(), 0.0, image))
        for _ in range(rng.integers(0, 4)):
            results.append(detection(int(rng.choice(list(NAMES))), box().tolist(), 0.0, image))
    for result, rank in zip(results, rng.permutation(len(results)), strict=True):
        result["score"] = (rank + 1) / (len(results) + 1)
    if annotations and all("iscrowd" in a for a in annotations):
        annotations[0].pop("iscrowd")
    return annotations, results


def draw_lvis(rng):
    annotations, results = draw(rng)
    lists = [
        {image: [c for c in NAMES if rng.random() < 0.4] for image in IMAGES} for _ in range(2)
    ]
    return lvis(annotations, *lists), results


def plain_iou(box, other, crowd=False):
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    area, common = box[2] * box[3], width * height
    return common / (area if crowd else area + other[2] * other[3] - common)


def plain_ap(ranked, num_objects):
    """Return COCO's AP of right (True) and false detections, best first."""
    if num_objects == 0:
        return 0.0 if ranked else 100.0
    curve = []
    for place in range(1, len(ranked) + 1):
        number = sum(ranked[:place])
        curve.append((number / num_objects, number / place))
    best = [
        max([p for r, p in curve if r >= recall], default=0) for recall in np.linspace(0, 1, 101)
    ]
    return 100 * sum(best) / 101


def plain_costs(truth, results):
    """State TIDE's definitions in loops; return AP50, the costs, and the numbers."""
    listed = {image["id"]: image for image in truth.images}
    objects = [a | {"kind": "missed"} for a in truth.annotations if not a["iscrowd"]]
    crowds = [a for a in truth.annotations if a["iscrowd"]]
    found = [dict(r) for r in sorted(results, key=lambda r: -r["score"])]
    for d in found:
        here = [o for o in objects if o["image_id"] == d["image_id"]]
        ious = [(plain_iou(d["bbox"], o["bbox"]), o) for o in here]
        own = [(iou, o) for iou, o in ious if o["category_id"] == d["category_id"]]
        other = [(iou, o) for iou, o in ious if o["category_id"] != d["category_id"]]
        free = [(iou, o) for iou, o in own if o["kind"] != "right" and iou >= 0.5]
        best_own = max([iou for iou, _ in own], default=0)
        best_other = max([iou for iou, _ in other], default=0)
        if free:
            # The last of equal ones.
            d["object"] = max(reversed(free), key=lambda pair: pair[0])[1]
            d["kind"] = d["object"]["kind"] = "right"
        elif 0.1 <= best_own < 0.5:
            d["kind"], d["object"] = "localization", max(own, key=lambda pair: pair[0])[1]
        elif best_other >= 0.5:
            d["kind"], d["object"] = "classification", max(other, key=lambda pair: pair[0])[1]
        elif best_own >= 0.5:
            d["kind"] = "duplicate"
        else:
            d["kind"] = "background" if max(best_own, best_other) < 0.1 else "both"
        image, category = listed[d["image_id"]], d["category_id"]
        on_crowd = any(
            c["image_id"] == d["image_id"]
            and c["category_id"] == category
            and plain_iou(d["bbox"], c["bbox"], crowd=True) >= 0.5
            for c in crowds
        )
        verified = {o["category_id"] for o in here} | set(image.get("neg_category_ids", NAMES))
        partial = category in image.get("not_exhaustive_category_ids", [])
        d["ignored"] = category not in verified or d["kind"] != "right" and (on_crowd or partial)
    for d in found:  # best first
        if d["kind"] in ("classification", "localization") and d["object"]["kind"] == "missed":
            d["object"]["kind"] = d["kind"]
            d["corrects"] = True

    def ap50(kinds=(), removed_objects=(), without_false=False):
        scores = []
        for category in sorted({o["category_id"] for o in objects}):
            ranked = []
            for d in found:
                if d["kind"] in kinds:
                    if d.get("corrects") and d["object"]["category_id"] == category:
                        ranked.append(True)
                elif d["category_id"] == category and not d["ignored"]:
                    if d["kind"] == "right" or not without_false:
                        ranked.append(d["kind"] == "right")
            kept = [o for o in objects if o["kind"] not in removed_objects]
            number = sum(o["category_id"] == category for o in kept)
            scores.append(plain_ap(ranked, number))
        return sum(scores) / len(scores) if scores else None

    costs = {kind: ap50([kind], [kind] if kind == "missed" else []) for kind in KINDS}
    costs["false positives"] = ap50(without_false=True)
    costs["false negatives"] = ap50(removed_objects=[kind for kind in KINDS])
    start = ap50()
    if start is not None:
        costs = {cost: value - start for cost, value in costs.items()}
    detections = {k: sum(d["kind"] == k and not d["ignored"] for d in found) for k in KINDS}
    outcomes = {k: sum(o["kind"] == k for o in objects) for k in KINDS}
    outcomes["detected"] = sum(o["kind"] == "right" for o in objects)
    return start, costs, detections, outcomes


def check_against_plain(truth, results):
    found = errors(truth, results)
    start, costs, detections, outcomes = plain_costs(truth, results)
    assert found.ap50["all"] == (start if start is None else pytest.approx(start))
    assert tuple(found.lost["all"]) == COSTS
    if start is not None:
        assert found.lost["all"] == pytest.approx(costs, abs=1e-9)
    for kinds, mine, plain in (
        (DETECTION_KINDS, found.false_detections, detections),
        (OUTCOMES, found.objects, outcomes),
    ):
        assert {k: sum(mine[k].values()) for k in mine} == {k: plain[k] for k in kinds}
    return found


seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@pytest.mark.property
@given(seeds)
def test_costs_and_numbers_are_those_of_plain_loops(rng):
    for _ in range(6):
        annotations, results = draw(rng, crowds=0.15)
        truth = coco(annotations)
        found = check_against_plain(truth, results)
        official = coco_ap50(truth, results, category_groups={})
        assert found.ap50["all"] == (expected := official["summary"]["AP50"]) or (
            found.ap50["all"] == pytest.approx(expected, abs=1e-9)
        )


@pytest.mark.property
@given(seeds)
def test_costs_and_numbers_of_lvis_are_those_of_plain_loops(rng):
    for _ in range(6):
        truth, results = draw_lvis(rng)
        found = check_against_plain(truth, results)
        official = lvis_ap(truth, results)["summary"]["AP50"]
        assert found.ap50["all"] == official or (
            found.ap50["all"] == pytest.approx(official, abs=1e-9)
        )


@pytest.mark.property
@given(seeds)
def test_the_correction_of_all_kinds_gives_an_ap50_of_100_and_of_one_never_less(rng):
    annotations, results = draw(rng, crowds=0.1)
    truth = coco(annotations)
    judged = judge(truth, results, max_detections=100, federated=False)
    values = average_precision(judged, corrected(judged, range(len(KINDS))))
    objects = {a["category_id"] for a in truth.annotations if not a["iscrowd"]}
    np.testing.assert_array_equal(values, [100 if c in objects else np.nan for c in NAMES])
    points = errors(truth, results).lost["all"].values()
    assert all(value is None or value >= -1e-9 for value in points)


@pytest.mark.property
@given(seeds)
def test_the_order_of_images_annotations_and_results_changes_nothing(rng):
    annotations, results = draw(rng, crowds=0.1)
    # Distinct boxes, as the order decides between equal overlaps.
    for entry in [*annotations, *results]:
        entry["bbox"] = (np.array(entry["bbox"]) + rng.uniform(0, 0.01, 4)).tolist()
    expected = errors(coco(annotations), results)
    images, annotations, results = (
        [some[i] for i in rng.permutation(len(some))] for some in (IMAGES, annotations, results)
    )
    assert errors(coco(annotations, images), results) == expected
