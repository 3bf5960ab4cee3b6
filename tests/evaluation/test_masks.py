"""Masks of detections: pixels from cells, the COCO encoding, and AP. (No golden arrays.)"""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from regionclip_jax.data.sources.annotation_files import as_annotation_file
from regionclip_jax.evaluation.coco import coco_ap50
from regionclip_jax.evaluation.ground_truth import coco_ground_truth, lvis_ground_truth
from regionclip_jax.evaluation.lvis import lvis_ap
from regionclip_jax.evaluation.masks import encode_mask, paste_mask


def by_loops(probabilities, box, height, width):
    size, pixels = len(probabilities), np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            u = (x + 0.5 - box[0]) / (box[2] - box[0]) * size - 0.5
            v = (y + 0.5 - box[1]) / (box[3] - box[1]) * size - 0.5
            value = 0.0
            for i in (int(np.floor(v)), int(np.floor(v)) + 1):
                for j in (int(np.floor(u)), int(np.floor(u)) + 1):
                    if 0 <= i < size and 0 <= j < size:
                        value += probabilities[i, j] * (1 - abs(u - j)) * (1 - abs(v - i))
            pixels[y, x] = value >= 0.5
    return pixels


@pytest.mark.parametrize(
    "box", [(3.2, 4.1, 17.9, 12.4), (0.0, 0.0, 24.0, 20.0), (-3.0, 8.0, 9.5, 30.0), (5, 5, 6, 6)]
)
def test_pasted_masks_equal_the_formula_at_every_pixel(box):
    probabilities = np.random.default_rng(0).random((7, 7)).astype(np.float32)
    box = np.array(box, np.float32)
    expected = by_loops(probabilities, box, 20, 24)
    pasted = paste_mask(probabilities, box, 20, 24)
    # The linear edge of the formula may leave the box; a detection has no pixels there.
    inside = np.zeros_like(expected)
    (x1, y1), (x2, y2) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    inside[max(y1, 0) : y2, max(x1, 0) : x2] = True
    np.testing.assert_array_equal(pasted, expected & inside)


def test_an_empty_box_covers_nothing():
    assert not paste_mask(np.ones((3, 3)), np.array([4.0, 4, 4, 9]), 10, 10).any()


def test_a_disc_is_restored_from_its_cells():
    y, x = np.mgrid[:28, :28] + 0.5
    cells = ((x - 14) ** 2 + (y - 14) ** 2 < 14**2).astype(np.float32)
    pasted = paste_mask(cells, np.array([10.0, 20, 66, 76]), 100, 90)
    y, x = np.mgrid[:100, :90] + 0.5
    expected = (x - 38) ** 2 + (y - 48) ** 2 < 28**2
    assert (pasted & expected).sum() / (pasted | expected).sum() > 0.95
    np.testing.assert_array_equal(coco_mask.decode(encode_mask(pasted)), pasted)


@pytest.fixture
def truth():
    """Ground truth with a square whose left half is the object."""
    polygon = [10.0, 10, 20, 10, 20, 30, 10, 30]
    annotation = {
        "id": 1, "image_id": 1, "category_id": 5, "bbox": [10, 10, 20, 20], "area": 200,
        "segmentation": [polygon],
    }  # fmt: skip
    image = {"id": 1, "height": 40, "width": 50}
    image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    category = {"id": 5, "name": "thing", "frequency": "r"}
    return {"images": [image], "annotations": [annotation], "categories": [category]}


def as_lvis(content):
    return lvis_ground_truth(as_annotation_file("ground truth", content))


def result(pixels):
    prediction = {"image_id": 1, "category_id": 5, "bbox": [10, 10, 20, 20], "score": 0.9}
    return prediction if pixels is None else prediction | {"segmentation": encode_mask(pixels)}


def half(left: bool) -> np.ndarray:
    pixels = np.zeros((40, 50), bool)
    pixels[10:30, 10 : 20 if left else 30] = True
    pixels[10:30, : 10 if left else 20] = False
    return pixels


@pytest.mark.parametrize(("left", "expected"), [(True, 100.0), (False, 0.0)])
def test_mask_ap_compares_masks_instead_of_boxes(truth, left, expected):
    lvis = lvis_ap(
        lvis_ground_truth(as_annotation_file("a file", truth)), [result(half(left))], compare="segm"
    )["summary"]
    boxes = lvis_ap(as_lvis(truth), [result(half(left))])["summary"]
    assert [lvis["AP"], lvis["APr"]] == pytest.approx([expected, expected])
    assert boxes["AP"] == pytest.approx(100.0)
    coco = {
        "images": [{k: truth["images"][0][k] for k in ("id", "height", "width")}],
        "annotations": truth["annotations"],
        "categories": [{"id": 5, "name": "thing"}],
    }
    coco = coco_ground_truth(as_annotation_file("ground truth", coco))
    summary = coco_ap50(coco, [result(half(left))], category_groups={"all": {5}}, compare="segm")[
        "summary"
    ]
    assert [summary["AP50_all"], summary["AP"]] == pytest.approx([expected, expected])


def test_mask_ap_of_results_without_masks_is_refused(truth):
    with pytest.raises(ValueError, match="result 1 of image 1 has no 'segmentation'"):
        lvis_ap(
            lvis_ground_truth(as_annotation_file("a file", truth)), [result(None)], compare="segm"
        )
    del truth["annotations"][0]["segmentation"]
    with pytest.raises(ValueError, match="annotation 1 of image 1 has no 'segmentation'"):
        lvis_ap(
            lvis_ground_truth(as_annotation_file("a file", truth)),
            [result(half(True))],
            compare="segm",
        )
