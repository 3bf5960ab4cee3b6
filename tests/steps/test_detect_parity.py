"""Detections against the reference's: from stored numbers, from stored proposals, from pixels.

Two pictures of 252 x 448 pixels that were 1080 x 1920, 300 proposals each, 65 classes, the tiny
architecture at temperature 0.05. Boxes are compared in pixels of the original pictures.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.models.box_head import BoxHead
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.concept_classifier import concept_logits, with_background
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.ops.box_coder import BOX_HEAD_WEIGHTS, decode_deltas
from regionclip_jax.ops.boxes import pairwise_iou
from regionclip_jax.ops.detections import fuse_objectness, select_detections, to_original_pixels
from regionclip_jax.steps.predict_step import (
    DetectorVariables,
    DetectSettings,
    ProposalSettings,
    make_detect_step,
    predict_regions,
)
from regionclip_jax.structures import DetectionBatch, Regions

pytestmark = pytest.mark.parity

# The tag of the golden file -> what differs from the reference's defaults.
TAGS = {
    "rpn": {},
    "rpn_mul": {"objectness": "reference"},
    "rpn_mul_vis": {"objectness": "reference", "report_probabilities": True},
    "rpn_soft": {"nms": "gaussian", "score_threshold": 0.02},
    "rpn_mul_soft_linear": {"objectness": "reference", "nms": "linear", "score_threshold": 0.02},
    "rpn_delta": {},
    "c4rpn": {},
    "gtmode": {},
}
# These differ from "rpn" in what becomes of logits alone, which the stored logits show every time.
FROM_PIXELS = [
    pytest.param(tag, marks=pytest.mark.slow)
    if tag in ("rpn_mul", "rpn_soft", "rpn_mul_soft_linear")
    else tag
    for tag in TAGS
]
BOX_PREDICTOR = "roi_heads.box_predictor."
BOX_TOLERANCE, SCORE_TOLERANCE = 0.05, 1e-4


def settings_of(tag: str, **others) -> DetectSettings:
    return DetectSettings(**({"temperature": 0.05, "objectness": "none"} | TAGS[tag] | others))


def proposals_of(tag: str) -> str:
    """Under which tag the golden file keeps the proposals of ``tag``."""
    return tag if tag in ("c4rpn", "gtmode") else "rpn"


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("zeroshot_tiny")


def make_batch(arrays) -> DetectionBatch:
    """Both pictures, each on a canvas of its own size, with their ground truth."""
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


def stored_regions(arrays, tag: str) -> Regions:
    boxes = np.stack([arrays[f"{tag}_prop_boxes{i}"] for i in range(2)])
    if f"{tag}_prop_logits0" in arrays:
        logits = np.stack([arrays[f"{tag}_prop_logits{i}"] for i in range(2)])
    else:
        logits = np.zeros(boxes.shape[:2], np.float32)
    return Regions(jnp.asarray(boxes), jnp.asarray(logits), jnp.ones(logits.shape, bool))


@pytest.fixture(scope="module")
def tiny(reference_tensors, to_variables):
    config = PRESETS["tiny"]
    return CLIP(config), to_variables(reference_tensors("tiny_pretrain"), config)


@pytest.fixture(scope="module")
def class_embeddings(reference_tensor):
    return jnp.asarray(reference_tensor(BOX_PREDICTOR + "cls_score.weight", (65, 64)))


@pytest.fixture(scope="module")
def box_head(reference_tensor):
    weight = reference_tensor(BOX_PREDICTOR + "bbox_pred.weight", (4, 64))
    bias = reference_tensor(BOX_PREDICTOR + "bbox_pred.bias", (4,))
    leaves = {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}
    return {"params": {"deltas": leaves}}


def assert_equal_up_to_ties(found, arrays, tag, image, order_by=None):
    """The reference's detections, classes, boxes and scores, in its order but for near-ties.

    ``order_by``: the scores the reference's rows are ordered by, if not those it reports.
    """
    boxes, scores, classes = (
        arrays[f"{tag}_{name}{image}"] for name in ("boxes", "scores", "classes")
    )
    order_by = scores if order_by is None else order_by
    assert found.mask[image].tolist() == [True] * len(boxes)
    box_errors = np.abs(np.asarray(found.boxes[image])[:, None] - boxes).max(-1)
    score_errors = np.abs(np.asarray(found.scores[image])[:, None] - scores)
    same = np.asarray(found.classes[image])[:, None] == classes
    partner = np.where(same, box_errors + score_errors, np.inf).argmin(1)
    rows = np.arange(len(boxes))
    assert sorted(partner) == rows.tolist()
    assert np.abs(order_by[partner] - order_by).max() < SCORE_TOLERANCE
    errors = box_errors[rows, partner].max(), score_errors[rows, partner].max()
    assert errors[0] < BOX_TOLERANCE and errors[1] < SCORE_TOLERANCE, errors


def matched(found, arrays, tag, image) -> float:
    """Share of the reference's detections that one of ours equals: class, IoU above 0.99."""
    boxes = jnp.asarray(arrays[f"{tag}_boxes{image}"])
    iou = np.asarray(pairwise_iou(boxes, found.boxes[image]))
    same = arrays[f"{tag}_classes{image}"][:, None] == np.asarray(found.classes[image])
    return float(((iou > 0.99) & same & np.asarray(found.mask[image])).any(1).mean())


def test_embeddings_become_the_references_logits_and_deltas(
    arrays, class_embeddings, box_head, relative_error
):
    """Measured: 2.2e-7 and 1.1e-7."""
    embeddings = jnp.asarray(arrays["gtmode_region_feats"])
    logits = with_background(concept_logits(embeddings, class_embeddings, 0.05))
    assert relative_error(logits, arrays["gtmode_logits"]) < 2e-6
    deltas = BoxHead().apply(box_head, embeddings)
    assert relative_error(deltas, arrays["gtmode_deltas"]) < 2e-6


@pytest.mark.parametrize("tag", sorted(set(TAGS) - {"c4rpn", "gtmode"}))
def test_stored_logits_become_the_references_detections(arrays, tag):
    """The first picture. Measured: 3.1e-5 px (0 without deltas) and 2.4e-7; with Gaussian NMS
    1.8e-5, as the reference loses bits of the IoU by shifting classes apart."""
    settings = settings_of(tag)
    regions = jax.tree.map(lambda x: x[:1], stored_regions(arrays, "rpn"))
    boxes = regions.boxes
    if tag == "rpn_delta":
        boxes = decode_deltas(jnp.asarray(arrays["rpn_deltas0"]), boxes, BOX_HEAD_WEIGHTS)
    batch = make_batch(arrays)
    probabilities = jax.nn.softmax(jnp.asarray(arrays["rpn_logits0"])[None])[..., :-1]
    scores, mask = fuse_objectness(probabilities, regions.scores, settings.objectness)
    found = select_detections(
        boxes,
        scores,
        mask,
        batch.sizes[:1],
        score_threshold=settings.score_threshold,
        nms=settings.nms,
        nms_threshold=settings.nms_threshold,
        max_detections=settings.max_detections,
        reported_scores=probabilities if settings.report_probabilities else None,
    )
    found = to_original_pixels(found, batch.sizes[:1], batch.scales[:1])
    np.testing.assert_array_equal(found.classes[0], arrays[f"{tag}_classes0"])
    box = np.abs(found.boxes[0] - arrays[f"{tag}_boxes0"]).max()
    score = np.abs(found.scores[0] - arrays[f"{tag}_scores0"]).max()
    assert box < 5e-4 and score < (1e-4 if settings.nms == "gaussian" else 2e-6)


@pytest.mark.parametrize("vis", [False, True])
@pytest.mark.parametrize("multiply", [False, True])
def test_broken_rows_and_negative_objectness_are_the_references(arrays, multiply, vis):
    """40 rows on a picture of 120 x 150: one with a NaN box, one with an infinite logit, 25 with
    negative objectness. Measured: boxes equal, scores within 9.0e-8."""
    logits, objectness = jnp.asarray(arrays["syn_logits"]), jnp.asarray(arrays["syn_objectness"])
    probabilities = jax.nn.softmax(logits)[None, :, :-1]
    scores, mask = fuse_objectness(
        probabilities, objectness[None], "reference" if multiply else "none"
    )
    tag = f"syn_mul{multiply:d}_vis{vis:d}"
    found = select_detections(
        jnp.asarray(arrays["syn_boxes"])[None],
        scores,
        mask,
        jnp.array([[120, 150]]),
        score_threshold=0.001,
        nms="hard",
        nms_threshold=0.5,
        max_detections=100,
        reported_scores=probabilities if vis else None,
    )
    assert found.mask.all()
    np.testing.assert_array_equal(found.classes[0], arrays[f"{tag}_classes"])
    np.testing.assert_array_equal(found.boxes[0], arrays[f"{tag}_boxes"])
    np.testing.assert_allclose(found.scores[0], arrays[f"{tag}_scores"], rtol=0, atol=5e-7)


@pytest.mark.parametrize("tag", FROM_PIXELS)
def test_stored_proposals_and_pixels_become_the_references_detections(
    arrays, tiny, class_embeddings, box_head, tag
):
    """Measured: boxes within 1.2e-4 px (0 without deltas), scores within 3.6e-6, with Gaussian NMS
    2.1e-5; the same order everywhere."""
    model, clip = tiny
    variables = DetectorVariables(
        clip, class_embeddings, box_head=box_head if tag == "rpn_delta" else None
    )
    batch, regions = make_batch(arrays), stored_regions(arrays, proposals_of(tag))
    predict = jax.jit(predict_regions, static_argnums=(0, 1))
    found = predict(
        model, settings_of(tag), variables, batch.images, batch.sizes, batch.scales, regions
    ).detections
    for image in range(2):
        order = arrays[f"rpn_mul_scores{image}"] if tag == "rpn_mul_vis" else None
        assert_equal_up_to_ties(found, arrays, tag, image, order)


@pytest.mark.parametrize("tag", [*FROM_PIXELS, "openset"])
def test_pixels_alone_become_the_references_detections(
    arrays, tiny, class_embeddings, box_head, reference_tensor, reference_localizer, tag
):
    """One program. Measured: all detections matched, for every tag."""
    model, clip = tiny
    settings, localizer, localizer_variables, proposals = settings_of("rpn"), None, None, None
    if tag == "openset":
        class_embeddings = reference_tensor(BOX_PREDICTOR + "test_cls_score.weight", (65, 64))
    else:
        settings = settings_of(tag)
    if tag != "gtmode":
        kind = "c4" if tag == "c4rpn" else "fpn"
        config, localizer_variables = reference_localizer(f"tiny_rpn_{kind}")
        localizer = Localizer(config)
        proposals = ProposalSettings(
            pre_nms_topk=6000 if kind == "c4" else 1000,
            post_nms_topk=300,
            nms_threshold=0.7 if tag == "openset" else 0.9,
        )
    variables = DetectorVariables(
        clip,
        jnp.asarray(class_embeddings),
        localizer_variables,
        box_head if tag in ("rpn_delta", "openset") else None,
    )
    step = jax.jit(make_detect_step(model, settings, localizer=localizer, proposals=proposals))
    found = step(variables, make_batch(arrays))
    for image in range(2):
        assert matched(found, arrays, tag, image) >= 0.99


@pytest.mark.parametrize(("tag", "kind"), [("rpn_mul", "fpn"), ("c4rpn", "c4"), ("gtmode", None)])
def test_a_larger_canvas_changes_no_detection(
    arrays, tiny, class_embeddings, reference_localizer, tag, kind
):
    """Without keeping the padding out, a third of them stayed. Measured: all matched; scores within
    2e-5 of those on a canvas that fits."""
    model, clip = tiny
    localizer = localizer_variables = proposals = None
    if kind is not None:
        config, localizer_variables = reference_localizer(f"tiny_rpn_{kind}")
        localizer = Localizer(config)
        proposals = ProposalSettings(6000 if kind == "c4" else 1000, 300, 0.9)
    step = jax.jit(
        make_detect_step(model, settings_of(tag), localizer=localizer, proposals=proposals)
    )
    variables = DetectorVariables(clip, jnp.asarray(class_embeddings), localizer_variables)
    batch = make_batch(arrays)
    larger = batch.replace(images=jnp.pad(batch.images, ((0, 0), (0, 52), (0, 32), (0, 0))))
    found, fitting = step(variables, larger), step(variables, batch)
    np.testing.assert_allclose(found.scores, fitting.scores, atol=1e-4)
    for image in range(2):
        assert matched(found, arrays, tag, image) >= 0.99


@pytest.fixture(scope="module")
def rn50(large_golden, large_golden_folder, reference_tensors, to_variables):
    """The large arrays, CLIP's RN50 with its variables, and the class embeddings."""
    arrays, config = large_golden("zeroshot_rn50"), PRESETS["RN50"]
    tensors = reference_tensors("rn50_detector_gt", root=large_golden_folder)
    variables = to_variables(tensors, config)
    return arrays, CLIP(config), variables, jnp.asarray(arrays["class_emb"])


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["rpn", "rpn_mul", "rpn_mul_vis", "gtmode"])
def test_detections_of_rn50_from_stored_proposals_are_the_references(rn50, tag):
    """450 x 800, temperature 0.01. Measured: boxes equal, scores within 7.4e-6, the same order."""
    arrays, model, clip, class_embeddings = rn50
    settings = settings_of(tag, temperature=0.01, regions_per_chunk=100)
    batch, regions = make_batch(arrays), stored_regions(arrays, proposals_of(tag))
    found = jax.jit(predict_regions, static_argnums=(0, 1))(
        model,
        settings,
        DetectorVariables(clip, class_embeddings),
        batch.images,
        batch.sizes,
        batch.scales,
        regions,
    ).detections
    for image in range(2):
        order = arrays[f"rpn_mul_scores{image}"] if tag == "rpn_mul_vis" else None
        assert_equal_up_to_ties(found, arrays, tag, image, order)


@pytest.mark.slow
def test_detections_of_rn50_from_pixels_are_the_references(
    rn50, large_golden_folder, reference_localizer
):
    """Measured: all detections matched."""
    arrays, model, clip, class_embeddings = rn50
    config, localizer = reference_localizer("rn50_detector_rpn_fpn", root=large_golden_folder)
    step = make_detect_step(
        model,
        settings_of("rpn_mul", temperature=0.01, regions_per_chunk=100),
        localizer=Localizer(config),
        proposals=ProposalSettings(post_nms_topk=300),
    )
    variables = DetectorVariables(clip, class_embeddings, localizer)
    found = jax.jit(step)(variables, make_batch(arrays))
    for image in range(2):
        assert matched(found, arrays, "rpn_mul", image) >= 0.99
