"""One update of open-vocabulary detector training (paper section 3.4).

Source: docs/reference/training_detectors.md. The frozen localizer proposes -> ground truth joins ->
proposals are matched and sampled -> CLIP's tower embeds them -> text embeddings of the *base*
classes classify, a linear layer refines the boxes, a small head predicts masks. For novel classes
only the text embeddings are replaced.

Two departures from the reference: sums are over the global batch, not over one GPU; and features do
not depend on the canvas (``models.convolution``), while in the reference's batches padding affects
them.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from regionclip_jax.losses.detector_heads import box_regression_loss, classification_loss, mask_loss
from regionclip_jax.models.clip import CLIP, encode_region_maps, encode_regions
from regionclip_jax.models.concept_classifier import concept_logits, with_background
from regionclip_jax.models.detector_heads import BoxHead, MaskHead
from regionclip_jax.models.localizer import Localizer, propose
from regionclip_jax.models.vit_pyramid import PYRAMID_HEADS
from regionclip_jax.ops.mask_targets import mask_targets
from regionclip_jax.ops.matching import match_boxes, sample_examples
from regionclip_jax.ops.normalization import normalize_images
from regionclip_jax.ops.roi_align import roi_align
from regionclip_jax.settings import DetectorObjective
from regionclip_jax.steps.train_state import TrainState, apply_gradients, model_variables, step_key
from regionclip_jax.structures import DetectionBatch, Regions

BOX_HEAD, MASK_HEAD = "box_head", "mask_head"
HEADS = (BOX_HEAD, MASK_HEAD, PYRAMID_HEADS)


@flax.struct.dataclass
class FrozenDetectorParts:
    """Constant inputs of the step: neither donated nor checkpointed."""

    localizer: Any
    # The trained classes, in the order of the batches' class numbers.
    class_embeddings: Float[Array, "C D"]


@flax.struct.dataclass
class Samples:
    """Regions of a step, positives first. ``matched`` are rows of the batch's ground truth."""

    boxes: Float[Array, "B S 4"]
    classes: Int[Array, "B S"]
    target_boxes: Float[Array, "B S 4"]
    matched: Int[Array, "B S"]
    is_positive: Bool[Array, "B S"]
    mask: Bool[Array, "B S"]


def label_and_sample(
    key: PRNGKeyArray,
    proposals: Regions,
    batch: DetectionBatch,
    num_classes: int,
    settings: DetectorObjective,
) -> Samples:
    """Match, label and sample proposals and ground-truth boxes.

    Source: docs/reference/training_detectors.md#proposal-sampling. Class ``num_classes`` is the
    background.
    """
    boxes = jnp.concatenate([proposals.boxes, batch.boxes], 1)
    exists = jnp.concatenate([proposals.mask, batch.box_mask], 1)
    iou = settings.positive_iou

    def one(key, boxes, exists, targets, target_mask, classes):
        matched, labels = match_boxes(
            boxes, targets, target_mask, negative_below=iou, positive_from=iou
        )
        rows, is_positive, real = sample_examples(
            key,
            labels,
            exists,
            num_samples=settings.samples_per_image,
            positive_fraction=settings.positive_fraction,
        )
        matched = matched[rows]
        labels = jnp.where(is_positive, classes[matched], num_classes)
        return Samples(boxes[rows], labels, targets[matched], matched, is_positive, real)

    keys = jax.random.split(key, len(boxes))
    samples = jax.vmap(one)(keys, boxes, exists, batch.boxes, batch.box_mask, batch.classes)
    return jax.lax.stop_gradient(samples)


def clip_part(variables: dict) -> dict:
    """Return CLIP's variables among a detector's."""
    return {
        name: {branch: part for branch, part in tree.items() if branch not in HEADS}
        for name, tree in variables.items()
    }


def heads_part(variables: dict) -> dict:
    """Return the variables of the heads among a detector's."""
    return {
        name: {branch: part for branch, part in tree.items() if branch in HEADS}
        for name, tree in variables.items()
    }


def embed_samples(
    model: CLIP,
    variables: dict,
    batch: DetectionBatch,
    samples: Samples,
    settings: DetectorObjective,
) -> tuple[Float[Array, "B S D"], Float[Array, "B P h w c"] | None, dict]:
    """Embed the samples.

    Returns:
        Embeddings; layer4's maps of the rows that may be positive (None without masks); and the
        batch statistics, updated if the norms are live.
    """
    pixels = normalize_images(batch.images, batch.sizes, model.config.preprocessing)
    if not model.frozen_norm:
        return _embed_with_live_norm(model, variables, pixels, batch, samples, settings)
    features = model.apply(variables, pixels, batch.sizes, method=model.image_features)
    how = dict(
        regions_per_chunk=settings.regions_per_chunk,
        roi_align_impl=settings.roi_align_impl,
        differentiated=True,
    )
    if not settings.with_masks:
        embeddings = encode_regions(model, variables, features, samples.boxes, **how)
        return embeddings, None, variables["batch_stats"]
    # Positives come first, so only the first rows can need a mask.
    cut = settings.max_positives
    maps = encode_region_maps(model, variables, features, samples.boxes[:, :cut], **how)
    flat = maps.reshape(-1, *maps.shape[2:])
    first = model.apply(variables, flat, method=model.pool_crops).reshape(*maps.shape[:2], -1)
    rest = encode_regions(model, variables, features, samples.boxes[:, cut:], **how)
    return jnp.concatenate([first, rest], 1), maps, variables["batch_stats"]


def _embed_with_live_norm(model, variables, pixels, batch, samples, settings):
    """``embed_samples`` of an untrained tower: statistics of all images, then of all regions."""
    features, updated = model.apply(
        variables, pixels, batch.sizes, method=model.image_features, mutable=["batch_stats"]
    )
    crops = roi_align(
        features.map,
        samples.boxes,
        model.crop_size,
        1 / model.stride,
        extents=features.cells,
        implementation=settings.roi_align_impl,
    )
    shape = crops.shape[:2]
    maps, updated = model.apply(
        {"params": variables["params"], **updated},
        crops.reshape(-1, *crops.shape[2:]),
        method=model.crop_features,
        mutable=["batch_stats"],
    )
    embeddings = model.apply(variables, maps, method=model.pool_crops).reshape(*shape, -1)
    cut = settings.max_positives if settings.with_masks else 0
    maps = maps.reshape(*shape, *maps.shape[1:])[:, :cut] if cut else None
    return embeddings, maps, updated["batch_stats"]


def sample_losses(
    logits: Float[Array, "B S _"],
    deltas: Float[Array, "B S 4"],
    samples: Samples,
    settings: DetectorObjective,
) -> dict[str, Float[Array, ""]]:
    """Return the losses of classes and boxes of sampled regions, by name.

    Args:
        logits: of the classes and, last, the background.
        deltas: in units of ``BOX_HEAD_WEIGHTS``.
    """
    return {
        "classification": classification_loss(
            logits,
            samples.classes,
            samples.mask,
            background_weight=settings.background_weight,
            focal_gamma=settings.focal_gamma,
        ),
        "box_regression": box_regression_loss(
            deltas, samples.boxes, samples.target_boxes, samples.is_positive, samples.mask
        ),
    }


def detector_losses(
    model: CLIP,
    variables: dict,
    class_embeddings: Float[Array, "C D"],
    batch: DetectionBatch,
    samples: Samples,
    settings: DetectorObjective,
) -> tuple[dict[str, Float[Array, ""]], Float[Array, "B S _"], dict]:
    """Return the losses by name, all of weight 1; the logits; and the batch statistics."""
    embeddings, maps, batch_stats = embed_samples(
        model, clip_part(variables), batch, samples, settings
    )
    logits = with_background(concept_logits(embeddings, class_embeddings, settings.temperature))
    deltas = BoxHead().apply({"params": variables["params"][BOX_HEAD]}, embeddings)
    losses = sample_losses(logits, deltas, samples, settings)
    if settings.with_masks:
        losses["mask"] = _mask_loss(variables, maps, batch, samples)
    return losses, logits, batch_stats


def _mask_loss(variables, maps, batch, samples) -> Float[Array, ""]:
    cut = maps.shape[1]
    logits = MaskHead(dtype=maps.dtype).apply(
        {"params": variables["params"][MASK_HEAD]}, maps.reshape(-1, *maps.shape[2:])
    )
    targets = mask_targets(
        matched_masks(batch, samples, cut),
        samples.target_boxes[:, :cut].reshape(-1, 4),
        samples.boxes[:, :cut].reshape(-1, 4),
        logits.shape[-1],
    )
    return mask_loss(logits, targets, samples.is_positive[:, :cut].reshape(-1))


def matched_masks(batch: DetectionBatch, samples: Samples, cut: int) -> UInt8[Array, "N P P"]:
    """Return the object masks that the first ``cut`` samples of each image are matched with.

    Raises:
        ValueError: the batch has no masks.
    """
    if batch.object_masks is None:
        raise ValueError("masks are trained, but the batch has no object_masks")
    select = jax.vmap(lambda masks, rows: masks[rows])
    matched = select(batch.object_masks, samples.matched[:, :cut])
    return matched.reshape(-1, *matched.shape[2:])


def make_detector_step(
    model: CLIP,
    localizer: Localizer,
    optimizer: optax.GradientTransformation,
    settings: DetectorObjective,
    *,
    seed: int,
) -> Callable[[TrainState, FrozenDetectorParts, DetectionBatch], tuple[TrainState, dict]]:
    """Build the step; the caller applies ``jax.jit`` (state donated, frozen not).

    The state's parameters are CLIP's plus ``box_head`` and, with masks, ``mask_head``.
    """

    def step(
        state: TrainState, frozen: FrozenDetectorParts, batch: DetectionBatch
    ) -> tuple[TrainState, dict]:
        proposals = propose(
            localizer,
            frozen.localizer,
            batch.images,
            batch.sizes,
            settings.proposals,
        )
        num_classes = len(frozen.class_embeddings)
        key = step_key(seed, state.step)
        samples = label_and_sample(key, proposals, batch, num_classes, settings)

        def loss_fn(params):
            variables = model_variables(params, state.frozen_params, state.batch_stats)
            losses, logits, batch_stats = detector_losses(
                model, variables, frozen.class_embeddings, batch, samples, settings
            )
            return sum(losses.values()), (losses, logits, batch_stats)

        (total, (losses, logits, batch_stats)), gradients = jax.value_and_grad(
            loss_fn, has_aux=True
        )(state.params)
        right = (logits.argmax(-1) == samples.classes) & samples.is_positive
        positives = samples.is_positive.sum()
        metrics = {
            "loss": total,
            **{f"loss_{name}": loss for name, loss in losses.items()},
            "gradient_norm": optax.tree.norm(gradients),
            "positives": positives / jnp.maximum(samples.mask.sum(), 1),
            "positive_accuracy": (right.sum(), positives),
            "skipped_records": (~batch.mask).sum(),
        }
        return apply_gradients(state, gradients, optimizer, batch_stats), metrics

    return step
