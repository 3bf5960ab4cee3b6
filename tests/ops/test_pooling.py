import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.ops.backend import tracing_for
from regionclip_jax.ops.pooling import average_pool_2x2


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_average_pooling_drops_an_odd_last_row_and_column(backend):
    x = jnp.arange(25.0 * 25).reshape(1, 25, 25, 1)
    with tracing_for(backend):
        pooled = average_pool_2x2(x)
    assert pooled.shape == (1, 12, 12, 1)
    assert pooled[0, 0, 0, 0] == (0 + 1 + 25 + 26) / 4
    assert pooled[0, 11, 11, 0] == x[0, 22:24, 22:24].mean()


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_cell_asks_a_quarter_of_each_of_its_four(backend, dtype):
    x = jnp.ones((2, 5, 4, 3), dtype)
    asked = jax.random.normal(jax.random.key(0), (2, 2, 2, 3)).astype(dtype)
    with tracing_for(backend):
        pooled, pull_back = jax.vjp(average_pool_2x2, x)
        (gradient,) = pull_back(asked)
    assert pooled.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(pooled, 1)
    np.testing.assert_array_equal(gradient[:, :4], np.repeat(np.repeat(asked, 2, 1), 2, 2) / 4)
    np.testing.assert_array_equal(gradient[:, 4], 0)
