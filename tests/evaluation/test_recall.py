import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from regionclip_jax.evaluation.recall import (
    NEVER,
    found_at,
    limits_of,
    proposal_recall,
    summarize_recall,
)

NONE = np.zeros((0, 4))


def boxes(*rows):
    return np.array(rows, float)


def test_a_box_is_matched_at_the_rank_of_its_proposal_up_to_their_iou():
    square = boxes([0, 0, 10, 10])
    ranks = found_at(square, boxes([20, 20, 30, 30], [0, 0, 10, 7], [0, 0, 10, 10]))
    # IoU 0, 0.7, 1: the second proposal matches at thresholds 0.5 to 0.7, the third above.
    np.testing.assert_array_equal(ranks[:, 0], [1] * 5 + [2] * 5)
    assert (found_at(square, boxes([0, 0, 10, 4])) == NEVER).all()


def test_recall_grows_with_the_number_of_proposals():
    truth = [boxes([0, 0, 10, 10], [50, 50, 90, 90]), NONE, boxes([5, 5, 9, 9])]
    proposals = [boxes([0, 0, 10, 8], [50, 50, 90, 90]), boxes([0, 0, 1, 1]), NONE]
    summary = proposal_recall(truth, proposals, limits=(1, 2))
    # The first proposal has IoU 0.8, which reaches seven of ten thresholds.
    assert summary == pytest.approx(
        {"recall@1": 100 / 3, "AR@1": 70 / 3, "recall@2": 200 / 3, "AR@2": 170 / 3}
    )


def test_the_default_limits_are_100_300_and_1000():
    summary = proposal_recall([boxes([0, 0, 1, 1])], [boxes([0, 0, 1, 1])])
    assert summary == {
        f"{name}@{limit}": 100.0 for limit in (100, 300, 1000) for name in ("recall", "AR")
    }


@pytest.mark.parametrize(
    ("num_proposals", "limits"),
    [
        (0, ()),
        (50, (50,)),
        (100, (100,)),
        (200, (100, 200)),
        (1000, (100, 300, 1000)),
        (2000, (100, 300, 1000)),
    ],
)
def test_no_more_proposals_are_counted_than_exist(num_proposals, limits):
    assert limits_of(num_proposals) == limits


def test_proposals_are_matched_greedily_in_their_order():
    truth = boxes([0, 0, 10, 10], [0, 0, 10, 8])
    proposals = boxes([0, 0, 10, 9], [0, 0, 10, 10], [0, 0, 10, 10])
    # The first proposal has IoU 0.9 and 0.89 with the boxes and matches the first box. The second
    # box has IoU 0.8 with the others. At 0.85 a maximal matching would match both boxes.
    ranks = found_at(truth, proposals)
    np.testing.assert_array_equal(ranks[:7], [[0, 1]] * 7)
    np.testing.assert_array_equal(ranks[[7, -1]], [[0, NEVER], [1, NEVER]])


def test_without_boxes_there_is_no_recall():
    nothing = {"recall@7": None, "AR@7": None}
    assert proposal_recall([NONE], [boxes([0, 0, 1, 1])], limits=(7,)) == nothing
    assert proposal_recall([], [], limits=(7,)) == nothing


def test_boxes_without_area_are_never_matched():
    flat = boxes([3, 3, 3, 9])
    assert (found_at(flat, flat) == NEVER).all()


def test_ranks_are_unchanged_by_json():
    truth = [boxes([0, 0, 10, 10]), NONE]
    ranks = [found_at(boxes_, boxes([0, 0, 10, 10])) for boxes_ in truth]
    sent = json.loads(json.dumps([image.tolist() for image in ranks]))
    assert summarize_recall(sent) == summarize_recall(ranks)


def test_bad_arrays_are_refused():
    with pytest.raises(ValueError, match=r"boxes have shape \(4,\), expected \[count, 4\]"):
        found_at(np.zeros(4), NONE)
    with pytest.raises(ValueError, match=r"proposals have shape \(0,\)"):
        found_at(NONE, np.zeros(0))
    with pytest.raises(ValueError, match="proposals hold numbers that are not finite"):
        found_at(NONE, boxes([0, 0, np.nan, 1]))
    with pytest.raises(ValueError, match="boxes of 1 images, proposals of 2"):
        proposal_recall([NONE], [NONE, NONE])


def scene(draws, grid: int):
    """Boxes, crowd flags and proposals near the boxes; a grid gives many equal overlaps."""
    count = draws.integers(0, 9)
    low = draws.uniform(0, 60, (count, 2))
    truth = np.concatenate([low, low + draws.uniform(4, 40, (count, 2))], axis=1)
    near = np.repeat(truth, 6, axis=0)
    near = near + draws.normal(0, 3, near.shape)
    far = draws.uniform(0, 50, (10, 2))
    proposals = np.concatenate([near, np.concatenate([far, far + 20], axis=1)])
    proposals = draws.permutation(proposals)
    if grid:
        truth, proposals = (np.round(array / grid) * grid for array in (truth, proposals))
    truth, proposals = (a[(a[:, 2:] > a[:, :2]).all(axis=1)] for a in (truth, proposals))
    return truth, draws.random(len(truth)) < 0.2, proposals


def to_xywh(array):
    return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in array.tolist()]


@pytest.mark.parametrize("seed", range(6))
def test_recall_equals_that_of_pycocotools_without_categories(seed):
    draws = np.random.default_rng(seed)
    scenes = [scene(draws, grid=(seed % 2) * 4) for _ in range(12)]
    limits = (2, 8, 60)
    annotations, results = [], []
    for image, (truth, crowd, proposals) in enumerate(scenes, start=1):
        for box, is_crowd in zip(to_xywh(truth), crowd, strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": 1, "bbox": box}
            annotations.append(entry | {"area": box[2] * box[3], "iscrowd": int(is_crowd)})
        for rank, box in enumerate(to_xywh(proposals)):
            results.append({"image_id": image, "category_id": 1, "bbox": box, "score": -rank})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i + 1} for i in range(len(scenes))],
            "categories": [{"id": 1, "name": "any"}],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    recall = 100 * evaluation.eval["recall"][:, 0, 0, :]  # [threshold, limit]
    expected = {f"recall@{limit}": recall[0, i] for i, limit in enumerate(limits)}
    expected |= {f"AR@{limit}": recall[:, i].mean() for i, limit in enumerate(limits)}
    summary = proposal_recall(
        [truth[~crowd] for truth, crowd, _ in scenes],
        [proposals for *_, proposals in scenes],
        limits=limits,
    )
    assert summary == pytest.approx(expected, abs=1e-9)
    assert 5 < summary["AR@2"] < summary["AR@60"] < 95
