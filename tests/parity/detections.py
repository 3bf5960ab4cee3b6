"""Detections against the reference: from stored logits, from stored proposals and from pixels.

The data are two images of 1080 x 1920 pixels, resized to 252 x 448, with 300 proposals each and 65
classes. The model is the tiny architecture at temperature 0.05. Boxes are compared in pixels of the
original images.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from parity import golden
from parity.comparison import Comparison, largest_difference, relative_error, rows_that_differ
from parity.golden import BOX_PREDICTOR, Arrays, stored
from parity.localizers import tiny_localizer
from parity.towers import tiny_variables
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.concept_classifier import concept_logits, with_background
from regionclip_jax.models.detector_heads import BoxHead
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.ops.box_coder import BOX_HEAD_WEIGHTS, decode_deltas
from regionclip_jax.ops.boxes import pairwise_iou
from regionclip_jax.ops.detections import fuse_objectness, select_detections, to_original_pixels
from regionclip_jax.settings import DetectionSettings, NmsSettings, ProposalSettings
from regionclip_jax.steps.predict_step import (
    DetectorVariables,
    given_boxes,
    make_predict_step,
    predict_regions,
    proposals_of,
)
from regionclip_jax.structures import DetectionBatch, Detections, Regions

# Settings of each tag of the golden file that differ from the defaults of the reference.
TAGS = {
    "rpn": {},
    "rpn_mul": {"objectness": "reference"},
    "rpn_mul_vis": {"objectness": "reference", "report_probabilities": True},
    "rpn_soft": {"nms": NmsSettings("gaussian"), "score_threshold": 0.02},
    "rpn_mul_soft_linear": {
        "objectness": "reference",
        "nms": NmsSettings("linear"),
        "score_threshold": 0.02,
    },
    "rpn_delta": {},
    "c4rpn": {},
    "gtmode": {},
}
# These tags differ from "rpn" only after the logits, so the stored logits test them.
OF_LOGITS_ALONE = ("rpn_mul", "rpn_soft", "rpn_mul_soft_linear")
WITH_STORED_LOGITS = tuple(sorted(set(TAGS) - {"c4rpn", "gtmode"}))
# Tags on a canvas larger than the images, with their localizer.
ON_LARGER_CANVAS = {"rpn_mul": "fpn", "c4rpn": "c4", "gtmode": None}
_BOX_TOLERANCE, _SCORE_TOLERANCE, _UNMATCHED_TOLERANCE = 0.05, 1e-4, 0.01


def settings_of(tag: str, **others) -> DetectionSettings:
    """Return the settings of the reference's run."""
    return DetectionSettings(**({"temperature": 0.05, "objectness": "none"} | TAGS[tag] | others))


class Detector(NamedTuple):
    """A CLIP model, its variables, and raw class embeddings."""

    arrays: Arrays
    model: CLIP
    variables: dict
    class_embeddings: jax.Array


def _class_embeddings(name: str) -> jax.Array:
    return jnp.asarray(golden.make_tensor(f"{BOX_PREDICTOR}{name}.weight", (65, 64)))


def _box_head() -> dict:
    weight = golden.make_tensor(BOX_PREDICTOR + "bbox_pred.weight", (4, 64))
    bias = golden.make_tensor(BOX_PREDICTOR + "bbox_pred.bias", (4,))
    return {"params": {"deltas": {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}}}


def tiny_detector(dtype=jnp.float32) -> Detector:
    """Return the tiny detector with its golden arrays."""
    model = CLIP(PRESETS["tiny"], dtype=dtype)
    return Detector(
        stored("zeroshot_tiny"), model, tiny_variables(), _class_embeddings("cls_score")
    )


def rn50_detector(folder: Path) -> Detector:
    """Return CLIP's RN50 with the arrays of the folder of large files."""
    arrays, config = golden.load("zeroshot_rn50", folder), PRESETS["RN50"]
    variables = golden.clip_variables("rn50_detector_gt", config, folder=folder)
    return Detector(arrays, CLIP(config), variables, jnp.asarray(arrays["class_emb"]))


def _stored_batch(arrays) -> DetectionBatch:
    """Return both images with their ground truth, on a canvas of the image size."""
    images = np.stack([arrays[f"image{i}_uint8"].transpose(1, 2, 0) for i in range(2)])
    size = np.array(images.shape[1:3])
    boxes = np.stack([arrays[f"gtmode_prop_boxes{i}"] for i in range(2)])
    batch = DetectionBatch(
        images=images,
        sizes=np.array([size, size], np.int32),
        boxes=boxes,
        classes=np.zeros(boxes.shape[:2], np.int32),
        box_mask=np.ones(boxes.shape[:2], bool),
        image_ids=np.arange(2, dtype=np.int32),
        scales=np.stack([size / arrays[f"orig_hw{i}"] for i in range(2)]).astype(np.float32),
        mask=np.ones(2, bool),
    )
    return jax.tree.map(jnp.asarray, batch)


def _stored_regions(arrays, tag: str) -> Regions:
    """Return the proposals of ``tag``; most tags share those of "rpn"."""
    tag = tag if tag in ("c4rpn", "gtmode") else "rpn"
    boxes = np.stack([arrays[f"{tag}_prop_boxes{i}"] for i in range(2)])
    if f"{tag}_prop_logits0" in arrays:
        logits = np.stack([arrays[f"{tag}_prop_logits{i}"] for i in range(2)])
    else:
        logits = np.zeros(boxes.shape[:2], np.float32)
    return Regions(jnp.asarray(boxes), jnp.asarray(logits), jnp.ones(logits.shape, bool))


def _compare_up_to_ties(predictions: Detections, arrays, tag, image) -> list[Comparison]:
    """Compare classes, boxes and scores in the reference's order, except for near-ties."""
    boxes, scores, classes = (
        arrays[f"{tag}_{name}{image}"] for name in ("boxes", "scores", "classes")
    )
    # With this tag the reference reports probabilities, ordered by their product with objectness.
    order_by = arrays[f"rpn_mul_scores{image}"] if tag == "rpn_mul_vis" else scores
    real = np.asarray(predictions.mask[image])
    rows = np.flatnonzero(real)[: len(boxes)]
    box_errors = np.abs(np.asarray(predictions.boxes[image])[rows, None] - boxes).max(-1)
    score_errors = np.abs(np.asarray(predictions.scores[image])[rows, None] - scores)
    same = np.asarray(predictions.classes[image])[rows, None] == classes
    partner = np.where(same, box_errors + score_errors, np.inf).argmin(1)
    missing = len(set(range(len(boxes))) - set(partner.tolist())) + abs(
        int(real.sum()) - len(boxes)
    )
    at = np.arange(len(rows)), partner
    errors = {
        "order": (largest_difference(order_by[partner], order_by[: len(rows)]), _SCORE_TOLERANCE),
        "boxes, px": (float(box_errors[at].max(initial=0.0)), _BOX_TOLERANCE),
        "scores": (float(score_errors[at].max(initial=0.0)), _SCORE_TOLERANCE),
    }
    name = f"{tag} from proposals, image {image}"
    return [Comparison(f"{name}: detections missing", missing, 0.0)] + [
        Comparison(f"{name}: {part}", *pair) for part, pair in errors.items()
    ]


def _compare_matched(predictions: Detections, arrays, tag, image, source) -> Comparison:
    """Compare the fraction of the reference's detections without an equal prediction.

    A prediction is equal if it has the same class and an IoU above 0.99.
    """
    boxes = jnp.asarray(arrays[f"{tag}_boxes{image}"])
    iou = np.asarray(pairwise_iou(boxes, predictions.boxes[image]))
    same = arrays[f"{tag}_classes{image}"][:, None] == np.asarray(predictions.classes[image])
    matched = ((iou > 0.99) & same & np.asarray(predictions.mask[image])).any(1)
    name = f"{tag} from {source}, image {image}: detections not matched"
    return Comparison(name, float((~matched).mean()), _UNMATCHED_TOLERANCE)


# --- from stored logits ---------------------------------------------------------------------------


def compare_logits_and_deltas() -> list[Comparison]:
    """Compare logits and deltas of stored embeddings."""
    arrays = stored("zeroshot_tiny")

    @jax.jit
    def heads(embeddings, class_embeddings, box_head):
        logits = with_background(concept_logits(embeddings, class_embeddings, 0.05))
        return logits, BoxHead().apply(box_head, embeddings)

    embeddings = jnp.asarray(arrays["gtmode_region_feats"])
    logits, deltas = heads(embeddings, _class_embeddings("cls_score"), _box_head())
    return [
        Comparison("logits", relative_error(logits, arrays["gtmode_logits"]), 2e-6),
        Comparison("deltas", relative_error(deltas, arrays["gtmode_deltas"]), 2e-6),
    ]


def compare_from_logits(tag: str) -> list[Comparison]:
    """Compare the first image's detections from stored logits, row by row."""
    arrays, settings = stored("zeroshot_tiny"), settings_of(tag)
    regions = jax.tree.map(lambda x: x[:1], _stored_regions(arrays, "rpn"))
    batch = _stored_batch(arrays)

    @jax.jit
    def detect(logits, deltas, regions, sizes, scales):
        boxes = regions.boxes
        if tag == "rpn_delta":
            boxes = decode_deltas(deltas, boxes, BOX_HEAD_WEIGHTS)
        probabilities = jax.nn.softmax(logits[None])[..., :-1]
        scores, mask = fuse_objectness(probabilities, regions.scores, settings.objectness)
        predictions = select_detections(
            boxes,
            scores,
            mask,
            sizes,
            score_threshold=settings.score_threshold,
            nms=settings.nms,
            max_detections=settings.max_detections,
            reported_scores=probabilities if settings.report_probabilities else None,
        )
        return to_original_pixels(predictions, sizes, scales)

    predictions = detect(
        jnp.asarray(arrays["rpn_logits0"]),
        jnp.asarray(arrays["rpn_deltas0"]),
        regions,
        batch.sizes[:1],
        batch.scales[:1],
    )
    name = f"{tag} from logits"
    differ = rows_that_differ(predictions.classes[0], arrays[f"{tag}_classes0"])
    box = largest_difference(predictions.boxes[0], arrays[f"{tag}_boxes0"])
    score = largest_difference(predictions.scores[0], arrays[f"{tag}_scores0"])
    return [
        Comparison(f"{name}: classes that differ", differ, 0.0),
        Comparison(f"{name}: boxes, px", box, 5e-4),
        # The reference loses bits of the IoU, as it shifts the boxes of each class.
        Comparison(f"{name}: scores", score, 1e-4 if settings.nms.method == "gaussian" else 2e-6),
        _compare_matched(predictions, arrays, tag, 0, "logits"),
    ]


def compare_broken_rows(multiply: bool, vis: bool) -> list[Comparison]:
    """Compare detections of 40 rows with a NaN box, an infinite logit and 25 negative objectness.

    Args:
        multiply: fuse scores with objectness.
        vis: report probabilities without objectness.
    """
    arrays = stored("zeroshot_tiny")

    @jax.jit
    def detect(logits, objectness, boxes):
        probabilities = jax.nn.softmax(logits)[None, :, :-1]
        scores, mask = fuse_objectness(
            probabilities, objectness[None], "reference" if multiply else "none"
        )
        return select_detections(
            boxes[None],
            scores,
            mask,
            jnp.array([[120, 150]]),
            score_threshold=0.001,
            nms=NmsSettings("hard", 0.5),
            max_detections=100,
            reported_scores=probabilities if vis else None,
        )

    predictions = detect(
        *(jnp.asarray(arrays[f"syn_{x}"]) for x in ("logits", "objectness", "boxes"))
    )
    tag = f"syn_mul{multiply:d}_vis{vis:d}"
    differ = {
        "rows without a detection": int((~predictions.mask).sum()),
        "classes": rows_that_differ(predictions.classes[0], arrays[f"{tag}_classes"]),
        "boxes": rows_that_differ(predictions.boxes[0], arrays[f"{tag}_boxes"]),
    }
    score = largest_difference(predictions.scores[0], arrays[f"{tag}_scores"])
    return [
        *(Comparison(f"{tag}: {name} that differ", error, 0.0) for name, error in differ.items()),
        Comparison(f"{tag}: scores", score, 5e-7),
    ]


# --- from images ----------------------------------------------------------------------------------


def compare_from_proposals(detector: Detector, tag: str, **settings) -> list[Comparison]:
    """Compare both images' detections from stored proposals and pixels.

    Args:
        settings: changes to the settings of the tag.
    """
    arrays, model, clip, class_embeddings = detector
    box_head = _box_head() if tag == "rpn_delta" else None
    batch = _stored_batch(arrays)
    predictions = jax.jit(predict_regions, static_argnums=(0, 1))(
        model,
        settings_of(tag, **settings),
        DetectorVariables(clip, class_embeddings, box_head=box_head),
        batch.images,
        batch.sizes,
        batch.scales,
        _stored_regions(arrays, tag),
    ).detections
    comparisons = []
    for image in range(2):
        comparisons += _compare_up_to_ties(predictions, arrays, tag, image)
        comparisons.append(_compare_matched(predictions, arrays, tag, image, "proposals"))
    return comparisons


def _localizer(variant: str | None, dtype, nms_threshold=0.9):
    """Return localizer, variables and proposal settings, or three None without ``variant``."""
    if variant is None:
        return None, None, None
    config, variables = tiny_localizer(variant)
    proposals = ProposalSettings(
        pre_nms_topk=6000 if variant == "c4" else 1000,
        num_proposals=300,
        nms_threshold=nms_threshold,
    )
    return Localizer(config, dtype=dtype), variables, proposals


def _detect_step(model, settings, localizer, proposals):
    """Return a step with detections of proposals, or of given boxes without a localizer."""
    find = given_boxes if localizer is None else proposals_of(localizer, proposals)
    predict = make_predict_step(model, settings, find)
    return lambda variables, batch: predict(variables, batch).detections


def _compare_both(predictions, arrays, tag, source) -> list[Comparison]:
    return [_compare_matched(predictions, arrays, tag, image, source) for image in range(2)]


def compare_from_pixels(tag: str, dtype=jnp.float32) -> list[Comparison]:
    """Compare both images' detections from pixels, in one program."""
    arrays, model, clip, class_embeddings = tiny_detector(dtype)
    settings, nms_threshold = settings_of("rpn" if tag == "openset" else tag), 0.9
    if tag == "openset":
        class_embeddings, nms_threshold = _class_embeddings("test_cls_score"), 0.7
    variant = {"gtmode": None, "c4rpn": "c4"}.get(tag, "fpn")
    localizer, localizer_variables, proposals = _localizer(variant, dtype, nms_threshold)
    variables = DetectorVariables(
        clip,
        class_embeddings,
        localizer_variables,
        _box_head() if tag in ("rpn_delta", "openset") else None,
    )
    step = jax.jit(_detect_step(model, settings, localizer, proposals))
    predictions = step(variables, _stored_batch(arrays))
    return _compare_both(predictions, arrays, tag, "pixels")


def compare_on_larger_canvas(tag: str, dtype=jnp.float32) -> list[Comparison]:
    """Compare detections on a larger canvas with the reference, and scores with a tight canvas."""
    arrays, model, clip, class_embeddings = tiny_detector(dtype)
    localizer, localizer_variables, proposals = _localizer(ON_LARGER_CANVAS[tag], dtype)
    step = jax.jit(_detect_step(model, settings_of(tag), localizer, proposals))
    variables = DetectorVariables(clip, class_embeddings, localizer_variables)
    batch = _stored_batch(arrays)
    larger = batch.replace(images=jnp.pad(batch.images, ((0, 0), (0, 52), (0, 32), (0, 0))))
    predictions, fitting = step(variables, larger), step(variables, batch)
    error = largest_difference(predictions.scores, fitting.scores)
    return [
        Comparison(f"{tag} scores on a larger canvas", error, 1e-4),
        *_compare_both(predictions, arrays, tag, "pixels of a larger canvas"),
    ]


def compare_rn50_from_pixels(detector: Detector, folder: Path) -> list[Comparison]:
    """Compare the detections of RN50 from pixels, at temperature 0.01."""
    arrays, model, clip, class_embeddings = detector
    config, localizer_variables = golden.localizer("rn50_detector_rpn_fpn", folder)
    step = _detect_step(
        model,
        settings_of("rpn_mul", temperature=0.01, regions_per_chunk=100),
        Localizer(config),
        ProposalSettings(num_proposals=300),
    )
    variables = DetectorVariables(clip, class_embeddings, localizer_variables)
    predictions = jax.jit(step)(variables, _stored_batch(arrays))
    return _compare_both(predictions, arrays, "rpn_mul", "pixels")


def compare_detections(dtype=jnp.float32) -> list[Comparison]:
    """Compare detections from stored logits, from stored proposals and from pixels."""
    detector = tiny_detector(dtype)
    comparisons = compare_logits_and_deltas()
    for tag in WITH_STORED_LOGITS:
        comparisons += compare_from_logits(tag)
    for tag in ("rpn", "rpn_delta", "gtmode"):
        comparisons += compare_from_proposals(detector, tag)
    for tag in ("rpn_mul_vis", "c4rpn", "gtmode", "openset"):
        comparisons += compare_from_pixels(tag, dtype)
    return comparisons
