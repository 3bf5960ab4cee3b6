"""Detections against the reference: from stored logits, from stored proposals and from pixels.

``parity.detections`` documents the images, sizes and settings.
"""

import pytest

from marks import on_accelerators
from parity import detections
from parity.comparison import assert_equal_to_reference

pytestmark = pytest.mark.parity

FROM_PIXELS = [
    pytest.param(tag, marks=pytest.mark.slow) if tag in detections.OF_LOGITS_ALONE else tag
    for tag in detections.TAGS
]


@on_accelerators
def test_logits_and_deltas_of_stored_embeddings_equal_the_references():
    """Measured: 2.2e-7 and 1.1e-7."""
    assert_equal_to_reference(detections.compare_logits_and_deltas())


@on_accelerators
@pytest.mark.parametrize("tag", detections.WITH_STORED_LOGITS)
def test_detections_from_stored_logits_equal_the_references(tag):
    """The first image. Measured: 3.1e-5 px (0 without deltas) and 2.4e-7; with Gaussian NMS
    1.8e-5, as the reference loses bits of the IoU by shifting classes apart."""
    assert_equal_to_reference(detections.compare_from_logits(tag))


@on_accelerators
@pytest.mark.parametrize("vis", [False, True])
@pytest.mark.parametrize("multiply", [False, True])
def test_detections_of_invalid_rows_equal_the_references(multiply, vis):
    """40 rows on an image of 120 x 150: one with a NaN box, one with an infinite logit, 25 with
    negative objectness. Measured: boxes equal, scores within 9.0e-8."""
    assert_equal_to_reference(detections.compare_broken_rows(multiply, vis))


@on_accelerators
@pytest.mark.parametrize("tag", FROM_PIXELS)
def test_detections_from_stored_proposals_equal_the_references(tag):
    """Measured: boxes within 1.2e-4 px (0 without deltas), scores within 3.6e-6, with Gaussian NMS
    2.1e-5; the same order everywhere."""
    detector = detections.tiny_detector()
    assert_equal_to_reference(detections.compare_from_proposals(detector, tag))


@on_accelerators
@pytest.mark.parametrize("tag", [*FROM_PIXELS, "openset"])
def test_detections_from_pixels_equal_the_references(tag):
    """One program. Measured: all detections matched, for every tag."""
    assert_equal_to_reference(detections.compare_from_pixels(tag))


@on_accelerators
@pytest.mark.parametrize("tag", detections.ON_LARGER_CANVAS)
def test_a_larger_canvas_changes_no_detection(tag):
    """Measured: all matched; scores within 2e-5 of those on a tight canvas. If the padding were
    visible, a third would match."""
    assert_equal_to_reference(detections.compare_on_larger_canvas(tag))


@pytest.fixture(scope="module")
def rn50(large_golden_folder):
    return detections.rn50_detector(large_golden_folder)


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["rpn", "rpn_mul", "rpn_mul_vis", "gtmode"])
def test_detections_of_rn50_from_stored_proposals_equal_the_references(rn50, tag):
    """450 x 800, temperature 0.01. Measured: boxes equal, scores within 7.4e-6, the same order."""
    settings = dict(temperature=0.01, regions_per_chunk=100)
    assert_equal_to_reference(detections.compare_from_proposals(rn50, tag, **settings))


@pytest.mark.slow
def test_detections_of_rn50_from_pixels_equal_the_references(rn50, large_golden_folder):
    """Measured: all detections matched."""
    assert_equal_to_reference(detections.compare_rn50_from_pixels(rn50, large_golden_folder))
