"""Detection with heads on a feature pyramid of a frozen ViT (F-ViT).

Source: docs/reference/training_detectors.md#f-vit. One pass of the tower gives the maps of the
pyramid and the dense map of its own region embeddings. A region has two probabilities of a class:
that of the heads, and that of the tower (``steps.predict_step``). Their product with exponents is
the score.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.models.vit_pyramid import (
    BOX_CELLS,
    MASK_CELLS,
    Pyramid,
    PyramidHeads,
    as_pyramid,
    crop_from_pyramid,
    propose_from_pyramid,
    tower_features,
)
from regionclip_jax.ops.box_coder import BOX_HEAD_WEIGHTS, decode_deltas
from regionclip_jax.ops.detections import fuse_probabilities, to_original_pixels
from regionclip_jax.settings import DetectionSettings, ProposalSettings
from regionclip_jax.steps.predict_step import (
    DetectorVariables,
    FindRegions,
    Prediction,
    best_detections,
    given_boxes,
    in_chunks,
    region_options,
)
from regionclip_jax.structures import DetectionBatch, ImageFeatures, Regions


def make_pyramid_predict_step(
    model: CLIP,
    heads: PyramidHeads,
    settings: DetectionSettings,
    find_regions: FindRegions | ProposalSettings,
) -> Callable[[DetectorVariables, DetectionBatch], Prediction]:
    """Build ``(variables, batch) -> Prediction``, as ``predict_step.make_predict_step``.

    Args:
        heads: with frozen norms.
        find_regions: settings of the proposals of the heads' own network; or a source of regions.
            The boxes of ``given_boxes`` are not moved.

    Raises:
        ValueError: ``settings.embed_from`` is not "features", or the activation no softmax.
    """
    if settings.score_activation != "softmax":
        raise ValueError(
            f"score_activation {settings.score_activation!r}: heads on a pyramid have a softmax"
        )
    if settings.embed_from != "features":
        raise ValueError(
            f"embed_from {settings.embed_from!r}: heads on a pyramid read features of the image"
        )

    def step(variables: DetectorVariables, batch: DetectionBatch) -> Prediction:
        apply = _applied(heads, variables)
        blocks = heads.config.from_blocks
        features, maps = tower_features(model, variables.clip, batch.images, batch.sizes, blocks)
        levels = apply(heads.levels, maps, features.cells)
        pyramid = as_pyramid(levels, features.cells, model.stride)
        if isinstance(find_regions, ProposalSettings):
            outputs = [
                apply(heads.predict, level, cells)
                for level, cells in zip(pyramid.levels, pyramid.cells, strict=True)
            ]
            logits, deltas = [x for x, _ in outputs], [d for _, d in outputs]
            regions = propose_from_pyramid(pyramid, logits, deltas, batch.sizes, find_regions)
        else:
            regions = find_regions(variables, batch)
        probabilities, deltas = _head_outputs(heads, settings, variables, pyramid, regions)
        others = _tower_probabilities(model, heads, settings, variables, features, regions)
        probabilities = fuse_probabilities(
            probabilities, others, _exponents(settings, variables, others.shape[-1])
        )
        boxes = regions.boxes
        if find_regions is not given_boxes:
            boxes = decode_deltas(deltas, boxes, BOX_HEAD_WEIGHTS)
        found = best_detections(settings, regions, boxes, probabilities, batch.sizes)
        predictions = to_original_pixels(found, batch.sizes, batch.scales)
        if heads.with_masks:

            def draw(boxes):
                crops = crop_from_pyramid(pyramid, boxes, MASK_CELLS, settings.roi_align_impl)
                return jax.nn.sigmoid(_of_regions(apply, heads.draw_masks, crops))

            masks = in_chunks(draw, found.boxes, settings)
            predictions = predictions.replace(object_masks=masks)
        return Prediction(predictions, regions, probabilities.argmax(-1))

    return step


def _applied(heads: PyramidHeads, variables: DetectorVariables) -> Callable:
    return lambda method, *arguments: heads.apply(
        variables.pyramid_heads, *arguments, method=method
    )


def _of_regions(apply: Callable, method: Callable, crops: Float[Array, "B R h w c"]):
    out = apply(method, crops.reshape(-1, *crops.shape[2:]))
    return jax.tree.map(lambda x: x.reshape(*crops.shape[:2], *x.shape[1:]), out)


def _head_outputs(
    heads: PyramidHeads,
    settings: DetectionSettings,
    variables: DetectorVariables,
    pyramid: Pyramid,
    regions: Regions,
) -> tuple[Float[Array, "B R C"], Float[Array, "B R 4"]]:
    """Return the heads' probabilities of the classes, without the background, and the deltas."""
    apply = _applied(heads, variables)

    def embed(boxes):
        crops = crop_from_pyramid(pyramid, boxes, BOX_CELLS, settings.roi_align_impl)
        return _of_regions(apply, heads.embed, crops)

    embeddings, deltas = in_chunks(embed, regions.boxes, settings)
    logits = apply(heads.logits, embeddings, jnp.asarray(variables.class_embeddings))
    return _probabilities(logits, variables), deltas


def _probabilities(
    logits: Float[Array, "B R _"], variables: DetectorVariables
) -> Float[Array, "B R C"]:
    """Return the softmax over existing classes and the background, without the background."""
    if variables.class_mask is not None:
        exists = jnp.append(variables.class_mask, True)
        logits = jnp.where(exists, logits, -jnp.inf)
    return jax.nn.softmax(logits, -1)[..., :-1]


def _tower_probabilities(
    model: CLIP,
    heads: PyramidHeads,
    settings: DetectionSettings,
    variables: DetectorVariables,
    features: ImageFeatures,
    regions: Regions,
) -> Float[Array, "B R C"]:
    """Return the frozen tower's own probabilities, with the temperature of the settings."""
    options = region_options(settings)
    embeddings = encode_regions(model, variables.clip, features, regions.boxes, **options)
    classes = jnp.asarray(variables.class_embeddings)
    cosines = _applied(heads, variables)(heads.cosines, embeddings, classes)
    return _probabilities(cosines / settings.temperature, variables)


def _exponents(
    settings: DetectionSettings, variables: DetectorVariables, num_classes: int
) -> Float[Array, " C"]:
    trained = variables.trained_classes
    trained = jnp.zeros(num_classes, bool) if trained is None else trained
    exponents = jnp.where(trained, settings.base_fusion, settings.novel_fusion)
    return exponents.astype(jnp.float32)
