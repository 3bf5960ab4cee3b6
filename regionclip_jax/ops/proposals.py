"""Proposals: the best distinct boxes from the outputs of a region proposal network.

Source: docs/reference/localizers.md#proposals. Voting: Gidaris and Komodakis, "Object detection via
a multi-region and semantic segmentation-aware CNN model" (ICCV 2015), section 4, with objectness in
the place of class scores.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from regionclip_jax.ops.box_coder import decode_deltas
from regionclip_jax.ops.boxes import (
    clip_boxes,
    exact_threshold,
    intersection_and_union,
    iou_exceeds,
    valid_boxes,
)
from regionclip_jax.ops.nms import nms_by_group
from regionclip_jax.settings import ProposalSettings
from regionclip_jax.structures import AnyArray, Number, Regions


def propose_from_cells(
    logits: list[Float[Array, "B _"]],
    deltas: list[Float[Array, "B _ 4"]],
    anchors: list[Float[AnyArray, "_ 4"]],
    real: list[Bool[Array, "B _"]],
    sizes: Int[Array, "B 2"],
    proposals: ProposalSettings,
) -> Regions:
    """Apply ``select_proposals`` to the anchors of each image's own cells.

    Args:
        logits, deltas, anchors, sizes: as in ``select_proposals``.
        real: anchors of the image's own cells, per level; others propose nothing.
    """
    logits = [jnp.where(own, level, -jnp.inf) for own, level in zip(real, logits, strict=True)]
    return select_proposals(
        logits,
        deltas,
        anchors,
        sizes,
        pre_nms_topk=proposals.pre_nms_topk,
        num_proposals=proposals.num_proposals,
        nms_threshold=proposals.nms_threshold,
        voting_threshold=proposals.voting_threshold,
    )


def select_proposals(
    logits: list[Float[Array, "B _"]],
    deltas: list[Float[Array, "B _ 4"]],
    anchors: list[Float[AnyArray, "_ 4"]],
    sizes: Int[Array, "B 2"],
    *,
    pre_nms_topk: int,
    num_proposals: int,
    nms_threshold: Number,
    voting_threshold: float = 1.0,
) -> Regions:
    """Decode each level's best anchors and keep the best boxes that NMS leaves.

    The best ``pre_nms_topk`` of each level are decoded. Boxes that are not finite are dropped. The
    others are clipped to the image, and dropped if they have no area then. Boxes
    suppress boxes of their own level. The best ``num_proposals`` of all levels are returned, moved
    by ``vote`` of all decoded boxes. No gradient flows back, as in the reference.

    Args:
        logits: objectness before any sigmoid, per level, in the order of ``anchors``.
        deltas: of each anchor, encoded with weights (1, 1, 1, 1).
        anchors: xyxy canvas pixels, per level; the same for all images.
        sizes: (height, width) of each image's real pixels. An image without pixels has no
            proposals.
        pre_nms_topk: per level.
        num_proposals: R, in total.
        nms_threshold: IoU, between 0 and 1; an array comes from ``exact_threshold``.
        voting_threshold: IoU, between 0 and 1; at 1 the boxes stay as they are.

    Returns:
        Boxes by descending score, which is the raw logit, as in the reference. Ties are ordered by
        lower level, then lower anchor; the reference's order is undefined.

    Raises:
        ValueError: lists of different lengths; a threshold that is not between 0 and 1.
    """
    threshold = exact_threshold(nms_threshold)
    exact_threshold(voting_threshold)
    return _select(
        logits, deltas, anchors, sizes, threshold, pre_nms_topk, num_proposals, voting_threshold
    )


def vote(
    proposals: Float[Array, "R 4"],
    boxes: Float[Array, "N 4"],
    logits: Float[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    voting_threshold: float,
) -> Float[Array, "R 4"]:
    """Return the weighted mean of the candidates that overlap each proposal.

    The errors of overlapping candidates differ, and partly cancel in their mean.

    Args:
        proposals: boxes among the candidates, any one frame.
        boxes: candidates, same frame.
        logits: their objectness; the weight is its sigmoid.
        mask: candidates that exist; the others may have any numbers.
        voting_threshold: IoU above which a candidate votes, between 0 and 1, and less than 1.
    """
    boxes = jnp.where(mask[:, None], boxes, 0.0)
    votes = iou_exceeds(*intersection_and_union(proposals, boxes), voting_threshold) & mask
    # The softmax normalises weights that would all underflow. A masked proposal has no votes.
    log_weights = jnp.where(votes, jax.nn.log_sigmoid(logits), -1e30)
    weights = jax.nn.softmax(log_weights, axis=-1)
    return jnp.matmul(weights, boxes, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames=("pre_nms_topk", "num_proposals", "voting_threshold"))
def _select(
    logits, deltas, anchors, sizes, nms_threshold, pre_nms_topk, num_proposals, voting_threshold
):
    boxes, scores, levels = [], [], []
    for level, (level_logits, level_deltas, level_anchors) in enumerate(
        zip(logits, deltas, anchors, strict=True)
    ):
        count = min(pre_nms_topk, level_logits.shape[1])
        best_logits, best = jax.lax.top_k(level_logits, count)
        best_deltas = jnp.take_along_axis(level_deltas, best[..., None], 1).astype(jnp.float32)
        boxes.append(decode_deltas(best_deltas, jnp.asarray(level_anchors)[best]))
        scores.append(best_logits.astype(jnp.float32))
        levels.append(np.full(count, level, np.int32))
    boxes, scores = jax.lax.stop_gradient((jnp.concatenate(boxes, 1), jnp.concatenate(scores, 1)))
    finite = jnp.isfinite(boxes).all(-1) & jnp.isfinite(scores)
    boxes = clip_boxes(boxes, sizes)
    mask = finite & valid_boxes(boxes)
    levels = np.concatenate(levels)

    def select(boxes, scores, mask):
        chosen, kept = nms_by_group(
            boxes, scores, levels, mask, iou_threshold=nms_threshold, max_outputs=num_proposals
        )
        proposed = boxes[chosen]
        if voting_threshold < 1:
            proposed = vote(proposed, boxes, scores, mask, voting_threshold=voting_threshold)
        return Regions(
            boxes=jnp.where(kept[:, None], proposed, 0.0),
            scores=jnp.where(kept, scores[chosen], 0.0),
            mask=kept,
        )

    return jax.vmap(select)(boxes, scores, mask)
