"""The sigmoid loss of regions against a loop over pairs, and the concepts that it compares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.losses.concept_alignment import mean_over_groups
from regionclip_jax.losses.concept_sigmoid import concept_sigmoid_losses, draw_concepts

NUM_REGIONS, NUM_CONCEPTS = 6, 9
seeds = st.integers(0, 2**32 - 1)


@jax.jit
@jax.value_and_grad
def evaluate(logits, targets, concepts, keep):
    return mean_over_groups(concept_sigmoid_losses(logits, targets, concepts[:, None]), keep)


def plain_loss(logits, targets, concepts, keep):
    """Return the mean over kept regions of the sum over concepts of -log sigmoid(z logit)."""
    groups = []
    for group in range(len(logits)):
        sums = []
        for region in np.flatnonzero(keep[group]):
            total = 0.0
            for concept in np.flatnonzero(concepts[group]):
                sign = 1 if targets[group, region] == concept else -1
                total += np.log(1 + np.exp(-sign * logits[group, region, concept]))
            sums.append(total)
        if sums:
            groups.append(np.mean(sums))
    return np.mean(groups) if groups else 0.0


def draw(seed):
    """Return logits, labels, compared concepts with those labels, and kept regions of 2 groups."""
    rng = np.random.default_rng(seed)
    logits = 4 * rng.standard_normal((2, NUM_REGIONS, NUM_CONCEPTS)) - 3
    targets = rng.integers(0, NUM_CONCEPTS, logits.shape[:2])
    keep = rng.random(targets.shape) < 0.6
    concepts = rng.random((2, NUM_CONCEPTS)) < 0.4
    for group, region in np.argwhere(keep):
        concepts[group, targets[group, region]] = True
    return np.float32(logits), targets, concepts, keep


@pytest.mark.property
@given(seed=seeds)
def test_the_loss_is_that_of_a_loop_over_kept_regions_and_compared_concepts(seed):
    logits, targets, concepts, keep = draw(seed)
    loss, gradient = evaluate(logits, targets, concepts, keep)
    expected = plain_loss(np.float64(logits), targets, concepts, keep)
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
    # Neither other regions nor other concepts have an effect.
    counts = keep[..., None] & concepts[:, None]
    assert ((np.asarray(gradient) != 0) == counts).all()
    noise = np.random.default_rng(seed + 1).standard_normal(logits.shape).astype(np.float32)
    other, other_gradient = evaluate(np.where(counts, logits, 50 * noise), targets, concepts, keep)
    assert loss == other
    np.testing.assert_array_equal(gradient, other_gradient)


def test_saturated_and_bf16_logits_keep_loss_and_gradient_finite():
    logits, targets, concepts, keep = draw(0)
    loss, gradient = evaluate(1e4 * logits, targets, concepts, keep)
    assert np.isfinite(loss) and np.isfinite(np.asarray(gradient)).all()
    full, _ = evaluate(logits, targets, concepts, keep)
    half, _ = evaluate(jnp.asarray(logits, jnp.bfloat16), targets, concepts, keep)
    assert half.dtype == jnp.float32 and half == pytest.approx(float(full), rel=3e-2)


@pytest.mark.property
@given(seed=seeds)
def test_all_labels_of_a_group_are_compared_and_others_up_to_the_number_on_average(seed):
    rng = np.random.default_rng(seed)
    labels = rng.random((200, 50)) < 0.2
    counts = jnp.asarray(labels * rng.integers(1, 4, labels.shape), jnp.float32)
    drawn = np.asarray(draw_concepts(jax.random.key(seed), counts, 30))
    assert drawn[labels].all()
    # Each number has a deviation below 5; of the mean of 200 groups this is 0.35.
    assert abs(drawn.sum(1).mean() - 30) < 2
    # Every other concept is drawn in some groups, and groups draw different ones.
    shares = np.where(labels, np.nan, drawn)
    assert (np.nanmean(shares, 0) > 0.2).all() and (np.nanmean(shares, 0) < 0.8).all()
    assert (drawn[0] != drawn[1]).any()


def test_more_labels_than_the_number_are_all_and_the_only_ones():
    counts = jnp.asarray([[1.0, 0, 2, 0, 1, 0]])
    key = jax.random.key(0)
    np.testing.assert_array_equal(draw_concepts(key, counts, 2), counts > 0)
    # A number above the pool, and none, are the whole pool.
    for number in (6, 100, None):
        assert draw_concepts(key, counts, number).all()
