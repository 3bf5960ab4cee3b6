"""Box operations against the IoU of the reference and against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marks import on_accelerators
from parity.comparison import assert_equal_to_reference
from parity.ops import compare_iou
from regionclip_jax.ops.boxes import (
    box_area,
    clip_boxes,
    enlarge_boxes,
    exact_threshold,
    intersection_and_union,
    iou_exceeds,
    pairwise_iou,
    scale_boxes,
    valid_boxes,
)

THRESHOLDS = (0.05, 0.3, 1 / 3, 0.5, 0.6, 0.7, 0.9, 0.999, 1.0)


@functools.partial(jax.jit, static_argnums=2)
def overlaps_more(boxes, others, threshold):
    return iou_exceeds(*intersection_and_union(boxes, others), threshold)


def plain_areas(boxes, others):
    """Return intersections and unions of all pairs, rounded to float32 after every operation."""

    def area(x):
        return (x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1])

    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    sides = np.maximum(high - low, np.float32(0))
    intersection = sides[..., 0] * sides[..., 1]
    return intersection, area(boxes)[:, None] + area(others) - intersection


@on_accelerators
@pytest.mark.parity
def test_iou_equals_the_references():
    """Measured: bit-equal."""
    assert_equal_to_reference(compare_iou())


def test_touching_empty_and_inverted_boxes_have_zero_iou():
    boxes = jnp.array(
        [[0, 0, 4, 4], [4, 0, 8, 4], [1, 1, 1, 3], [1, 1, 1, 1], [3, 3, 1, 1], [3, 1, 1, 3]],
        jnp.float32,
    )
    np.testing.assert_array_equal(pairwise_iou(boxes, boxes), np.diag([1, 1, 0, 0, 0, 0]))
    np.testing.assert_array_equal(box_area(boxes), [16, 16, 0, 0, 4, -4])
    assert not overlaps_more(boxes, boxes, 0.0)[2:].any()


def test_iou_of_known_boxes_has_the_known_value():
    boxes = jnp.array([[[0, 0, 10, 10]], [[5, 5, 15, 15]]], jnp.float32)
    others = jnp.array([[[0, 0, 10, 5], [5, 5, 15, 15]], [[5, 5, 15, 15], [20, 0, 30, 9]]])
    expected = [[[0.5, 25 / 175]], [[1.0, 0.0]]]
    np.testing.assert_allclose(pairwise_iou(boxes, others.astype(jnp.float32)), expected, rtol=1e-6)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_an_iou_near_the_threshold_is_compared_like_a_correctly_rounded_quotient(threshold):
    """Unions of all sizes; intersections are the nearest floats to threshold x union, and up to two
    further away."""
    rng = np.random.default_rng(0)
    union = (rng.uniform(1, 2, 100_000) * 2.0 ** rng.integers(-10, 24, 100_000)).astype(np.float32)
    intersection = (union.astype(np.float64) * threshold).astype(np.float32)
    steps = rng.integers(-2, 3, 100_000).astype(np.int32)
    intersection = (intersection.view(np.int32) + steps).view(np.float32)
    expected = (intersection / union).astype(np.float64) > threshold
    assert 0.3 < expected.mean() < 0.7
    # As an argument of the program, as a constant below.
    actual = jax.jit(iou_exceeds)(intersection, union, exact_threshold(threshold))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.property
@given(seed=st.integers(0, 10**6), threshold=st.sampled_from(THRESHOLDS[:7]))
def test_overlaps_above_a_threshold_equal_those_of_numpy_on_a_grid(seed, threshold):
    """On a grid of sevenths IoUs fall on the thresholds, and areas do not fit in float32: a product
    fused with a sum changes some of these decisions."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 42, (2, 300, 2))
    sides = rng.integers(-2, 42, (2, 300, 2))
    boxes, others = (np.concatenate([corners, corners + sides], -1) / 7).astype(np.float32)
    intersection, union = plain_areas(boxes, others)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = (intersection / union).astype(np.float64) > threshold
    np.testing.assert_array_equal(overlaps_more(boxes, others, threshold), expected)


def test_thresholds_are_compared_strictly_as_real_numbers():
    def exceeds(intersection, union, threshold):
        return bool(iou_exceeds(jnp.float32(intersection), jnp.float32(union), threshold))

    assert exceeds(3, 10, 0.3)  # float32(0.3) is more than 0.3,
    assert not exceeds(9, 10, 0.9)  # float32(0.9) is less than 0.9.
    assert not exceeds(1, 2, 0.5)
    assert not exceeds(7, 7, 1.0)
    assert exceeds(1e-6, 1, 0.0) and not exceeds(0, 1, 0.0)


def test_nan_overlaps_nothing():
    boxes = jnp.array([[0, 0, 4, 4], [0, jnp.nan, 4, 4], [-jnp.inf, 0, jnp.inf, 4]], jnp.float32)
    actual = overlaps_more(boxes, boxes, 0.1)
    assert actual[0, 0] and actual.sum() == 1


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_outside_of_zero_to_one_is_refused(threshold):
    with pytest.raises(ValueError, match=r"IoU threshold .*expected a number from 0 to 1"):
        iou_exceeds(jnp.ones(1), jnp.ones(1), threshold)


def test_boxes_are_clipped_to_the_size_of_their_image():
    boxes = jnp.array([[[-5, -5, 50, 50], [3, 4, 5, 6]]] * 2, jnp.float32)
    clipped = clip_boxes(boxes, jnp.array([[10, 20], [30, 4]]))
    expected = [[[0, 0, 20, 10], [3, 4, 5, 6]], [[0, 0, 4, 30], [3, 4, 4, 6]]]
    np.testing.assert_array_equal(clipped, expected)


def test_scales_are_given_as_y_and_x():
    boxes = jnp.array([[[1, 2, 3, 4]]], jnp.float32)
    np.testing.assert_array_equal(scale_boxes(boxes, jnp.array([[10.0, 2.0]])), [[[2, 20, 6, 40]]])


def test_a_valid_box_is_finite_with_both_sides_above_the_minimum():
    boxes = [[0, 0, 2, 2], [0, 0, 1, 2], [0, 0, 2, 1], [2, 2, 0, 0], [0, 0, np.inf, 2]]
    boxes = jnp.array([*boxes, [0, 0, np.nan, 2], [0, 0, 0, 0]], jnp.float32)
    assert valid_boxes(boxes).tolist() == [True, True, True, False, False, False, False]


def test_enlarged_boxes_keep_their_centres():
    boxes = jnp.array([[[10.0, 20.0, 30.0, 24.0]]])
    np.testing.assert_allclose(enlarge_boxes(boxes, 1.5), [[[5, 19, 35, 25]]])
    np.testing.assert_array_equal(enlarge_boxes(boxes, 1.0), boxes)
