"""The convolution: its kernel gradient is the sum of its definition, on maps of any shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionclip_jax.ops import convolution
from regionclip_jax.ops.backend import tracing_for
from regionclip_jax.ops.convolution import average_pool_2x2, convolve, relu, with_multiplier


def gradient_by_definition(x: np.ndarray, asked: np.ndarray, size: int) -> np.ndarray:
    half = size // 2
    padded = np.pad(x.astype(np.float64), [(0, 0), (half, half), (half, half), (0, 0)])
    height, width = x.shape[1:3]
    found = np.zeros((size, size, x.shape[-1], asked.shape[-1]))
    for i in range(size):
        for j in range(size):
            window = padded[:, i : i + height, j : j + width]
            found[i, j] = np.einsum("nhwi,nhwo->io", window, asked.astype(np.float64))
    return found


def relative(found, expected) -> float:
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max())


@pytest.mark.property
@settings(max_examples=12, deadline=None)
@given(
    num=st.sampled_from([1, 2, 31, 33, 70]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 5),
    features=st.integers(1, 5),
    size=st.sampled_from([3, 5]),
    at_once=st.sampled_from([1, 16, 2048]),
)
def test_the_gradient_is_the_sum_over_cells(num, height, width, channels, features, size, at_once):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num, height, width, channels)).astype(np.float32)
    asked = rng.standard_normal((num, height, width, features)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_CELLS_AT_ONCE", at_once)
        found = convolution._kernel_gradient(jnp.array(x), jnp.array(asked), size)
    # Sums of at most 6,000 products of unit normals, in fp32.
    assert relative(found, gradient_by_definition(x, asked, size)) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [3, 32])
def test_value_and_gradients_are_those_of_the_plain_convolution(stride, channels):
    rng = np.random.default_rng(1)
    x = jnp.array(rng.standard_normal((3, 11, 6, channels)), jnp.float32)
    kernel = jnp.array(rng.standard_normal((3, 3, channels, 40)), jnp.float32)

    def loss(function):
        return lambda x, kernel: jnp.sin(function(x, kernel)).sum()

    found = jax.jit(jax.value_and_grad(loss(lambda x, k: convolve(x, k, stride)), (0, 1)))
    plain = jax.jit(
        jax.value_and_grad(loss(lambda x, k: convolution._padded(x, k, stride)), (0, 1))
    )
    (value, gradients), (expected, expected_gradients) = found(x, kernel), plain(x, kernel)
    assert float(value) == float(expected)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert relative(ours, np.asarray(theirs, np.float64)) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_of_one_cell_mixes_the_channels_of_each(stride):
    rng = np.random.default_rng(3)
    x = jnp.array(rng.standard_normal((3, 7, 6, 5)), jnp.float32)
    kernel = jnp.array(rng.standard_normal((1, 1, 5, 4)), jnp.float32)
    found, pull_back = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
    asked = rng.standard_normal(found.shape).astype(np.float32)
    for_x, for_kernel = pull_back(jnp.array(asked))
    cells = np.asarray(x, np.float64)[:, ::stride, ::stride]
    mixing = np.asarray(kernel[0, 0], np.float64)
    assert relative(found, cells @ mixing) < 1e-6
    assert relative(for_kernel, gradient_by_definition(cells, asked, 1)) < 1e-6
    expected = np.zeros(x.shape)
    expected[:, ::stride, ::stride] = asked @ mixing.T
    assert relative(for_x, expected) < 1e-6


def test_a_half_precision_gradient_is_summed_in_single():
    rng = np.random.default_rng(2)
    x = jnp.array(rng.standard_normal((2, 40, 40, 32)), jnp.bfloat16)
    kernel = jnp.zeros((3, 3, 32, 32), jnp.bfloat16)
    asked = jnp.ones((2, 40, 40, 32), jnp.bfloat16)
    _, pull_back = jax.vjp(convolve, x, kernel)
    found = pull_back(asked)[1]
    assert found.dtype == jnp.bfloat16
    expected = gradient_by_definition(np.asarray(x, np.float32), np.asarray(asked, np.float32), 3)
    # One rounding to bf16's eight bits, where sums in bf16 would lose all but the first ones.
    assert relative(found, expected) < 2**-7


@pytest.mark.property
@pytest.mark.parametrize("stride", [1, 2])
def test_a_multiplier_of_the_kernel_is_one_of_what_comes_out(stride):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (2, 9, 8, 3))
    kernel = jax.random.normal(keys[1], (3, 3, 3, 5))
    multiplier = jnp.array([0.0, 1.0, -0.5, 3.0, 0.1])

    def apply(x, kernel):
        return convolve(x, kernel, stride)

    def plain(x, kernel, multiplier):
        return apply(x, kernel) * multiplier

    arguments = x, kernel, multiplier
    out, pull_back = jax.vjp(lambda *a: with_multiplier(apply, *a), *arguments)
    expected, pull_expected = jax.vjp(plain, *arguments)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    cotangent = jax.random.normal(keys[2], out.shape)
    for one, other in zip(pull_back(cotangent), pull_expected(cotangent), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "reduced", [average_pool_2x2, lambda x: x.mean((1, 2)), lambda x: x.max(-1)]
)
def test_reductions_after_a_half_precision_relu_are_finite(reduced):
    """XLA of jax 0.12 returns NaN on CPUs if one program holds both relus and the reduction."""
    keys = jax.random.split(jax.random.key(4))
    x = jax.random.normal(keys[0], (2, 16, 16, 32), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (3, 3, 32, 32), jnp.bfloat16)
    out = jax.jit(lambda x, kernel: reduced(relu(convolve(relu(x), kernel))))(x, kernel)
    assert np.isfinite(out.astype(jnp.float32)).all()


@pytest.mark.parametrize(
    ("backend", "dtype", "expected"),
    [("cpu", "bfloat16", True), ("cpu", "float32", False), ("tpu", "bfloat16", False)],
)
def test_only_a_half_precision_relu_on_cpus_has_a_barrier(backend, dtype, expected):
    with tracing_for(backend):
        program = str(jax.make_jaxpr(lambda x: relu(x))(jnp.zeros(3, dtype)))
    assert ("optimization_barrier" in program) == expected


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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_relu_is_the_rectifier_and_so_is_its_gradient(dtype):
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0], dtype)
    out, pull_back = jax.vjp(relu, x)
    np.testing.assert_array_equal(out, jax.nn.relu(x))
    (gradient,) = pull_back(jnp.full(5, 7, dtype))
    np.testing.assert_array_equal(gradient, jnp.array([0, 0, 0, 7, 7], dtype))
    assert gradient.dtype == dtype
    assert jnp.isnan(relu(jnp.array([jnp.nan]))).all()


def test_relu_keeps_only_its_output_for_the_gradient():
    x = jnp.array([-2.0, 3.0])
    _, pull_back = jax.vjp(relu, x)
    (kept,) = jax.tree.leaves(pull_back)
    np.testing.assert_array_equal(kept, [0.0, 3.0])
