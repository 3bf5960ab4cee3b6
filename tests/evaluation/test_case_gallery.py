"""The gallery of the synthetic experiment shows images by the share of right detections."""

import io

import numpy as np
from PIL import Image

from regionclip_jax.data.sources.records import DetectionRecord
from regionclip_jax.evaluation import case_gallery

NAMES = ("cat", "dog")


class Source:
    """Images of 60 pixels, image i with two objects."""

    category_names = NAMES

    def __len__(self):
        return 7

    def __getitem__(self, index):
        file = io.BytesIO()
        Image.new("RGB", (60, 60), (index, 0, 0)).save(file, "PNG")
        boxes = np.array([(0, 0, 20, 20), (30, 0, 50, 20)], np.float32)
        return DetectionRecord(
            key=str(index), image=file.getvalue(), boxes=boxes, classes=np.array([0, 1]),
            crowd=np.array([False, False]), image_id=index,
        )  # fmt: skip


def found(image, *names, score=0.5):
    """Detections of both objects by these names; None is elsewhere."""
    return [
        {
            "image_id": image,
            "category_id": 1 + NAMES.index(name or "cat"),
            "bbox": [30 * number if name else 35, 0 if name else 35, 20, 20],
            "score": score - number / 100,
        }
        for number, name in enumerate(names)
    ]


def test_cases_follow_the_last_models_share_of_right_detections_and_their_scores():
    student = [
        *found(0, "cat", "cat"),
        *found(1, "cat", "dog"),
        *found(2, "dog", "cat", score=0.9),
        *found(3, "cat", "dog", score=0.9),
        *found(4, "cat", "cat"),
        *found(5, "cat", None),
        # Image 6 has none.
    ]
    teacher = found(6, "cat", "dog", "dog")
    cases = case_gallery.choose_cases(
        Source(), {"teacher": teacher, "student": student}, class_names={1: "cat", 2: "dog"}
    )
    shown = {
        case: [int(student.image[0, 0, 0]) for _, student in examples]
        for case, examples in cases.items()
    }
    assert shown == {"best": [3, 1], "typical": [0, 4], "worst": [2, 6]}
    best, typical = cases["best"][0], cases["typical"][1]
    assert [len(panel.marks) for panel in best] == [0, 2]
    assert [mark.kind for mark in typical[1].marks] == ["right", "wrong"]
    # As many as the image has objects.
    assert [len(panel.marks) for panel in cases["worst"][1]] == [2, 0]


def test_a_page_has_a_heading_for_each_case():
    results = {"teacher": [], "student": found(0, "cat", "dog")}
    names = {1: "cat", 2: "dog"}
    page = case_gallery.draw(Source(), results, class_names=names, subtitle="")
    rows = 3 * (34 + 27 + 300)
    assert page.dtype == np.uint8 and page.shape[0] > rows and page.shape[1] > 4 * 300
