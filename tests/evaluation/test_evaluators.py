"""Evaluators with predictions of a NumPy function, so that the metrics are known."""

import numpy as np
import pytest

from answers import answers
from regionclip_jax.data.scenes.vocabulary import BASE_SHAPES, NOVEL_SHAPES, SHAPES
from regionclip_jax.evaluation import predictions
from regionclip_jax.evaluation.counts import count
from regionclip_jax.evaluation.datasets import open_dataset
from regionclip_jax.evaluation.error_kinds import KINDS
from regionclip_jax.evaluation.evaluators import (
    Detection,
    Evaluator,
    ProposalRecall,
    RegionRecognition,
    Summary,
    evaluate,
)
from regionclip_jax.structures import DetectionBatch, Detections

NUM_IMAGES, SIZE = 30, 3


class Scenes:
    """Source without records; ``batches`` makes the batches."""

    category_names = SHAPES

    def __len__(self):
        return NUM_IMAGES


def batches():
    """Yield batches of three images with two boxes each; the last row is padding."""
    rng = np.random.default_rng(0)
    for start in range(0, NUM_IMAGES + 1, SIZE):
        corners = rng.uniform(0, 20, (SIZE, 2, 2))
        yield DetectionBatch(
            images=np.zeros((SIZE, 40, 60, 3), np.uint8),
            sizes=np.full((SIZE, 2), 40, np.int32),
            boxes=np.concatenate([corners, corners + 15], -1).astype(np.float32),
            classes=rng.integers(0, len(SHAPES), (SIZE, 2)).astype(np.int32),
            box_mask=np.tile(np.array([True, False]), (SIZE, 1)) | (rng.random((SIZE, 2)) < 0.5),
            image_ids=np.arange(start, start + SIZE, dtype=np.int32),
            scales=np.tile(np.array([[0.5, 2.0]], np.float32), (SIZE, 1)),
            mask=np.arange(start, start + SIZE) < NUM_IMAGES,
        )


def run(choose):
    dataset = open_dataset(Scenes(), "scenes")
    evaluators = [
        Detection(dataset, max_detections=100, given_boxes=True),
        RegionRecognition(dataset),
        ProposalRecall(dataset.groups),
    ]
    return evaluate(answers(choose), dataset, batches(), evaluators)


def test_correct_predictions_score_a_hundred_in_every_group():
    metrics, details, counts = run(lambda batch: batch.classes)
    names = ("AP50", "top1")
    expected = [f"{name}_{group}" for name in names for group in ("novel", "base", "all")]
    assert list(metrics)[:6] == expected and {"AR@2_novel", "recall@2"} < set(metrics)
    assert metrics == pytest.approx(dict.fromkeys(metrics, 100.0))
    assert not details["confused"] and details["num_images"] == NUM_IMAGES
    assert details["num_annotated"] == NUM_IMAGES
    # All three numbers count the same boxes of this source, whose images all have a box.
    assert list(counts) == ["AP", "top1", "recall"] and len({str(c) for c in counts.values()}) <= 2
    assert counts["AP"] == counts["top1"] and counts["AP"].groups == counts["recall"].groups
    assert counts["AP"].images == NUM_IMAGES and not counts["AP"].images_without_boxes


def test_metrics_do_not_depend_on_the_image_ids():
    def choose(batch):
        return np.where(batch.boxes[..., 0] < 15, batch.classes, 0)

    dataset = open_dataset(Scenes(), "scenes")
    expected = run(choose).metrics
    ids = np.array([20231115123456, 5, 5 - 2**32, 2**32 + 5, *range(-NUM_IMAGES, -4)], np.int64)

    def renamed():
        for batch in batches():
            yield batch.replace(image_ids=ids[np.minimum(batch.image_ids, NUM_IMAGES - 1)])

    detection = Detection(dataset, max_detections=100, given_boxes=True)
    summary = evaluate(answers(choose), dataset, renamed(), [detection])
    metrics, details = summary.metrics, summary.details
    assert metrics == {name: pytest.approx(expected[name]) for name in metrics}
    assert {result["image_id"] for result in details["results"]} <= set(ids.tolist())
    assert details["num_images"] == NUM_IMAGES and 0 < metrics["AP50_all"] < 100


def test_a_group_counts_only_its_classes():
    real = [batch.classes[batch.mask][batch.box_mask[batch.mask]] for batch in batches()]
    classes = np.concatenate(real)
    novel = [SHAPES.index(name) for name in NOVEL_SHAPES]
    is_novel = np.isin(classes, novel)
    scapegoat = np.bincount(classes[~is_novel]).argmax()

    # Base boxes get the correct class, and all novel boxes get one base class.
    def choose(batch):
        return np.where(np.isin(batch.classes, novel), scapegoat, batch.classes)

    metrics, details, _ = run(choose)
    assert 0 < is_novel.mean() < 1
    assert metrics["top1_novel"] == 0 and metrics["AP50_novel"] == 0
    assert metrics["top1_base"] == 100
    assert metrics["top1_all"] == pytest.approx(100 * (1 - is_novel.mean()))
    # Novel boxes predicted as a base class lower the AP of this class.
    assert 50 < metrics["AP50_base"] < 99
    assert details["per_category"][SHAPES[scapegoat]]["AP50"] < 99
    assert {guess for _, guess, _ in details["confused"]} == {SHAPES[scapegoat]}
    assert set(details["per_category"]) == {*NOVEL_SHAPES, *BASE_SHAPES}
    errors = details["errors"]
    groups = ("novel", "base", "all")
    assert errors.ap50 == pytest.approx({group: metrics[f"AP50_{group}"] for group in groups})
    # Each novel box is lost to classification, and nothing else is wrong.
    assert sum(errors.objects["classification"].values()) == is_novel.sum()
    assert errors.lost["novel"]["classification"] == 100
    assert not any(errors.lost["all"][kind] for kind in KINDS if kind != "classification")


class Ids(Evaluator):
    """Evaluator that collects the ids of the images."""

    def _record(self, batch, prediction, row):
        return row

    def _summarize(self, records):
        counts = {"id": count([[]] * len(records), {})}
        return Summary({"count": float(len(records))}, {"records": dict(records)}, counts)


def one_batch(image_ids, mask):
    batch = next(batches())
    return batch.replace(
        image_ids=np.array(image_ids, np.int32), mask=np.array(mask), box_mask=batch.box_mask
    )


def collect(batches, gather=lambda records: records):
    return evaluate(
        answers(lambda batch: batch.classes),
        open_dataset(Scenes(), "scenes"),
        batches,
        [Ids(gather)],
    )


def test_padding_and_duplicates_are_dropped_and_images_are_sorted():
    scores = collect([one_batch([9, 5, 0], [True, True, False]), one_batch([5, 1, 0], [True] * 3)])
    assert scores.metrics == {"count": 4.0}
    assert list(scores.details["records"].items()) == [(0, 2), (1, 1), (5, 1), (9, 0)]
    assert scores.counts["id"].exceptions == {"images_of_a_repeated_id_ignored": 1}


def test_records_of_other_processes_are_gathered():
    other = [1, "from another process"]
    batch = one_batch([5, 0, 0], [True, False, False])
    scores = collect([batch], gather=lambda records: [other, *records, *records])
    assert scores.details["records"] == {1: "from another process", 5: 0}


def test_metrics_without_batches_are_none():
    dataset = open_dataset(Scenes(), "scenes")
    evaluators = [
        Detection(dataset, max_detections=100, given_boxes=False),
        RegionRecognition(dataset),
        ProposalRecall({"all": dataset.groups["all"]}),
    ]
    metrics, details, counts = evaluate(
        answers(lambda batch: batch.classes), dataset, [], evaluators
    )
    assert set(metrics.values()) == {None} and details["results"] == []
    assert {"AP", "APs", "AP50_novel", "top1_base"} < set(metrics)
    # Without regions no recall can exist.
    assert not any(name.startswith("recall") for name in metrics)
    assert counts["AP"].images == 0 and counts["AP"].classes_without_boxes == list(SHAPES)


BOXES = [[5, 10, 15, 50], [20, 60, 25, 80], [0, 0, 9, 9]]


def detections(scores=(0.9, 0.8, 0.0)):
    return Detections(
        boxes=np.array([BOXES], np.float32),
        scores=np.array([scores], np.float32),
        classes=np.array([[1, 2, 0]], np.int32),
        mask=np.array([[True, True, False]]),
    )


def test_unmasked_detections_are_written_as_xywh():
    batch = one_batch([5, 6, 7], [True] * 3)
    assert predictions.coco_results(batch, detections(), 0, [1, 7, 90]) == [
        {"image_id": 5, "category_id": 7, "bbox": [5, 10, 10, 40], "score": pytest.approx(0.9)},
        {"image_id": 5, "category_id": 90, "bbox": [20, 60, 5, 20], "score": pytest.approx(0.8)},
    ]  # the third box is masked


def test_boxes_of_a_canvas_are_clipped_and_scaled_to_xywh_of_the_original_image():
    boxes = np.array([[10, 5, 30, 25], [40, 30, 70, 60], [52, 0, 58, 9]], np.float32)
    original = predictions.to_original_xywh(
        boxes, sizes=np.array([40, 50]), scales=np.array([0.5, 2.0])
    )
    np.testing.assert_array_equal(original, [[5, 10, 10, 40], [20, 60, 5, 20], [25, 0, 0, 18]])


def test_numbers_that_are_not_finite_are_refused():
    broken = detections((0.9, np.nan, 0.0))
    with pytest.raises(ValueError, match="image 5: .*not finite"):
        predictions.coco_results(one_batch([5, 6, 7], [True] * 3), broken, 0, [1, 7, 90])


def test_a_class_without_category_id_is_refused():
    with pytest.raises(ValueError, match="predicted class 2 with 2 category ids"):
        predictions.coco_results(one_batch([5, 6, 7], [True] * 3), detections(), 0, [1, 7])
