"""One update of a detector on a feature pyramid of a frozen ViT (F-ViT).

Source: docs/reference/training_detectors.md#f-vit. Maps of the tower's blocks -> pyramid -> the
proposal network, whose anchors are matched, sampled and learned -> its proposals are matched and
sampled with ground truth -> crops from the pyramid -> embeddings, deltas and masks. The tower gets
no gradient. Only names of base classes take part in the softmax.

Norms are live: those of the neck and the pyramid normalise by all canvases, those of the heads by
all sampled regions, each of the global batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from regionclip_jax.losses.detector_heads import mask_loss
from regionclip_jax.losses.rpn import anchor_regression_loss, objectness_loss
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.vit_pyramid import (
    BOX_CELLS,
    MASK_CELLS,
    PYRAMID_HEADS,
    Pyramid,
    PyramidHeads,
    as_pyramid,
    crop_from_pyramid,
    propose_from_pyramid,
    pyramid_anchors,
    tower_features,
)
from regionclip_jax.ops.mask_targets import mask_targets
from regionclip_jax.settings import DetectorObjective, LocalizerObjective
from regionclip_jax.steps.detector_step import (
    FrozenDetectorParts,
    Samples,
    clip_part,
    label_and_sample,
    matched_masks,
    sample_losses,
)
from regionclip_jax.steps.localizer_step import label_anchors
from regionclip_jax.steps.train_state import TrainState, apply_gradients, model_variables, step_key
from regionclip_jax.structures import DetectionBatch

# Labels of anchors are those of a localizer's training.
_ANCHORS = LocalizerObjective()


class _Outputs(NamedTuple):
    """Losses by name, logits of the samples, the samples, and the updated statistics."""

    losses: dict[str, Float[Array, ""]]
    logits: Float[Array, "B S _"]
    samples: Samples
    batch_stats: dict


class _LiveHeads:
    """Heads with live norms: each call takes the statistics that the last one updated."""

    def __init__(self, heads: PyramidHeads, variables: dict):
        self._heads, self._params = heads, variables["params"]
        self.batch_stats = variables["batch_stats"]

    def __call__(self, method: Callable, *arguments):
        variables = {"params": self._params, "batch_stats": self.batch_stats}
        out, updated = self._heads.apply(
            variables, *arguments, method=method, mutable=["batch_stats"]
        )
        self.batch_stats = updated["batch_stats"]
        return out

    def regions(self, method: Callable, crops: Float[Array, "B S h w c"], *arguments):
        """Apply a method of single regions to those of all images."""
        out = self(method, crops.reshape(-1, *crops.shape[2:]), *arguments)
        return jax.tree.map(lambda x: x.reshape(*crops.shape[:2], *x.shape[1:]), out)


def _region_losses(
    heads: PyramidHeads, live: _LiveHeads, pyramid: Pyramid, class_embeddings, batch, samples,
    settings: DetectorObjective,
):  # fmt: skip
    """Return the losses of sampled regions by name, and the logits."""
    crops = crop_from_pyramid(pyramid, samples.boxes, BOX_CELLS, settings.roi_align_impl)
    embeddings, deltas = live.regions(heads.embed, crops)
    logits = live(heads.logits, embeddings, class_embeddings)
    losses = sample_losses(logits, deltas, samples, settings)
    if settings.with_masks:
        # Positives come first, so only the first rows can need a mask.
        cut = settings.max_positives
        crops = crop_from_pyramid(
            pyramid, samples.boxes[:, :cut], MASK_CELLS, settings.roi_align_impl
        )
        masks = live.regions(heads.draw_masks, crops)
        masks = masks.reshape(-1, *masks.shape[2:])
        targets = mask_targets(
            matched_masks(batch, samples, cut),
            samples.target_boxes[:, :cut].reshape(-1, 4),
            samples.boxes[:, :cut].reshape(-1, 4),
            masks.shape[-1],
        )
        losses["mask"] = mask_loss(masks, targets, samples.is_positive[:, :cut].reshape(-1))
    return losses, logits


def make_pyramid_step(
    model: CLIP,
    heads: PyramidHeads,
    optimizer: optax.GradientTransformation,
    settings: DetectorObjective,
    *,
    seed: int,
) -> Callable[[TrainState, FrozenDetectorParts, DetectionBatch], tuple[TrainState, dict]]:
    """Build the step; the caller applies ``jax.jit`` (state donated, frozen not).

    Args:
        heads: with live norms. The state's parameters are CLIP's, all frozen, and
            ``pyramid_heads``.
    """

    def losses_of(variables, maps, cells, class_embeddings, batch, key) -> _Outputs:
        live = _LiveHeads(heads, {name: tree[PYRAMID_HEADS] for name, tree in variables.items()})
        anchors_key, samples_key = jax.random.split(key)
        levels = live(heads.levels, maps, cells)
        pyramid = as_pyramid(levels, cells, model.stride)
        outputs = [
            live(heads.predict, level, own)
            for level, own in zip(pyramid.levels, pyramid.cells, strict=True)
        ]
        logits, deltas = [x for x, _ in outputs], [d for _, d in outputs]
        anchors, real = pyramid_anchors(pyramid)
        anchors = jnp.concatenate([jnp.asarray(level) for level in anchors])
        labels, targets = label_anchors(
            anchors_key, anchors, jnp.concatenate(real, 1), batch, _ANCHORS
        )
        count = _ANCHORS.anchors_per_image
        losses = {
            "objectness": objectness_loss(jnp.concatenate(logits, 1), labels, count),
            "anchor_regression": anchor_regression_loss(
                jnp.concatenate(deltas, 1), anchors, targets, labels, count
            ),
        }
        proposals = propose_from_pyramid(pyramid, logits, deltas, batch.sizes, settings.proposals)
        samples = label_and_sample(samples_key, proposals, batch, len(class_embeddings), settings)
        more, logits = _region_losses(
            heads, live, pyramid, class_embeddings, batch, samples, settings
        )
        batch_stats = variables["batch_stats"] | {PYRAMID_HEADS: live.batch_stats}
        return _Outputs(losses | more, logits, samples, batch_stats)

    def step(
        state: TrainState, frozen: FrozenDetectorParts, batch: DetectionBatch
    ) -> tuple[TrainState, dict]:
        clip = clip_part(state.variables)
        blocks = heads.config.from_blocks
        features, maps = tower_features(model, clip, batch.images, batch.sizes, blocks)
        key = step_key(seed, state.step)

        def loss_fn(params):
            variables = model_variables(params, state.frozen_params, state.batch_stats)
            outputs = losses_of(
                variables, maps, features.cells, frozen.class_embeddings, batch, key
            )
            return sum(outputs.losses.values()), outputs

        (total, outputs), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        samples = outputs.samples
        right = (outputs.logits.argmax(-1) == samples.classes) & samples.is_positive
        positives = samples.is_positive.sum()
        metrics = {
            "loss": total,
            **{f"loss_{name}": loss for name, loss in outputs.losses.items()},
            "gradient_norm": optax.tree.norm(gradients),
            "positives": positives / jnp.maximum(samples.mask.sum(), 1),
            "positive_accuracy": (right.sum(), positives),
            "skipped_records": (~batch.mask).sum(),
        }
        return apply_gradients(state, gradients, optimizer, outputs.batch_stats), metrics

    return step
