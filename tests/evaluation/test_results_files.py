import json

import numpy as np
import pytest

from json_changes import texts_with_another_value
from regionclip_jax.artifacts import results

DETECTION = {
    "image_id": np.int32(3),
    "category_id": 1,
    "bbox": np.array([1.23456, 0, 10, 1 / 3]),
    "score": np.float32(1 / 3),
}


def test_results_are_read_as_written(tmp_path):
    path = tmp_path / "run" / "results.json"
    models = {"teacher": {"AP50": 1 / 3, "AP50_novel": None}, "student": {"AP50": np.float32(2)}}
    results.write_results(path, models, details={"boxes": "ground truth"})
    assert results.read_results(path) == {
        "format": 1,
        "teacher": {"AP50": 0.3333, "AP50_novel": None},
        "student": {"AP50": 2.0},
        "details": {"boxes": "ground truth"},
    }
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_detections_are_rounded_and_plain_json(tmp_path):
    path = tmp_path / "detections.json"
    results.write_detections(path, [DETECTION, DETECTION])
    expected = {"image_id": 3, "category_id": 1, "bbox": [1.23, 0, 10, 0.33], "score": 0.333333}
    assert json.loads(path.read_text()) == results.read_detections(path) == [expected, expected]


def test_no_detections_are_an_empty_list(tmp_path):
    results.write_detections(tmp_path / "none.json", [])
    assert results.read_detections(tmp_path / "none.json") == []


def test_a_metric_that_is_not_finite_is_not_written(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(ValueError, match="'student.AP': expected a finite number or null"):
        results.write_results(path, {"student": {"AP": float("nan")}}, details={})
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", r"'format': expected 1, found \[\]"),
        ('{"format": 2}', "'format': expected 1, found 2"),
        ('{"format": 1, "student": {}}', "'details': expected an object, found None"),
        ('{"format": 1, "a": 3, "details": {}}', "'a': expected an object"),
        ('{"format": 1, "a": {"b": "x"}, "details": {}}', "'a.b': .*found 'x'"),
    ],
)
def test_invalid_results_are_refused_with_file_and_key(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"results.json.*{message}"):
        results.read_results(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "3"}, "record 1: 'image_id': expected an integer, found '3'"),
        ({"image_id": True}, "record 1: 'image_id'"),
        ({"bbox": [1, 2, 3]}, r"record 1: 'bbox': expected \[x, y, width, height\]"),
        ({"bbox": [1, 2, 3, None]}, "record 1: 'bbox'"),
        ({"score": None}, "record 1: 'score': expected a finite number, found None"),
    ],
)
def test_invalid_detections_are_refused_with_record_and_key(tmp_path, change, message):
    path = tmp_path / "detections.json"
    good = {"image_id": 3, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
    path.write_text(json.dumps([good, good | change]))
    with pytest.raises(ValueError, match=message):
        results.read_detections(path)


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(ValueError, match="'score': expected a finite number, found no such key"):
        results.write_detections(
            tmp_path / "d.json", [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]
        )
    with pytest.raises((ValueError, TypeError), match="expected a list of detections|Sequence"):
        results.write_detections(tmp_path / "d.json", {"annotations": []})


@pytest.mark.property
def test_a_value_of_another_type_is_accepted_or_a_one_line_error(tmp_path):
    path, num_refused = tmp_path / "results.json", 0
    results.write_results(path, {"student": {"AP50": 1.5, "AP": None}}, details={"images": 3})
    for text in texts_with_another_value(json.loads(path.read_text())):
        path.write_text(text)
        try:
            results.read_results(path)
        except ValueError as error:
            num_refused += 1
            assert "\n" not in str(error) and "results.json: " in str(error)
    assert num_refused > 50
