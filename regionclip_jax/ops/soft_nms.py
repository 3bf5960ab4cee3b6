"""Soft non-maximum suppression: overlap with a better box lowers a score instead of removing a box.

Source: docs/reference/detection.md#soft-nms. Each round selects the best remaining box and
multiplies the other scores by a factor of their IoU with it. Boxes with a score of at most
``prune_threshold`` are then removed, with or without overlap, so only the first box can have less.
The reference continues until no box remains. Scores only fall, so stopping at the wanted number of
outputs gives the same ones. The reference separates classes by shifting their boxes, which costs
bits of the IoU; here groups are compared.

A removed box has a score of -inf. Its product with a factor of 0 is NaN, which is not above the
threshold, so it stays removed. There are always ``max_outputs`` rounds, empty ones after the last
box. In a ``while`` loop ``vmap`` copies the state of finished images, which costs far more.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from regionclip_jax.ops.boxes import pairwise_iou

_STATIC = ("method", "sigma", "iou_threshold", "prune_threshold", "max_outputs")


@functools.partial(jax.jit, static_argnames=_STATIC)
def soft_nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.5,
    prune_threshold: float = 0.001,
    max_outputs: int,
) -> tuple[Int[Array, " K"], Float[Array, " K"], Bool[Array, " K"]]:
    """Return the first ``max_outputs`` boxes and their lowered scores, by descending lowered score.

    Args:
        boxes: xyxy in any one frame.
        scores: finite, not negative.
        mask: rows that exist.
        method: the factor of a score is, for "gaussian", ``exp(-iou**2 / sigma)``; for "linear",
            ``1 - iou`` where the IoU exceeds the threshold; for "hard", 0 where it reaches it.
        sigma: of "gaussian".
        iou_threshold: of "linear" and "hard". Rounded to float32 before comparing, as in the
            reference, unlike that of ``nms``: an IoU of float32(0.3) does not exceed 0.3 here.
        prune_threshold: lowered scores up to this are removed; not negative.
        max_outputs: K.

    Returns:
        Indices into ``boxes``, lowered scores, and their mask: real rows first. Masked rows hold
        zeros. Ties are ordered by lower index.

    Raises:
        ValueError: unknown method.
    """
    groups = jnp.zeros(scores.shape, jnp.int32)
    factor = _factor_function(method, sigma, iou_threshold)
    return _take_best(boxes, scores, groups, mask, factor, prune_threshold, max_outputs)


@functools.partial(jax.jit, static_argnames=_STATIC)
def soft_nms_by_group(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    groups: Int[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.5,
    prune_threshold: float = 0.001,
    max_outputs: int,
) -> tuple[Int[Array, " K"], Float[Array, " K"], Bool[Array, " K"]]:
    """Apply ``soft_nms``, but boxes lower only the scores of their own group (class)."""
    factor = _factor_function(method, sigma, iou_threshold)
    return _take_best(boxes, scores, groups, mask, factor, prune_threshold, max_outputs)


@functools.partial(jax.jit, static_argnames=("score_threshold", *_STATIC))
def soft_nms_per_class(
    boxes: Float[Array, "R 4"],
    scores: Float[Array, "R C"],
    mask: Bool[Array, " R"],
    *,
    score_threshold: float,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.5,
    prune_threshold: float = 0.001,
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
        method, sigma, iou_threshold, prune_threshold, max_outputs: as in ``soft_nms``.

    Returns:
        Index into ``boxes``, class, lowered score and mask, by descending lowered score; ties by
        lower box, then lower class. Masked rows hold zeros.

    Raises:
        ValueError: unknown method.
    """
    factor = _factor_function(method, sigma, iou_threshold)
    num_boxes, num_classes = scores.shape
    if num_boxes == 0 or num_classes == 0:
        nothing = jnp.zeros(max_outputs, jnp.int32)
        return nothing, nothing, nothing.astype(scores.dtype), nothing > 0

    candidates = mask[:, None] & (scores > score_threshold)
    scores = jnp.where(candidates, scores, -jnp.inf)
    # The first round prunes all classes. Pruning ahead lets each round touch one class only.
    first = jnp.arange(scores.size).reshape(scores.shape) == scores.argmax()
    scores = jnp.where((scores > prune_threshold) | first, scores, -jnp.inf).T

    def take_best(state, _):
        scores, best_scores, best_boxes = state
        first_best = jnp.where(best_scores == best_scores.max(), best_boxes, num_boxes)
        best_class = first_best.argmin()
        best = best_boxes[best_class]
        lowered = scores[best_class] * factor(boxes, boxes[best])
        lowered = _without(best, lowered, prune_threshold)
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


def _take_best(boxes, scores, groups, mask, factor, prune_threshold, max_outputs):
    if scores.size == 0:
        nothing = jnp.zeros(max_outputs, jnp.int32)
        return nothing, nothing.astype(scores.dtype), nothing > 0

    def take_best(scores, _):
        best = scores.argmax()
        factors = jnp.where(groups == groups[best], factor(boxes, boxes[best]), 1.0)
        return _without(best, scores * factors, prune_threshold), (best, scores[best])

    scores = jnp.where(mask, scores, -jnp.inf)
    _, (indices, taken) = jax.lax.scan(take_best, scores, length=max_outputs)
    real = taken > -jnp.inf
    return jnp.where(real, indices, 0), jnp.where(real, taken, 0), real


def _without(taken, scores, prune_threshold):
    """``scores`` without those that are too low and without index ``taken``."""
    others = jnp.arange(scores.size) != taken
    return jnp.where((scores > prune_threshold) & others, scores, -jnp.inf)


def _factor_function(method: str, sigma: float, iou_threshold: float) -> Callable:
    """Return ``factor(boxes, best)``: the factors of the scores of ``boxes`` once ``best`` is out.

    Raises:
        ValueError: unknown method.
    """
    factors = {
        "gaussian": lambda iou: jnp.exp(-(iou**2) / sigma),
        "linear": lambda iou: jnp.where(iou > iou_threshold, 1.0 - iou, 1.0),
        "hard": lambda iou: jnp.where(iou >= iou_threshold, 0.0, 1.0),
    }
    if method not in factors:
        raise ValueError(f"soft NMS: method {method!r}; expected one of {', '.join(factors)}")
    return lambda boxes, best: factors[method](pairwise_iou(boxes, best[None])[:, 0])
