import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.ops.chunks import map_chunks


@pytest.mark.property
@pytest.mark.parametrize("regions_per_chunk", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("unroll", [False, True])
def test_chunks_give_the_result_of_all_regions_at_once(regions_per_chunk, unroll):
    """Compare trees of outputs and the gradients of other arguments too."""
    rng = np.random.default_rng(0)
    regions = {"x": rng.standard_normal((2, 7, 3)), "n": rng.integers(0, 5, (2, 7))}
    regions = jax.tree.map(jnp.asarray, regions)
    weights = jnp.asarray(rng.standard_normal((3, 4)))

    def function(weights, chunk):
        y = jnp.tanh(chunk["x"] @ weights)
        return y, y.sum(-1) * chunk["n"]

    def total(weights, x, size):
        chunk = {**regions, "x": x}
        y, z = map_chunks(lambda c: function(weights, c), chunk, size, unroll=unroll)
        assert y.shape == (2, 7, 4) and z.shape == (2, 7)
        return (y**2).sum() + (z**3).sum()

    both = jax.value_and_grad(total, (0, 1))
    expected, actual = (both(weights, regions["x"], n) for n in (None, regions_per_chunk))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
                 actual, expected)  # fmt: skip
