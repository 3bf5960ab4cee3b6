"""One update of localizer training: a region proposal network alone.

Source: docs/reference/localizers.md#training. Anchors are matched with ground truth and sampled.
The network learns the objectness and the box deltas of the sampled ones. The reference trains its
localizers inside a whole Mask R-CNN, whose box and mask heads also train the trunk. Here only the
proposal network is trained, since no other head is used. This changes the trunk's features and the
proposals; average recall measures by how much.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from regionclip_jax.losses.rpn import anchor_regression_loss, objectness_loss
from regionclip_jax.models.localizer import Localizer, level_anchors, real_anchors
from regionclip_jax.ops.matching import IGNORED, POSITIVE, match_boxes, sampled_labels
from regionclip_jax.settings import LocalizerObjective
from regionclip_jax.steps.train_state import TrainState, apply_gradients, model_variables, step_key
from regionclip_jax.structures import DetectionBatch


def label_anchors(
    key, anchors: Float[Array, "anchors 4"], exists: Bool[Array, "B anchors"],
    batch: DetectionBatch, settings: LocalizerObjective,
):  # fmt: skip
    """Return labels and ground-truth boxes of all anchors; those not sampled are IGNORED.

    Images are processed one at a time: the overlaps of all anchors of a pyramid with all boxes of
    an image take a hundred megabytes.

    Args:
        exists: anchors of the image's own cells; others are never sampled. In the reference's
            batches the padding has anchors too, all negatives.
    """

    def one(example):
        key, exists, targets, target_mask = example
        matched, labels = match_boxes(
            anchors,
            targets,
            target_mask,
            negative_below=settings.negative_below,
            positive_from=settings.positive_from,
            allow_low_quality=True,
        )
        labels = sampled_labels(
            key,
            jnp.where(exists, labels, IGNORED),
            num_samples=settings.anchors_per_image,
            positive_fraction=settings.positive_fraction,
        )
        return labels, targets[matched]

    keys = jax.random.split(key, len(batch.boxes))
    # Padding rows of the batch contribute no samples.
    exists = exists & batch.mask[:, None]
    labelled = jax.lax.map(one, (keys, exists, batch.boxes, batch.box_mask))
    return jax.lax.stop_gradient(labelled)


def make_localizer_step(
    localizer: Localizer,
    optimizer: optax.GradientTransformation,
    settings: LocalizerObjective,
    *,
    seed: int,
) -> Callable[[TrainState, DetectionBatch], tuple[TrainState, dict]]:
    """Build the step; the caller applies ``jax.jit``. Norms are live if the localizer's are."""

    def step(state: TrainState, batch: DetectionBatch) -> tuple[TrainState, dict]:
        height, width = batch.images.shape[1:3]
        anchors = jnp.concatenate(
            [jnp.asarray(a) for a in level_anchors(localizer.config, height, width)]
        )
        exists = jnp.concatenate(real_anchors(localizer.config, batch.sizes, height, width), 1)
        key = step_key(seed, state.step)
        labels, targets = label_anchors(key, anchors, exists, batch, settings)

        def loss_fn(params):
            variables = model_variables(params, state.frozen_params, state.batch_stats)
            (logits, deltas), updated = localizer.apply(
                variables, batch.images, batch.sizes, mutable=["batch_stats"]
            )
            logits, deltas = jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1)
            count = settings.anchors_per_image
            losses = {
                "objectness": objectness_loss(logits, labels, count),
                "anchor_regression": anchor_regression_loss(
                    deltas, anchors, targets, labels, count
                ),
            }
            return sum(losses.values()), (losses, logits, updated["batch_stats"])

        (total, (losses, logits, batch_stats)), gradients = jax.value_and_grad(
            loss_fn, has_aux=True
        )(state.params)
        positive = labels == POSITIVE
        sampled = (labels != IGNORED).sum()
        right = ((logits > 0) == positive) & (labels != IGNORED)
        metrics = {
            "loss": total,
            **{f"loss_{name}": loss for name, loss in losses.items()},
            "gradient_norm": optax.tree.norm(gradients),
            "positives": (positive.sum(), sampled),
            "accuracy": (right.sum(), sampled),
            "skipped_records": (~batch.mask).sum(),
        }
        return apply_gradients(state, gradients, optimizer, batch_stats), metrics

    return step
