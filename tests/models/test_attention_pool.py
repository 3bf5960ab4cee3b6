import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.models.attention_pool import AttentionPool

POOL = AttentionPool(grid_size=3, num_heads=4, embed_dim=6)
SHAPES = jax.eval_shape(lambda: POOL.init(jax.random.key(0), jnp.zeros((1, 3, 3, 16))))
apply = jax.jit(POOL.apply)


def plain_attention_pool(params, x, num_heads):
    """Return the output of the first token in multi-head attention of all tokens."""
    num, height, width, channels = x.shape
    tokens = x.reshape(num, height * width, channels)
    tokens = np.concatenate([tokens.mean(1, keepdims=True), tokens], 1)
    tokens = tokens + params["positional_embedding"]

    def project(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    def heads(name):
        return project(name, tokens).reshape(num, -1, num_heads, channels // num_heads)

    query, key, value = (heads(f"{letter}_proj") for letter in "qkv")
    scores = np.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(channels // num_heads)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("nhqk,nkhd->nqhd", weights, value).reshape(tokens.shape)
    return project("c_proj", mixed)[:, 0]


@pytest.mark.property
@given(seed=st.integers(0, 2**32 - 1))
def test_the_attention_pool_equals_plain_multi_head_attention(relative_error, seed):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda s: rng.standard_normal(s.shape), SHAPES["params"])
    x = rng.standard_normal((2, 3, 3, 16))
    variables = jax.tree.map(np.float32, {"params": params})
    assert (
        relative_error(apply(variables, np.float32(x)), plain_attention_pool(params, x, 4)) < 2e-5
    )


def test_the_bias_of_the_keys_has_no_effect():
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: np.float32(rng.standard_normal(s.shape)), SHAPES)
    x = np.float32(rng.standard_normal((2, 3, 3, 16)))
    gradient = jax.jit(jax.grad(lambda v: apply(v, x).sum()))(variables)["params"]
    np.testing.assert_array_equal(gradient["k_proj"]["bias"], 0)
    assert np.abs(gradient["q_proj"]["bias"]).max() > 0


def test_another_grid_is_refused_with_the_required_crop_size():
    with pytest.raises(ValueError, match="expected 3x3 features, found 9x9; .* size to 6"):
        POOL.init(jax.random.key(0), jnp.zeros((1, 9, 9, 16)))
