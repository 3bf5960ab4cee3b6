import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from regionclip_jax.reporting.program_costs import (
    CHIPS,
    Roofline,
    collectives,
    count_flops,
    peak_flops,
    roofline,
    scaling,
)
from regionclip_jax.sharding.mesh import make_mesh


def flops(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return count_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_products_count_twice_their_multiplications_and_loops_as_often_as_they_run():
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


def test_convolutions_and_their_gradients_are_counted():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    once = 2 * (2 * 8 * 8 * 6) * (3 * 3 * 4)
    shapes = (2, 8, 8, 4), (3, 3, 4, 6)
    assert flops(convolve, *shapes) == once
    both = jax.grad(lambda x, kernel: convolve(x, kernel).sum(), argnums=(0, 1))
    # Gradients of input and kernel are each as dear as the convolution, which nobody needs.
    assert flops(both, *shapes) in (2 * once, 3 * once)


@pytest.mark.parametrize("size, products", [(8, 12), (9, 13)])
def test_zeros_between_the_rows_of_a_strided_gradient_are_not_counted(size, products):
    """``products`` of an axis: 4 x 3 taps; 5 x 3 without the two that only padding has."""

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


def test_peaks_are_known_by_the_names_that_jax_gives_devices():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "float32") == 156e12
    assert peak_flops("TPU v5 lite", "float32") == CHIPS["v5e"].flops
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") is peak_flops("cpu", "float32") is None


def test_collectives_of_a_compiled_program_are_found_also_in_loops():
    mesh = make_mesh(fsdp=4)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    columns = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    whole = NamedSharding(mesh, PartitionSpec())

    def loop(x, kernel):
        def step(total, _):
            product = jax.lax.with_sharding_constraint(x * total, rows)
            return total + product.sum(), None

        total, _ = jax.lax.scan(step, jnp.float32(1), None, length=7)
        return total + jax.lax.with_sharding_constraint(kernel, whole).sum()

    compiled = (
        jax.jit(loop, in_shardings=(rows, columns), out_shardings=whole)
        .lower(
            jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 32), jnp.float32)
        )
        .compile()
    )
    found = collectives(compiled.as_text(), 8)
    reduced = found["all-reduce"]
    # A number in each of seven rounds, over the two rows of the mesh: 2 (n - 1) / n of it is sent.
    assert reduced.count >= 7 and reduced.num_bytes >= 7 * 4
    assert reduced.sent_bytes <= 2 * reduced.num_bytes
    if "all-gather" in found:
        assert found["all-gather"].num_bytes == 16 * 32 * 4


def test_the_start_of_a_gather_is_counted_by_what_comes_out():
    hlo = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %reduce = f32[8]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (x: f32[2,8]) -> f32[8,8] {
  %start = (f32[2,8]{1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)}) all-gather-start(%x), replica_groups=[2,4]<=[8]
  %loop = (s32[], f32[8]) while(%t), body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501
    found = collectives(hlo, 8)
    assert found["all-gather"] == (1, 8 * 8 * 4, 8 * 8 * 4 * 3 / 4)
    assert found["reduce-scatter"] == (3, 3 * 4 * 8 * 4, 3 * 4 * 8 * 4 * 3 / 4)
    with pytest.raises(ValueError, match="ENTRY"):
        collectives("nothing", 8)


TPU_LOOP = """
%below (p: (s32[], f32[8])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant(9)
  %p = (s32[]{{:T(128)}}, f32[8]{{0:T(1024)}}) parameter(0)
  %counter = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  {root}
}}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %sum = f32[8]{{0:T(1024)}} all-reduce(%x), replica_groups={{{{0,1}}}}, to_apply=%add
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %loop = (s32[], f32[8]) while(%t), condition=%below, body=%body
}}
"""


@pytest.mark.parametrize(
    "root,times",
    [
        ("ROOT %c = pred[]{:T(512)} compare(%counter, %limit), direction=LT", 9),
        # An end that depends on data as well.
        (
            "%c = pred[] compare(%counter, %limit), direction=LT\n  ROOT %d = pred[] and(%c, %any)",
            1,
        ),
    ],
)
def test_a_tpu_s_loop_runs_as_often_as_its_counter_allows(root, times):
    found = collectives(TPU_LOOP.format(root=root), 2)
    assert found["all-reduce"] == (times, times * 32, times * 32)


def test_a_roofline_takes_the_slower_of_computing_and_reading_and_adds_the_links():
    chip = CHIPS["v5e"]
    time = roofline(chip, chip.flops, chip.memory_bytes / 2, chip.link_bytes / 10)
    assert time == Roofline(1.0, 0.5, 0.1) and time.step == pytest.approx(1.1)


def test_efficiency_falls_as_rings_grow():
    found = scaling(Roofline(1.0, 0.5, 0.1), 8)
    assert list(found) == [1, 2, 4, 8] and found[1] == 1.0
    assert found[8] == pytest.approx(1 / 1.1)
    assert found[2] == pytest.approx(1 / (1 + 0.1 * (1 / 2) / (7 / 8)))
