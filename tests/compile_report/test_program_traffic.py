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
    found = collectives(parse_program(compiled.as_text()), 8)
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
    found = collectives(parse_program(hlo), 8)
    assert found["all-gather"] == (1, 8 * 8 * 4, 8 * 8 * 4 * 3 / 4)
    assert found["reduce-scatter"] == (3, 3 * 4 * 8 * 4, 3 * 4 * 8 * 4 * 3 / 4)
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
def test_who_takes_part_is_read_however_a_compiler_writes_it(groups, size):
    text = f"""
ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %sum = f32[8]{{0}} all-reduce-start(%x), replica_groups={groups}, to_apply=%add
}}
"""
    found = collectives(parse_program(text), 8)["all-reduce"]
    assert found == (1, 32, 32 * 2 * (size - 1) / size)


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
    found = collectives(parse_program(TPU_LOOP.format(root=root)), 2)
    assert found["all-reduce"] == (times, times * 32, times * 32)


def test_bytes_are_of_what_lies_in_memory_with_its_tiles_filled():
    assert array_bytes("(bf16[2,3]{1,0}, pred[8]{0}, s32[])") == [12, 8, 4]
    assert memory_bytes("f32[3,5]{1,0}") == 60
    # The last two axes in tiles of 8 x 128, whichever axes they are.
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


def test_what_moves_is_counted_as_often_as_it_runs_and_slices_as_slices():
    program = parse_program(PROGRAM)
    traffic = memory_traffic(program)
    row, whole = 8 * 4, 100 * 8 * 4
    # Five rounds that are stated, and one of a loop that ends by data.
    assert traffic == {
        # Not what the library works in.
        "of the compiler": 2 * whole,
        # Slice, index, bias and result.
        "A.map/layer (backward)": 6 * (row + 4 + row + row),
        # The row is read and put in place: nothing else is touched.
        "A.map/layer (forward again)": 6 * (row + 4 + row),
    }
    assert launches(program) == Launches(kernels=6 * 2 + 1, waiting_loops=1)


def test_a_start_moves_what_arrives_and_only_what_lies_in_memory():
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
    found = memory_traffic(parse_program(text))
    # What is fetched ahead is for the sum; nobody uses what is put back.
    assert found == {"A/layer (forward)": 8 * 8 * 4, "of the compiler": 8 * 8 * 4}


def test_the_traffic_of_a_real_program_is_that_of_its_operations():
    """A product and what is fused with it: all factors and the result, once."""
    shapes = (512, 256), (256, 128)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(lambda x, y: jax.nn.relu(x @ y)).lower(*arguments).compile()
    moved = sum(memory_traffic(parse_program(compiled.as_text())).values())
    least = 4 * (512 * 256 + 256 * 128 + 512 * 128)
    # Writing and reading the product before what follows it, at most.
    assert least <= moved <= least + 2 * 4 * 512 * 128
