"""Proposals against those of the reference for the same logits and deltas, and each rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies

from marks import on_accelerators
from parity.comparison import assert_equal_to_reference
from parity.ops import PROPOSAL_CASES, compare_all_proposals, compare_proposals_of
from regionclip_jax.ops.anchors import cell_anchors, grid_anchors
from regionclip_jax.ops.host_boxes import host_pairwise_iou
from regionclip_jax.ops.proposals import select_proposals, vote

RATIOS = (0.5, 1.0, 2.0)
ANCHORS = np.array([[0, 0, 8, 8], [0, 0, 8, 9], [20, 20, 30, 30], [4, 0, 12, 8]], np.float32)


@on_accelerators
@pytest.mark.parity
@pytest.mark.parametrize("variant,threshold", PROPOSAL_CASES)
def test_proposals_and_their_order_equal_the_references(variant, threshold):
    """Measured: within 6.1e-5 px."""
    assert_equal_to_reference(compare_proposals_of(variant, threshold))


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("rpn_c4_tiny", "rpn_c4_tiny_nms0.7", "rpn_fpn_tiny", "rpn_fpn_tiny_nms0.7"),
        *("rpn_c4_rn50", "rpn_fpn_rn50"),
    ],
)
def test_all_proposals_of_the_full_arrays_equal_the_references(large_golden, name):
    """Measured: within 1.3e-4 px."""
    assert_equal_to_reference(compare_all_proposals(name, large_golden(name)))


def select(logits, anchors=ANCHORS, deltas=None, size=(32, 32), **changes):
    """Return boxes, scores and mask of the proposals of one image with one level."""
    logits = jnp.asarray(logits, jnp.float32)
    deltas = jnp.zeros((len(logits), 4)) if deltas is None else jnp.asarray(deltas, jnp.float32)
    limits = dict(pre_nms_topk=50, num_proposals=4, nms_threshold=0.7) | changes
    proposals = select_proposals(
        [logits[None]], [deltas[None]], [anchors], jnp.array([size], jnp.int32), **limits
    )
    return np.asarray(proposals.boxes[0]), proposals.scores[0].tolist(), proposals.mask[0].tolist()


def test_suppressed_boxes_leave_rows_of_zeros_at_the_end():
    boxes, scores, mask = select([1.0, 2, -3, 0])
    assert mask == [True, True, True, False] and scores == [2, 0, -3, 0]
    np.testing.assert_array_equal(boxes, ANCHORS[[1, 3, 2, 0]] * [[1], [1], [1], [0]])


def test_the_best_boxes_are_selected_before_and_after_suppression():
    """Suppress the anchor of logit 1."""
    assert select([1.0, 2, -3, 0], pre_nms_topk=3)[1] == [2, 0, 0, 0]
    assert select([1.0, 2, -3, 0], num_proposals=2)[1] == [2, 0]


def test_boxes_are_clipped_before_they_are_compared():
    """The first two anchors differ only below the fifth row."""
    boxes, scores, _ = select([1.0, 2, -3, 0], size=(5, 32), nms_threshold=0.99)
    assert scores == [2, 0, 0, 0]
    np.testing.assert_array_equal(boxes[:2], [[0, 0, 8, 5], [4, 0, 12, 5]])


def test_boxes_without_area_are_dropped():
    # A box outside the image has no area after clipping.
    assert select([1.0, 2, 3, 0], size=(20, 20), nms_threshold=1.0)[1] == [2, 1, 0, 0]


def test_an_image_without_pixels_has_no_proposals():
    assert not any(select([1.0, 2, -3, 0], size=(0, 0))[2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_boxes_and_logits_that_are_not_finite_are_dropped_before_clipping(bad):
    _, scores, mask = select([bad, 2, 1, 0])
    assert scores == [2, 1, 0, 0] and mask == [True, True, True, False]
    deltas = np.zeros((4, 4))
    deltas[1, 0] = bad
    boxes, scores, _ = select([0.5, 2, 1, 0], deltas=deltas)
    assert scores == [1, 0.5, 0, 0] and np.isfinite(boxes).all()


def test_boxes_do_not_suppress_those_of_other_levels():
    logits = [jnp.array([[1.0, 0.5]]), jnp.array([[2.0, 1.5, -1]])]
    deltas = [jnp.zeros((1, 2, 4)), jnp.zeros((1, 3, 4))]
    boxes = np.array([[0, 0, 8, 8]] * 3, np.float32)
    proposals = select_proposals(
        logits, deltas, [boxes[:2], boxes], jnp.array([[32, 32]]),
        pre_nms_topk=2, num_proposals=3, nms_threshold=0.5,
    )  # fmt: skip
    assert proposals.scores.tolist() == [[2, 1, 0]] and proposals.mask.tolist() == [
        [True, True, False]
    ]


def random_outputs(seed, batch):
    rng = np.random.default_rng(seed)
    anchors = [grid_anchors(8, 8, 8, cell_anchors((16,), RATIOS)), cell_anchors((32, 64), RATIOS)]
    # The logits have few values, so that ties are frequent.
    logits = [jnp.asarray(rng.integers(-9, 9, (batch, len(a))), jnp.float32) for a in anchors]
    deltas = [jnp.asarray(rng.normal(0, 0.3, (batch, len(a), 4)), jnp.float32) for a in anchors]
    return logits, deltas, anchors


@pytest.mark.property
def test_a_batch_gives_the_results_of_its_images():
    logits, deltas, anchors = random_outputs(0, 3)
    sizes = jnp.array([[64, 60], [0, 0], [30, 64]])
    how = dict(pre_nms_topk=100, num_proposals=60, nms_threshold=0.5)
    together = select_proposals(logits, deltas, anchors, sizes, **how)
    for image in range(3):
        rows = slice(image, image + 1)
        alone = select_proposals(
            [x[rows] for x in logits], [x[rows] for x in deltas], anchors, sizes[rows], **how
        )
        for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(x[rows], y, rtol=0, atol=1e-5)


def test_equal_logits_are_ordered_by_level_and_then_by_anchor():
    """A threshold of 1 suppresses no box."""
    logits, deltas, anchors = random_outputs(1, 1)
    proposals = select_proposals(
        logits, [0 * x for x in deltas], [a + 100 for a in anchors], jnp.array([[300, 300]]),
        pre_nms_topk=1000, num_proposals=150, nms_threshold=1.0,
    )  # fmt: skip
    all_logits = np.concatenate(logits, 1)[0]
    order = np.argsort(-all_logits, kind="stable")[:150]
    np.testing.assert_array_equal(proposals.scores[0], all_logits[order])
    expected = np.concatenate(anchors)[order] + 100
    np.testing.assert_allclose(proposals.boxes[0], expected, rtol=0, atol=1e-4)


def test_proposals_have_no_gradient():
    logits, deltas, anchors = random_outputs(2, 1)

    def total(logits, deltas):
        proposals = select_proposals(
            logits, deltas, anchors, jnp.array([[64, 64]]),
            pre_nms_topk=100, num_proposals=20, nms_threshold=0.5,
        )  # fmt: skip
        return proposals.boxes.sum() + proposals.scores.sum()

    gradients = jax.jit(jax.grad(total, (0, 1)))(logits, deltas)
    assert not any(x.any() for x in jax.tree.leaves(gradients))


def test_bfloat16_outputs_are_decoded_in_float32():
    logits, deltas, anchors = random_outputs(3, 1)
    proposals = select_proposals(
        *jax.tree.map(lambda x: x.astype(jnp.bfloat16), (logits, deltas)), anchors,
        jnp.array([[64, 64]]), pre_nms_topk=100, num_proposals=20, nms_threshold=0.5,
    )  # fmt: skip
    assert proposals.boxes.dtype == proposals.scores.dtype == jnp.float32


def test_lists_of_different_lengths_are_refused():
    logits, deltas, anchors = random_outputs(4, 1)
    with pytest.raises(ValueError, match="shorter"):
        select_proposals(
            logits, deltas, anchors[:1], jnp.array([[64, 64]]),
            pre_nms_topk=100, num_proposals=20, nms_threshold=0.5,
        )  # fmt: skip


@pytest.mark.property
@given(
    seed=strategies.integers(0, 2**32 - 1),
    count=strategies.integers(1, 12),
    threshold=strategies.sampled_from([0.0, 0.3, 0.5, 0.9]),
    low=strategies.sampled_from([-1.0, -200.0]),
)
def test_votes_are_the_weighted_means_of_a_plain_loop(seed, count, threshold, low):
    draws = np.random.default_rng(seed)
    corners = draws.uniform(0, 20, (12, 2))
    boxes = np.concatenate([corners, corners + draws.uniform(5, 15, (12, 2))], 1)
    logits = draws.uniform(low, low + 4, 12)
    mask = np.arange(12) < count
    boxes[~mask] = np.nan  # as of candidates that are not finite
    chosen = draws.integers(0, count, 5)
    voted = vote(
        jnp.asarray(boxes[chosen], jnp.float32), jnp.asarray(boxes, jnp.float32),
        jnp.asarray(logits, jnp.float32), jnp.asarray(mask), voting_threshold=threshold,
    )  # fmt: skip
    for box, found in zip(boxes[chosen], np.asarray(voted), strict=True):
        overlaps = host_pairwise_iou(box[None], boxes[mask])[0]
        voters = overlaps > threshold
        weights = 1 / (1 + np.exp(-logits[mask][voters]))
        expected = (weights[:, None] * boxes[mask][voters]).sum(0) / weights.sum()
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_candidates_vote_for_the_boxes_of_proposals():
    """The first two anchors have an IoU of 8/9, all others one below 0.4."""
    plain, scores, mask = select([1.0, 2, -3, 0], num_proposals=3)
    voted = select([1.0, 2, -3, 0], num_proposals=3, voting_threshold=0.5)
    assert voted[1:] == (scores, mask)
    weights = 1 / (1 + np.exp([-1.0, -2.0]))
    expected = weights @ ANCHORS[:2] / weights.sum()
    np.testing.assert_allclose(voted[0], [expected, *plain[1:]], rtol=1e-6)
    assert select([1.0, 2, -3, 0], size=(0, 0), voting_threshold=0.5)[0].tolist() == [[0] * 4] * 4


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_voting_threshold_that_is_no_iou_is_refused(threshold):
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        select([1.0, 2, -3, 0], voting_threshold=threshold)
