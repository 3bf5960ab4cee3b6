"""Mask targets against a plain loop, as there are no golden arrays."""

import jax.numpy as jnp
import numpy as np

from regionclip_jax.ops.mask_targets import mask_targets


def by_loops(mask, box, region, size):
    cells, actual = len(mask), np.zeros((size, size), np.float32)
    for row in range(size):
        for column in range(size):
            x = region[0] + (column + 0.5) / size * (region[2] - region[0])
            y = region[1] + (row + 0.5) / size * (region[3] - region[1])
            u = (x - box[0]) / (box[2] - box[0]) * cells - 0.5
            v = (y - box[1]) / (box[3] - box[1]) * cells - 0.5
            value = 0.0
            for i in (int(np.floor(v)), int(np.floor(v)) + 1):
                for j in (int(np.floor(u)), int(np.floor(u)) + 1):
                    if 0 <= i < cells and 0 <= j < cells:
                        value += mask[i, j] * (1 - abs(v - i)) * (1 - abs(u - j))
            actual[row, column] = value >= 0.5
    return actual


def test_targets_equal_those_of_a_loop_over_cells():
    rng = np.random.default_rng(0)
    masks = (rng.random((4, 9, 9)) < 0.6).astype(np.uint8)
    low = rng.uniform(0, 20, (2, 4, 2))
    boxes, regions = np.concatenate([low, low + rng.uniform(8, 30, low.shape)], -1).astype("f4")
    actual = mask_targets(jnp.asarray(masks), jnp.asarray(boxes), jnp.asarray(regions), 6)
    for row in range(4):
        expected = by_loops(masks[row], boxes[row], regions[row], 6)
        # A value near one half may be rounded to either side.
        assert (np.asarray(actual[row]) != expected).sum() <= 1


def test_a_region_equal_to_the_object_box_keeps_the_raster():
    mask = np.zeros((1, 8, 8), np.uint8)
    mask[0, 2:6, 1:4] = 1
    box = jnp.array([[10.0, 20.0, 42.0, 36.0]])
    np.testing.assert_array_equal(mask_targets(jnp.asarray(mask), box, box, 8), mask)


def test_a_region_beside_the_object_is_empty_and_one_without_area_is_finite():
    mask = jnp.ones((1, 4, 4), jnp.uint8)
    box = jnp.array([[0.0, 0.0, 8.0, 8.0]])
    assert not mask_targets(mask, box, box + 20, 4).any()
    assert jnp.isfinite(mask_targets(mask, jnp.zeros((1, 4)), jnp.zeros((1, 4)), 4)).all()
