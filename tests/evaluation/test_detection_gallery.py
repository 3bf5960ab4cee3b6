"""The gallery of an evaluation judges each box as AP50 counts it."""

import io

import numpy as np
from PIL import Image

from regionclip_jax.data.sources.records import DetectionRecord
from regionclip_jax.evaluation import detection_gallery

NAMES = ("cat", "dog")
OBJECTS = [(0, 0, 20, 20), (30, 0, 50, 20), (0, 30, 20, 50)]


class Source:
    category_names = NAMES

    def __len__(self):
        return 1

    def __getitem__(self, index):
        file = io.BytesIO()
        Image.new("RGB", (60, 60)).save(file, "PNG")
        return DetectionRecord(
            key="1",
            image=file.getvalue(),
            boxes=np.array(OBJECTS, np.float32),
            classes=np.array([0, 1, 1]),
            crowd=np.array([False, False, True]),
            image_id=7,
        )


def judgements(*predictions, all_annotated=True):
    """Judgements of predictions ``(class, x, y, score)`` of 20 x 20 pixels, best first."""
    results = [
        {
            "image_id": 7,
            "category_id": 1 + NAMES.index(name),
            "bbox": [x, y, 20, 20],
            "score": score,
        }
        for name, x, y, score in predictions
    ]
    ((panel,),) = detection_gallery.judge_examples(
        Source(),
        {"model": results},
        class_names={1: "cat", 2: "dog"},
        all_annotated=all_annotated,
    )
    return [mark.kind for mark in panel.marks]


def test_the_best_detection_of_an_object_is_right_and_the_next_is_wrong():
    assert judgements(("cat", 1, 0, 0.4), ("cat", 0, 0, 0.9)) == ["right", "wrong"]


def test_a_wrong_class_or_a_wrong_position_is_wrong():
    assert judgements(("dog", 0, 0, 0.9), ("dog", 38, 0, 0.8), ("dog", 31, 0, 0.7)) == [
        "wrong",
        "wrong",
        "right",
    ]


def test_a_detection_on_a_crowd_of_its_class_is_not_judged():
    assert judgements(("dog", 1, 31, 0.9), ("cat", 2, 31, 0.8)) == ["unjudged", "wrong"]


def test_no_detection_is_wrong_if_not_all_objects_are_annotated():
    predictions = ("cat", 0, 0, 0.9), ("cat", 35, 35, 0.8)
    assert judgements(*predictions, all_annotated=False) == ["right", "unjudged"]
