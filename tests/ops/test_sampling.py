import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from regionclip_jax.ops.sampling import (
    box_mask,
    grid_shapes,
    random_boxes,
    random_grid_cells,
    sample_regions,
)
from regionclip_jax.structures import Regions

seeds = st.integers(0, 2**31 - 1)


@pytest.mark.property
@given(seed=seeds, num_real=st.integers(0, 9))
def test_a_sample_of_regions_is_a_subset_without_repetition_and_real_rows_first(seed, num_real):
    numbers = jnp.arange(2 * 9, dtype=jnp.float32).reshape(2, 9)
    # The second image has nine real rows, and the real rows are in any order.
    shuffled = np.random.default_rng(seed).permutation(9) < num_real
    mask = jnp.asarray(np.stack([shuffled, np.ones(9, bool)]))
    regions = Regions(boxes=numbers[..., None] + jnp.zeros(4), scores=numbers, mask=mask)
    sample = sample_regions(jax.random.key(seed), regions, 5)
    assert sample.boxes.shape == (2, 5, 4)
    np.testing.assert_array_equal(sample.boxes[..., 2], sample.scores)
    for image in range(2):
        chosen = np.asarray(sample.scores[image]).astype(int) - 9 * image
        assert len(set(chosen)) == 5
        np.testing.assert_array_equal(sample.mask[image], np.asarray(mask[image])[chosen])
        count = min(5, int(mask[image].sum()))
        assert sample.mask[image, :count].all() and not sample.mask[image, count:].any()


@pytest.mark.property
def test_every_region_is_equally_likely_to_be_sampled():
    numbers = jnp.broadcast_to(jnp.arange(8.0), (2000, 8))
    mask = jnp.broadcast_to(jnp.arange(8) < 6, (2000, 8))
    regions = Regions(boxes=jnp.zeros((2000, 8, 4)), scores=numbers, mask=mask)
    sample = sample_regions(jax.random.key(0), regions, 3)
    frequency = np.bincount(np.asarray(sample.scores).astype(int).ravel(), minlength=8) / 2000
    np.testing.assert_allclose(frequency[:6], 0.5, atol=0.05)
    np.testing.assert_array_equal(frequency[6:], 0)


@pytest.mark.property
@given(
    seed=seeds,
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=4, max_size=4),
)
def test_random_boxes_are_on_the_grid_inside_each_image_and_not_empty(seed, sizes):
    grid = 8
    boxes = np.asarray(random_boxes(jax.random.key(seed), jnp.asarray(sizes), 50, grid))
    height, width = np.asarray(sizes).T[..., None]
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    assert (boxes >= 0).all() and (x2 <= width).all() and (y2 <= height).all()
    assert (x2 > x1).all() and (y2 > y1).all()
    for low, high, side in ((x1, x2, width), (y1, y2, height)):
        assert (low % grid == 0).all()
        # An image smaller than a cell ends before the first grid line.
        assert np.where(side < grid, high == side, high % grid == 0).all()


@pytest.mark.property
def test_random_boxes_reach_every_position_of_the_grid():
    boxes = np.asarray(random_boxes(jax.random.key(0), jnp.array([[24, 32]]), 2000, 8))[0]
    assert len({tuple(box) for box in boxes}) == (4 * 5 // 2) * (3 * 4 // 2)


@pytest.mark.property
@given(seed=seeds, sides=st.lists(st.floats(0.05, 1), min_size=2, max_size=2).map(sorted))
@example(seed=0, sides=[0.65, 1.0])  # 0.65 * 10 is 6.5 in float32 and below it in float64
def test_random_boxes_have_the_chosen_sides_at_every_position(seed, sides):
    sizes, grid = jnp.array([[160, 80], [40, 240]]), 8
    boxes = np.asarray(random_boxes(jax.random.key(seed), sizes, 300, grid, tuple(sides)))
    cells = np.asarray(sizes)[:, None, ::-1] // grid
    low, high = boxes[..., :2] / grid, boxes[..., 2:] / grid
    assert (low >= 0).all() and (high <= cells).all() and (low % 1 == 0).all()
    shortest, longest = (
        np.maximum(np.round(np.float32(side) * cells.astype(np.float32)), 1) for side in sides
    )
    assert (high - low >= shortest).all() and (high - low <= longest).all()
    # All lengths occur, and the places at both ends.
    assert ((high - low).min(1) == shortest[:, 0]).all()
    assert ((high - low).max(1) == longest[:, 0]).all()
    assert (low.min(1) == 0).all() and (high.max(1) == cells[:, 0]).all()


def test_images_without_pixels_have_no_boxes():
    mask = box_mask(jnp.array([[10, 20], [0, 0]]), 3)
    np.testing.assert_array_equal(mask, [[True] * 3, [False] * 3])
    boxes = random_boxes(jax.random.key(0), jnp.array([[0, 0]]), 3, 8)
    np.testing.assert_array_equal(boxes, 0)


def test_the_shapes_of_grids_are_those_of_an_enumeration():
    expected = []
    for m in range(1, 7):
        expected += [(m, n) for n in range((m + 1) // 2, min(2 * m, 6) + 1)]
    assert grid_shapes(6) == expected and len(expected) == 24


def test_cells_of_grids_are_those_of_an_enumeration_and_all_grids_are_drawn():
    """Find the grid of an image by the size of its cells; at most 20 of its cells are drawn."""
    height, width = 60, 120
    sizes = np.tile([[height, width]], (500, 1))
    sizes[499] = 0
    keys = jax.random.split(jax.random.key(0), 500)
    draw = jax.jit(random_grid_cells, static_argnums=(2, 3))
    drawn = jax.tree.map(np.asarray, draw(keys, jnp.asarray(sizes), 6, 20))
    assert drawn.boxes.shape == (500, 20, 4) and not drawn.mask[499].any()
    shapes, firsts = [], set()
    for boxes, mask in zip(drawn.boxes[:499], drawn.mask[:499], strict=True):
        x1, y1, x2, y2 = boxes[0]
        m, n = round(height / (y2 - y1)), round(width / (x2 - x1))
        ys, xs = np.arange(m + 1) * height / m, np.arange(n + 1) * width / n
        cells = [(xs[j], ys[i], xs[j + 1], ys[i + 1]) for i in range(m) for j in range(n)]
        expected = set(map(tuple, np.array(cells, np.float32).tolist()))
        real = list(map(tuple, boxes[mask].tolist()))
        assert len(set(real)) == len(real) == min(20, m * n) and set(real) <= expected
        shapes.append((m, n))
        firsts |= {real[0]} if (m, n) == (1, 2) else set()
    counts = [shapes.count(shape) for shape in grid_shapes(6)]
    # 20.8 expected: uniform over the shapes, not over rows first. The order of cells is random.
    assert sum(counts) == 499 and min(counts) >= 6 and max(counts) <= 36 and len(firsts) == 2
