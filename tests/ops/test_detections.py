"""Detections of class scores against a plain loop; tests/steps compares with the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.ops.detections import (
    fuse_objectness,
    fuse_probabilities,
    select_detections,
    to_original_pixels,
)
from regionclip_jax.settings import NmsSettings
from regionclip_jax.structures import Detections

SIZE = (20, 24)
LIMIT = np.array([24, 20, 24, 20], np.float32)
HOW = dict(score_threshold=0.2, max_detections=30)
HARD = NmsSettings("hard", 0.5)


def iou(boxes, box):
    """Return the IoU in float32, 0 without intersection."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    intersection = np.maximum(high - low, np.float32(0)).prod(-1)
    areas, area = (boxes[:, 2:] - boxes[:, :2]).prod(-1), (box[2:] - box[:2]).prod()
    union = np.where(intersection > 0, areas + area - intersection, np.float32(1))
    return intersection / union


def plain_detections(boxes, scores, mask, nms, score_threshold, max_detections):
    """Return rows (region, class, score) of one image, by repeated choice of the best pair."""
    finite = np.isfinite(boxes).all(-1) & np.isfinite(scores).all(-1)
    boxes = np.clip(boxes, 0, LIMIT)
    selected = np.where((mask & finite)[:, None] & (scores > score_threshold), scores, -1)
    rows = []
    while len(rows) < max_detections and selected.max(initial=-1) > -1:
        region, label = np.unravel_index(selected.argmax(), selected.shape)
        rows.append((region, label, selected[region, label]))
        overlaps = iou(boxes, boxes[region])
        factor = {
            "hard": np.ones_like(overlaps),
            "gaussian": np.exp(-(overlaps**2) / np.float32(nms.sigma)),
            "linear": np.where(overlaps > np.float32(nms.threshold), 1 - overlaps, 1),
        }[nms.method]
        selected[:, label] = np.where(selected[:, label] > -1, selected[:, label] * factor, -1)
        selected[region, label] = -1
        if nms.method == "hard":
            selected[:, label] = np.where(
                overlaps.astype(np.float64) > nms.threshold, -1, selected[:, label]
            )
        else:
            selected[selected <= nms.prune] = -1
    return rows


def draw(rng, num_regions, num_classes, tied):
    """Return boxes and scores with clipped, empty and invalid rows, and optionally with ties."""
    corners = rng.integers(-3, 20, (num_regions, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 12, (num_regions, 2))], -1)
    boxes = boxes.astype(np.float32)
    if tied:
        scores = rng.integers(0, 10, (num_regions, num_classes)) / 10
    else:
        scores = rng.permutation(num_regions * num_classes).reshape(num_regions, num_classes)
        scores = scores / scores.size
    scores = scores.astype(np.float32)
    for broken in (np.nan, np.inf, -np.inf):
        boxes[rng.random(num_regions) < 0.05, rng.integers(4)] = broken
        scores[rng.random(num_regions) < 0.05, rng.integers(num_classes)] = broken
    return boxes, scores, rng.random(num_regions) < 0.8


def batched(*arrays):
    return [jnp.asarray(x)[None] for x in arrays]


@pytest.mark.property
@pytest.mark.parametrize("method", ["hard", "gaussian", "linear"])
@given(seed=st.integers(0, 10**6), max_detections=st.sampled_from([3, 30]))
def test_detections_equal_those_of_a_plain_loop(method, seed, max_detections):
    """Two images of 25 regions and 3 classes: more pairs than places, and fewer.

    Gaussian scores have no ties, as these depend on how exp is rounded.
    """
    rng = np.random.default_rng(seed)
    images = [draw(rng, 25, 3, tied=method != "gaussian") for _ in range(2)]
    boxes, scores, mask = (np.stack(x) for x in zip(*images, strict=True))
    how = HOW | {"max_detections": max_detections, "nms": NmsSettings(method, 0.5, 0.4, 0.1)}
    selected = select_detections(
        *map(jnp.asarray, (boxes, scores, mask)), jnp.array([SIZE, SIZE]), **how
    )
    for image, expected in enumerate(plain_detections(*x, **how) for x in images):
        count = len(expected)
        assert selected.mask[image].tolist() == [True] * count + [False] * (max_detections - count)
        regions = np.array([row[0] for row in expected], int)
        np.testing.assert_array_equal(selected.classes[image, :count], [row[1] for row in expected])
        np.testing.assert_array_equal(
            selected.boxes[image, :count], np.clip(boxes[image][regions], 0, LIMIT)
        )
        np.testing.assert_allclose(
            selected.scores[image, :count], [row[2] for row in expected], rtol=1e-5
        )
        assert not selected.boxes[image, count:].any() and not selected.scores[image, count:].any()


@pytest.mark.parametrize("method", ["hard", "gaussian", "linear"])
@pytest.mark.parametrize(
    ("num_regions", "scores", "mask"),
    [(0, 0.9, True), (5, 0.9, False), (5, 0.2, True), (5, np.nan, True)],
    ids=["no regions", "all masked", "none above the threshold", "none finite"],
)
def test_empty_inputs_give_no_detections(method, num_regions, scores, mask):
    boxes = np.tile(np.array([0, 0, 9, 9], np.float32), (num_regions, 1))
    selected = select_detections(
        *batched(boxes, np.full((num_regions, 3), scores, np.float32), [mask] * num_regions)
        if num_regions
        else (jnp.zeros((1, 0, 4)), jnp.zeros((1, 0, 3)), jnp.zeros((1, 0), bool)),
        jnp.array([SIZE]),
        nms=NmsSettings(method),
        **HOW,
    )
    assert selected.boxes.shape == (1, 30, 4) and selected.classes.shape == (1, 30)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(selected))


def test_equal_scores_are_ordered_by_region_and_then_by_class():
    boxes = np.array([[0, 0, 9, 9], [10, 10, 19, 19], [0, 0, 9, 9]], np.float32)
    scores = np.array([[0.5, 0.5], [0.5, 0.8], [0.5, 0.5]], np.float32)
    selected = select_detections(
        *batched(boxes, scores, np.ones(3, bool)), jnp.array([SIZE]), nms=HARD, **HOW
    )
    # The third box equals the first, so the first suppresses it in both classes.
    assert selected.classes[0, :4].tolist() == [1, 0, 1, 0]
    np.testing.assert_array_equal(selected.boxes[0, :4], boxes[[1, 0, 0, 1]])
    assert selected.mask.sum() == 4


def test_other_scores_are_reported_in_the_order_of_the_selection_scores():
    boxes = np.array([[0, 0, 9, 9], [10, 10, 19, 19], [1, 0, 9, 9]], np.float32)
    scores = np.array([[0.6, 0.0], [0.5, 0.9], [0.5, 0.3]], np.float32)
    reported = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], np.float32)
    selected = select_detections(
        *batched(boxes, scores, np.ones(3, bool)),
        jnp.array([SIZE]),
        nms=HARD,
        **HOW,
        reported_scores=jnp.asarray(reported)[None],
    )
    np.testing.assert_allclose(selected.scores[0, :5], [0.4, 0.1, 0.3, 0.6, 0])
    assert selected.classes[0, :4].tolist() == [1, 0, 0, 1] and selected.mask.sum() == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"nms": NmsSettings("linear"), "reported_scores": jnp.ones((1, 2, 3))},
            "'linear' lowers scores",
        ),
    ],
)
def test_invalid_settings_are_refused(change, message):
    arrays = batched(np.ones((2, 4), np.float32), np.ones((2, 3), np.float32), np.ones(2, bool))
    with pytest.raises(ValueError, match=message):
        select_detections(*arrays, jnp.array([SIZE]), **HOW | change)


@pytest.mark.property
@given(seed=st.integers(0, 10**6))
def test_objectness_is_fused_by_the_formulas(seed):
    rng = np.random.default_rng(seed)
    probabilities, logits = rng.dirichlet(np.ones(4), (2, 6))[..., :3], rng.normal(0, 2, (2, 6))
    arrays = [jnp.asarray(x, jnp.float32) for x in (probabilities, logits)]

    scores, mask = fuse_objectness(*arrays, "none")
    np.testing.assert_array_equal(scores, arrays[0])
    assert mask.all()

    scores, mask = fuse_objectness(*arrays, "reference")
    np.testing.assert_array_equal(mask, logits >= 0)
    expected = np.sqrt(probabilities * np.maximum(logits, 0)[..., None])
    np.testing.assert_allclose(scores, expected, rtol=1e-5)

    scores, mask = fuse_objectness(*arrays, "sigmoid")
    assert mask.all()
    expected = np.sqrt(probabilities / (1 + np.exp(-logits))[..., None])
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_objectness_logits_that_are_nan_give_no_nan_scores():
    logits = jnp.array([[np.nan, np.inf, -np.inf, 0.0, -0.0, 80.0, -80.0]])
    probabilities = jnp.tile(jnp.array([0.0, 0.5]), (1, 7, 1))
    scores, mask = fuse_objectness(probabilities, logits, "reference")
    assert np.isfinite(scores).all()
    assert mask[0].tolist() == [False, False, False, True, True, True, False]
    scores, mask = fuse_objectness(probabilities, logits, "sigmoid")
    assert np.isfinite(scores).all()
    assert mask[0].tolist() == [False, True, True, True, True, True, True]


def test_an_unknown_fusion_of_objectness_is_refused():
    with pytest.raises(ValueError, match="objectness 'product'; expected none"):
        fuse_objectness(jnp.ones((1, 2, 3)), jnp.ones((1, 2)), "product")


def test_boxes_are_mapped_to_original_pixels_and_empty_ones_are_masked():
    boxes = [[10, 5, 30, 25], [50, 0, 50, 9], [40, 30, 70, 60], [52, 0, 58, 9], [0, 0, 9, 9]]
    detections = Detections(
        boxes=jnp.array([boxes], jnp.float32),
        scores=jnp.array([[0.9, 0.8, 0.7, 0.6, 0.5]]),
        classes=jnp.array([[1, 2, 3, 4, 5]], jnp.int32),
        mask=jnp.array([[True, True, True, True, False]]),
    )
    selected = to_original_pixels(detections, jnp.array([[40, 50]]), jnp.array([[0.5, 2.0]]))
    assert selected.mask[0].tolist() == [True, False, True, False, False]
    zeros = [0, 0, 0, 0]
    expected = [[5, 10, 15, 50], zeros, [20, 60, 25, 80], zeros, zeros]
    np.testing.assert_array_equal(selected.boxes[0], expected)
    np.testing.assert_allclose(selected.scores[0], [0.9, 0, 0.7, 0, 0])
    assert selected.classes[0].tolist() == [1, 0, 3, 0, 0]


@pytest.mark.property
@given(height=st.integers(1, 5000), width=st.integers(1, 5000), short=st.integers(1, 1400))
def test_the_box_of_the_whole_image_is_mapped_to_the_whole_original(height, width, short):
    ratio = short / min(height, width)
    size = np.maximum(np.round([height * ratio, width * ratio]), 1)
    whole = Detections(
        boxes=jnp.array([[[0, 0, size[1], size[0]]]], jnp.float32),
        scores=jnp.ones((1, 1)),
        classes=jnp.zeros((1, 1), jnp.int32),
        mask=jnp.ones((1, 1), bool),
    )
    scales = jnp.array([[size[0] / height, size[1] / width]], jnp.float32)
    selected = to_original_pixels(whole, jnp.array(size[None], jnp.int32), scales)
    np.testing.assert_allclose(selected.boxes[0, 0], [0, 0, width, height], rtol=3e-7)
    assert (selected.boxes[0, 0] <= np.array([0, 0, width, height])).all()


def test_fused_probabilities_are_products_of_powers_and_an_exponent_of_zero_changes_nothing():
    rng = np.random.default_rng(0)
    own, others = (rng.dirichlet(np.ones(6), (2, 3)).astype(np.float32)[..., :5] for _ in range(2))
    own[0, 0, 1] = others[0, 0, 1] = 0  # A class that does not exist.
    exponents = np.array([0.0, 0.8, 0.1, 1.0, 0.0], np.float32)
    found = fuse_probabilities(jnp.asarray(own), jnp.asarray(others), jnp.asarray(exponents))
    np.testing.assert_allclose(found, own ** (1 - exponents) * others**exponents, rtol=1e-5)
    np.testing.assert_array_equal(found[..., [0, 4]], own[..., [0, 4]])
    assert found[0, 0, 1] == 0
