import numpy as np
import pytest

from regionclip_jax.data.scenes.vocabulary import SHAPES
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.jobs import recognition_gallery


def result(image_id: int, box, index: int, score: float) -> dict:
    """As an evaluation leaves it: rounded, category ids from 1."""
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
def records(boxes_directory):
    source = ArrayRecordSource(boxes_directory)
    return [source[i] for i in range(len(source))]


@pytest.fixture
def panels(monkeypatch, boxes_directory):
    """``panels(results)``: what the gallery is made of, and its arguments."""
    seen = {}

    def keep(examples, **arguments):
        seen.update(arguments, examples=examples)
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(recognition_gallery, "draw_gallery", keep)

    def draw(results):
        recognition_gallery.draw(boxes_directory, results, class_names=SHAPES)
        return seen

    return draw


def test_every_model_s_best_name_of_every_box_is_judged(records, panels):
    wrong = results_of(records, lambda label: (label + 1) % len(SHAPES))
    # The right name comes second: the better score counts, not the order.
    second = [r | {"score": 0.1} for r in results_of(records, lambda label: label)]
    seen = panels({"teacher": second + wrong, "student": results_of(records, lambda k: k)})
    assert seen["columns"] == ("teacher", "student") and len(seen["examples"]) == 8
    for record, (teacher, student) in zip(records, seen["examples"], strict=False):
        labels = [int(label) for label in record.classes]
        assert [m.text for m in student.marks] == [SHAPES[k] for k in labels]
        assert [m.text for m in teacher.marks] == [SHAPES[(k + 1) % len(SHAPES)] for k in labels]
        assert {m.kind for m in student.marks} <= {"right"}
        assert {m.kind for m in teacher.marks} <= {"wrong"}
        for mark, box in zip(student.marks, record.boxes, strict=True):
            np.testing.assert_allclose(mark.box, box)
        assert student.image.shape == (64, 64, 3)


def test_a_box_nobody_named_is_a_question_mark_and_wrong(records, panels):
    elsewhere = [result(r.image_id, (0, 0, 1, 1), 0, 0.9) for r in records]
    of_others = [r | {"image_id": r["image_id"] + 1000} for r in results_of(records, lambda k: k)]
    seen = panels({"teacher": elsewhere + of_others})
    marks = [mark for (panel,) in seen["examples"] for mark in panel.marks]
    assert marks and {(m.text, m.kind) for m in marks} == {("?", "wrong")}


def test_every_example_is_drawn(records, boxes_directory):
    results = {"student": results_of(records, lambda label: label)}
    page = recognition_gallery.draw(boxes_directory, results, class_names=SHAPES)
    assert page.dtype == np.uint8 and page.shape[2] == 3 and page.std() > 5
