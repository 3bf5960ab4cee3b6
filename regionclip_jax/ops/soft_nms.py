"""Soft non-maximum suppression: overlap with a better box lowers a score instead of removing a box.

Source: docs/reference/detection.md#soft-nms. Each round selects the best remaining box and
multiplies the other scores by a factor of their IoU with it. Boxes with a score of at most
``prune`` are then removed, with or without overlap, so only the first box can have less.
The reference continues until no box remains. Scores only fall, so stopping at the wanted number of
outputs gives the same ones. The reference separates classes by shifting their boxes, which costs
bits of the IoU; here each class has its own scores.

A removed box has a score of -inf. Its product with a factor of 0 is NaN, which is not above the
threshold, so it stays removed. There are always ``max_outputs`` rounds, empty ones after the last
box. In a ``while`` loop ``vmap`` copies the state of finished images, which costs far more.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from regionclip_jax.ops import arguments  # noqa: F401  (NmsSettings are an argument of jit)
from regionclip_jax.ops.boxes import pairwise_iou
from regionclip_jax.settings import NmsSettings
from regionclip_jax.structures import Number


@functools.partial(jax.jit, static_argnames="max_outputs")
def soft_nms_per_class(
    boxes: Float[Array, "R 4"],
    scores: Float[Array, "R C"],
    mask: Bool[Array, " R"],
    *,
    score_threshold: Number,
    nms: NmsSettings,
    max_outputs: int,
) -> tuple[Int[Array, " K"], Int[Array, " K"], Float[Array, " K"], Bool[Array, " K"]]:
    """Apply soft NMS within each class to boxes that all classes share; return the best of all.

    A selected box lowers scores of one class only. With the best box of each class stored, a round
    costs R + C instead of R x C.

    Args:
        boxes: xyxy, one for all classes.
        scores: of each box for each class; not negative, not infinite.
        mask: rows that exist.
        score_threshold: candidates need more, strictly, before any score is lowered.
        nms: the factor of a score is, for "gaussian", ``exp(-iou**2 / sigma)``; for "linear",
            ``1 - iou`` where the IoU exceeds the threshold; for "hard", 0 where it reaches it. The
            threshold is rounded to float32 before comparing, as in the reference, unlike that of
            ``ops.nms``: an IoU of float32(0.3) does not exceed 0.3 here. ``prune`` is not negative.
        max_outputs: K.

    Returns:
        Index into ``boxes``, class, lowered score and mask, by descending lowered score; ties by
        lower box, then lower class. Masked rows hold zeros.
    """
    factor = _factor_function(nms)
    num_boxes, num_classes = scores.shape
    if num_boxes == 0 or num_classes == 0:
        nothing = jnp.zeros(max_outputs, jnp.int32)
        return nothing, nothing, nothing.astype(scores.dtype), nothing > 0

    candidates = mask[:, None] & (scores > score_threshold)
    scores = jnp.where(candidates, scores, -jnp.inf)
    # The first round prunes all classes. Pruning ahead lets each round touch one class only.
    first = jnp.arange(scores.size).reshape(scores.shape) == scores.argmax()
    scores = jnp.where((scores > nms.prune) | first, scores, -jnp.inf).T

    def take_best(state, _):
        scores, best_scores, best_boxes = state
        first_best = jnp.where(best_scores == best_scores.max(), best_boxes, num_boxes)
        best_class = first_best.argmin()
        best = best_boxes[best_class]
        lowered = scores[best_class] * factor(boxes, boxes[best])
        lowered = _without(best, lowered, nms.prune)
        # With max and argmax instead of top_k, XLA reads the scores after writing them. That makes
        # two copies of all scores in each round, six times slower on a CPU.
        (next_score,), (next_box,) = jax.lax.top_k(lowered, 1)
        state = (
            scores.at[best_class].set(lowered),
            best_scores.at[best_class].set(next_score),
            best_boxes.at[best_class].set(next_box),
        )
        return state, (best, best_class, best_scores[best_class])

    state = (scores, scores.max(1), scores.argmax(1))
    _, (indices, classes, taken) = jax.lax.scan(take_best, state, length=max_outputs)
    real = taken > -jnp.inf
    return *(jnp.where(real, x, 0) for x in (indices, classes, taken)), real


def _without(taken, scores, prune_threshold):
    """``scores`` without those that are too low and without index ``taken``."""
    others = jnp.arange(scores.size) != taken
    return jnp.where((scores > prune_threshold) & others, scores, -jnp.inf)


def _factor_function(nms: NmsSettings) -> Callable:
    """Return ``factor(boxes, best)``: factors of the scores of ``boxes`` once ``best`` is out."""
    factors = {
        "gaussian": lambda iou: jnp.exp(-(iou**2) / nms.sigma),
        "linear": lambda iou: jnp.where(iou > nms.threshold, 1.0 - iou, 1.0),
        "hard": lambda iou: jnp.where(iou >= nms.threshold, 0.0, 1.0),
    }
    return lambda boxes, best: factors[nms.method](pairwise_iou(boxes, best[None])[:, 0])
