"""Matching of proposals or anchors to ground truth, and the sampling of training examples.

Every function takes one image; ``jax.vmap`` gives the batch. Source:
docs/reference/training_detectors.md#proposal-sampling (box heads) and
docs/reference/localizers.md#training (region proposal networks).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from regionclip_jax.ops.boxes import pairwise_iou

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def match_boxes(
    boxes: Float[Array, "R 4"],
    targets: Float[Array, "G 4"],
    target_mask: Bool[Array, " G"],
    *,
    negative_below: float,
    positive_from: float,
    allow_low_quality: bool = False,
) -> tuple[Int[Array, " R"], Int[Array, " R"]]:
    """Return each box's best target and its label.

    A box is positive at an IoU of ``positive_from`` or more, negative below ``negative_below``, and
    ignored in between. The paper's box head has 0.5 for both, its localizer 0.3 and 0.7.

    Args:
        boxes: proposals or anchors, xyxy canvas pixels.
        targets: ground truth in the same frame.
        target_mask: rows of ``targets`` that are real. If none is, all boxes are negatives.
        allow_low_quality: the boxes with a target's largest overlap (ties included) are positives,
            however small the overlap, so that every target has one. Such a box keeps the target
            that it overlaps most itself, as in the reference. A target without any overlap makes no
            box positive; in the reference it makes all boxes positive.

    Returns:
        Rows of ``targets`` (the first of equal overlaps; 0 without targets), and POSITIVE, NEGATIVE
        or IGNORED.
    """
    overlaps = jnp.where(target_mask, pairwise_iou(boxes, targets), -1.0)
    best = overlaps.max(-1)
    matched = overlaps.argmax(-1)
    labels = jnp.full(best.shape, IGNORED)
    labels = jnp.where(best < negative_below, NEGATIVE, labels)
    labels = jnp.where(best >= positive_from, POSITIVE, labels)
    if allow_low_quality:
        highest = overlaps.max(0)
        wanted = target_mask & (highest > 0)
        labels = jnp.where(((overlaps == highest) & wanted).any(-1), POSITIVE, labels)
    return matched, labels


def sample_examples(
    key: PRNGKeyArray,
    labels: Int[Array, " R"],
    mask: Bool[Array, " R"],
    *,
    num_samples: int,
    positive_fraction: float,
) -> tuple[Int[Array, " S"], Bool[Array, " S"], Bool[Array, " S"]]:
    """Draw a random subset of positives and negatives, in a fixed number of rows.

    There are at most ``int(num_samples * positive_fraction)`` positives. Negatives fill the other
    rows; with too few negatives, rows stay empty.

    Args:
        key: of the draw.
        labels: from ``match_boxes``.
        mask: boxes that exist.
        num_samples: S.
        positive_fraction: largest share of positives.

    Returns:
        Rows of the boxes, positives first; the mask of positives; the mask of real rows.
    """
    most = min(int(num_samples * positive_fraction), labels.shape[0])
    priority = jax.random.uniform(key, labels.shape)

    def draw(wanted, count):
        """``count`` random rows, wanted ones first, and the number of wanted ones among them."""
        _, rows = jax.lax.top_k(jnp.where(wanted, priority, -1.0), count)
        return rows, jnp.minimum(wanted.sum(), count)

    positives, num_positives = draw(mask & (labels == POSITIVE), most)
    negatives, num_negatives = draw(mask & (labels == NEGATIVE), min(num_samples, labels.shape[0]))
    rank = jnp.arange(num_samples)
    is_positive = rank < num_positives
    is_real = rank < num_positives + num_negatives
    from_positives = jnp.pad(positives, (0, num_samples - len(positives)))
    behind = jnp.clip(rank - num_positives, 0, len(negatives) - 1)
    rows = jnp.where(is_positive, from_positives, negatives[behind])
    return jnp.where(is_real, rows, 0), is_positive, is_real


def sampled_labels(
    key: PRNGKeyArray,
    labels: Int[Array, " R"],
    *,
    num_samples: int,
    positive_fraction: float,
) -> Int[Array, " R"]:
    """Return ``labels`` with all but a random subset IGNORED, as drawn by ``sample_examples``.

    For anchors: they are too many to gather, and their outputs exist anyway.
    """
    rows, _, real = sample_examples(
        key,
        labels,
        jnp.ones(labels.shape, bool),
        num_samples=num_samples,
        positive_fraction=positive_fraction,
    )
    kept = jnp.zeros(labels.shape, bool).at[rows].max(real)
    return jnp.where(kept, labels, IGNORED)
