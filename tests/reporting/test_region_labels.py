import threading

import numpy as np
import pytest

from regionclip_jax.reporting.drawing import CLASS_COLOURS, Mark, draw_marks
from regionclip_jax.reporting.region_labels import BackgroundImages, draw_labelled_regions
from regionclip_jax.structures import ImageTextBatch, LabelledRegions

CONCEPTS = ("cat", "dog")


@pytest.fixture
def batch() -> ImageTextBatch:
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), np.uint8)
    sizes = np.array([[40, 60], [20, 60], [40, 30]], np.int32)
    return ImageTextBatch(images, sizes, np.zeros((3, 4), np.int32), np.array([1, 0, 1], bool))


@pytest.fixture
def regions() -> LabelledRegions:
    boxes = np.tile(np.array([[2, 2, 20, 20], [5, 5, 28, 30]], np.float32), (3, 1, 1))
    concepts = np.array([[0, 1], [0, 0], [1, 1]], np.int32)
    confidence = np.array([[0.5, 0.75], [0.1, 0.1], [0.9, 0.2]], np.float32)
    return LabelledRegions(boxes, concepts, confidence, np.array([[1, 1], [0, 0], [0, 1]], bool))


def test_kept_regions_are_drawn_with_concept_and_confidence(batch, regions):
    """Skipped records are not drawn; an image is cut out of its canvas."""
    drawn = draw_labelled_regions(batch, regions, CONCEPTS)
    assert list(drawn) == ["pseudo_labels/0", "pseudo_labels/2"]
    assert drawn["pseudo_labels/0"].shape == (320, 480, 3)
    assert drawn["pseudo_labels/2"].shape == (640, 480, 3)
    # The region of 90% is not kept.
    mark = Mark((5, 5, 28, 30), "dog 20%", colour=CLASS_COLOURS[0])
    expected = draw_marks(batch.images[2, :, :30], [mark], width=480)
    np.testing.assert_array_equal(drawn["pseudo_labels/2"], expected)


def test_the_caller_does_not_wait_for_images_and_errors_reach_it():
    begin, written = threading.Event(), []

    def draw():
        assert begin.wait(60)
        return {"a": np.zeros((2, 2, 3), np.uint8)}

    images = BackgroundImages(lambda step, drawn: written.append((step, list(drawn))))
    images.write(1, draw)
    images.write(2, draw)  # dropped, as the first are not written
    assert written == []
    begin.set()
    images.close()
    assert written == [(1, ["a"])]

    images = BackgroundImages(lambda step, drawn: None)
    images.write(1, lambda: [][0])
    with pytest.raises(IndexError):
        images.close()
