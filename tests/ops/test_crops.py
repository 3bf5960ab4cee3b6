"""Crops against those of Pillow, cropped and resized on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionclip_jax.ops.crops import crop_and_letterbox, crop_and_resize

crop = jax.jit(crop_and_resize, static_argnames="output_size")


def pillow_crops(image, boxes, size, output_size):
    """Return bicubic crops of Pillow, with boxes clipped to the image and rounded to pixels."""
    visible = Image.fromarray(image[: size[0], : size[1]])
    limit = np.array([size[1], size[0], size[1], size[0]])
    crops = []
    for x1, y1, x2, y2 in np.clip(boxes, 0, limit):
        box = (int(np.floor(x1)), int(np.floor(y1)), int(np.ceil(x2)), int(np.ceil(y2)))
        piece = visible.crop(box).resize((output_size, output_size), Image.Resampling.BICUBIC)
        crops.append(np.asarray(piece, np.float32))
    return np.stack(crops)


@pytest.mark.property
@given(seed=st.integers(0, 10**6), smooth=st.booleans())
def test_crops_equal_pillows_to_the_rounding_of_bytes(seed, smooth):
    """Compare within the rounding of Pillow to bytes after each axis.

    The first rounding error of 0.5 grows by at most 1.3 in the second filter, which adds 0.5. The
    noise is faint, so no filter exceeds the range of bytes. Boxes shrink and grow, and some cross
    the border of the image.
    """
    rng = np.random.default_rng(seed)
    size = (61, 83)
    if smooth:
        waves = np.sin(np.arange(64)[:, None, None] / 9 + np.arange(96)[None, :, None] / 5)
        image = (127 + 120 * waves * rng.uniform(0.5, 1, 3)).astype(np.uint8)
    else:
        image = rng.integers(64, 192, (64, 96, 3), np.uint8)
    corners = rng.uniform(-10, 70, (6, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(12, 60, (6, 2))], 1).astype(np.float32)
    boxes[0] = [0, 0, 83, 61]
    expected = pillow_crops(image, boxes, size, 32)
    actual = crop(
        jnp.asarray(image)[None], jnp.asarray(boxes)[None], jnp.array([size]), output_size=32
    )
    difference = np.abs(np.asarray(actual[0]) - expected)
    assert difference.max() < 1.15 and difference.mean() < 0.4


def test_letterboxed_crops_equal_pillows_in_the_middle_of_black_squares():
    """Compare like the crops above. Boxes are wide, high, square, a line, and empty."""
    rng = np.random.default_rng(0)
    image = rng.integers(64, 192, (64, 96, 3), np.uint8)
    boxes = np.array(
        [[3, 5, 70, 26], [80.5, 2.2, 89, 61], [10, 10, 41, 41], [5, 5, 83, 6], [9, 9, 9, 20]],
        np.float32,
    )
    letterbox = jax.jit(crop_and_letterbox, static_argnames="output_size")
    actual = letterbox(
        jnp.asarray(image)[None], jnp.asarray(boxes)[None], jnp.array([[61, 83]]), output_size=33
    )
    # (height, width) of the resized box and its first row and column; 80.5 to 83 is 3 wide.
    layouts = [((10, 33), (11, 0)), ((33, 2), (0, 15)), ((33, 33), (0, 0)), ((1, 33), (16, 0))]
    for crop_, (x1, y1, x2, y2), ((h, w), (top, left)) in zip(
        np.array(actual[0]), boxes[:4], layouts, strict=False
    ):
        box = (int(x1), int(y1), min(83, int(np.ceil(x2))), min(61, int(np.ceil(y2))))
        piece = Image.fromarray(image[:61, :83]).crop(box)
        expected = np.asarray(piece.resize((w, h), Image.Resampling.BICUBIC), np.float32)
        inner = (slice(top, top + h), slice(left, left + w))
        assert np.abs(crop_[inner] - expected).max() < 1.15
        crop_[inner] = 0
        assert not crop_.any()
    assert not np.asarray(actual[0, 4]).any()


def test_a_box_of_the_output_size_is_cropped_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    boxes = jnp.array([[[3.0, 5.0, 19.0, 21.0]], [[34.0, 24.0, 50.0, 40.0]]])
    actual = crop(jnp.asarray(image), boxes, jnp.array([[40, 50], [40, 50]]), output_size=16)
    np.testing.assert_allclose(actual[0, 0], image[0, 5:21, 3:19], atol=1e-4)
    np.testing.assert_allclose(actual[1, 0], image[1, 24:40, 34:50], atol=1e-4)


def test_pixels_outside_the_box_or_the_image_have_no_effect():
    image = np.full((1, 40, 50, 3), 255, np.uint8)
    image[0, 4:12, 6:30] = 9
    image[0, :, 30:] = 77  # padding of the canvas
    boxes = jnp.array([[[6.4, 4.2, 29.9, 11.5], [6.0, 4.0, 90.0, 12.0]]])
    actual = crop(jnp.asarray(image), boxes, jnp.array([[40, 30]]), output_size=24)
    np.testing.assert_allclose(actual, 9, atol=1e-3)


def test_boxes_without_pixels_give_zeros():
    image = jnp.full((1, 8, 8, 3), 200, jnp.uint8)
    boxes = jnp.array([[[2, 2, 2, 5], [0, 0, 0, 0], [5, 5, 3, 3], [20, 20, 30, 30]]], jnp.float32)
    assert not np.asarray(crop(image, boxes, jnp.array([[8, 8]]), output_size=4)).any()
    assert crop(image, jnp.zeros((1, 0, 4)), jnp.array([[8, 8]]), output_size=4).shape[1] == 0
