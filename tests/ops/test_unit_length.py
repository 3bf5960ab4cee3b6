import jax
import jax.numpy as jnp
import numpy as np

from regionclip_jax.ops.unit_length import unit_length


def test_unit_length_is_the_l2_norm_and_finite_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(unit_length(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    gradient = jax.grad(lambda x: unit_length(x).sum())(x)
    assert np.isfinite(np.asarray(gradient)).all()
