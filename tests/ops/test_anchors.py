"""Anchors against those of the reference and against their definition."""

import numpy as np
import pytest

from regionclip_jax.ops.anchors import cell_anchors, grid_anchors

RATIOS = (0.5, 1.0, 2.0)
# (stride, sizes) of the anchors and (height, width) of the map, for each level.
PYRAMIDS = {
    "c4": [(16, (32, 64, 128, 256, 512))],
    "fpn": [(4 * 2**level, (32 * 2**level,)) for level in range(5)],
}


@pytest.mark.parity
@pytest.mark.parametrize("name", PYRAMIDS)
def test_first_and_last_anchors_of_each_level_equal_the_references(golden, name):
    arrays = golden(f"proposals_{name}_tiny")
    for level, (stride, sizes) in enumerate(PYRAMIDS[name]):
        _, per_cell, height, width = arrays[f"logits_l{level}"].shape
        cells = cell_anchors(sizes, RATIOS)
        anchors = grid_anchors(height, width, stride, cells)
        assert anchors.dtype == np.float32
        assert anchors.shape == (height * width * per_cell, 4)
        np.testing.assert_array_equal(anchors[:30], arrays[f"anchors_l{level}_first30"])
        np.testing.assert_array_equal(anchors[-30:], arrays[f"anchors_l{level}_last30"])


def test_anchors_of_a_cell_are_centred_with_the_requested_areas_and_ratios():
    cells = cell_anchors((32, 64), RATIOS)
    np.testing.assert_array_equal(cells[:, :2], -cells[:, 2:])
    sides = cells[:, 2:] - cells[:, :2]
    np.testing.assert_allclose(sides.prod(-1), [32**2] * 3 + [64**2] * 3, rtol=1e-6)
    np.testing.assert_allclose(sides[:, 1] / sides[:, 0], RATIOS * 2, rtol=1e-6)


def test_anchors_are_ordered_by_row_column_and_anchor_of_a_cell():
    cells = np.array([[-1, -2, 1, 2], [-3, -1, 3, 1]], np.float32)
    anchors = grid_anchors(2, 3, 8, cells).reshape(2, 3, 2, 4)
    for row in range(2):
        for column in range(3):
            shift = np.array([column * 8, row * 8] * 2)
            np.testing.assert_array_equal(anchors[row, column], cells + shift)


def test_a_map_without_cells_has_no_anchors():
    assert grid_anchors(0, 4, 16, cell_anchors((32,), RATIOS)).shape == (0, 4)
