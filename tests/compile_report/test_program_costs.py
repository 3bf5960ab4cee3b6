import jax
import jax.numpy as jnp
import pytest

from regionclip_jax.compile_report.chips import CHIPS
from regionclip_jax.compile_report.program_costs import Roofline, count_flops, roofline, scaling


def flops(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return count_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_products_count_two_flops_a_multiplication_and_loops_every_iteration():
    assert flops(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (4, 3, 5), (4, 5, 7)) == 840
    assert flops(lambda a: a + 1, (3, 5)) == 0

    def nine_times(a, b):
        step = jax.checkpoint(lambda c, _: (c @ b, None))
        return jax.lax.scan(step, a, None, length=9)[0]

    assert flops(nine_times, (3, 5), (5, 5)) == 9 * 2 * 3 * 5 * 5
    assert flops(jax.jit(nine_times), (3, 5), (5, 5)) == 9 * 2 * 3 * 5 * 5
    either = lambda a, b: jax.lax.cond(True, lambda: a @ b @ b, lambda: a @ b)  # noqa: E731
    assert flops(either, (3, 5), (5, 5)) == 2 * 2 * 3 * 5 * 5


def test_unused_products_are_not_counted():
    def first(a, b):
        _, pull_back = jax.vjp(lambda a, b: a @ b, a, b)
        return pull_back(jnp.ones((3, 7)))[0]

    # Only one of the two gradients is used, and the product is not.
    assert flops(first, (3, 5), (5, 7)) == flops(jax.jit(first), (3, 5), (5, 7)) == 2 * 3 * 5 * 7


def test_convolutions_and_their_gradients_are_counted():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    once = 2 * (2 * 8 * 8 * 6) * (3 * 3 * 4)
    shapes = (2, 8, 8, 4), (3, 3, 4, 6)
    assert flops(convolve, *shapes) == once
    both = jax.grad(lambda x, kernel: convolve(x, kernel).sum(), argnums=(0, 1))
    # Each gradient costs as much as the convolution, whose result is not used.
    assert flops(both, *shapes) in (2 * once, 3 * once)


@pytest.mark.parametrize("size, products", [(8, 12), (9, 13)])
def test_zeros_between_the_rows_of_a_strided_gradient_are_not_counted(size, products):
    """Count the ``products`` of an axis: 4 x 3 taps, and 5 x 3 without two taps of padding."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = (2, size, size, 4), (3, 3, 4, 6)
    half = (size + 1) // 2
    assert flops(convolve, *shapes) == 2 * (2 * 4 * 6) * (3 * half) ** 2

    def backward(x, kernel, cotangent):
        return jax.linear_transpose(lambda x: convolve(x, kernel), x)(cotangent)

    assert flops(backward, *shapes, (2, half, half, 6)) == 2 * (2 * 4 * 6) * products**2


def test_a_roofline_is_the_maximum_of_compute_and_memory_plus_the_links():
    chip = CHIPS["h200"]
    costs = chip.flops, chip.memory_bytes / 2, chip.link_bytes / 10
    time = roofline(*costs, chip=chip, dtype="bfloat16")
    assert time == Roofline(1.0, 0.5, 0.1) and time.step == pytest.approx(1.1)
    # TF32 has half the rate. Between hosts, each GPU has a network adapter.
    far = roofline(*costs, chip=chip, dtype="float32", over_network=True)
    assert far == Roofline(2.0, 0.5, pytest.approx(0.9))


def test_efficiency_falls_as_rings_grow():
    efficiency = scaling(Roofline(1.0, 0.5, 0.1), 8)
    assert list(efficiency) == [1, 2, 4, 8] and efficiency[1] == 1.0
    assert efficiency[8] == pytest.approx(1 / 1.1)
    assert efficiency[2] == pytest.approx(1 / (1 + 0.1 * (1 / 2) / (7 / 8)))
