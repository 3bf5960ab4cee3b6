"""Detections of an image from the class scores of its regions.

Source: docs/reference/detection.md#inference. Three steps: fuse objectness with the class
probabilities, select the best distinct pairs of box and class, and convert their boxes to pixels of
the original image.

The reference (docs/reference/detection.md#objectness) multiplies a probability by a raw objectness
*logit* and takes the root. So scores may exceed 1, and negative logits give NaNs that remove their
regions. Here a mask removes them. "sigmoid" is the probable intention: the geometric mean of two
probabilities.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from regionclip_jax.ops.boxes import clip_boxes, scale_boxes, valid_boxes
from regionclip_jax.ops.nms import nms_per_class
from regionclip_jax.ops.soft_nms import soft_nms_per_class
from regionclip_jax.settings import NmsSettings
from regionclip_jax.structures import Detections, Number


def fuse_objectness(
    probabilities: Float[Array, "*B R C"], objectness_logits: Float[Array, "*B R"], how: str
) -> tuple[Float[Array, "*B R C"], Bool[Array, "*B R"]]:
    """Return the scores of pairs of region and class, and the mask of regions that have scores.

    Args:
        probabilities: class probabilities.
        objectness_logits: a localizer's logits, before any sigmoid.
        how: "none": the probabilities. "reference": ``sqrt(probability * logit)``; regions with a
            negative or infinite logit have no scores. "sigmoid": ``sqrt(probability *
            sigmoid(logit))``. With these two, regions with a NaN logit have no scores.

    Returns:
        Scores, 0 for a region without scores; and a mask that is False there.

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


def fuse_probabilities(
    probabilities: Float[Array, "*B R C"],
    others: Float[Array, "*B R C"],
    exponents: Float[Array, " C"],
) -> Float[Array, "*B R C"]:
    """Return ``probabilities ** (1 - w) * others ** w`` with a w for each class.

    Source: docs/reference/training_detectors.md#score-fusion. A class with w = 0 keeps its
    probabilities, bit for bit.
    """
    fused = probabilities ** (1 - exponents) * others**exponents
    return jnp.where(exponents == 0, probabilities, fused)


@functools.partial(jax.jit, static_argnames="max_detections")
def select_detections(
    boxes: Float[Array, "B R 4"],
    scores: Float[Array, "B R C"],
    mask: Bool[Array, "B R"],
    sizes: Int[Array, "B 2"],
    *,
    score_threshold: Number,
    nms: NmsSettings,
    max_detections: int,
    reported_scores: Float[Array, "B R C"] | None = None,
) -> Detections:
    """Select the best pairs of region and class per image, after NMS within each class.

    Regions with a box or scores that are not finite are dropped. Boxes are clipped to the image.
    Pairs need a score above the threshold (strictly). Boxes that clipping leaves empty still
    suppress others; ``to_original_pixels`` drops them, as in the reference.

    Args:
        boxes: xyxy canvas pixels, one for all classes.
        scores: of each region for each class, without the background.
        mask: regions that exist and have scores.
        sizes: (height, width) of each image's real pixels.
        score_threshold: in the scale of the scores.
        nms: "hard" removes boxes; "gaussian" and "linear" lower their scores (``ops.soft_nms``).
        max_detections: K.
        reported_scores: returned in place of ``scores``, which still order and threshold: the
            reference's VIS, to show probabilities that objectness did not multiply.

    Returns:
        Detections in canvas pixels, by descending score; ties by lower region, then lower class.
        Masked rows hold zeros.

    Raises:
        ValueError: ``reported_scores`` with soft NMS, which lowers scores; an
            IoU threshold that is not between 0 and 1.
    """
    if nms.method != "hard" and reported_scores is not None:
        raise ValueError(
            f"nms {nms.method!r} lowers scores, so no others can be reported; use hard"
        )
    mask = mask & jnp.isfinite(boxes).all(-1) & jnp.isfinite(scores).all(-1)
    boxes = jnp.where(mask[..., None], clip_boxes(boxes, sizes), 0.0)
    scores = jnp.where(mask[..., None], scores, 0.0)
    if nms.method == "hard":
        choose = functools.partial(nms_per_class, iou_threshold=nms.threshold)
    else:
        choose = functools.partial(soft_nms_per_class, nms=nms)
    choose = functools.partial(choose, score_threshold=score_threshold, max_outputs=max_detections)
    regions, classes, best, real = jax.vmap(choose)(boxes, scores, mask)
    if boxes.shape[1] == 0:
        return _only(Detections(jnp.zeros((*real.shape, 4)), best, classes, real), real)
    if reported_scores is not None:
        of_regions = jnp.take_along_axis(reported_scores, regions[..., None], axis=1)
        best = jnp.take_along_axis(of_regions, classes[..., None], axis=2)[..., 0]
    boxes = jnp.take_along_axis(boxes, regions[..., None], axis=1)
    return _only(Detections(boxes, best, classes, real), real)


def to_original_pixels(
    detections: Detections, sizes: Int[Array, "B 2"], scales: Float[Array, "B 2"]
) -> Detections:
    """Convert detections from canvas pixels to pixels of the original images.

    Args:
        detections: canvas pixels.
        sizes: (height, width) of each image's real pixels on its canvas.
        scales: canvas pixels per original pixel, (y, x).

    Returns:
        Detections with boxes clipped to the original image; empty ones are masked in their row.
    """
    boxes = scale_boxes(detections.boxes, 1 / scales)
    # The quotient is a whole number up to float32's rounding.
    boxes = clip_boxes(boxes, jnp.round(sizes / scales).astype(jnp.int32))
    return _only(detections.replace(boxes=boxes), detections.mask & valid_boxes(boxes))


def _only(detections: Detections, mask: Bool[Array, "B K"]) -> Detections:
    """``detections`` with zeros in the rows outside ``mask``."""
    return Detections(
        boxes=jnp.where(mask[..., None], detections.boxes, 0.0),
        scores=jnp.where(mask, detections.scores, 0.0),
        classes=jnp.where(mask, detections.classes, 0),
        mask=mask,
    )
