import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionclip_jax.steps.micro_batches import (
    join,
    map_parts,
    split,
    value_and_cached_gradient,
)

WIDTH = 5


def embed(params, part):
    hidden = jnp.tanh(part["x"] @ params["in"])
    return {"image": hidden @ params["out"], "text": jnp.sin(part["y"] @ params["in"])}


def loss(embeddings):
    """Contrastive loss over all rows, which differs from the mean of the losses of parts."""
    logits = embeddings["image"] @ embeddings["text"].T
    value = (jax.nn.logsumexp(logits, 1) - jnp.diagonal(logits)).mean()
    return value, {"largest": logits.max()}


def batch_of(rng, size):
    return {name: jnp.asarray(rng.standard_normal((size, WIDTH)), jnp.float32) for name in "xy"}


@pytest.mark.property
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), size=st.integers(1, 4), count=st.integers(1, 4))
def test_loss_and_gradient_equal_those_of_the_whole_batch(seed, size, count):
    rng = np.random.default_rng(seed)
    batch = batch_of(rng, size * count)
    params = {
        name: jnp.asarray(rng.standard_normal((WIDTH, WIDTH)), jnp.float32)
        for name in ("in", "out")
    }
    (expected, more), wanted = jax.value_and_grad(
        lambda params: loss(embed(params, batch)), has_aux=True
    )(params)
    (value, auxiliary), gradient = value_and_cached_gradient(embed, loss, params, batch, count)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(auxiliary["largest"], more["largest"], rtol=1e-5)
    for name in params:
        np.testing.assert_allclose(gradient[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_parts_are_interleaved_rows_that_join_to_the_batch():
    batch = jnp.arange(12).reshape(6, 2)
    parts = split(batch, 3)
    assert parts[0, :, 0].tolist() == [0, 6] and parts[2, :, 0].tolist() == [4, 10]
    np.testing.assert_array_equal(join(parts), batch)
    np.testing.assert_array_equal(map_parts(lambda x: x + 1, batch, 3), batch + 1)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="a batch of 6 does not divide into 4 micro-batches"):
        split(jnp.zeros((6, 2)), 4)


def test_only_the_embeddings_of_the_whole_batch_exist_at_once():
    """Compare the temporary memory of the compiler; each row has 0.5 MB of activations."""
    size, count, width = 64, 16, 4096
    params = {"in": jnp.zeros((WIDTH, width)), "out": jnp.zeros((width, WIDTH))}

    def wide(params, part):
        hidden = jnp.broadcast_to(part["x"][:, None], (len(part["x"]), 32, WIDTH))
        hidden = jnp.tanh(hidden @ params["in"])
        return {"image": (hidden @ params["out"]).mean(1), "text": part["y"]}

    def temporary(function):
        batch = {name: jax.ShapeDtypeStruct((size, WIDTH), jnp.float32) for name in "xy"}
        return jax.jit(function).lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    whole = temporary(
        lambda params, batch: jax.value_and_grad(lambda p: loss(wide(p, batch)), has_aux=True)(
            params
        )
    )
    parts = temporary(
        lambda params, batch: value_and_cached_gradient(wide, loss, params, batch, count)
    )
    assert whole > size * 32 * width * 4 and parts < whole / 4
