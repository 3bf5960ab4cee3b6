import numpy as np
import pytest

from regionclip_jax.data.scenes.dataset import SceneImages, draw_record
from regionclip_jax.data.scenes.vocabulary import SHAPES
from regionclip_jax.evaluation import recognition_gallery


def result(image_id: int, box, index: int, score: float) -> dict:
    """Prediction as an evaluation writes it: rounded, with category ids from 1."""
    x1, y1, x2, y2 = (float(v) for v in box)
    bbox = [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
    return {"image_id": image_id, "category_id": index + 1, "bbox": bbox, "score": score}


def results_of(records, choose) -> list[dict]:
    return [
        result(record.image_id, box, choose(int(label)), 0.5)
        for record in records
        for box, label in zip(record.boxes, record.classes, strict=True)
    ]


@pytest.fixture(scope="module")
def records():
    scenes = SceneImages(0, 0, 64, (1, 3), (0.3, 0.5), overlap=0.2, typicality=0.8, clutter=1)
    return [draw_record(scenes, index, True) for index in range(9)]


def test_the_best_name_of_every_model_and_box_is_judged(records):
    wrong = results_of(records, lambda label: (label + 1) % len(SHAPES))
    # The correct name comes second: the higher score counts, not the order.
    second = [r | {"score": 0.1} for r in results_of(records, lambda label: label)]
    results = {"teacher": second + wrong, "student": results_of(records, lambda k: k)}
    examples = recognition_gallery.judge_examples(records, results, class_names=SHAPES)
    assert len(examples) == 8
    for record, (teacher, student) in zip(records, examples, strict=False):
        labels = [int(label) for label in record.classes]
        assert [m.text for m in student.marks] == [SHAPES[k] for k in labels]
        assert [m.text for m in teacher.marks] == [SHAPES[(k + 1) % len(SHAPES)] for k in labels]
        assert {m.kind for m in student.marks} <= {"right"}
        assert {m.kind for m in teacher.marks} <= {"wrong"}
        for mark, box in zip(student.marks, record.boxes, strict=True):
            np.testing.assert_allclose(mark.box, box)
        assert student.image.shape == (64, 64, 3)


def test_a_box_without_predictions_is_wrong_with_a_question_mark(records):
    elsewhere = [result(r.image_id, (0, 0, 1, 1), 0, 0.9) for r in records]
    of_others = [r | {"image_id": r["image_id"] + 1000} for r in results_of(records, lambda k: k)]
    examples = recognition_gallery.judge_examples(
        records, {"teacher": elsewhere + of_others}, class_names=SHAPES
    )
    marks = [mark for (panel,) in examples for mark in panel.marks]
    assert marks and {(m.text, m.kind) for m in marks} == {("?", "wrong")}


def test_every_example_is_drawn(records):
    results = {"student": results_of(records, lambda label: label)}
    page = recognition_gallery.draw(records, results, class_names=SHAPES)
    assert page.dtype == np.uint8 and page.shape[2] == 3 and page.std() > 5
