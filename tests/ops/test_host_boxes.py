import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.ops.boxes import pairwise_iou, scale_boxes
from regionclip_jax.ops.host_boxes import host_pairwise_iou, host_scale_boxes


def random_boxes(rng, count):
    corners = rng.integers(0, 9, (count, 2, 2))
    return np.sort(corners, axis=1).reshape(count, 4).astype(np.float32)


@pytest.mark.property
@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(0, 5))
def test_the_iou_on_the_host_equals_that_on_the_device(seed, num_boxes, num_others):
    """Compare bit for bit, on integer corners up to 8 with empty boxes among them."""
    rng = np.random.default_rng(seed)
    boxes, others = random_boxes(rng, num_boxes), random_boxes(rng, num_others)
    actual = host_pairwise_iou(boxes, others)
    assert actual.shape == (num_boxes, num_others)
    expected = pairwise_iou(jnp.asarray(boxes), jnp.asarray(others))
    np.testing.assert_array_equal(actual, expected)
    scales = rng.uniform(0.1, 3, 2).astype(np.float32)
    expected = scale_boxes(jnp.asarray(boxes), jnp.asarray(scales))
    np.testing.assert_array_equal(host_scale_boxes(boxes, scales), expected)


def test_boxes_are_scaled_along_each_axis():
    boxes = host_scale_boxes(np.array([[1, 2, 3, 4]], np.float32), np.array([10.0, 2.0]))
    assert boxes.tolist() == [[2, 20, 6, 40]] and boxes.dtype == np.float32


def test_float64_boxes_keep_their_precision():
    boxes = np.array([[0.1, 0.1, 0.3, 0.4]])
    assert host_pairwise_iou(boxes, boxes) == pytest.approx(1.0, abs=1e-15)
