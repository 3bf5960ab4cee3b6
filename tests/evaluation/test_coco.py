import contextlib
import copy
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from regionclip_jax.data.sources.annotation_files import (
    as_annotation_file,
    read_annotation_file,
)
from regionclip_jax.evaluation.coco import coco_ap50
from regionclip_jax.evaluation.ground_truth import coco_ground_truth

GROUPS = {"base": {1, 2}, "novel": {7}}
SIZES = ("APs", "APm", "APl")


def annotation(number, image, category, box, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **more}


@pytest.fixture
def truth():
    return {
        "images": [{"id": image, "width": 100, "height": 100} for image in (10, 11, 12)],
        "categories": [
            {"id": 1, "name": "cup"},
            {"id": 2, "name": "ant"},
            {"id": 7, "name": "owl"},
        ],
        "annotations": [
            annotation(1, 10, 1, [10, 10, 20, 20]),
            annotation(2, 10, 7, [50, 50, 30, 30]),
            annotation(3, 11, 1, [0, 0, 40, 40], area=1600, iscrowd=0),
            annotation(4, 11, 7, [60, 10, 20, 60]),
        ],
    }  # image 12 is empty and category 2 has no box


def perfect(truth):
    return [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": list(entry["bbox"]),
            "score": 0.9,
        }
        for entry in truth["annotations"]
        if not entry.get("iscrowd")
    ]


def checked(content):
    return coco_ground_truth(as_annotation_file("ground truth", content))


def evaluate(truth, results, **options):
    return coco_ap50(checked(truth), results, category_groups=GROUPS, **options)


def test_perfect_boxes_have_full_precision(truth, capsys):
    before, results = copy.deepcopy(truth), perfect(truth)
    scores = evaluate(truth, results)
    everything = dict.fromkeys(["AP50_base", "AP50_novel", "AP", "AP50", "AP75", *SIZES], 100.0)
    assert scores["summary"] == pytest.approx(everything | {"APl": None})  # none is that large
    assert scores["per_category"]["owl"] == pytest.approx({"AP50": 100.0, "AP": 100.0})
    assert capsys.readouterr().out == ""
    assert truth == before and results == perfect(truth)  # arguments must not change


def test_a_category_without_ground_truth_has_no_ap_and_does_not_count(truth):
    results = [*perfect(truth), annotation(0, 12, 2, [0, 0, 5, 5]) | {"score": 1.0}]
    scores = evaluate(truth, results)
    assert scores["per_category"]["ant"] == {"AP50": None, "AP": None}
    assert scores["summary"]["AP50"] == pytest.approx(100.0)
    nothing = coco_ap50(checked(truth), results, category_groups={"rare": {2}})
    assert nothing["summary"]["AP50_rare"] is None


def test_ap_without_detections_is_zero(truth):
    summary = evaluate(truth, [])["summary"]
    assert summary.pop("APl") is None
    assert set(summary.values()) == {0.0} and "AP50_novel" in summary


def test_ap_without_ground_truth_boxes_is_none(truth):
    results = perfect(truth)
    truth["annotations"] = []
    assert set(evaluate(truth, results)["summary"].values()) == {None}


def test_half_of_the_boxes_give_half_of_the_recall(truth):
    results = [result for result in perfect(truth) if result["image_id"] == 10]
    # 101 recall points, 0.00 to 0.50 are reached: 51 / 101
    assert evaluate(truth, results)["summary"]["AP50_novel"] == pytest.approx(100 * 51 / 101)


def test_a_false_box_scored_above_the_true_ones_lowers_precision(truth):
    wrong = {"image_id": 12, "category_id": 7, "bbox": [0, 0, 9, 9], "score": 1.0}
    # precision 1/2 at recall 1/2, 2/3 at recall 1: the best at or beyond each recall is 2/3
    summary = evaluate(truth, [*perfect(truth), wrong])["summary"]
    assert summary["AP50_novel"] == pytest.approx(100 * 2 / 3)
    assert summary["AP50_base"] == pytest.approx(100.0)


def test_a_shift_keeps_ap50_and_lowers_the_stricter_ap(truth):
    results = perfect(truth)
    for result in results:
        x, y, width, height = result["bbox"]
        result["bbox"] = [x + 0.2 * width, y, width, height]  # IoU 0.8 / 1.2 = 2/3
    summary = evaluate(truth, results)["summary"]
    assert summary["AP50"] == pytest.approx(100.0)
    assert summary["AP"] == pytest.approx(40.0)  # 0.50, 0.55, 0.60, 0.65 of ten thresholds


def test_another_threshold_is_in_the_name_and_does_not_change_the_mean(truth):
    results = perfect(truth)
    for result in results:
        result["bbox"][2] *= 0.42
    summary = evaluate(truth, results, iou_threshold=0.4)["summary"]
    assert summary["AP40_novel"] == pytest.approx(100.0)
    assert summary["AP"] == 0.0


def test_detections_on_a_crowd_are_ignored(truth):
    truth["annotations"].append(annotation(5, 12, 7, [0, 0, 100, 100], area=10_000, iscrowd=1))
    inside = {"image_id": 12, "category_id": 7, "bbox": [5, 5, 10, 10], "score": 1.0}
    summary = evaluate(truth, [*perfect(truth), inside])["summary"]
    assert summary["AP50_novel"] == pytest.approx(100.0)


def test_only_the_highest_scored_detections_of_an_image_count(truth):
    noise = [
        {"image_id": 10, "category_id": 7, "bbox": [0, 0, 5, 5], "score": 0.99} for _ in range(3)
    ]
    results = perfect(truth) + noise
    assert evaluate(truth, results, max_detections=3)["summary"]["AP50_novel"] < 30
    assert evaluate(truth, results, max_detections=4)["summary"]["AP50_novel"] > 30


@pytest.mark.property
def test_more_noise_never_raises_ap(truth):
    draws = np.random.default_rng(0)
    scores = []
    for sigma in (0.0, 0.1, 1.0):
        results = perfect(truth)
        for result in results:
            shift = draws.normal(size=2) * sigma * np.array(result["bbox"][2:])
            result["bbox"] = [*(np.array(result["bbox"][:2]) + shift), *result["bbox"][2:]]
        scores.append(evaluate(truth, results)["summary"]["AP"])
    assert scores == sorted(scores, reverse=True) and scores[0] == pytest.approx(100.0)


def test_the_ground_truth_of_a_file_equals_that_of_its_content(truth, tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(truth))
    read = coco_ground_truth(read_annotation_file(path))
    assert read._replace(where="") == checked(truth)._replace(where="")
    path.write_text('{"images": [], "categories": []}')
    with pytest.raises(ValueError, match="instances.json has no list 'annotations'"):
        read_annotation_file(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "result 4 is of image 99 and category 1"),
        ({"category_id": 3}, "result 4 is of image 10 and category 3"),
        ({"bbox": [0, 0, float("nan"), 1]}, r"result 4 \(image 10\).*finite"),
        ({"score": float("inf")}, "finite"),
    ],
)
def test_results_with_unknown_ids_are_refused(truth, change, message):
    bad = {"image_id": 10, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5} | change
    with pytest.raises(ValueError, match=message):
        evaluate(truth, [*perfect(truth), bad])


def test_a_group_with_an_unknown_category_is_refused(truth):
    with pytest.raises(ValueError, match=r"group 'novel' names categories \[8, 9\]"):
        coco_ap50(checked(truth), [], category_groups={"novel": {7, 8, 9}})


def test_equal_scores_count_in_the_order_given(truth):
    good, bad = perfect(truth)[3], perfect(truth)[3] | {"bbox": [0, 0, 9, 9]}
    truth["annotations"] = [truth["annotations"][3]]  # one owl, matched second: precision 1/2
    summary = {key: evaluate(truth, pair)["summary"]["AP50_novel"] for key, pair in
               {"good first": [good, bad], "bad first": [bad, good]}.items()}  # fmt: skip
    assert summary == pytest.approx({"good first": 100.0, "bad first": 50.0})


def test_equal_scores_of_two_images_count_by_image_id(truth):
    good, bad = perfect(truth)[3], perfect(truth)[3] | {"bbox": [0, 0, 9, 9]}
    truth["annotations"] = [truth["annotations"][3]]
    for image, expected in ((10, 50.0), (12, 100.0)):
        for results in ([good, bad | {"image_id": image}], [bad | {"image_id": image}, good]):
            assert evaluate(truth, results)["summary"]["AP50_novel"] == pytest.approx(expected)


def test_an_annotation_with_the_id_zero_can_be_matched(truth):
    truth["annotations"][1]["id"] = 0  # pycocotools reads the id 0 as "no match"
    assert evaluate(truth, perfect(truth))["summary"]["AP50_novel"] == pytest.approx(100.0)


def test_the_size_of_objects_follows_their_area_not_their_box(truth):
    truth["annotations"][0]["area"] = 5000  # the area of the box is 400
    summary = evaluate(truth, [r for r in perfect(truth) if r["image_id"] == 11])["summary"]
    # Medium: cup 11 and owl 11 are matched, cup 10 is missed. Small: owl 10 with 900 pixels.
    assert [summary[size] for size in SIZES] == pytest.approx([0.0, 100 * (51 / 101 + 1) / 2, None])


def instances(seed: int) -> dict:
    """Ground truth with empty images, unused categories, crowd regions and all sizes."""
    draws = np.random.default_rng(seed)
    annotations = []
    for image in range(3, 60, 4):
        for _ in range(draws.integers(0, 12)):
            box = [*draws.uniform(0, 300, 2), *np.exp(draws.uniform(2, 5.5, 2))]
            number, category = len(annotations) + 1, int(draws.choice([2, 3, 5, 8, 13]))
            more = {"area": box[2] * box[3] * draws.uniform(0.4, 1), "iscrowd": 0}
            more["iscrowd"] = int(draws.random() < 0.1)
            annotations.append(annotation(number, image, category, [*map(float, box)], **more))
    return {
        "images": [{"id": image} for image in range(59, 2, -4)],
        "categories": [{"id": i, "name": f"kind {i}"} for i in (21, 13, 8, 5, 3, 2)],
        "annotations": annotations,
    }


def perturbed(truth: dict, seed: int) -> list[dict]:
    """Results with moved, missing, duplicate and misclassified boxes and many equal scores."""
    draws = np.random.default_rng(seed)
    categories = [category["id"] for category in truth["categories"]]
    results = []
    for entry in truth["annotations"] * 2:
        x, y, width, height = entry["bbox"]
        shift, scale = draws.normal(0, 0.1, 2), np.exp(draws.normal(0, 0.15, 2))
        box = [x + shift[0] * width, y + shift[1] * height, width * scale[0], height * scale[1]]
        category = entry["category_id"] if draws.random() < 0.8 else draws.choice(categories)
        score = round(float(draws.random()), 1)
        if draws.random() < 0.8:
            results.append(
                {"image_id": entry["image_id"], "category_id": int(category), "score": score}
                | {"bbox": [float(number) for number in box]}
            )
    return results


def used_directly(truth: dict, results: list[dict]) -> dict[str, float]:
    """Return the metrics that pycocotools itself computes."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("AP", "AP50", "AP75", *SIZES)
    return dict(zip(names, 100 * evaluation.stats[:6], strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_the_standard_metrics_equal_those_of_pycocotools(seed):
    truth = instances(seed)
    results = perturbed(truth, seed)
    summary = coco_ap50(checked(truth), results, category_groups={})["summary"]
    assert summary == pytest.approx(used_directly(truth, results), abs=1e-9)
    assert 1 < summary["AP"] < summary["AP50"] < 99


def test_the_metrics_of_real_annotations_equal_those_of_pycocotools():
    folder = os.environ.get("REGIONCLIP_DATA")
    if not folder:
        pytest.skip("REGIONCLIP_DATA does not name a folder with data in COCO's layout")
    files = sorted(Path(folder).glob("annotations/instances_*.json"))
    assert files, f"{folder} has no annotations/instances_*.json"
    for path in files:
        truth = json.loads(path.read_text())
        results = perturbed(truth, seed=0)
        summary = coco_ap50(
            coco_ground_truth(read_annotation_file(path)), results, category_groups={}
        )["summary"]
        print(path.name, len(truth["annotations"]), "annotations", len(results), "results", summary)
        assert summary == pytest.approx(used_directly(truth, results), abs=1e-9)
