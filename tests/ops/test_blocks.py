import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.ops.blocks import (
    average_of_blocks,
    convolve_blocks,
    convolve_into_blocks,
    to_blocks,
)
from regionclip_jax.ops.convolution import average_pool_2x2, convolve


@pytest.mark.property
@pytest.mark.parametrize("stride, side", [(2, 2), (1, 3), (2, 1), (1, 2)])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("from_blocks", [False, True])
def test_convolutions_over_blocks_are_those_over_cells(from_blocks, size, stride, side):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 12, 24, 3))
    kernel = jax.random.normal(keys[1], (size, size, 3, 5))
    stride = 1 if from_blocks else stride

    def over_blocks(x, kernel):
        if from_blocks:
            return convolve_blocks(to_blocks(x, side), kernel, side)
        return convolve_into_blocks(x, kernel, stride, side)

    def over_cells(x, kernel):
        return to_blocks(convolve(x, kernel, stride), side)

    out, pull_back = jax.vjp(over_blocks, x, kernel)
    expected, pull_expected = jax.vjp(over_cells, x, kernel)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    cotangent = jax.random.normal(keys[2], out.shape)
    for one, other in zip(pull_back(cotangent), pull_expected(cotangent), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_the_mean_of_a_block_is_a_pool():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    found = average_of_blocks(to_blocks(x, 2), 2)
    np.testing.assert_allclose(found, average_pool_2x2(x), rtol=1e-6, atol=1e-6)


def test_a_map_without_whole_blocks_is_refused():
    with pytest.raises(ValueError, match="6 x 5 cells has no whole blocks of 2 x 2"):
        to_blocks(jnp.zeros((1, 6, 5, 3)), 2)
