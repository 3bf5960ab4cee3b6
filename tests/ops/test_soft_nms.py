"""Soft NMS against the selected boxes and scores of the reference and against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marks import on_accelerators
from parity.comparison import assert_equal_to_reference
from parity.ops import SOFT_METHODS, SOFT_NMS_CASES, compare_soft_picks
from regionclip_jax.ops.soft_nms import soft_nms_per_class
from regionclip_jax.settings import NmsSettings

GAUSSIAN = NmsSettings("gaussian")


def plain_soft_nms(boxes, scores, groups, nms):
    """Return indices and lowered scores, computed in float32."""
    rows, scores = np.arange(len(boxes)), scores.copy()
    indices, taken = [], []
    while rows.size:
        best = rows[scores[rows].argmax()]
        indices.append(int(best))
        taken.append(scores[best])
        low = np.maximum(boxes[:, :2], boxes[best, :2])
        high = np.minimum(boxes[:, 2:], boxes[best, 2:])
        intersection = np.maximum(high - low, np.float32(0)).prod(-1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        union = np.where(intersection > 0, areas + areas[best] - intersection, np.float32(1))
        iou = np.where(groups == groups[best], intersection / union, np.float32(0))
        scores *= {
            "gaussian": np.exp(-(iou**2) / np.float32(nms.sigma)),
            "linear": np.where(iou > np.float32(nms.threshold), 1 - iou, np.float32(1)),
            "hard": np.where(iou >= np.float32(nms.threshold), np.float32(0), np.float32(1)),
        }[nms.method]
        rows = rows[(rows != best) & (scores[rows] > nms.prune)]
    return indices, np.array(taken, np.float32)


def draw(seed, num_boxes, grid):
    """Return boxes, scores and groups.

    On a grid there are ties of IoUs and scores, and empty and inverted boxes. Otherwise there are
    no ties, as they depend on the rounding of exp.
    """
    rng = np.random.default_rng(seed)
    if grid:
        corners, sides = rng.integers(0, 24, (num_boxes, 2)), rng.integers(-1, 12, (num_boxes, 2))
        scores = rng.integers(0, 20, num_boxes) / 20
    else:
        corners, sides = rng.uniform(0, 24, (num_boxes, 2)), rng.uniform(2, 12, (num_boxes, 2))
        scores = rng.permutation(num_boxes) / num_boxes
    boxes = np.concatenate([corners, corners + sides], -1).astype(np.float32)
    return boxes, scores.astype(np.float32), rng.integers(0, 3, num_boxes).astype(np.int32)


def real_rows(indices, scores, real):
    """Return indices and scores of real rows, after checks of their order and of the padding."""
    indices, scores, real = np.asarray(indices), np.asarray(scores), np.asarray(real)
    assert not indices[~real].any() and not scores[~real].any()
    assert real.tolist() == sorted(real, reverse=True)
    return indices[real].tolist(), scores[real]


@on_accelerators
@pytest.mark.parity
@pytest.mark.parametrize("name,method,prune_threshold", SOFT_NMS_CASES)
def test_picks_and_scores_equal_the_references(name, method, prune_threshold):
    """300 boxes. Measured: scores within 6.0e-8, by group (where the reference shifts boxes) within
    2.0e-6."""
    assert_equal_to_reference(compare_soft_picks(name, method, prune_threshold))


@pytest.mark.property
@given(
    seed=st.integers(0, 10**6),
    method=st.sampled_from(SOFT_METHODS),
    num_boxes=st.sampled_from([1, 80]),
    prune_threshold=st.sampled_from([0.0, 0.001, 0.3]),
)
def test_picks_and_scores_equal_those_of_a_plain_loop(seed, method, num_boxes, prune_threshold):
    """Compare one class, and three classes with each box a candidate of one class."""
    boxes, scores, groups = draw(seed, num_boxes, grid=method != "gaussian")
    nms = NmsSettings(method, 0.3, 0.4, prune_threshold)
    for classes in (np.zeros_like(groups), groups):
        table = np.full((num_boxes, 3), -1, np.float32)
        table[np.arange(num_boxes), classes] = scores
        # A score of 0 is a candidate too, above the threshold of -0.5.
        indices, found_classes, lowered, real = soft_nms_per_class(
            jnp.asarray(boxes), jnp.asarray(table), jnp.ones(num_boxes, bool),
            score_threshold=-0.5, nms=nms, max_outputs=90,
        )  # fmt: skip
        indices, lowered = real_rows(indices, lowered, real)
        expected, expected_scores = plain_soft_nms(boxes, scores, classes, nms)
        assert indices == expected
        np.testing.assert_array_equal(found_classes[: len(indices)], classes[indices])
        np.testing.assert_allclose(lowered, expected_scores, rtol=1e-5)


@pytest.mark.property
@given(
    seed=st.integers(0, 10**6),
    method=st.sampled_from(SOFT_METHODS),
    prune_threshold=st.sampled_from([0.001, 0.6, 2.0]),
)
def test_classes_with_shared_boxes_equal_a_plain_loop_over_pairs_of_box_and_class(
    seed, method, prune_threshold
):
    """A threshold of 2 keeps only the best pair, which is always selected."""
    grid = method != "gaussian"
    boxes, _, _ = draw(seed, 40, grid)
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 30, (40, 5)) if grid else rng.permutation(200).reshape(40, 5) / 7
    scores = (scores / 30).astype(np.float32)
    mask = rng.random(40) < 0.8
    nms = NmsSettings(method, prune=prune_threshold)
    *kept_rows, real = soft_nms_per_class(
        jnp.asarray(boxes), jnp.asarray(scores), jnp.asarray(mask), score_threshold=0.2,
        nms=nms, max_outputs=150,
    )  # fmt: skip
    rows, classes = np.nonzero(mask[:, None] & (scores > 0.2))
    expected, lowered = plain_soft_nms(boxes[rows], scores[rows, classes], classes, nms)
    assert np.asarray(real).tolist() == [row < len(expected) for row in range(150)]
    indices, found_classes, found_scores = (np.asarray(x)[np.asarray(real)] for x in kept_rows)
    expected = expected[:150]
    np.testing.assert_array_equal(indices, rows[expected])
    np.testing.assert_array_equal(found_classes, classes[expected])
    np.testing.assert_allclose(found_scores, lowered[:150], rtol=1e-5)
    assert real.any() and (prune_threshold < 2 or real.sum() == 1)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_no_boxes_or_no_classes_give_no_detections(shape):
    boxes, mask = jnp.zeros((shape[0], 4)), jnp.ones(shape[0], bool)
    kept_rows = soft_nms_per_class(
        boxes, jnp.ones(shape), mask, score_threshold=0.0, nms=GAUSSIAN, max_outputs=7
    )
    assert all(x.shape == (7,) and not x.any() for x in kept_rows)


def test_the_first_outputs_do_not_depend_on_the_number_of_outputs():
    arguments = _three_classes(3, 80)
    few = soft_nms_per_class(*arguments, score_threshold=0.1, nms=GAUSSIAN, max_outputs=10)
    many = soft_nms_per_class(*arguments, score_threshold=0.1, nms=GAUSSIAN, max_outputs=70)
    for x, y in zip(few, many, strict=True):
        np.testing.assert_array_equal(x, y[:10])


def test_masked_rows_neither_lower_scores_nor_are_selected():
    boxes = jnp.array([[0, 0, 4, 4], [0, 0, 4, 4], [jnp.nan] * 4, [9, 9, 10, 10]])
    scores = jnp.array([[1.0], [0.5], [jnp.nan], [0.25]])
    mask = jnp.array([False, True, False, True])
    indices, _, *rest = soft_nms_per_class(
        boxes, scores, mask, score_threshold=0.0, nms=GAUSSIAN, max_outputs=4
    )
    indices, lowered = real_rows(indices, *rest)
    assert indices == [1, 3] and lowered.tolist() == [0.5, 0.25]


def _three_classes(seed, num_real):
    boxes, scores, groups = draw(seed, 80, grid=True)
    table = np.stack([scores, 1 - scores, groups * np.float32(0.3)], 1)
    return jnp.asarray(boxes), jnp.asarray(table), jnp.arange(80) < num_real


def test_a_batch_gives_the_results_of_its_images():
    """Test images with different numbers of rounds, one of them empty."""
    images = [_three_classes(seed, num_real) for seed, num_real in enumerate((80, 0, 20))]

    def select(boxes, scores, mask):
        return soft_nms_per_class(
            boxes, scores, mask, score_threshold=0.1, nms=GAUSSIAN, max_outputs=50
        )

    kept_rows = jax.jit(jax.vmap(select))(
        *(jnp.stack(arrays) for arrays in zip(*images, strict=True))
    )
    assert kept_rows[-1].any(1).tolist() == [True, False, True]
    for image, arguments in enumerate(images):
        for x, y in zip(kept_rows, select(*arguments), strict=True):
            np.testing.assert_allclose(x[image], y, rtol=1e-6)
