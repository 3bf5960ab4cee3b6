import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marks import on_accelerators
from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.ops.normalization import normalize_images
from regionclip_jax.settings import DetectionSettings, NmsSettings
from regionclip_jax.steps.embed_step import make_embed_text_step
from regionclip_jax.steps.predict_step import (
    DetectorVariables,
    given_boxes,
    make_predict_step,
    windows,
)
from regionclip_jax.structures import DetectionBatch


@pytest.fixture(scope="module")
def recognized(nano_configs, nano_variables):
    """A batch of two images with four and two boxes, five classes, and the predictions."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 64, (2, 4, 2, 2)), axis=2).reshape(2, 4, 4)
    box_mask = np.array([[True] * 4, [True, True, False, False]])
    batch = DetectionBatch(
        images=rng.integers(0, 256, (2, 64, 64, 3), np.uint8),
        sizes=np.array([[64, 64], [64, 50]], np.int32),
        boxes=np.where(box_mask[..., None], corners, 0).astype(np.float32),
        classes=np.zeros((2, 4), np.int32),
        box_mask=box_mask,
        image_ids=np.arange(2, dtype=np.int32),
        scales=np.array([[0.5, 2.0], [0.25, 0.5]], np.float32),
        mask=np.ones(2, bool),
    )
    batch = jax.tree.map(jnp.asarray, batch)
    model, variables = CLIP(nano_configs["resnet"]), nano_variables("resnet")
    classes = jax.random.normal(jax.random.key(0), (5, 32))
    settings = DetectionSettings(
        temperature=0.1, max_detections=12, regions_per_chunk=3, objectness="none",
        nms=NmsSettings(threshold=1.0), score_threshold=0.0,
    )  # fmt: skip
    step = jax.jit(make_predict_step(model, settings, given_boxes))

    @jax.jit
    def embed(variables, batch):
        pixels = normalize_images(batch.images, batch.sizes, model.config.preprocessing)
        features = model.apply(variables, pixels, batch.sizes, method=model.image_features)
        return encode_regions(model, variables, features, batch.boxes)

    predictions = step(DetectorVariables(variables, classes), batch)
    return batch, classes, embed(variables, batch), predictions


@on_accelerators
def test_scores_are_a_softmax_over_the_classes_and_a_zero_background(recognized):
    batch, classes, embeddings, predictions = recognized
    unit = [
        np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True) for x in (embeddings, classes)
    ]
    powers = np.exp(unit[0] @ unit[1].T / 0.1)
    scores = powers / (1 + powers.sum(-1, keepdims=True))
    real = np.asarray(batch.box_mask)
    np.testing.assert_array_equal(predictions.most_probable_class[real], scores.argmax(-1)[real])
    best = np.sort(scores[0].ravel())[::-1][:12]
    np.testing.assert_allclose(predictions.detections.scores[0], best, rtol=1e-4)


def test_detections_are_the_best_pairs_of_real_boxes_in_order(recognized):
    batch, _, _, predictions = recognized
    detections = jax.tree.map(np.asarray, predictions.detections)
    assert detections.boxes.shape == (2, 12, 4)
    # Two real boxes with five classes fill ten of the twelve rows of the second image.
    np.testing.assert_array_equal(detections.mask.sum(-1), [12, 10])
    assert (np.diff(detections.scores, axis=-1) <= 0).all()
    for image, limit in enumerate(([64, 64], [50, 64])):
        boxes = np.minimum(batch.boxes[image], np.array(limit * 2, np.float32))
        boxes /= np.asarray(batch.scales[image])[[1, 0, 1, 0]]  # powers of two: exact
        real_boxes = {tuple(box) for box in boxes[np.asarray(batch.box_mask[image])]}
        kept = detections.mask[image]
        assert {tuple(b) for b in detections.boxes[image][kept]} <= real_boxes
        pairs = zip(map(tuple, detections.boxes[image]), detections.classes[image], strict=True)
        assert len(set(list(pairs)[: kept.sum()])) == kept.sum()


def test_windows_cover_exactly_each_image(recognized, nano_configs, nano_variables):
    batch, classes, _, _ = recognized
    settings = DetectionSettings(temperature=0.1, objectness="none", max_detections=5)
    step = jax.jit(make_predict_step(CLIP(nano_configs["resnet"]), settings, windows((0.4, 1.0))))
    predictions = step(DetectorVariables(nano_variables("resnet"), classes), batch)
    boxes = np.asarray(predictions.regions.boxes)
    assert boxes.shape == (2, 6 * 6 + 1, 4) and predictions.regions.mask.all()
    np.testing.assert_allclose(boxes[:, -1], [[0, 0, 64, 64], [0, 0, 50, 64]], atol=1e-4)
    np.testing.assert_allclose(boxes[:, :-1].max((0, 1)), [64, 64, 64, 64], atol=26)
    covered = np.zeros((64, 50), bool)
    for x1, y1, x2, y2 in boxes[1, :-1].round().astype(int):
        covered[y1:y2, x1:x2] = True
    assert covered.all() and boxes[1, :, 2].max() <= 50.001
    assert predictions.detections.mask.sum() == 10


@on_accelerators
def test_the_text_step_gives_the_embeddings_of_the_text_tower(nano_configs, nano_variables):
    model, variables = CLIP(nano_configs["resnet"]), nano_variables("resnet")
    tokens = jnp.array([[598, 5, 599] + [0] * 13, [598, 6, 7, 599] + [0] * 12])
    texts = jax.jit(make_embed_text_step(model))(variables, tokens)
    expected = jax.jit(lambda v, t: model.apply(v, t, method=model.encode_text))(variables, tokens)
    np.testing.assert_array_equal(texts, expected)
    assert texts.shape == (2, 32)
