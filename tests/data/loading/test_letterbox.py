"""Letterboxing for the public API, with few canvases and few batch shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.data.loading.letterbox import Letterbox, check_boxes

NO_BOXES = np.zeros((0, 4), np.float32)
sides = st.integers(1, 90)


@pytest.mark.property
@given(sides, sides, st.sampled_from([(32, 50), (40, 40), (64, 107), (20, 10)]))
def test_every_image_within_the_limits_fits_a_canvas(height, width, limits):
    letterbox = Letterbox(*limits, "bilinear_round")
    example = letterbox.load(np.full((height, width, 3), 9, np.uint8), NO_BOXES)
    canvas, size = letterbox.canvas(example), example.image.shape[:2]
    assert not canvas[0] % 32 and not canvas[1] % 32
    batch = letterbox.batch([example])
    assert batch.images.shape == (1, *canvas, 3) and batch.sizes.tolist() == [list(size)]
    assert (batch.images[0, : size[0], : size[1]] == 9).all()
    assert batch.images.sum() == 9 * 3 * size[0] * size[1]


def test_boxes_are_scaled_with_their_image_and_padded_to_few_row_counts():
    letterbox = Letterbox(64, 107, "bilinear_round")
    boxes = np.tile(np.array([[1, 2, 3, 4]], np.float32), (26, 1))
    examples = [letterbox.load(np.zeros((32, 40), np.uint8), rows) for rows in (boxes, boxes[:2])]
    batch = letterbox.batch(examples)
    assert batch.boxes.shape == (2, 50, 4) and batch.box_mask.sum(1).tolist() == [26, 2]
    assert batch.boxes[1, 0].tolist() == [2, 4, 6, 8]
    assert batch.scales.tolist() == [[2, 2], [2, 2]] and batch.mask.all()
    assert letterbox.batch(examples[1:]).boxes.shape == (1, 25, 4)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([1, 2, 3, 4], r"found the shape \[4\]"),
        ([[1, 2, 3, 4], [5, 5, 5, 9]], r"row 1 is \[5.0, 5.0, 5.0, 9.0\]"),
        ([[0, 0, np.nan, 1]], "row 0"),
        ([[0.1, 0.2, 0.5, 0.9], [0, 0, 1, 1]], "all coordinates of the 2 boxes are within 0 and 1"),
        ([[0, 0, 9, 9], [41, 3, 50, 9]], r"row 1 is .*, outside the image of 30 x 40"),
        ([[5, 31, 9, 39]], "row 0 is .*, outside"),
        ([[0, 0, 9, 9], *[[30, 20, 50, 40]] * 4], "4 of 5 boxes reach beyond their image .*x1, y1"),
    ],
)
def test_invalid_boxes_are_refused(boxes, message):
    with pytest.raises(ValueError, match=message):
        check_boxes(boxes, (30, 40))


@pytest.mark.parametrize(
    ("boxes", "size"),
    [
        ([[-1, -1, 41, 31]], (30, 40)),
        ([[30, 20, 50, 40]], (30, 40)),  # a single box at the edge
        ([[0, 0, 1, 1]], (1, 1)),
        ([[0, 0, 4000, 1]], (1, 4000)),
        ([[0, 0, 1, 1], [3, 3, 4, 4]], (30, 40)),
    ],
)
def test_boxes_in_pixels_are_kept_as_they_are(boxes, size):
    np.testing.assert_array_equal(check_boxes(boxes, size), boxes)


@pytest.mark.parametrize("sides", [(0, 9), (-1, 9), (9, 0), (9, 10**9), (float("nan"), 9)])
def test_sides_that_no_image_has_are_refused(sides):
    with pytest.raises(ValueError, match="side: expected a whole number from 1 to 65536, found"):
        Letterbox(*sides, "bilinear_round")
