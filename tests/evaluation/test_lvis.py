"""Each rule of LVIS in a case with an AP computed by hand.

The usual case is one object and one false box with a higher score. The match of the object comes
second, so precision is 1/2 at every recall and AP is 50. If the false box is ignored, AP is 100.
"""

import contextlib
import copy
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from regionclip_jax.data.sources.annotation_files import (
    as_annotation_file,
    read_annotation_file,
)
from regionclip_jax.evaluation import lvis as evaluator
from regionclip_jax.evaluation.datasets import open_dataset
from regionclip_jax.evaluation.evaluators import Detection
from regionclip_jax.evaluation.ground_truth import lvis_ground_truth
from regionclip_jax.extras import MissingExtra

OWL, CUP, ANT, BEE = 1, 2, 3, 7
SUMMARY = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]


def lvis_ap(content, results):
    truth = lvis_ground_truth(as_annotation_file("ground truth", content))
    return evaluator.lvis_ap(truth, results)


def image(number, absent=(), not_exhaustive=()):
    return {
        "id": number,
        "neg_category_ids": list(absent),
        "not_exhaustive_category_ids": list(not_exhaustive),
    }


def annotation(number, image_id, category, box):
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": box}


def result(image_id, category, box, score=0.5):
    return {"image_id": image_id, "category_id": category, "bbox": box, "score": score}


def lvis(images, annotations):
    names = {OWL: ("owl", "r"), CUP: ("cup", "c"), ANT: ("ant", "f"), BEE: ("bee", "f")}
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": n, "frequency": f} for i, (n, f) in names.items()],
    }


OWL_BOX = [0, 0, 20, 20]
MATCHED = result(10, OWL, OWL_BOX)
WRONG = [50, 50, 20, 20]  # overlaps nothing


def owl_ap(images, *false_boxes):
    """Return AP for a matched owl in image 10 and these false boxes with higher scores."""
    truth = lvis(images, [annotation(1, 10, OWL, OWL_BOX)])
    scores = lvis_ap(truth, [MATCHED, *(box | {"score": 0.9} for box in false_boxes)])
    assert (
        scores["summary"]["APr"] == scores["summary"]["AP"] == scores["per_category"]["owl"]["AP"]
    )
    return scores["summary"]["AP"]


def test_a_false_box_counts_if_the_category_is_known_to_be_absent():
    images = [image(10), image(11, absent=[OWL])]
    assert owl_ap(images, result(11, OWL, WRONG)) == pytest.approx(50.0)


def test_a_false_box_counts_if_the_category_is_annotated():
    assert owl_ap([image(10)], result(10, OWL, WRONG)) == pytest.approx(50.0)


def test_a_false_box_is_ignored_if_the_category_was_not_verified():
    images = [image(10), image(11, absent=[CUP])]
    assert owl_ap(images, result(11, OWL, WRONG)) == pytest.approx(100.0)


def test_an_unmatched_box_is_ignored_if_the_annotation_is_not_exhaustive():
    images = [image(10, not_exhaustive=[OWL])]
    assert owl_ap(images, result(10, OWL, WRONG)) == pytest.approx(100.0)
    assert owl_ap([image(10, not_exhaustive=[CUP])], result(10, OWL, WRONG)) == pytest.approx(50.0)


def test_annotated_objects_count_as_missed_if_the_annotation_is_not_exhaustive():
    images = [image(10), image(11, not_exhaustive=[OWL])]
    truth = lvis(images, [annotation(1, 10, OWL, OWL_BOX), annotation(2, 11, OWL, OWL_BOX)])
    both = [MATCHED, result(11, OWL, OWL_BOX)]
    assert lvis_ap(truth, both)["summary"]["AP"] == pytest.approx(100.0)
    # Recall 0.5 reaches the recall points 0.00 to 0.50 of 101.
    assert lvis_ap(truth, both[:1])["summary"]["AP"] == pytest.approx(100 * 51 / 101)


def test_a_second_box_on_one_object_is_a_false_box():
    double = result(10, OWL, OWL_BOX)
    assert owl_ap([image(10)], double) == pytest.approx(
        100.0
    )  # the box with the higher score is matched
    truth = lvis([image(10), image(11)], [annotation(i, i + 9, OWL, OWL_BOX) for i in (1, 2)])
    results = [MATCHED, double, result(11, OWL, OWL_BOX, 0.1)]  # right, wrong, right
    # Precision 1 up to recall 0.5 (51 points), then 2/3 (50 points).
    expected = 100 * (51 + 50 * 2 / 3) / 101
    assert lvis_ap(truth, results)["summary"]["AP"] == pytest.approx(expected)


@pytest.mark.parametrize(("others", "expected"), [(299, 100.0), (300, 0.0)])
def test_three_hundred_boxes_of_an_image_count_over_all_categories(others, expected):
    # Cups were not verified, so their boxes are ignored but still count for the limit.
    noise = [result(10, CUP, WRONG)] * others
    assert owl_ap([image(10)], *noise) == pytest.approx(expected)


@pytest.mark.parametrize(("others", "expected"), [(299, 100.0), (300, 0.0)])
def test_the_limit_of_three_hundred_keeps_the_first_of_equal_scores(others, expected):
    truth = lvis([image(10)], [annotation(1, 10, OWL, OWL_BOX)])
    noise = [result(10, CUP, WRONG, MATCHED["score"])] * others
    assert lvis_ap(truth, [*noise, MATCHED])["summary"]["AP"] == pytest.approx(expected)
    assert lvis_ap(truth, [MATCHED, *noise, *noise])["summary"]["AP"] == pytest.approx(100.0)


def test_the_limit_of_three_hundred_holds_for_each_image():
    noise = [result(11, CUP, WRONG)] * 300
    assert owl_ap([image(10), image(11)], *noise) == pytest.approx(100.0)


def test_equal_scores_count_in_the_order_given():
    truth = lvis([image(10)], [annotation(1, 10, OWL, OWL_BOX)])
    wrong = result(10, OWL, WRONG, MATCHED["score"])
    assert lvis_ap(truth, [MATCHED, wrong])["summary"]["AP"] == pytest.approx(100.0)
    assert lvis_ap(truth, [wrong, MATCHED])["summary"]["AP"] == pytest.approx(50.0)


def test_each_frequency_has_a_mean_and_a_category_without_boxes_has_no_ap():
    annotations = [
        annotation(1, 10, OWL, OWL_BOX),  # rare: matched
        annotation(2, 10, CUP, OWL_BOX),  # common: missed
        annotation(3, 10, ANT, OWL_BOX),  # frequent: one of two
        annotation(4, 11, ANT, OWL_BOX),
    ]
    truth = lvis([image(10), image(11, absent=[BEE])], annotations)
    scores = lvis_ap(truth, [MATCHED, result(10, ANT, OWL_BOX), result(11, BEE, OWL_BOX)])
    half = 100 * 51 / 101
    assert scores["per_category"] == {
        "owl": {"AP50": pytest.approx(100.0), "AP": pytest.approx(100.0)},
        "cup": {"AP50": 0.0, "AP": 0.0},
        "ant": {"AP50": pytest.approx(half), "AP": pytest.approx(half)},
        "bee": {"AP50": None, "AP": None},  # its false box changes no other AP
    }
    mean = (100 + 0 + half) / 3
    assert scores["summary"] == pytest.approx(
        {"APr": 100.0, "APc": 0.0, "APf": half, "AP": mean, "AP50": mean, "AP75": mean}
        | {"APs": mean, "APm": None, "APl": None}
    )
    none = lvis_ap(lvis([image(10)], annotations[:1]), [MATCHED])["summary"]
    assert (none["APr"], none["APc"], none["APf"]) == (pytest.approx(100.0), None, None)


def test_thresholds_and_sizes_have_separate_metrics():
    shifted = [0.2 * 100, 0, 100, 100]  # IoU 80 / 120
    truth = lvis([image(10)], [annotation(1, 10, OWL, [0, 0, 100, 100])])
    summary = lvis_ap(truth, [result(10, OWL, shifted)])["summary"]
    expected = {"AP": 40.0, "AP50": 100.0, "AP75": 0.0, "APs": None, "APm": None, "APl": 40.0}
    assert {key: summary[key] for key in expected} == pytest.approx(expected)
    truth["annotations"][0]["area"] = 2000.0  # area of the mask
    assert lvis_ap(truth, [result(10, OWL, shifted)])["summary"]["APm"] == pytest.approx(40.0)


def test_ap_without_detections_is_zero_and_without_boxes_is_none(capsys):
    truth = lvis([image(10), image(11)], [annotation(1, 10, OWL, OWL_BOX)])
    summary = lvis_ap(truth, [])["summary"]
    assert list(summary) == SUMMARY
    assert summary == dict.fromkeys(SUMMARY) | dict.fromkeys(
        ["AP", "AP50", "AP75", "APs", "APr"], 0
    )
    for images in ([image(10)], []):
        results = [MATCHED] if images else []
        assert set(lvis_ap(lvis(images, []), results)["summary"].values()) == {None}
    no_category = lvis([image(10)], []) | {"categories": []}
    assert lvis_ap(no_category, []) == {"summary": dict.fromkeys(SUMMARY), "per_category": {}}
    assert capsys.readouterr().out == ""


def exhaustive(seed: int) -> tuple[dict, list[dict]]:
    """Ground truth where every category is annotated or known to be absent in every image."""
    draws = np.random.default_rng(seed)
    annotations, results, images = [], [], []
    categories = [OWL, CUP, ANT]
    for number in (9, 4, 6, 5, 8):
        for _ in range(draws.integers(0, 10)):
            box = np.concatenate([draws.uniform(0, 300, 2), np.exp(draws.uniform(2, 5.5, 2))])
            category = int(draws.choice(categories))
            annotations.append(annotation(len(annotations) + 1, number, category, box.tolist()))
            for _ in range(draws.integers(0, 4)):
                category = category if draws.random() < 0.8 else int(draws.choice(categories))
                moved = (box * np.exp(draws.normal(0, 0.1, 4))).tolist()
                results.append(result(number, category, moved, round(draws.random(), 1)))
        present = {a["category_id"] for a in annotations if a["image_id"] == number}
        images.append(image(number, absent=set(categories) - present))
    return lvis(images, annotations), [results[i] for i in draws.permutation(len(results))]


@pytest.mark.parametrize("seed", range(4))
def test_the_metrics_of_exhaustive_annotations_equal_those_of_coco(seed):
    truth, results = exhaustive(seed)
    before = copy.deepcopy((truth, results))
    summary = lvis_ap(truth, results)["summary"]
    assert (truth, results) == before  # arguments must not change
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        for entry in coco.dataset["annotations"]:
            entry |= {"area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = dict(zip(SUMMARY[:6], 100 * evaluation.stats[:6], strict=True))
    assert {key: summary[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert 1 < summary["AP"] < summary["AP50"] < 99


def test_the_ground_truth_of_an_lvis_file_differs_from_that_of_a_coco_file(tmp_path):
    truth = lvis([image(10)], [annotation(1, 10, OWL, OWL_BOX)])
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(truth))
    read = lvis_ground_truth(read_annotation_file(path))
    assert evaluator.lvis_ap(read, [MATCHED]) == lvis_ap(truth, [MATCHED])
    path.write_text(json.dumps(truth | {"categories": [{"id": OWL, "name": "owl"}]}))
    with pytest.raises(ValueError, match=r"lvis\.json: category 1: 'frequency'"):
        lvis_ground_truth(read_annotation_file(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "result 0 is of image 99"),
        ({"category_id": 99}, "result 0 is of image 10 and category 99"),
        ({"score": float("nan")}, r"result 0 \(image 10\).*finite"),
    ],
)
def test_results_with_unknown_ids_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        lvis_ap(lvis([image(10)], []), [MATCHED | change])


def test_without_the_library_the_error_names_its_extra_before_the_first_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    source = SimpleNamespace(category_names=("cat",), metric="lvis")
    dataset = open_dataset(source, "none")
    for use in (
        lambda: Detection(dataset, max_detections=300, given_boxes=False),
        lambda: lvis_ap(lvis([image(10)], []), []),
    ):
        with pytest.raises(MissingExtra, match=r'pip install -e "\.\[lvis\]"'):
            use()
