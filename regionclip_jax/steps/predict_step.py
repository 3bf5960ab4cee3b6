"""Recognition of given boxes, and detection from canvases to boxes in original pixels.

Source: paper sections 3.4 and 4.2; docs/reference/detection.md,
docs/reference/evaluation.md#zero-shot-evaluation. Regions of each image, given or proposed -> an
embedding of each -> softmax over the classes' cosines and the zero background logit, all over the
temperature (models of SigLIP's family: a sigmoid of each class) -> the best pairs of box and class.

A region is embedded from "features" or from "crops". Features are cropped from the map of the whole
image (RegionCLIP). Crops of the pixels pass the whole tower (plain CLIP, paper figure 1).

The reference detects one image at a time, without padding (except to 32 for the pyramid). The
ResNets here give the same features for any canvas and batch (``models.convolution``).
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from regionclip_jax.models.clip import CLIP, encode_crops, encode_region_maps, encode_regions
from regionclip_jax.models.concept_classifier import score_classes
from regionclip_jax.models.detector_heads import MaskHead, regress_boxes
from regionclip_jax.models.localizer import Localizer, propose
from regionclip_jax.ops.chunks import map_chunks
from regionclip_jax.ops.detections import fuse_objectness, select_detections, to_original_pixels
from regionclip_jax.ops.normalization import normalize_images
from regionclip_jax.ops.sampling import box_mask, grid_boxes
from regionclip_jax.settings import DetectionSettings, ProposalSettings
from regionclip_jax.structures import AnyArray, DetectionBatch, Detections, Regions


@flax.struct.dataclass
class DetectorVariables:
    """Inputs of a detect step: CLIP's variables, raw class embeddings; the others may be None."""

    clip: Any
    class_embeddings: Float[AnyArray, "C D"]
    localizer: Any = None
    # Variables of ``BoxHead``; without one, detections keep the regions' boxes.
    box_head: Any = None
    # Variables of ``MaskHead``; without one, detections have no masks.
    mask_head: Any = None
    # Classes that exist; the others are never detected. None: all.
    class_mask: Bool[AnyArray, " C"] | None = None
    # Variables of ``PyramidHeads``, which replace the localizer and both heads.
    pyramid_heads: Any = None
    # Classes that a detector on a pyramid was trained on. None: none of them.
    trained_classes: Bool[AnyArray, " C"] | None = None


@flax.struct.dataclass
class Prediction:
    """Predictions of a model for a batch, and the regions."""

    # Pixels of the original images.
    detections: Detections
    # Canvas pixels, best first.
    regions: Regions
    # One per region, with or without a detection.
    most_probable_class: Int[Array, "B R"]


FindRegions = Callable[[DetectorVariables, DetectionBatch], Regions]


def embed_boxes(
    model: CLIP,
    variables: dict,
    images: UInt8[Array, "B H W 3"],
    sizes: Int[Array, "B 2"],
    boxes: Float[Array, "B R 4"],
    *,
    embed_from: str,
    regions_per_chunk: int | None,
    roi_align_impl: str,
) -> Float[Array, "B R D"]:
    """Embed boxes (canvas pixels) from features or from crops.

    Raises:
        ValueError: ``embed_from`` is neither "features" nor "crops".
    """
    if embed_from == "crops":
        return encode_crops(
            model, variables, images, sizes, boxes, regions_per_chunk=regions_per_chunk
        )
    if embed_from != "features":
        raise ValueError(f"embed_from {embed_from!r}; expected features or crops")
    pixels = normalize_images(images, sizes, model.config.preprocessing)
    features = model.apply(variables, pixels, sizes, method=model.image_features)
    return encode_regions(
        model,
        variables,
        features,
        boxes,
        regions_per_chunk=regions_per_chunk,
        roi_align_impl=roi_align_impl,
    )


def predict_regions(
    model: CLIP,
    settings: DetectionSettings,
    variables: DetectorVariables,
    images: UInt8[Array, "B H W 3"],
    sizes: Int[Array, "B 2"],
    scales: Float[Array, "B 2"],
    regions: Regions,
) -> Prediction:
    """Classify given regions and select the detections.

    Args:
        images: canvases.
        sizes: (height, width) of each image's real pixels.
        scales: canvas pixels per original pixel, (y, x).
        regions: canvas pixels, with objectness logits unless ``settings.objectness`` is "none".

    Returns:
        Detections with K = ``settings.max_detections``. Masked rows may lie between real ones:
        boxes without area are selected before they are dropped, as in the reference.

    Raises:
        ValueError: a mask head with ``embed_from`` other than "features".
    """
    if variables.mask_head is not None and settings.embed_from != "features":
        raise ValueError(f"embed_from {settings.embed_from!r}: masks are drawn from features")
    embeddings = embed_boxes(
        model,
        variables.clip,
        images,
        sizes,
        regions.boxes,
        embed_from=settings.embed_from,
        **region_options(settings),
    )
    boxes = regions.boxes
    if variables.box_head is not None:
        boxes = regress_boxes(variables.box_head, embeddings, boxes)
    probabilities = score_classes(
        embeddings, variables.class_embeddings, settings, variables.class_mask
    )
    detections = best_detections(settings, regions, boxes, probabilities, sizes)
    predictions = to_original_pixels(detections, sizes, scales)
    if variables.mask_head is not None:
        masks = _draw_masks(model, settings, variables, images, sizes, detections.boxes)
        predictions = predictions.replace(object_masks=masks)
    return Prediction(
        detections=predictions,
        regions=regions,
        most_probable_class=probabilities.argmax(-1),
    )


def best_detections(
    settings: DetectionSettings,
    regions: Regions,
    boxes: Float[Array, "B R 4"],
    probabilities: Float[Array, "B R C"],
    sizes: Int[Array, "B 2"],
) -> Detections:
    """Return the best distinct pairs of box and class, in canvas pixels.

    Args:
        regions: their objectness and mask; ``boxes`` are theirs, perhaps moved.
    """
    scores, has_scores = fuse_objectness(probabilities, regions.scores, settings.objectness)
    return select_detections(
        boxes,
        scores,
        regions.mask & has_scores,
        sizes,
        score_threshold=settings.score_threshold,
        nms=settings.nms,
        max_detections=settings.max_detections,
        reported_scores=probabilities if settings.report_probabilities else None,
    )


def _draw_masks(model, settings, variables, images, sizes, boxes) -> Float[Array, "B K M M"]:
    """Return masks of detected boxes (canvas pixels), whose features are cropped again.

    Source: docs/reference/detection.md#clipres5roiheads.
    """
    pixels = normalize_images(images, sizes, model.config.preprocessing)
    features = model.apply(variables.clip, pixels, sizes, method=model.image_features)
    maps = encode_region_maps(
        model,
        variables.clip,
        features,
        boxes,
        **region_options(settings),
    )
    flat = maps.reshape(-1, *maps.shape[2:])
    logits = MaskHead(dtype=maps.dtype).apply(variables.mask_head, flat)
    return jax.nn.sigmoid(logits).reshape(*maps.shape[:2], *logits.shape[1:])


def region_options(settings: DetectionSettings) -> dict[str, Any]:
    """Return the arguments of ``models.clip.encode_regions`` that the settings state."""
    return {
        "regions_per_chunk": settings.regions_per_chunk,
        "roi_align_impl": settings.roi_align_impl,
    }


def in_chunks(function: Callable, boxes: Float[Array, "B R 4"], settings: DetectionSettings):
    """Apply a function of boxes to as many of each image at once as the settings state."""
    return map_chunks(function, boxes, settings.regions_per_chunk)


def given_boxes(variables: DetectorVariables, batch: DetectionBatch) -> Regions:
    """Return the batch's own boxes; they have no objectness."""
    return Regions(batch.boxes, jnp.zeros(batch.box_mask.shape), batch.box_mask)


def proposals_of(localizer: Localizer, settings: ProposalSettings) -> FindRegions:
    """Build a ``FindRegions`` of a localizer whose variables are among the detector's."""

    def find(variables: DetectorVariables, batch: DetectionBatch) -> Regions:
        return propose(
            localizer,
            variables.localizer,
            batch.images,
            batch.sizes,
            settings,
        )

    return find


def windows(sides: tuple[float, ...]) -> FindRegions:
    """Build a ``FindRegions`` of sliding windows (``ops.sampling.grid_boxes``)."""

    def find(variables: DetectorVariables, batch: DetectionBatch) -> Regions:
        boxes = grid_boxes(batch.sizes, sides)
        mask = box_mask(batch.sizes, boxes.shape[1])
        return Regions(boxes, jnp.zeros(mask.shape), mask)

    return find


def make_predict_step(
    model: CLIP, settings: DetectionSettings, find_regions: FindRegions
) -> Callable[[DetectorVariables, DetectionBatch], Prediction]:
    """Build ``(variables, batch) -> Prediction``, one program from uint8 canvases.

    Args:
        find_regions: ``given_boxes``, ``proposals_of(...)`` or ``windows(...)``. Only proposals
            have objectness, so with the others ``settings.objectness`` has to be "none".
    """

    def step(variables: DetectorVariables, batch: DetectionBatch) -> Prediction:
        regions = find_regions(variables, batch)
        return predict_regions(
            model, settings, variables, batch.images, batch.sizes, batch.scales, regions
        )

    return step
