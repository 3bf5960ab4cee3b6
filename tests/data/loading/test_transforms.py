import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.data.loading.transforms import (
    flip_boxes,
    flip_image,
    resize_short_side,
    resized_size,
)

sides = st.integers(1, 4000)


@pytest.mark.parametrize(
    ("size", "method", "expected"),
    [
        ((480, 640), "bicubic_truncate", (800, 1066)),
        ((480, 640), "bilinear_round", (800, 1067)),
        ((1000, 3000), "bicubic_truncate", (444, 1333)),
        ((1000, 3000), "bilinear_round", (444, 1333)),
        ((3000, 1000), "bicubic_truncate", (1333, 444)),
        ((720, 1280), "bilinear_round", (750, 1333)),
        # The early return of the reference's pretraining rule depends on the short side only.
        ((800, 2000), "bicubic_uncapped", (800, 2000)),
        ((800, 2000), "bicubic_truncate", (533, 1333)),
        ((800, 1200), "bicubic_truncate", (800, 1200)),
        ((1, 5000), "bicubic_truncate", (1, 1333)),
        ((5000, 1), "bilinear_round", (1333, 1)),
        ((800, 2000), "bilinear_round", (533, 1333)),
    ],
)
def test_sizes_follow_the_rules_of_the_specification(size, method, expected):
    assert resized_size(*size, 800, 1333, method) == expected


@pytest.mark.property
@given(sides, sides, st.sampled_from(["bicubic_truncate", "bilinear_round"]))
def test_a_transposed_image_gets_the_transposed_size_within_the_limits(height, width, method):
    size = resized_size(height, width, 800, 1333, method)
    assert resized_size(width, height, 800, 1333, method) == size[::-1]
    assert 1 <= min(size) <= 800 and max(size) <= 1333
    assert min(size) == 800 or max(size) == 1333


def test_an_unknown_method_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="bicubic_truncate, bicubic_uncapped, bilinear_round"):
        resized_size(3, 4, 800, 1333, "nearest")


def test_resizing_keeps_a_constant_image_constant_and_the_axes_separate():
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, :15] = (200, 100, 50)
    for method in ("bicubic_truncate", "bilinear_round"):
        small = resize_short_side(image, 10, 100, method)
        assert small.shape == (10, 15, 3)
        assert (small[:, :6] == (200, 100, 50)).all() and not small[:, 9:].any()


def test_an_image_of_the_target_size_is_returned_unchanged():
    image = np.zeros((20, 30, 3), np.uint8)
    assert resize_short_side(image, 20, 40, "bicubic_truncate") is image


@pytest.mark.property
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_a_box_covers_the_same_pixels_after_both_are_flipped(height, width, data):
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 1
    (box,) = flip_boxes(np.array([[x1, y1, x2, y2]], np.float32), width).astype(int)
    flipped = flip_image(image)
    assert flipped[box[1] : box[3], box[0] : box[2]].all()
    assert flipped.sum() == image.sum() == 3 * (box[2] - box[0]) * (box[3] - box[1])


def test_an_image_without_boxes_is_flipped():
    assert flip_boxes(np.zeros((0, 4), np.float32), 5).shape == (0, 4)
