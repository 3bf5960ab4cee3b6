import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.ops.relu import relu


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_the_rectifier_and_so_is_its_gradient(dtype):
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0], dtype)
    out, pull_back = jax.vjp(relu, x)
    np.testing.assert_array_equal(out, jax.nn.relu(x))
    (gradient,) = pull_back(jnp.full(5, 7, dtype))
    np.testing.assert_array_equal(gradient, jnp.array([0, 0, 0, 7, 7], dtype))
    assert gradient.dtype == dtype
    assert jnp.isnan(relu(jnp.array([jnp.nan]))).all()


def test_only_what_comes_out_is_kept_for_the_gradient():
    x = jnp.array([-2.0, 3.0])
    _, pull_back = jax.vjp(relu, x)
    (kept,) = jax.tree.leaves(pull_back)
    np.testing.assert_array_equal(kept, [0.0, 3.0])
