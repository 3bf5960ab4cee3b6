import numpy as np
import pytest

from regionclip_jax.evaluation import predictions
from regionclip_jax.structures import DetectionBatch, Detections

IDS = [1, 7, 90]


def batch(image_ids, mask):
    count = len(image_ids)
    return DetectionBatch(
        images=np.zeros((count, 40, 60, 3), np.uint8),
        sizes=np.tile(np.array([[40, 50]], np.int32), (count, 1)),
        boxes=np.zeros((count, 2, 4), np.float32),
        classes=np.tile(np.array([[2, 0]], np.int32), (count, 1)),
        box_mask=np.tile(np.array([[True, False]]), (count, 1)),
        image_ids=np.array(image_ids, np.int32),
        scales=np.tile(np.array([[0.5, 2.0]], np.float32), (count, 1)),
        mask=np.array(mask),
    )


BOXES = [[5, 10, 15, 50], [20, 60, 25, 80], [0, 0, 9, 9]]


def predict(batch):
    count = len(batch.image_ids)
    detections = Detections(
        boxes=np.tile(np.array(BOXES, np.float32), (count, 1, 1)),
        scores=np.tile(np.array([0.9, 0.8, 0.0], np.float32), (count, 1)),
        classes=np.tile(np.array([1, 2, 0], np.int32), (count, 1)),
        mask=np.tile(np.array([True, True, False]), (count, 1)),
    )
    return detections, np.tile(np.array([[2, 1]], np.int32), (count, 1))


def run(predict_fn, batches, gather=lambda records: records, category_ids=IDS):
    return predictions.run(predict_fn, batches, category_ids=category_ids, gather=gather)


def test_real_detections_become_xywh_as_they_are():
    answers = run(predict, [batch([5], [True])])
    assert answers.results == [
        {"image_id": 5, "category_id": 7, "bbox": [5, 10, 10, 40], "score": pytest.approx(0.9)},
        {"image_id": 5, "category_id": 90, "bbox": [20, 60, 5, 20], "score": pytest.approx(0.8)},
    ]  # the third box is masked
    np.testing.assert_array_equal(answers.predicted, [2])
    np.testing.assert_array_equal(answers.actual, [2])


def test_boxes_of_a_canvas_come_home_clipped_scaled_and_as_xywh():
    boxes = np.array([[10, 5, 30, 25], [40, 30, 70, 60], [52, 0, 58, 9]], np.float32)
    one = batch([5], [True])
    found = predictions.to_original_xywh(boxes, sizes=one.sizes[0], scales=one.scales[0])
    np.testing.assert_array_equal(found, [[5, 10, 10, 40], [20, 60, 5, 20], [25, 0, 0, 18]])


def test_padding_and_doubles_are_dropped_and_images_sorted():
    batches = [batch([9, 5], [True, True]), batch([5, 0], [True, False])]
    answers = run(predict, batches)
    assert answers.num_images == 2
    assert [result["image_id"] for result in answers.results] == [5, 5, 9, 9]
    assert len(answers.actual) == 2


def test_records_of_other_processes_join_through_gather():
    other = {"image_id": 1, "results": [], "predicted": [0], "actual": [1]}
    answers = run(predict, [batch([5], [True])], gather=lambda records: [other, *records, *records])
    assert answers.num_images == 2
    np.testing.assert_array_equal(answers.actual, [1, 2])


def test_without_box_classes_there_is_no_recognition():
    answers = run(lambda batch: (predict(batch)[0], None), [batch([5], [True])])
    assert answers.predicted.shape == answers.actual.shape == (0,)
    assert len(answers.results) == 2


def test_no_batches_give_nothing():
    assert run(predict, []).results == []


def test_numbers_that_are_not_finite_are_refused():
    def broken(batch):
        detections, classes = predict(batch)
        detections.scores[0, 1] = np.nan
        return detections, classes

    with pytest.raises(ValueError, match="image 5: .*not finite"):
        run(broken, [batch([5], [True])])


def test_a_class_without_category_id_is_refused():
    with pytest.raises(ValueError, match="predicted class 2 with 2 category ids"):
        run(predict, [batch([5], [True])], category_ids=[1, 7])
