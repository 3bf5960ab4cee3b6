"""The losses of detectors and localizers against plain NumPy.

Of the region proposal network's and the mask head's there are no golden arrays; the box head's are
compared with the reference in tests/steps/test_finetune_parity.py.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.losses.detector_heads import box_regression_loss, classification_loss, mask_loss
from regionclip_jax.losses.rpn import anchor_regression_loss, objectness_loss
from regionclip_jax.ops.matching import IGNORED, NEGATIVE, POSITIVE


def softmax(row):
    powers = np.exp(np.asarray(row, np.float64) - max(row))
    return powers / powers.sum()


@pytest.mark.parametrize("gamma", [None, 0.5, 2.0])
def test_classification_is_the_formula_of_each_form(gamma):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 4)).astype(np.float32)
    classes = rng.integers(0, 4, (2, 5))
    mask = rng.random((2, 5)) < 0.8
    total = weights = 0.0
    for row, own, real in zip(logits.reshape(-1, 4), classes.ravel(), mask.ravel(), strict=True):
        if real:
            probability = softmax(row)[own]
            weight = 0.2 if own == 3 else 1.0
            scale = 1.0 if gamma is None else (1 - probability) ** gamma
            total += weight * scale * -math.log(probability)
            weights += weight
    expected = total / (weights if gamma is None else mask.sum())
    found = classification_loss(
        jnp.asarray(logits),
        jnp.asarray(classes),
        jnp.asarray(mask),
        background_weight=0.2,
        focal_gamma=gamma,
    )
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("logits", [[17.5, 0.0, 0.0], [100.0, 0.0, -100.0], [0.0, 0.0, 0.0]])
def test_the_focal_gradient_is_finite_where_the_references_is_not(logits):
    """torch gives NaN for the first two: docs/reference/training_detectors.md#losses."""

    def loss(logits):
        return classification_loss(
            logits[None], jnp.array([0]), jnp.array([True]), background_weight=1.0, focal_gamma=0.5
        )

    value, gradient = jax.value_and_grad(loss)(jnp.array(logits))
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
    # Downhill: a larger right logit is never worse.
    assert gradient[0] <= 0


@pytest.mark.parametrize("gamma", [None, 0.5])
def test_a_batch_without_regions_loses_nothing(gamma):
    def loss(logits):
        return classification_loss(
            logits,
            jnp.zeros(3, jnp.int32),
            jnp.zeros(3, bool),
            background_weight=0.2,
            focal_gamma=gamma,
        )

    value, gradient = jax.value_and_grad(loss)(jnp.ones((3, 4)))
    assert value == 0 and (gradient == 0).all()


def encoded(box, target, weights):
    width, height = box[2] - box[0], box[3] - box[1]
    new_width, new_height = target[2] - target[0], target[3] - target[1]
    return np.array(
        [
            weights[0] * ((target[0] + target[2]) - (box[0] + box[2])) / 2 / width,
            weights[1] * ((target[1] + target[3]) - (box[1] + box[3])) / 2 / height,
            weights[2] * math.log(new_width / width),
            weights[3] * math.log(new_height / height),
        ]
    )


def some_boxes(rng, *shape):
    low = rng.uniform(0, 50, (*shape, 2))
    return np.concatenate([low, low + rng.uniform(5, 40, (*shape, 2))], -1).astype(np.float32)


def test_box_regression_divides_the_positives_errors_by_all_regions():
    rng = np.random.default_rng(1)
    boxes, targets = some_boxes(rng, 2, 4), some_boxes(rng, 2, 4)
    deltas = rng.normal(size=(2, 4, 4)).astype(np.float32)
    positive = np.array([[True, True, False, False], [True, False, False, False]])
    mask = np.array([[True] * 4, [True, True, True, False]])
    boxes[1, 3] = targets[1, 3] = 0  # rows of padding are empty boxes
    total = sum(
        np.abs(deltas[index] - encoded(boxes[index], targets[index], (10, 10, 5, 5))).sum()
        for index in zip(*np.nonzero(positive), strict=True)
    )
    arguments = [jnp.asarray(x) for x in (boxes, targets, positive, mask)]
    loss = jax.value_and_grad(lambda deltas: box_regression_loss(deltas, *arguments))
    found, gradient = loss(jnp.asarray(deltas))
    assert found == pytest.approx(total / 7, rel=1e-5)
    assert jnp.isfinite(gradient).all() and (gradient[~positive] == 0).all()


def test_the_localizers_losses_are_sums_over_the_anchors_asked_for():
    rng = np.random.default_rng(2)
    anchors, targets = some_boxes(rng, 6), some_boxes(rng, 2, 6)
    logits = rng.normal(size=(2, 6)).astype(np.float32)
    deltas = rng.normal(size=(2, 6, 4)).astype(np.float32)
    labels = np.array(
        [
            [POSITIVE, NEGATIVE, IGNORED, NEGATIVE, POSITIVE, IGNORED],
            [NEGATIVE, IGNORED, IGNORED, NEGATIVE, IGNORED, IGNORED],
        ]
    )
    entropy = errors = 0.0
    for image in range(2):
        for anchor, label in enumerate(labels[image]):
            if label != IGNORED:
                sign = 1 if label == POSITIVE else -1
                entropy += math.log1p(math.exp(-sign * logits[image, anchor]))
            if label == POSITIVE:
                wanted = encoded(anchors[anchor], targets[image, anchor], (1, 1, 1, 1))
                errors += np.abs(deltas[image, anchor] - wanted).sum()
    labels = jnp.asarray(labels)
    found = objectness_loss(jnp.asarray(logits), labels, 256)
    assert found == pytest.approx(entropy / 512, rel=1e-6)
    found = anchor_regression_loss(
        jnp.asarray(deltas), jnp.asarray(anchors), jnp.asarray(targets), labels, 256
    )
    assert found == pytest.approx(errors / 512, rel=1e-5)


def test_the_mask_loss_is_the_mean_over_cells_of_the_positives():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(3, 2, 2)).astype(np.float32)
    targets = (rng.random((3, 2, 2)) < 0.5).astype(np.float32)
    mask = np.array([True, False, True])
    cells = [
        math.log1p(math.exp(-(2 * t - 1) * x))
        for x, t in zip(logits[mask].ravel(), targets[mask].ravel(), strict=True)
    ]
    found = mask_loss(jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(mask))
    assert found == pytest.approx(np.mean(cells), rel=1e-6)
    loss = jax.value_and_grad(mask_loss)
    value, gradient = loss(jnp.asarray(logits), jnp.asarray(targets), jnp.zeros(3, bool))
    assert value == 0 and (gradient == 0).all()
