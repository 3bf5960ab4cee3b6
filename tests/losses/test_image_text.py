import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.losses.image_text import image_text_loss

value_and_grad = jax.jit(jax.value_and_grad(image_text_loss, (0, 1)))
# The softmax has no bias.
BIASES = [None, -1.5]


def plain_logits(images, texts, temperature):
    images = images / np.linalg.norm(images, axis=1, keepdims=True)
    texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    return images @ texts.T / temperature


def plain_softmax(images, texts, temperature):
    """Return the mean of the cross-entropies of rows and of columns against the diagonal."""
    logits = plain_logits(images, texts, temperature)

    def cross_entropy(logits):
        log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        return (log_sum - np.diagonal(logits)).mean()

    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2


def plain_sigmoid(images, texts, temperature, bias):
    """Return SigLIP's loss by its formula, a pair at a time."""
    logits, total = plain_logits(images, texts, temperature), 0.0
    for image in range(len(logits)):
        for text in range(len(logits)):
            sign = 1 if image == text else -1
            total += np.log(1 + np.exp(-sign * (logits[image, text] + bias)))
    return total / len(logits)


def plain_loss(images, texts, temperature, bias):
    if bias is None:
        return plain_softmax(images, texts, temperature)
    return plain_sigmoid(images, texts, temperature, bias)


def draw(seed, num=6, width=8):
    rng = np.random.default_rng(seed)
    images, texts, noise = rng.standard_normal((3, num, width))
    return images, texts, noise, rng.permutation(num)


@pytest.mark.property
@pytest.mark.parametrize("bias", BIASES)
@given(seed=st.integers(0, 2**32 - 1), num_real=st.integers(1, 6))
def test_the_loss_is_that_of_the_formula_and_does_not_depend_on_masked_rows(seed, num_real, bias):
    images, texts, noise, order = draw(seed)
    mask = order < num_real
    expected = plain_loss(images[mask], texts[mask], 0.1, bias)
    loss, gradients = value_and_grad(*map(np.float32, (images, texts)), mask, 0.1, bias)
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-5)
    changed = [np.float32(np.where(mask[:, None], x, 100 * noise)) for x in (images, texts)]
    other_loss, other_gradients = value_and_grad(*changed, mask, 0.1, bias)
    assert loss == other_loss
    for gradient, other in zip(gradients, other_gradients, strict=True):
        np.testing.assert_array_equal(gradient, other)
        np.testing.assert_array_equal(gradient[~mask], 0)


@pytest.mark.property
@given(seed=st.integers(0, 2**32 - 1))
def test_lengths_of_embeddings_do_not_matter(seed):
    images, texts, noise, _ = draw(seed)
    mask = np.ones(6, bool)
    loss, _ = value_and_grad(*map(np.float32, (images, texts)), mask, 0.1)
    scaled, _ = value_and_grad(
        *map(np.float32, (images * np.exp(noise[:, :1]), texts * 30)), mask, 0.1
    )
    assert scaled == pytest.approx(float(loss), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("bias", BIASES)
def test_without_a_real_row_the_loss_and_its_gradient_are_zero(bias):
    """Skipped records are zeros, so their normalisation would divide by zero."""
    zeros = np.zeros((4, 8), np.float32)
    loss, gradients = value_and_grad(zeros, zeros, np.zeros(4, bool), 0.01, bias)
    assert loss == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("bias", BIASES)
def test_rows_of_zeros_among_real_ones_keep_gradients_finite(bias):
    images, texts, _, _ = draw(0)
    images[2] = 0
    mask = np.arange(6) != 2
    loss, gradients = value_and_grad(*map(np.float32, (images, texts)), mask, 0.01, bias)
    assert np.isfinite(loss) and all(np.isfinite(np.asarray(g)).all() for g in gradients)


def test_bf16_embeddings_give_a_loss_close_to_fp32():
    images, texts, _, _ = draw(1, num=16)
    mask = np.ones(16, bool)
    full, _ = value_and_grad(*map(np.float32, (images, texts)), mask, 0.1)
    half, _ = value_and_grad(*(jnp.asarray(x, jnp.bfloat16) for x in (images, texts)), mask, 0.1)
    assert half.dtype == jnp.float32
    assert half == pytest.approx(float(full), rel=2e-2)
