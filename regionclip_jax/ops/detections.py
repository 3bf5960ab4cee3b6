"""Class scores of regions to the detections of an image.

Source: docs/reference/detection.md#inference. Three steps: objectness joins the class
probabilities, the best distinct pairs of box and class are chosen, and their boxes return to the
pixels of the original image.

The reference (docs/reference/detection.md#objectness) multiplies a probability by a raw objectness
*logit* and takes the root. So scores may exceed 1, and the NaNs that negative logits give remove
their regions. Here that removal is a mask; "sigmoid" is what was probably meant: the geometric mean
of two probabilities.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from regionclip_jax.ops.boxes import clip_boxes, scale_boxes, valid_boxes
from regionclip_jax.ops.nms import nms_per_class
from regionclip_jax.ops.soft_nms import soft_nms_per_class
from regionclip_jax.structures import Detections


def fuse_objectness(
    probabilities: Float[Array, "*B R C"], objectness_logits: Float[Array, "*B R"], how: str
) -> tuple[Float[Array, "*B R C"], Bool[Array, "*B R"]]:
    """Scores of pairs of region and class, and which regions have any.

    Args:
        probabilities: of the classes.
        objectness_logits: as a localizer gives them, before any sigmoid.
        how: "none": the probabilities. "reference": ``sqrt(probability * logit)``; regions with a
            negative or infinite logit have no scores. "sigmoid": ``sqrt(probability *
            sigmoid(logit))``. Either way regions whose logit is NaN have no scores.

    Returns:
        Scores, 0 where a region has none; and a mask that is False there.

    Raises:
        ValueError: another ``how``.
    """
    if how == "none":
        return probabilities, jnp.ones(objectness_logits.shape, bool)
    if how == "sigmoid":
        objectness = jax.nn.sigmoid(objectness_logits)
    elif how == "reference":
        objectness = objectness_logits
    else:
        raise ValueError(f"objectness {how!r}; expected none, reference or sigmoid")
    mask = (objectness >= 0) & jnp.isfinite(objectness)
    objectness = jnp.where(mask, objectness, 0.0)
    return jnp.sqrt(probabilities * objectness[..., None]), mask


@functools.partial(
    jax.jit,
    static_argnames=(
        "score_threshold", "nms", "nms_threshold", "soft_nms_sigma", "soft_nms_prune",
        "max_detections",
    ),
)  # fmt: skip
def select_detections(
    boxes: Float[Array, "B R 4"],
    scores: Float[Array, "B R C"],
    mask: Bool[Array, "B R"],
    sizes: Int[Array, "B 2"],
    *,
    score_threshold: float,
    nms: str,
    nms_threshold: float,
    soft_nms_sigma: float = 0.5,
    soft_nms_prune: float = 0.001,
    max_detections: int,
    reported_scores: Float[Array, "B R C"] | None = None,
) -> Detections:
    """The best pairs of region and class that do not suppress one another, per image.

    Regions whose box or scores are not finite are dropped, boxes are clipped to the picture, pairs
    need a score above the threshold (strictly), boxes of one class suppress one another. Boxes that
    clipping leaves empty take part; ``to_original_pixels`` drops them, as in the reference.

    Args:
        boxes: xyxy canvas pixels, one for all classes.
        scores: of each region for each class, without the background.
        mask: regions that exist and have scores.
        sizes: (height, width) of each picture's real pixels.
        score_threshold: in the scale of the scores.
        nms: "hard" removes boxes; "gaussian" and "linear" lower their scores (``ops.soft_nms``).
        nms_threshold: IoU, of "hard" and "linear".
        soft_nms_sigma: of "gaussian".
        soft_nms_prune: lowered scores up to this are removed.
        max_detections: K.
        reported_scores: come out in place of ``scores``, which still order and threshold: the
            reference's VIS, to show probabilities that objectness did not multiply.

    Returns:
        Canvas pixels, by descending score (of equal scores the lower region, then the lower class,
        first). Rows that are not real hold zeros.

    Raises:
        ValueError: an unknown ``nms``; ``reported_scores`` with soft NMS, which lowers scores; an
            IoU threshold that is not between 0 and 1.
    """
    if nms not in ("hard", "gaussian", "linear"):
        raise ValueError(f"nms {nms!r}; expected hard, gaussian or linear")
    if nms != "hard" and reported_scores is not None:
        raise ValueError(f"nms {nms!r} lowers scores, so no others can be reported; use hard")
    mask = mask & jnp.isfinite(boxes).all(-1) & jnp.isfinite(scores).all(-1)
    boxes = jnp.where(mask[..., None], clip_boxes(boxes, sizes), 0.0)
    scores = jnp.where(mask[..., None], scores, 0.0)
    if nms == "hard":
        choose = functools.partial(nms_per_class, iou_threshold=nms_threshold)
    else:
        choose = functools.partial(
            soft_nms_per_class,
            method=nms,
            sigma=soft_nms_sigma,
            iou_threshold=nms_threshold,
            prune_threshold=soft_nms_prune,
        )
    choose = functools.partial(choose, score_threshold=score_threshold, max_outputs=max_detections)
    regions, classes, best, real = jax.vmap(choose)(boxes, scores, mask)
    if boxes.shape[1] == 0:
        return _only(Detections(jnp.zeros((*real.shape, 4)), best, classes, real), real)
    if reported_scores is not None:
        own = jnp.take_along_axis(reported_scores, regions[..., None], axis=1)
        best = jnp.take_along_axis(own, classes[..., None], axis=2)[..., 0]
    boxes = jnp.take_along_axis(boxes, regions[..., None], axis=1)
    return _only(Detections(boxes, best, classes, real), real)


def to_original_pixels(
    detections: Detections, sizes: Int[Array, "B 2"], scales: Float[Array, "B 2"]
) -> Detections:
    """Detections of canvases in the pixels of the original images.

    Args:
        detections: canvas pixels.
        sizes: (height, width) of each picture's real pixels on its canvas.
        scales: canvas pixels per original pixel, (y, x).

    Returns:
        Boxes clipped to the original image; those that are then empty are masked where they are.
    """
    boxes = scale_boxes(detections.boxes, 1 / scales)
    # The quotient is a whole number but for float32's rounding.
    boxes = clip_boxes(boxes, jnp.round(sizes / scales).astype(jnp.int32))
    return _only(detections.replace(boxes=boxes), detections.mask & valid_boxes(boxes))


def _only(detections: Detections, mask: Bool[Array, "B K"]) -> Detections:
    """With the rows outside ``mask`` zero."""
    return Detections(
        boxes=jnp.where(mask[..., None], detections.boxes, 0.0),
        scores=jnp.where(mask, detections.scores, 0.0),
        classes=jnp.where(mask, detections.classes, 0),
        mask=mask,
    )
