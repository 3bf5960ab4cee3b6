"""Attention in chunks of tokens, as on accelerators, equals attention of all tokens at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from regionclip_jax.models import transformer_blocks
from regionclip_jax.models.transformer_blocks import BlockStack, SelfAttention
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.ops.backend import tracing_for

TOKENS = 19

MASKS = {
    "none": None,
    # The mask of a ViT on a padded canvas.
    "of each image": (np.arange(TOKENS) < np.array([[19], [6]]))[:, None],
    "causal": np.tril(np.ones((TOKENS, TOKENS), bool))[None],
}


@pytest.fixture
def attention(monkeypatch):
    monkeypatch.setattr(transformer_blocks, "_TOKENS_PER_CHUNK", 4)
    module = SelfAttention(ViTConfig(1, layers=3, width=16, heads=2), jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, TOKENS, 16))
    variables = jax.jit(lambda: module.init(jax.random.key(1), x, None))()
    return module, variables, x


def losses(module, mask):
    def total(variables, x):
        return jnp.sin(
            3 * module.apply(variables, x, mask if mask is None else jnp.asarray(mask))
        ).sum()

    return jax.value_and_grad(total, (0, 1))


@pytest.mark.property
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_chunks_of_tokens_change_neither_values_nor_gradients(attention, mask, relative_error):
    module, variables, x = attention
    expected = jax.jit(losses(module, mask))(variables, x)
    with tracing_for("tpu"):
        found = jax.jit(losses(module, mask))(variables, x)
    # Sums in another order. The gradient of the keys' bias is 0, so all numbers share one error.
    assert relative_error(*(ravel_pytree(tree)[0] for tree in (found, expected))) < 1e-5


@pytest.mark.parametrize("backend,whole", [("cpu", True), ("gpu", False), ("tpu", False)])
def test_no_program_for_accelerators_stores_the_weights_of_all_pairs_of_tokens(
    attention, backend, whole
):
    module, variables, x = attention
    with tracing_for(backend):
        program = str(jax.make_jaxpr(losses(module, MASKS["of each image"]))(variables, x))
    assert (f"f32[2,2,{TOKENS},{TOKENS}]" in program) == whole
    # 19 tokens are five chunks of at most 4; the weights are those of one chunk.
    assert (f"f32[2,2,4,{TOKENS}]" in program) != whole


def test_few_tokens_attend_at_once(attention):
    module, variables, x = attention
    with tracing_for("tpu"):
        program = str(jax.make_jaxpr(losses(module, None))(variables, x[:, :8]))
    assert "f32[2,2,8,8]" in program and "scan" not in program


@pytest.mark.property
@pytest.mark.parametrize("kept", ["products", "block_inputs"])
def test_chunks_work_with_every_remat_policy(attention, kept, relative_error):
    _, _, x = attention
    mask = jnp.asarray(MASKS["of each image"])

    def losses_of(remat):
        blocks = BlockStack(ViTConfig(1, layers=2, width=16, heads=2), jnp.float32, remat)
        variables = jax.jit(lambda: blocks.init(jax.random.key(1), x))()
        return jax.jit(losses(blocks, mask))(variables, x)

    expected = losses_of("all")
    with tracing_for("tpu"):
        found = losses_of(kept)
    assert relative_error(*(ravel_pytree(tree)[0] for tree in (found, expected))) < 1e-5
