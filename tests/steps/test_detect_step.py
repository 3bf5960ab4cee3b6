"""The detect step on random models; test_detect_parity.py compares with the reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer
from regionclip_jax.artifacts.model_checkpoint import flatten, unflatten
from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.models.localizer import Localizer, LocalizerConfig, propose
from regionclip_jax.ops.normalization import normalize_images
from regionclip_jax.settings import DetectionSettings, NmsSettings, ProposalSettings
from regionclip_jax.sharding.global_arrays import shard, to_global_batch
from regionclip_jax.sharding.mesh import make_mesh
from regionclip_jax.sharding.partition_rules import parameter_shardings
from regionclip_jax.steps.predict_step import (
    DetectorVariables,
    embed_boxes,
    given_boxes,
    make_predict_step,
    predict_regions,
    proposals_of,
)
from regionclip_jax.structures import DetectionBatch, Regions

# With these settings no pair suppresses another, and all pairs are above the threshold.
ALL_PAIRS = DetectionSettings(
    temperature=0.1, score_threshold=0.0, nms=NmsSettings(threshold=1.0), max_detections=20
)
PYRAMID = LocalizerConfig(
    blocks=(1, 1, 1, 1), stem_width=4, bottleneck_width=2, features=4, pyramid_channels=4
)


def make_batch(num_images: int, num_boxes: int, seed: int = 0) -> DetectionBatch:
    """Return images on canvases of 70 x 100 with boxes inside; the scales are powers of two."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers([50, 60], [71, 101], (num_images, 2))
    corners = np.sort(rng.uniform(0, 1, (num_images, num_boxes, 2, 2)), axis=2)
    corners *= sizes[:, None, None, ::-1]
    batch = DetectionBatch(
        images=rng.integers(0, 256, (num_images, 70, 100, 3), np.uint8),
        sizes=sizes.astype(np.int32),
        boxes=corners.reshape(num_images, num_boxes, 4).astype(np.float32),
        classes=np.zeros((num_images, num_boxes), np.int32),
        box_mask=np.ones((num_images, num_boxes), bool),
        image_ids=np.arange(num_images, dtype=np.int32),
        scales=np.exp2(rng.integers(-2, 2, (num_images, 2))).astype(np.float32),
        mask=np.ones(num_images, bool),
    )
    return jax.tree.map(jnp.asarray, batch)


@pytest.fixture(scope="module")
def resnet(nano_configs, nano_variables):
    return CLIP(nano_configs["resnet"]), nano_variables("resnet")


@pytest.fixture(scope="module")
def class_embeddings():
    return jax.random.normal(jax.random.key(0), (5, 32))


@pytest.fixture(scope="module")
def detect(resnet, class_embeddings):
    """``detect(settings, batch, regions, box_head)``: detections of ``predict_regions``, jitted."""
    model, clip = resnet
    run = jax.jit(predict_regions, static_argnums=(0, 1))

    def call(settings, batch, regions, box_head=None):
        variables = DetectorVariables(clip, class_embeddings, box_head=box_head)
        pixels = batch.images, batch.sizes, batch.scales
        return run(model, settings, variables, *pixels, regions).detections

    return call


def test_detections_are_the_best_pairs_by_the_root_of_probability_times_sigmoid(
    resnet, class_embeddings, detect
):
    """Compare with the formula in float64, as the reference does not compute it."""
    model, clip = resnet
    batch = make_batch(2, 6)
    logits = jax.random.normal(jax.random.key(1), (2, 6)) * 3
    mask = batch.box_mask.at[1, 2].set(False)
    settings = dataclasses.replace(ALL_PAIRS, objectness="sigmoid")
    predictions = detect(settings, batch, Regions(batch.boxes, logits, mask))

    @jax.jit
    def embed(clip, batch):
        pixels = normalize_images(batch.images, batch.sizes, model.config.preprocessing)
        features = model.apply(clip, pixels, batch.sizes, method=model.image_features)
        return encode_regions(model, clip, features, batch.boxes)

    unit = [
        np.asarray(x, np.float64) / np.linalg.norm(x, axis=-1, keepdims=True)
        for x in (embed(clip, batch), class_embeddings)
    ]
    powers = np.exp(unit[0] @ unit[1].T / 0.1)
    scores = powers / (1 + powers.sum(-1, keepdims=True))
    scores = np.sqrt(scores / (1 + np.exp(-np.asarray(logits, np.float64)))[..., None])
    scores = np.where(np.asarray(mask)[..., None], scores, -1).reshape(2, -1)
    order = np.argsort(-scores)[:, :20]
    np.testing.assert_allclose(predictions.scores, np.take_along_axis(scores, order, 1), rtol=1e-4)
    np.testing.assert_array_equal(predictions.classes, order % 5)
    for image in range(2):
        boxes = np.asarray(batch.boxes[image])[order[image] // 5]
        expected = boxes / np.asarray(batch.scales[image])[[1, 0, 1, 0]]
        np.testing.assert_allclose(predictions.boxes[image], expected, rtol=1e-5)
    assert predictions.mask.all()


def test_given_boxes_are_not_moved_and_need_no_objectness(resnet, class_embeddings, detect):
    model, clip = resnet
    batch = make_batch(2, 4)
    batch = batch.replace(box_mask=batch.box_mask.at[0, 1:].set(False))
    settings = dataclasses.replace(ALL_PAIRS, objectness="none")
    predictions = jax.jit(make_predict_step(model, settings, given_boxes))(
        DetectorVariables(clip, class_embeddings), batch
    ).detections
    regions = Regions(batch.boxes, jnp.zeros((2, 4)), batch.box_mask)
    expected = detect(settings, batch, regions)
    for x, y in zip(jax.tree.leaves(predictions), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)
    assert predictions.mask.sum(-1).tolist() == [5, 20]

    head = {"params": {"deltas": {"kernel": jnp.zeros((32, 4)), "bias": jnp.ones(4)}}}
    moved = detect(settings, batch, regions, head)
    assert np.abs(moved.boxes - expected.boxes).max() > 1


@pytest.mark.parametrize("embed_from", ["features", "crops"])
def test_no_regions_give_no_detections(detect, embed_from):
    batch = make_batch(2, 0)
    settings = dataclasses.replace(ALL_PAIRS, embed_from=embed_from)
    predictions = detect(settings, batch, Regions(batch.boxes, jnp.zeros((2, 0)), batch.box_mask))
    assert predictions.boxes.shape == (2, 20, 4)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(predictions))


@pytest.fixture(scope="module")
def pyramid():
    """Small localizer with weights from NumPy, as compiling the initialisers takes longer."""
    rng = np.random.default_rng(3)

    def draw(path, shape):
        if path.endswith(("scale", "var")):
            return np.ones(shape)
        size = 0.1 if "deltas" in path else 1.0
        return size * rng.standard_normal(shape) / max(np.prod(shape[:-1]), 1) ** 0.5

    shapes = flatten(abstract_localizer(PYRAMID))
    leaves = {path: draw(path, leaf.shape) for path, leaf in shapes.items()}
    return Localizer(PYRAMID), unflatten({p: jnp.asarray(x, "f4") for p, x in leaves.items()})


def test_detection_is_one_program_on_canvases_of_any_size(
    resnet, class_embeddings, detect, pyramid
):
    """Test a canvas of 70 x 100, which is no multiple of 32, and a skipped record."""
    model, clip = resnet
    localizer, localizer_variables = pyramid
    batch = make_batch(2, 1)
    batch = batch.replace(
        sizes=batch.sizes.at[1].set(0), scales=batch.scales.at[1].set(1), mask=jnp.array([1, 0]) > 0
    )
    settings = dataclasses.replace(ALL_PAIRS, objectness="sigmoid", nms=NmsSettings())
    proposals = ProposalSettings(pre_nms_topk=50, num_proposals=30)
    step = make_predict_step(model, settings, proposals_of(localizer, proposals))
    variables = DetectorVariables(clip, class_embeddings, localizer_variables)
    predictions = jax.jit(step)(variables, batch).detections
    assert predictions.mask.sum(-1).tolist() == [20, 0]

    regions = jax.jit(lambda v, i, s: propose(localizer, v, i, s, proposals))(
        localizer_variables, batch.images, batch.sizes
    )
    expected = detect(settings, batch, regions)
    for x, y in zip(jax.tree.leaves(predictions), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
    height, width = (batch.sizes[0] / batch.scales[0]).tolist()
    boxes = np.asarray(predictions.boxes[0])
    assert boxes.min() >= 0 and (boxes.max(0) <= [width, height] * 2).all()


def test_detections_are_the_same_on_eight_devices(resnet, class_embeddings, pyramid):
    """Compare with parameters sharded over four devices."""
    model, clip = resnet
    localizer, localizer_variables = pyramid
    settings = dataclasses.replace(
        ALL_PAIRS, objectness="sigmoid", nms=NmsSettings(), regions_per_chunk=8
    )
    proposals = ProposalSettings(pre_nms_topk=50, num_proposals=30)
    step = jax.jit(make_predict_step(model, settings, proposals_of(localizer, proposals)))
    variables = DetectorVariables(clip, class_embeddings, localizer_variables)
    batch = make_batch(8, 1)
    expected = step(variables, batch).detections
    mesh = make_mesh(fsdp=4)
    split = shard(variables, parameter_shardings(variables, mesh))
    predictions = step(split, to_global_batch(batch, mesh)).detections
    assert expected.mask.any(-1).all()
    np.testing.assert_array_equal(predictions.classes, expected.classes)
    np.testing.assert_allclose(predictions.boxes, expected.boxes, atol=0.02)
    np.testing.assert_allclose(predictions.scores, expected.scores, atol=1e-5)


@pytest.mark.parametrize("tower", ["resnet", "vit"])
def test_embeddings_of_crops_equal_those_of_images_cropped_by_pillow(
    nano_configs, nano_variables, tower
):
    """Compare five boxes, embedded in chunks of two. Only the rounding of Pillow's bytes differs;
    in random towers it changes the cosine by up to 4e-4."""
    model, variables = CLIP(nano_configs[tower]), nano_variables(tower)
    batch = make_batch(1, 5, seed=1)
    # The noise is faint, so that Pillow's bytes do not overflow between its two filters.
    images = jnp.asarray(np.asarray(batch.images) // 2 + 64)
    predictions = jax.jit(
        lambda v, *x: embed_boxes(
            model, v, *x, embed_from="crops", regions_per_chunk=2, roi_align_impl="auto"
        )
    )(variables, images, batch.sizes, batch.boxes)
    height, width = batch.sizes[0].tolist()
    image = Image.fromarray(np.asarray(images[0, :height, :width]))
    crops = []
    for x1, y1, x2, y2 in np.asarray(batch.boxes[0]):
        box = (int(x1), int(y1), int(np.ceil(x2)), int(np.ceil(y2)))
        crops.append(image.crop(box).resize((64, 64), Image.Resampling.BICUBIC))
    pixels = normalize_images(
        jnp.asarray(np.stack(crops)), jnp.full((5, 2), 64), model.config.preprocessing
    )
    expected = jax.jit(lambda v, x: model.apply(v, x, method=model.encode_image))(variables, pixels)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (predictions[0], expected)]
    assert ((unit[0] * unit[1]).sum(-1) > 0.999).all()


def test_an_unknown_way_to_embed_is_refused(resnet, class_embeddings):
    batch = make_batch(1, 2)
    with pytest.raises(ValueError, match="embed_from 'pixels'; expected features or crops"):
        embed_boxes(
            *resnet, batch.images, batch.sizes, batch.boxes,
            embed_from="pixels", regions_per_chunk=None, roi_align_impl="auto",
        )  # fmt: skip
