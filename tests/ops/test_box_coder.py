"""Box deltas against those of the reference, and decoding against encoding."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marks import on_accelerators
from parity.comparison import assert_equal_to_reference
from parity.ops import BOX_CODER_WEIGHTS, compare_decoded_boxes, compare_encoded_boxes
from regionclip_jax.ops.box_coder import BOX_HEAD_WEIGHTS, decode_deltas, encode_deltas


@on_accelerators
@pytest.mark.parity
@pytest.mark.parametrize("name", BOX_CODER_WEIGHTS)
def test_encoded_boxes_equal_the_references(name):
    """Measured: at most 4.2e-7."""
    assert_equal_to_reference(compare_encoded_boxes(name))


@on_accelerators
@pytest.mark.parity
@pytest.mark.parametrize("name", BOX_CODER_WEIGHTS)
def test_decoded_boxes_equal_the_references_for_several_classes_at_once(name):
    """Three sets of deltas for each of 200 boxes, some clamped, sides up to 4,000 px. Measured: at
    most 1.3e-4 px."""
    assert_equal_to_reference(compare_decoded_boxes(name))


@pytest.mark.property
@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(BOX_CODER_WEIGHTS)))
def test_decoding_undoes_encoding(seed, name):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-50, 600, (2, 64, 2))
    sides = 2 ** rng.uniform(2, 8, (2, 64, 2))
    boxes, targets = jnp.asarray(np.concatenate([corners, corners + sides], -1), jnp.float32)
    # The largest delta is that from 16 px to 1,000 px.
    deltas = encode_deltas(boxes, targets, BOX_CODER_WEIGHTS[name])
    actual = decode_deltas(deltas, boxes, BOX_CODER_WEIGHTS[name])
    few = np.asarray(targets[:, 2:] - targets[:, :2]) / np.asarray(boxes[:, 2:] - boxes[:, :2]) < 62
    close = np.isclose(actual, targets, rtol=1e-4, atol=1e-2)
    assert close[few.all(-1)].all() and few.all(-1).sum() > 40


def test_deltas_of_a_known_pair_have_the_known_values():
    boxes, targets = jnp.array([[0.0, 0, 10, 20]]), jnp.array([[5.0, 0, 25, 10]])
    expected = np.array([[1.0, -0.25, math.log(2), -math.log(2)]])
    np.testing.assert_allclose(encode_deltas(boxes, targets), expected, atol=1e-6)
    weighted = encode_deltas(boxes, targets, BOX_HEAD_WEIGHTS)
    np.testing.assert_allclose(weighted, expected * [10, 10, 5, 5], atol=1e-5)


def test_zero_deltas_do_not_change_a_box():
    boxes = jnp.array([[3.0, 5, 20, 9], [-4, -4, 0, 0]])
    np.testing.assert_array_equal(decode_deltas(jnp.zeros((2, 4)), boxes), boxes)


def test_growth_of_sides_is_limited_to_16_to_1000_and_shrinking_is_not():
    boxes = jnp.array([[0.0, 0, 16, 16]])
    x1, y1, x2, y2 = decode_deltas(jnp.array([[0.0, 0, 50, -50]]), boxes)[0]
    np.testing.assert_allclose(x2 - x1, 1000, rtol=1e-5)
    assert y2 - y1 < 1e-6
