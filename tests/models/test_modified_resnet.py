import jax
import jax.numpy as jnp
import numpy as np

from regionclip_jax.models.clip import CLIP, init_variables
from regionclip_jax.models.frozen_batch_norm import BatchNorm


def test_frozen_norm_is_an_affine_map_of_the_stored_statistics():
    variables = {
        "params": {"scale": jnp.array([2.0, 1.0]), "bias": jnp.array([0.5, 0.0])},
        "batch_stats": {"mean": jnp.array([1.0, 0.0]), "var": jnp.array([4.0, 0.0])},
    }
    x = jnp.array([[3.0, 1.0]])
    # A variance of 0 leaves epsilon alone: 1 / sqrt(1e-5).
    np.testing.assert_allclose(BatchNorm().apply(variables, x), [[2.5, 316.2278]], rtol=1e-5)


def test_live_norm_uses_the_batch_and_moves_the_statistics_a_tenth():
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (64, 4, 4, 5))
    norm = BatchNorm(frozen=False)
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
    # Frozen again, the same variables are a fixed map.
    frozen = BatchNorm().apply({**variables, **updated}, x[:1])
    np.testing.assert_allclose(frozen[0], BatchNorm().apply({**variables, **updated}, x)[0])


def test_an_odd_canvas_rounds_down_at_every_pool_as_the_reference_does(nano_configs):
    """100 x 150: stem 25 x 37 (150 -> 75 -> 37), layer2 12 x 18, layer3 6 x 9 (spec 1.3)."""
    model = CLIP(nano_configs["resnet"])
    variables = jax.eval_shape(lambda: init_variables(model.config, jax.random.key(0)))
    features = jax.eval_shape(
        lambda v, x: model.apply(v, x, method=model.image_features),
        variables,
        jax.ShapeDtypeStruct((2, 100, 150, 3), jnp.float32),
    )
    assert features.map.shape == (2, 6, 9, 16 * 8) and features.whole is None
