"""Greedy NMS against the kept boxes of the reference and against a plain loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marks import on_accelerators
from parity.comparison import assert_equal_to_reference
from parity.ops import (
    EDGE_THRESHOLDS,
    NMS_CASES,
    compare_edge_cases,
    compare_kept_boxes,
    compare_many_boxes,
)
from regionclip_jax.ops.backend import tracing_for
from regionclip_jax.ops.nms import nms, nms_by_group, nms_per_class


def overlaps_more(boxes, box, threshold):
    """Return the mask of boxes with a float32 IoU with ``box`` above a real number."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    intersection = np.maximum(high - low, np.float32(0)).prod(-1)
    areas, area = (boxes[:, 2:] - boxes[:, :2]).prod(-1), (box[2:] - box[:2]).prod()
    with np.errstate(divide="ignore", invalid="ignore"):
        return (intersection / (areas + area - intersection)).astype(np.float64) > threshold


def plain_nms(boxes, scores, groups, mask, threshold):
    kept, alive = [], mask.copy()
    for i in np.argsort(-scores, kind="stable"):
        if alive[i]:
            kept.append(int(i))
            alive &= ~(overlaps_more(boxes, boxes[i], threshold) & (groups == groups[i]))
    return kept


def draw(seed, num_boxes):
    """Return boxes, scores, groups and mask with ties of IoUs and scores.

    Boxes are on a coarse grid, some of them empty or inverted, and scores have few values.
    """
    rng = np.random.default_rng(seed)
    corners, sides = rng.integers(0, 24, (num_boxes, 2)), rng.integers(-1, 12, (num_boxes, 2))
    boxes = (np.concatenate([corners, corners + sides], -1) / rng.choice([1, 3, 7])).astype("f4")
    scores = (rng.integers(-20, 20, num_boxes) / 8).astype(np.float32)
    return boxes, scores, rng.integers(0, 3, num_boxes).astype("i4"), rng.random(num_boxes) < 0.8


def real_rows(indices, real):
    """Return the indices of the real rows, after checks of their order and of the padding."""
    indices, real = np.asarray(indices), np.asarray(real)
    assert not indices[~real].any() and real.tolist() == sorted(real, reverse=True)
    return indices[real].tolist()


@on_accelerators
@pytest.mark.parity
@pytest.mark.parametrize("name,threshold", NMS_CASES)
def test_kept_boxes_and_their_order_equal_the_references(name, threshold):
    """Compare 600 random boxes, and 400 on a grid with ties and IoUs equal to the threshold."""
    assert_equal_to_reference(compare_kept_boxes(name, threshold))


@on_accelerators
@pytest.mark.parity
@pytest.mark.parametrize("threshold", EDGE_THRESHOLDS)
def test_an_iou_equal_to_the_threshold_is_kept_as_by_the_reference(threshold):
    """Compare boxes with areas in ratios of two and with ties of scores."""
    assert_equal_to_reference(compare_edge_cases(threshold))


@pytest.mark.parity
@pytest.mark.slow
def test_45000_boxes_are_kept_as_by_the_reference(large_golden):
    assert_equal_to_reference(compare_many_boxes(large_golden("nms")))


@pytest.mark.property
@given(
    seed=st.integers(0, 10**6),
    num_boxes=st.sampled_from([0, 600]),
    threshold=st.sampled_from([0.3, 0.5]),
    max_outputs=st.sampled_from([30, 300]),
)
def test_kept_boxes_equal_those_of_a_plain_loop(seed, num_boxes, threshold, max_outputs):
    boxes, scores, groups, mask = draw(seed, num_boxes)
    kept_rows = nms_by_group(
        *(jnp.asarray(x) for x in (boxes, scores, groups, mask)),
        iou_threshold=threshold,
        max_outputs=max_outputs,
    )
    assert kept_rows[0].shape == (max_outputs,)
    expected = plain_nms(boxes, scores, groups, mask, threshold)
    assert real_rows(*kept_rows) == expected[:max_outputs]


@on_accelerators
def test_the_tiles_of_this_backend_keep_the_boxes_of_a_plain_loop():
    """Compare more boxes than two tiles of any backend."""
    boxes, scores, groups, mask = draw(7, 2500)
    # With this number of groups, more boxes are kept than fit into a tile.
    groups = groups + np.arange(2500, dtype=np.int32) % 40
    kept_rows = nms_by_group(
        *(jnp.asarray(x) for x in (boxes, scores, groups, mask)),
        iou_threshold=0.3,
        max_outputs=2500,
    )
    expected = plain_nms(boxes, scores, groups, mask, 0.3)
    assert len(expected) > 1024
    assert real_rows(*kept_rows) == expected


def for_gpus(*arrays, iou_threshold, max_outputs):
    with tracing_for("gpu"):
        return nms_by_group(*arrays, iou_threshold=iou_threshold, max_outputs=max_outputs)


@pytest.mark.property
@given(
    seed=st.integers(0, 10**6),
    num_boxes=st.sampled_from([0, 2500]),
    max_outputs=st.sampled_from([30, 1500]),
)
def test_the_algorithm_for_gpus_keeps_the_same_boxes(seed, num_boxes, max_outputs):
    """Compare several tiles of both sizes, and chains longer than the rounds between two checks."""
    arrays = [jnp.asarray(x) for x in draw(seed, num_boxes)]
    arrays[2] = arrays[2] + jnp.arange(num_boxes) % 40
    how = dict(iou_threshold=0.3, max_outputs=max_outputs)
    kept_rows, expected = for_gpus(*arrays, **how), nms_by_group(*arrays, **how)
    assert real_rows(*kept_rows) == real_rows(*expected)


def test_a_long_chain_of_suppressions_converges():
    """Each of 400 boxes overlaps only its neighbours, so every second box is kept in sequence."""
    left = jnp.arange(400.0)
    boxes = jnp.stack([left, jnp.zeros(400), left + 1.9, jnp.ones(400)], -1)
    arrays = boxes, -left, jnp.zeros(400, jnp.int32), jnp.ones(400, bool)
    for find in (nms_by_group, for_gpus):
        kept_rows = find(*arrays, iou_threshold=0.3, max_outputs=400)
        assert real_rows(*kept_rows) == list(range(0, 400, 2))


@pytest.mark.property
@given(seed=st.integers(0, 10**6), num_boxes=st.sampled_from([0, 60]))
def test_nms_per_class_equals_a_plain_loop_over_boxes_and_classes(seed, num_boxes):
    boxes, _, _, mask = draw(seed, num_boxes)
    scores = np.random.default_rng(seed).integers(0, 20, (num_boxes, 7)).astype("f4") / 8
    kept = plain_nms(
        np.repeat(boxes, 7, 0),
        scores.reshape(-1),
        np.tile(np.arange(7), num_boxes),
        (mask[:, None] & (scores > 0.5)).reshape(-1),
        0.3,
    )[:200]
    indices, classes, best_scores, real = nms_per_class(
        jnp.asarray(boxes), jnp.asarray(scores), jnp.asarray(mask),
        score_threshold=0.5, iou_threshold=0.3, max_outputs=200,
    )  # fmt: skip
    assert real_rows(indices, real) == [i // 7 for i in kept]
    assert real_rows(classes, real) == [i % 7 for i in kept]
    assert real_rows(best_scores, real) == [scores.flat[i] for i in kept]


def test_nms_per_class_continues_until_enough_boxes_are_kept_or_none_is_left():
    """Test 90 copies of a box for each of 80 classes; the best 4,500 candidates have 50 classes."""
    boxes = jnp.tile(jnp.array([[2.0, 2, 9, 8]]), (90, 1))
    scores = 1 - jnp.arange(80.0) / 100 - jnp.arange(90.0)[:, None] / 10_000
    how = dict(score_threshold=0.0, iou_threshold=0.5)
    mask = jnp.ones(90, bool)
    indices, classes, _, real = nms_per_class(boxes, scores, mask, **how, max_outputs=60)
    assert real.all() and not indices.any() and classes.tolist() == list(range(60))
    indices, classes, _, real = nms_per_class(boxes, scores, mask, **how, max_outputs=100)
    assert real.sum() == 80 and classes[:80].tolist() == list(range(80))


@pytest.mark.property
def test_a_batch_gives_the_results_of_its_images():
    """Test images with different numbers of rounds, one of them empty."""
    images = [draw(seed, 600) for seed in range(4)]
    batch = [jnp.stack([jnp.asarray(image[i]) for image in images]) for i in range(4)]
    batch[3] = batch[3].at[1].set(False)
    groups = functools.partial(nms_by_group, iou_threshold=0.3, max_outputs=70)
    kept_rows = jax.jit(jax.vmap(groups))(*batch)
    assert kept_rows[1].any(1).tolist() == [True, False, True, True]
    for image in range(4):
        alone = groups(*(x[image] for x in batch))
        assert real_rows(*alone) == real_rows(*(x[image] for x in kept_rows))

    def per_class(boxes, scores, groups, mask):
        scores = jnp.stack([scores, -scores, groups * 0.5], 1)
        how = dict(score_threshold=0.2, iou_threshold=0.3, max_outputs=70)
        return nms_per_class(boxes, scores, mask, **how)

    kept_rows = jax.jit(jax.vmap(per_class))(*batch)
    for image in range(4):
        for one, many in zip(per_class(*(x[image] for x in batch)), kept_rows, strict=True):
            np.testing.assert_array_equal(one, many[image])


def test_masked_rows_of_any_value_neither_suppress_nor_are_kept():
    boxes = jnp.array([[jnp.nan] * 4, [0, 0, 4, 4], [0, 0, 4, 5], [0, 0, 4, 4]])
    scores = jnp.array([jnp.nan, jnp.inf, 1.0, -jnp.inf])
    mask = jnp.array([False, False, True, True])
    assert real_rows(*nms(boxes, scores, mask, iou_threshold=0.9, max_outputs=4)) == [2, 3]
    assert real_rows(*nms(boxes, scores, mask, iou_threshold=0.5, max_outputs=4)) == [2]


def test_a_threshold_outside_of_zero_to_one_is_refused():
    with pytest.raises(ValueError, match="IoU threshold 50.0: expected a number from 0 to 1"):
        nms(jnp.zeros((3, 4)), jnp.ones(3), jnp.ones(3, bool), iou_threshold=50.0, max_outputs=3)
