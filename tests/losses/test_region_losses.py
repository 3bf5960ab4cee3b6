"""Labels, distillation and concept contrast against the reference's formulas.

Source: docs/reference/pretraining.md#pseudo-labels, docs/reference/pretraining.md#distillation,
docs/reference/pretraining.md#contrastive-loss.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.losses.concept_alignment import (
    confident_regions,
    group_regions,
    likeliest_concepts,
    mean_over_groups,
)
from regionclip_jax.losses.concept_contrastive import concept_contrastive_losses, count_targets
from regionclip_jax.losses.distillation import distillation_losses


class Labels(NamedTuple):
    """Labels of grouped regions from the logits of the teacher."""

    logits: jax.Array
    targets: jax.Array
    confidence: jax.Array
    keep: jax.Array


def label_regions(logits, mask, threshold):
    targets, confidence = likeliest_concepts(logits)
    return Labels(logits, targets, confidence, confident_regions(confidence, mask, threshold))


def contrastive_loss(logits, labels):
    counts = count_targets(labels.targets, labels.keep, logits.shape[-1])[:, None]
    losses = concept_contrastive_losses(logits, labels.targets, counts)
    return mean_over_groups(losses, labels.keep)


def distillation_loss(logits, labels):
    return mean_over_groups(distillation_losses(logits, labels.logits), labels.keep)


seeds = st.integers(0, 2**32 - 1)
LOSSES = {"contrastive": contrastive_loss, "distillation": distillation_loss}
label = jax.jit(label_regions, static_argnums=2)
evaluate = {name: jax.jit(jax.value_and_grad(loss)) for name, loss in LOSSES.items()}

NUM_REGIONS, NUM_CONCEPTS = 12, 7


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def plain_contrastive(logits, labels):
    """Return the loss of the K x K matrix of kept regions against the concepts of their labels."""
    keep, targets = np.asarray(labels.keep), np.asarray(labels.targets)
    targets = targets[keep]
    matrix = logits[keep][:, targets]
    alike = targets[:, None] == targets[None, :]
    return -np.log((softmax(matrix) * alike).sum(1)).mean()


def plain_distillation(logits, labels):
    keep = np.asarray(labels.keep)
    teacher = softmax(np.float64(np.asarray(labels.logits)[keep]))
    student = np.log(softmax(logits[keep]))
    return (teacher * (np.log(teacher) - student)).sum() / keep.sum()


PLAIN = {"contrastive": plain_contrastive, "distillation": plain_distillation}


def draw(seed, groups=1, scale=3.0):
    """Return teacher logits, student logits and a mask with a real region in each group."""
    rng = np.random.default_rng(seed)
    shape = (groups, NUM_REGIONS, NUM_CONCEPTS)
    teacher, student = scale * rng.standard_normal((2, *shape)).astype(np.float32)
    mask = rng.random(shape[:2]) < rng.uniform(0.2, 1)
    mask[:, 0] = True
    return teacher, student, mask


@pytest.mark.property
@pytest.mark.parametrize("name", LOSSES)
@given(seed=seeds)
def test_each_loss_equals_the_formula_of_the_spec(name, seed):
    teacher, student, mask = draw(seed)
    labels = label(teacher, mask, 0.5)
    # The kept regions are a random set, which need not come from a threshold.
    keep = mask & (np.random.default_rng(seed + 1).random(mask.shape) < 0.6)
    keep[:, 0] = True
    for kept in (np.asarray(labels.keep), keep):
        labels = labels._replace(keep=jnp.asarray(kept))
        group = jax.tree.map(lambda x: x[0], labels)
        loss, _ = evaluate[name](student, labels)
        assert loss == pytest.approx(PLAIN[name](np.float64(student[0]), group), rel=1e-5, abs=1e-5)


@pytest.mark.property
@pytest.mark.parametrize("name", LOSSES)
@given(seed=seeds)
def test_masked_regions_change_neither_loss_nor_gradient(name, seed):
    teacher, student, mask = draw(seed, groups=2)
    noise = 50 * np.random.default_rng(seed + 1).standard_normal(student.shape).astype(np.float32)
    loss, gradient = evaluate[name](student, label(teacher, mask, 0.5))
    changed = [np.where(mask[..., None], x, noise) for x in (teacher, student)]
    other_loss, other_gradient = evaluate[name](changed[1], label(changed[0], mask, 0.5))
    assert loss == other_loss
    np.testing.assert_array_equal(gradient, other_gradient)
    np.testing.assert_array_equal(gradient[~mask], 0)


@pytest.mark.property
@pytest.mark.parametrize("name", LOSSES)
@given(seed=seeds)
def test_the_loss_of_several_groups_is_the_mean_of_their_losses(name, seed):
    """The reference averages over GPUs, and each normalises its loss by its regions."""
    rng = np.random.default_rng(seed)
    teacher, student = 3 * rng.standard_normal((2, 4, 6, NUM_CONCEPTS)).astype(np.float32)
    mask = rng.random((4, 6)) < 0.7
    mask[:, 0] = True

    def loss_of(images, images_per_group):
        grouped = [
            group_regions(jnp.asarray(x[images]), images_per_group)
            for x in (teacher, mask, student)
        ]
        return evaluate[name](grouped[2], label(*grouped[:2], 0.6))[0]

    separate = [loss_of(slice(first, first + 2), None) for first in (0, 2)]
    assert loss_of(slice(None), 2) == pytest.approx(float(np.mean(separate)), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_real_region_the_loss_is_zero_and_its_gradient_finite(name):
    teacher, student, mask = draw(0, groups=2)
    labels = label(teacher, np.zeros_like(mask), 0.5)
    assert not labels.keep.any()
    loss, gradient = evaluate[name](student, labels)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)
    # A group without regions is not counted; the other one is the whole loss.
    half = mask.copy()
    half[1] = False
    loss, _ = evaluate[name](student, label(teacher, half, 0.5))
    alone, _ = evaluate[name](student[:1], label(teacher[:1], mask[:1], 0.5))
    assert loss == pytest.approx(float(alone), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_bf16_logits_and_saturated_ones_stay_finite_and_close(name):
    teacher, student, mask = draw(2)
    full, _ = evaluate[name](student, label(teacher, mask, 0.5))
    half, _ = evaluate[name](
        jnp.asarray(student, jnp.bfloat16), label(jnp.asarray(teacher, jnp.bfloat16), mask, 0.5)
    )
    assert half.dtype == jnp.float32
    assert half == pytest.approx(float(full), rel=3e-2)
    # At temperature 0.01, cosines of opposite sign give probabilities that underflow.
    saturated, gradient = evaluate[name](100 * np.sign(student), label(-100 * student, mask, 0.5))
    assert np.isfinite(saturated) and np.isfinite(np.asarray(gradient)).all()


def test_the_contrastive_loss_is_zero_if_all_regions_have_one_label():
    _, student, mask = draw(3)
    teacher = np.zeros_like(student)
    teacher[..., 4] = 9
    loss, _ = evaluate["contrastive"](student, label(teacher, mask, 0.5))
    assert loss == pytest.approx(0, abs=1e-6)


def test_the_distillation_loss_is_zero_if_student_and_teacher_are_equal():
    teacher, _, mask = draw(4)
    loss, gradient = evaluate["distillation"](teacher + 5, label(teacher, mask, 0.5))
    assert loss == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_the_threshold_is_strict_and_all_real_regions_are_kept_if_none_passes():
    # Both concepts of the first region have probability 0.5 exactly; the second region is surer.
    logits = np.array([[[1, 1], [3, 0], [0, 9], [2, 2]]], np.float32)
    mask = np.array([[True, True, False, True]])
    labels = label(logits, mask, 0.5)
    np.testing.assert_array_equal(labels.confidence[0, [0, 3]], 0.5)
    np.testing.assert_array_equal(labels.keep, [[False, True, False, False]])
    np.testing.assert_array_equal(labels.targets[0, 1:3], [0, 1])
    np.testing.assert_array_equal(label(logits, mask, 0.99).keep, mask)
    # The rule applies to each group separately.
    two = label(np.concatenate([logits, 0 * logits]), np.concatenate([mask, mask]), 0.5)
    np.testing.assert_array_equal(two.keep, [[False, True, False, False], mask[0]])


@pytest.mark.property
@given(seed=seeds)
def test_counts_are_the_numbers_of_kept_regions_with_each_concept(seed):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, NUM_CONCEPTS, (3, NUM_REGIONS))
    keep = rng.random(targets.shape) < 0.5
    counts = count_targets(jnp.asarray(targets), jnp.asarray(keep), NUM_CONCEPTS)
    for actual, named, kept in zip(counts, targets, keep, strict=True):
        np.testing.assert_array_equal(actual, np.bincount(named[kept], minlength=NUM_CONCEPTS))


def test_regions_are_grouped_image_by_image():
    x = jnp.arange(4 * 3 * 2).reshape(4, 3, 2)
    np.testing.assert_array_equal(group_regions(x, 2)[1], np.asarray(x[2:]).reshape(6, 2))
    assert group_regions(x, None).shape == (1, 12, 2)


def test_a_batch_size_that_the_group_size_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="images_per_group 3 does not divide the batch of 4"):
        group_regions(jnp.zeros((4, 2)), 3)


def test_all_groups_have_equal_weight_in_the_mean():
    values = jnp.array([[1.0, 3.0, 100.0], [5.0, 100.0, 100.0], [100.0, 100.0, 100.0]])
    keep = jnp.array([[True, True, False], [True, False, False], [False, False, False]])
    assert mean_over_groups(values, keep) == (2 + 5) / 2
