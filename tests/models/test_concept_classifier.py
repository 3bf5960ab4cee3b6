import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.models.concept_classifier import (
    class_probabilities,
    concept_logits,
    score_classes,
)
from regionclip_jax.settings import DetectionSettings


def cosines_over(regions, concepts, temperature):
    cosines = np.einsum("...d,cd->...c", regions, concepts)
    cosines /= np.linalg.norm(regions, axis=-1)[..., None] * np.linalg.norm(concepts, axis=-1)
    return cosines / temperature


def draw(seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, 3, 5)), 9 * rng.standard_normal((4, 5))


@pytest.mark.property
@given(seed=st.integers(0, 2**32 - 1))
def test_concept_logits_are_cosines_over_the_temperature(seed):
    regions, concepts = draw(seed)
    actual = concept_logits(*(jnp.asarray(x, jnp.float32) for x in (regions, concepts)), 0.05)
    np.testing.assert_allclose(actual, cosines_over(regions, concepts, 0.05), atol=2e-5)


@pytest.mark.property
@given(seed=st.integers(0, 2**32 - 1))
def test_the_background_has_a_logit_of_zero(seed):
    regions, concepts = draw(seed)
    powers = np.exp(cosines_over(regions, concepts, 0.1))
    expected = powers / (1 + powers.sum(-1, keepdims=True))
    actual = class_probabilities(*(jnp.asarray(x, jnp.float32) for x in (regions, concepts)), 0.1)
    np.testing.assert_allclose(actual, expected, rtol=2e-5)


def test_a_zero_region_has_equal_probabilities():
    actual = class_probabilities(jnp.zeros((1, 5)), jnp.ones((3, 5)), 0.01)
    np.testing.assert_allclose(actual, [[0.25, 0.25, 0.25]])


def test_independent_probabilities_are_the_sigmoid_of_each_logit():
    rng = np.random.default_rng(0)
    regions, classes = rng.standard_normal((2, 3, 5)), rng.standard_normal((4, 5))
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (regions, classes)]
    expected = 1 / (1 + np.exp(3.5 - unit[0] @ unit[1].T / 0.2))
    settings = DetectionSettings(temperature=0.2, score_activation="sigmoid", score_bias=-3.5)
    arrays = [jnp.asarray(x, jnp.float32) for x in (regions, classes)]
    mask = jnp.array([True, False, True, True])
    found = score_classes(*arrays, settings, mask)
    np.testing.assert_allclose(found[..., mask], expected[..., mask], rtol=1e-5)
    assert not found[..., 1].any()
    # Another class changes no probability, as it would in a softmax.
    fewer = score_classes(arrays[0], arrays[1][:1], settings)
    np.testing.assert_allclose(fewer[..., 0], expected[..., 0], rtol=1e-5)
    softmax = dataclasses.replace(settings, score_activation="softmax")
    plain = class_probabilities(*arrays, 0.2, mask)
    np.testing.assert_array_equal(score_classes(*arrays, softmax, mask), plain)
