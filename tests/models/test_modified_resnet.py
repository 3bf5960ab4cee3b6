import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.models.clip import CLIP, init_variables
from regionclip_jax.models.convolution import Conv
from regionclip_jax.models.frozen_batch_norm import BatchNorm, convolve_and_normalize
from regionclip_jax.models.modified_resnet import Stem
from regionclip_jax.ops.backend import tracing_for


def test_frozen_norm_is_an_affine_map_of_the_stored_statistics():
    variables = {
        "params": {"scale": jnp.array([2.0, 1.0]), "bias": jnp.array([0.5, 0.0])},
        "batch_stats": {"mean": jnp.array([1.0, 0.0]), "var": jnp.array([4.0, 0.0])},
    }
    x = jnp.array([[3.0, 1.0]])
    # With a variance of 0 the scale is 1 / sqrt(1e-5).
    np.testing.assert_allclose(BatchNorm(2).apply(variables, x), [[2.5, 316.2278]], rtol=1e-5)


def test_live_norm_uses_the_batch_and_updates_the_statistics_by_a_tenth():
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (64, 4, 4, 5))
    norm = BatchNorm(5, frozen=False)
    variables = {
        "params": {"scale": jnp.ones(5), "bias": jnp.zeros(5)},
        "batch_stats": {"mean": jnp.zeros(5), "var": jnp.ones(5)},
    }
    y, updated = norm.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-4)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-4)
    # With frozen norms, the same variables are a fixed map.
    frozen = BatchNorm(5).apply({**variables, **updated}, x[:1])
    np.testing.assert_allclose(frozen[0], BatchNorm(5).apply({**variables, **updated}, x)[0])


class ConvolutionAndNorm(nn.Module):
    folded: bool
    frozen: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, cells):
        conv, norm = Conv(6, 3, 1, self.dtype), BatchNorm(6, self.frozen)
        if self.folded:
            return convolve_and_normalize(conv, norm, x, cells)
        return norm(conv(x, cells))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_norm_folded_into_its_kernel_gives_the_result_of_a_separate_norm(frozen):
    keys = iter(jax.random.split(jax.random.key(0), 8))
    x = jax.random.normal(next(keys), (2, 9, 8, 4))
    cells = jnp.array([[9, 5], [6, 8]])
    plain, folded = (ConvolutionAndNorm(folded, frozen) for folded in (False, True))
    variables = jax.tree.map(
        lambda leaf: 0.5 + jax.random.uniform(next(keys), leaf.shape),
        plain.init(jax.random.key(0), x, cells),
    )

    def loss(model, params):
        out, _ = model.apply(variables | {"params": params}, x, cells, mutable=["batch_stats"])
        return (out * jnp.arange(6)).sum(), out

    (_, a), grad_a = jax.value_and_grad(lambda p: loss(plain, p), has_aux=True)(variables["params"])
    (_, b), grad_b = jax.value_and_grad(lambda p: loss(folded, p), has_aux=True)(
        variables["params"]
    )
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)
    for one, other in zip(jax.tree.leaves(grad_b), jax.tree.leaves(grad_a), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_in_half_precision_a_folded_norm_is_closer_to_float32():
    """The folded multiplier is applied in float32; after the convolution it would be rounded."""
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 64))
    exact = ConvolutionAndNorm(True, True)
    variables = exact.init(jax.random.key(1), x, None)
    variables["batch_stats"]["BatchNorm_0"]["var"] = jnp.linspace(0.1, 3.0, 6)
    expected = exact.apply(variables, x, None)
    half = x.astype(jnp.bfloat16)
    errors = [
        jnp.abs(
            ConvolutionAndNorm(folded, True, jnp.bfloat16).apply(variables, half, None) - expected
        )
        for folded in (True, False)
    ]
    assert errors[0].mean() < errors[1].mean() < 0.02


@pytest.mark.parametrize("sizes", [None, [[36, 25], [11, 48]]])
def test_a_stem_for_tpus_gives_the_same_features(sizes):
    """The TPU stem moves cells of its narrow maps into channels."""
    x = jax.random.normal(jax.random.key(0), (2, 36, 48, 3))
    sizes = None if sizes is None else jnp.array(sizes)
    stem = Stem(8, True, jnp.float32)
    variables = stem.init(jax.random.key(1), x, sizes)
    variables["batch_stats"]["norm2"]["mean"] = jnp.array([0.1, -0.2, 0.3, 0.0])

    def value_and_gradient(params):
        out, pull_back = jax.vjp(lambda p: stem.apply(variables | {"params": p}, x, sizes), params)
        return out, pull_back(jnp.cos(jnp.arange(out.size)).reshape(out.shape))[0]

    expected = value_and_gradient(variables["params"])
    with tracing_for("tpu"):
        actual = value_and_gradient(variables["params"])
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    # Sides that the block size does not divide are not rearranged.
    with tracing_for("tpu"):
        assert stem.apply(variables, x[:, :34], None).shape == (2, 8, 12, 8)


def test_every_pool_rounds_an_odd_canvas_down_as_in_the_reference(nano_configs):
    """100 x 150: stem 25 x 37 (150 -> 75 -> 37), layer2 12 x 18, layer3 6 x 9.

    Source: docs/reference/towers.md#bottleneck.
    """
    model = CLIP(nano_configs["resnet"])
    variables = jax.eval_shape(lambda: init_variables(model.config, jax.random.key(0)))
    features = jax.eval_shape(
        lambda v, x: model.apply(v, x, method=model.image_features),
        variables,
        jax.ShapeDtypeStruct((2, 100, 150, 3), jnp.float32),
    )
    assert features.map.shape == (2, 6, 9, 16 * 8) and features.whole is None
