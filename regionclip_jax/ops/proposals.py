"""Proposals: the best distinct boxes from the outputs of a region proposal network.

Source: docs/reference/localizers.md#proposals.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from regionclip_jax.ops.box_coder import decode_deltas
from regionclip_jax.ops.boxes import clip_boxes, exact_threshold, valid_boxes
from regionclip_jax.ops.nms import nms_by_group
from regionclip_jax.structures import AnyArray, Number, Regions


def select_proposals(
    logits: list[Float[Array, "B _"]],
    deltas: list[Float[Array, "B _ 4"]],
    anchors: list[Float[AnyArray, "_ 4"]],
    sizes: Int[Array, "B 2"],
    *,
    pre_nms_topk: int,
    num_proposals: int,
    nms_threshold: Number,
) -> Regions:
    """Decode each level's best anchors and keep the best boxes that NMS leaves.

    The best ``pre_nms_topk`` of each level are decoded. Boxes that are not finite are dropped. The
    others are clipped to the image, and dropped if they have no area then. Boxes
    suppress boxes of their own level. The best ``num_proposals`` of all levels are returned. No
    gradient flows back, as in the reference.

    Args:
        logits: objectness before any sigmoid, per level, in the order of ``anchors``.
        deltas: of each anchor, encoded with weights (1, 1, 1, 1).
        anchors: xyxy canvas pixels, per level; the same for all images.
        sizes: (height, width) of each image's real pixels. An image without pixels has no
            proposals.
        pre_nms_topk: per level.
        num_proposals: R, in total.
        nms_threshold: IoU, between 0 and 1; an array comes from ``exact_threshold``.

    Returns:
        Boxes by descending score, which is the raw logit, as in the reference. Ties are ordered by
        lower level, then lower anchor; the reference's order is undefined.

    Raises:
        ValueError: lists of different lengths; a threshold that is not between 0 and 1.
    """
    threshold = exact_threshold(nms_threshold)
    return _select(logits, deltas, anchors, sizes, threshold, pre_nms_topk, num_proposals)


@functools.partial(jax.jit, static_argnames=("pre_nms_topk", "num_proposals"))
def _select(logits, deltas, anchors, sizes, nms_threshold, pre_nms_topk, num_proposals):
    boxes, scores, levels = [], [], []
    for level, (level_logits, level_deltas, level_anchors) in enumerate(
        zip(logits, deltas, anchors, strict=True)
    ):
        count = min(pre_nms_topk, level_logits.shape[1])
        best_logits, best = jax.lax.top_k(level_logits, count)
        best_deltas = jnp.take_along_axis(level_deltas, best[..., None], 1).astype(jnp.float32)
        boxes.append(decode_deltas(best_deltas, jnp.asarray(level_anchors)[best]))
        scores.append(best_logits.astype(jnp.float32))
        levels.append(jnp.full(count, level, jnp.int32))
    boxes, scores = jax.lax.stop_gradient((jnp.concatenate(boxes, 1), jnp.concatenate(scores, 1)))
    finite = jnp.isfinite(boxes).all(-1) & jnp.isfinite(scores)
    boxes = clip_boxes(boxes, sizes)
    mask = finite & valid_boxes(boxes)
    levels = jnp.concatenate(levels)

    def select(boxes, scores, mask):
        chosen, kept = nms_by_group(
            boxes, scores, levels, mask, iou_threshold=nms_threshold, max_outputs=num_proposals
        )
        return Regions(
            boxes=jnp.where(kept[:, None], boxes[chosen], 0.0),
            scores=jnp.where(kept, scores[chosen], 0.0),
            mask=kept,
        )

    return jax.vmap(select)(boxes, scores, mask)
