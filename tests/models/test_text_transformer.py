import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.models.text_transformer import TextConfig, TextTransformer
from regionclip_jax.models.transformer_blocks import layer_norm, quick_gelu

TOWER = TextTransformer(
    TextConfig(vocab_size=50, context_length=12, width=32, heads=2, layers=2), embed_dim=8
)
apply = jax.jit(TOWER.apply)
# 49 ends a text.
TOKENS = jnp.array([[48, 3, 4, 49, 0, 0, 0, 0], [48, 5, 49, 0, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def variables():
    return jax.jit(TOWER.init)(jax.random.key(0), TOKENS)


@pytest.mark.property
def test_tokens_behind_the_end_token_have_no_effect(variables):
    texts = apply(variables, TOKENS)
    changed = apply(variables, TOKENS.at[0, 4:].set(7).at[1, 3:].set(11))
    np.testing.assert_array_equal(texts, changed)
    longer = apply(variables, jnp.pad(TOKENS, ((0, 0), (0, 4))))
    np.testing.assert_allclose(longer, texts, atol=1e-6)
    shorter = apply(variables, TOKENS[:, :4])
    np.testing.assert_allclose(shorter, texts, atol=1e-6)
    assert np.abs(apply(variables, TOKENS.at[0, 1].set(7)) - texts)[0].max() > 1e-3


def test_a_text_without_its_end_token_is_read_at_its_start_token(variables):
    """The embedding does not depend on the words: docs/reference/text.md#truncation."""
    cut = jnp.array([[48, 3, 4, 5]])
    other = jnp.array([[48, 6, 7, 8]])
    np.testing.assert_array_equal(apply(variables, cut), apply(variables, other))


def test_quick_gelu_of_one():
    assert quick_gelu(jnp.array(1.0)) == pytest.approx(0.8457958, abs=1e-6)


def test_layer_norm_is_computed_in_fp32_and_cast_back():
    x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (4, 64)), jnp.bfloat16)
    norm = layer_norm(1e-5, jnp.bfloat16)
    y = norm.apply(norm.init(jax.random.key(0), x), x)
    x32 = np.asarray(x, np.float32)
    expected = (x32 - x32.mean(-1, keepdims=True)) / np.sqrt(x32.var(-1, keepdims=True) + 1e-5)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, atol=0.02)
