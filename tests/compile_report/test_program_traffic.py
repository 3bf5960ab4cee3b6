import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from regionclip_jax.compile_report.program_text import array_bytes, memory_bytes, parse_program
from regionclip_jax.compile_report.program_traffic import (
    Launches,
    collectives,
    launches,
    memory_traffic,
)
from regionclip_jax.sharding.mesh import make_mesh


def test_collectives_of_a_compiled_program_are_counted_in_loops_too():
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
    counted = collectives(parse_program(compiled.as_text()), 8)
    reduced = counted["all-reduce"]
    # Each of seven iterations reduces a number over two mesh rows and sends 2 (n - 1) / n of it.
    assert reduced.count >= 7 and reduced.num_bytes >= 7 * 4
    assert reduced.sent_bytes <= 2 * reduced.num_bytes
    if "all-gather" in counted:
        assert counted["all-gather"].num_bytes == 16 * 32 * 4


def test_the_start_of_a_gather_is_counted_by_its_output():
    hlo = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %reduce = f32[8]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (x: f32[2,8]) -> f32[8,8] {
  %start = (f32[2,8]{1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)}) all-gather-start(%x), replica_groups=[2,4]<=[8]
  %loop = (s32[], f32[8]) while(%t), body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501
    counted = collectives(parse_program(hlo), 8)
    assert counted["all-gather"] == (1, 8 * 8 * 4, 8 * 8 * 4 * 3 / 4)
    assert counted["reduce-scatter"] == (3, 3 * 4 * 8 * 4, 3 * 4 * 8 * 4 * 3 / 4)
    with pytest.raises(ValueError, match="ENTRY"):
        parse_program("nothing")


@pytest.mark.parametrize(
    "groups, size",
    [
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0', 'axis_1'}", 8),
        ("[4,2]<=[8]", 2),
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("{}", 8),
    ],
)
def test_replica_groups_are_read_in_every_notation(groups, size):
    text = f"""
ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %sum = f32[8]{{0}} all-reduce-start(%x), replica_groups={groups}, to_apply=%add
}}
"""
    reduced = collectives(parse_program(text), 8)["all-reduce"]
    assert reduced == (1, 32, 32 * 2 * (size - 1) / size)


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
        # The end of this loop depends on data too.
        (
            "%c = pred[] compare(%counter, %limit), direction=LT\n  ROOT %d = pred[] and(%c, %any)",
            1,
        ),
    ],
)
def test_the_iterations_of_a_tpu_loop_are_read_from_its_counter(root, times):
    counted = collectives(parse_program(TPU_LOOP.format(root=root)), 2)
    assert counted["all-reduce"] == (times, times * 32, times * 32)


def test_memory_bytes_count_arrays_in_main_memory_with_full_tiles():
    assert array_bytes("(bf16[2,3]{1,0}, pred[8]{0}, s32[])") == [12, 8, 4]
    assert memory_bytes("f32[3,5]{1,0}") == 60
    # The tiles of 8 x 128 are over the last two axes of the layout.
    assert memory_bytes("f32[3,5]{1,0:T(8,128)}") == 4 * 8 * 128
    assert memory_bytes("bf16[300,2,5]{0,2,1:T(8,128)(2,1)}") == 2 * 2 * 8 * 384
    assert memory_bytes("(f32[64]{0:T(64)S(1)}, f32[64]{0:T(64)})") == 256


PROGRAM = """
%fused (a: f32[100,8], i: s32[], b: f32[8]) -> f32[1,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[8]{0} parameter(2)
  %slice = f32[1,8]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,8}
  %row = f32[1,8]{1,0} bitcast(%b)
  ROOT %sum = f32[1,8]{1,0} add(%slice, %row)
}

%write (t: f32[100,8], u: f32[1,8], i: s32[]) -> f32[100,8] {
  %t = f32[100,8]{1,0} parameter(0)
  %u = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %out = f32[100,8]{1,0} dynamic-update-slice(%t, %u, %i, %i)
}

%body (p: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %p = (s32[], f32[100,8]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%p), index=0
  %all = f32[100,8]{1,0} get-tuple-element(%p), index=1
  %bias = f32[8]{0} constant({...})
  %one = f32[1,8]{1,0} fusion(%all, %n, %bias), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/transpose(jvp(A.map))/layer/while/body/add"}
  %put = f32[100,8]{1,0} fusion(%all, %one, %n), kind=kLoop, calls=%write, metadata={op_name="jit(step)/jvp(A.map)/layer/rematted_computation/add"}
  ROOT %next = (s32[], f32[100,8]{1,0}) tuple(%n, %put)
}

%ends (p: (s32[], f32[100,8])) -> pred[] {
  %p = (s32[], f32[100,8]{1,0}) parameter(0)
  ROOT %flag = pred[] custom-call(%p), custom_call_target="any"
}

ENTRY %main (x: f32[100,8]) -> f32[100,8] {
  %x = f32[100,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[100,8]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[100,8]{1,0}) while(%start), condition=%ends, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %again = (s32[], f32[100,8]{1,0}) while(%loop), condition=%ends, body=%body
  %last = f32[100,8]{1,0} get-tuple-element(%again), index=1
  %call = (f32[100,8]{1,0}, s8[4096]{0}) custom-call(/*index=0*/%last), custom_call_target="__cublas$gemm"
  ROOT %out = f32[100,8]{1,0} get-tuple-element(%call), index=0
}
"""  # noqa: E501


def test_traffic_is_counted_for_every_iteration_and_only_for_the_sliced_rows():
    program = parse_program(PROGRAM)
    traffic = memory_traffic(program)
    row, whole = 8 * 4, 100 * 8 * 4
    # One loop states five iterations; the other ends by data and counts as one.
    assert traffic == {
        # The custom call has no operation name.
        "of the compiler": 2 * whole,
        # Each iteration moves slice, index, bias and result.
        "A.map/layer (backward)": 6 * (row + 4 + row + row),
        # Each iteration reads the row and writes it in place, without the other rows.
        "A.map/layer (forward again)": 6 * (row + 4 + row),
    }
    assert launches(program) == Launches(kernels=6 * 2 + 1, waiting_loops=1)


def test_an_asynchronous_copy_counts_the_bytes_of_its_result_in_main_memory():
    text = """
ENTRY %main (x: f32[64,8]) -> f32[8,8] {
  %x = f32[64,8]{1,0} parameter(0)
  %cut = ((f32[64,8]{1,0}), f32[8,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:8], [0:8]}
  %cut_done = f32[8,8]{1,0:S(1)} slice-done(%cut)
  %back = (f32[8,8]{1,0}, f32[8,8]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%cut_done)
  %back_done = f32[8,8]{1,0} copy-done(%back)
  %room = f32[64,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %sum = f32[8,8]{1,0:S(1)} add(%cut_done, %cut_done), metadata={op_name="jit(step)/A/layer/add"}
}
"""  # noqa: E501
    traffic = memory_traffic(parse_program(text))
    # The prefetched slice belongs to the sum. No operation uses the copy back.
    assert traffic == {"A/layer (forward)": 8 * 8 * 4, "of the compiler": 8 * 8 * 4}


def test_the_traffic_of_a_compiled_program_is_that_of_its_operations():
    """A product with a fused ReLU moves both factors and the result once."""
    shapes = (512, 256), (256, 128)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(lambda x, y: jax.nn.relu(x @ y)).lower(*arguments).compile()
    moved = sum(memory_traffic(parse_program(compiled.as_text())).values())
    least = 4 * (512 * 256 + 256 * 128 + 512 * 128)
    # Without fusion, the product is written and read once more.
    assert least <= moved <= least + 2 * 4 * 512 * 128
