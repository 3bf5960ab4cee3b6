"""Transfer between host and devices, with eight devices and with two processes of two."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.sharding.global_arrays import (
    abstract_arrays,
    batch_sharding,
    gather,
    gather_json,
    local_rows,
    replicate,
    shard,
    to_global_batch,
)
from regionclip_jax.sharding.mesh import make_mesh
from regionclip_jax.structures import ImageTextBatch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[1, 4])
def mesh(request):
    return make_mesh(fsdp=request.param)


@pytest.fixture
def batch() -> ImageTextBatch:
    rng = np.random.default_rng(0)
    return ImageTextBatch(
        images=rng.integers(0, 256, (16, 4, 6, 3), np.uint8),
        sizes=rng.integers(1, 5, (16, 2)).astype(np.int32),
        tokens=rng.integers(0, 9, (16, 7)).astype(np.int32),
        mask=rng.random(16) < 0.5,
    )


def test_a_batch_is_sharded_by_rows_with_its_structure_and_types(mesh, batch):
    sharded = to_global_batch(batch, mesh)
    assert isinstance(sharded, ImageTextBatch)
    for before, after in zip(jax.tree.leaves(batch), jax.tree.leaves(sharded), strict=True):
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
        for number, device in enumerate(mesh.devices.flat):
            (shard,) = [s for s in after.addressable_shards if s.device == device]
            np.testing.assert_array_equal(shard.data, before[2 * number : 2 * number + 2])


def test_local_rows_keep_the_order_of_the_batch(mesh, batch):
    back = local_rows(to_global_batch(batch, mesh))
    for before, after in zip(jax.tree.leaves(batch), jax.tree.leaves(back), strict=True):
        assert isinstance(after, np.ndarray)
        np.testing.assert_array_equal(before, after)


def test_local_rows_keep_their_order_if_the_devices_have_another():
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("outer", "inner"), axis_types=axis_types)
    spec = jax.sharding.PartitionSpec(("inner", "outer"))
    rows = np.arange(16.0).reshape(16, 1)
    sharded = jax.device_put(rows, jax.sharding.NamedSharding(mesh, spec))
    np.testing.assert_array_equal(local_rows({"rows": sharded})["rows"], rows)


def test_a_replicated_result_is_returned_once(mesh):
    value = replicate({"loss": np.float32(3), "rows": np.arange(8)}, mesh)
    back = local_rows(value)
    assert back["loss"].shape == () and back["loss"] == 3
    np.testing.assert_array_equal(back["rows"], np.arange(8))


def test_every_device_gets_a_copy_that_outlives_donation(mesh):
    original = jnp.arange(6.0)
    for given in (original, jax.device_put(np.arange(6.0, dtype=np.float32))):
        copy = replicate({"w": given}, mesh)
        assert copy["w"].is_fully_replicated and len(copy["w"].addressable_shards) == 8
        jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(copy)
        assert copy["w"].is_deleted()
        np.testing.assert_array_equal(given, np.arange(6.0))


def test_every_device_gets_one_shard_and_gather_joins_the_shards():
    mesh = make_mesh(fsdp=4)
    by_columns = jax.NamedSharding(mesh, jax.P(None, "fsdp"))
    whole = {"w": np.arange(24.0, dtype=np.float32).reshape(3, 8), "step": np.int64(7)}
    sharded = shard(whole, {"w": by_columns, "step": jax.NamedSharding(mesh, jax.P())})
    assert {shard.data.shape for shard in sharded["w"].addressable_shards} == {(3, 2)}
    back = gather(sharded)
    np.testing.assert_array_equal(back["w"], whole["w"])
    assert isinstance(back["w"], np.ndarray) and back["step"] == 7


def test_a_restore_target_has_the_shapes_types_and_shardings_of_the_state(mesh):
    state = {"w": jnp.zeros((8, 2), jnp.bfloat16), "step": jnp.int32(0)}
    shardings = {"w": batch_sharding(mesh), "step": jax.NamedSharding(mesh, jax.P())}
    target = abstract_arrays(jax.eval_shape(lambda: state), shardings)
    sharded = shard(state, shardings)
    actual = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), target)
    assert actual == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), sharded)


def test_one_process_gathers_its_records():
    records = [{"image_id": 1}, {"image_id": 2}]
    assert gather_json(records) == records


TWO_PROCESSES = """
import json, pathlib, sys
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from regionclip_jax.sharding.consistency import (
    InconsistentHosts, require_consistent, require_shared
)
from regionclip_jax.sharding.global_arrays import (
    gather, gather_json, local_rows, shard, to_global_batch
)
from regionclip_jax.sharding.mesh import make_mesh
mesh, me = make_mesh(fsdp=4), jax.process_index()
rows = to_global_batch({"x": 10.0 * me + np.arange(4.0, dtype=np.float32)}, mesh)
step = jax.jit(lambda tree: {"total": tree["x"].sum(), "double": 2 * tree["x"]})
out = local_rows(step(rows))
split = jax.NamedSharding(mesh, jax.P(None, "fsdp"))
whole = gather(shard({"w": np.arange(8.0).reshape(2, 4)}, {"w": split}))
# The lists have unequal lengths: that of the first process is empty.
records = gather_json([{"id": me, "name": "\\u00e9"}] * (3 * me))

def error_of(check, *arguments):
    try:
        check(*arguments)
    except InconsistentHosts as error:
        return str(error)

shared, private = pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[3]) / str(me)
private.mkdir()
errors = [
    error_of(require_consistent, {"run": {"seed": 0, "sizes": (1, 2)}}),
    error_of(require_consistent, {"run": {"seed": me}}),
    error_of(require_shared, shared),
    error_of(require_shared, private),
]
print("RESULT", json.dumps([rows["x"].shape, float(out["total"]), out["double"].tolist(), records,
                            whole["w"].tolist(), errors]))
"""


@pytest.mark.command
def test_two_processes_share_one_batch_and_fail_the_consistency_check_if_they_differ(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, address, str(number), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for number, (out, error) in enumerate(outputs):
        assert processes[number].returncode == 0, error[-3000:]
        (line,) = [line for line in out.splitlines() if line.startswith("RESULT ")]
        shape, total, double, records, whole, errors = json.loads(line.removeprefix("RESULT "))
        assert shape == [8] and total == 0 + 1 + 2 + 3 + 10 + 11 + 12 + 13
        assert double == [2 * (10 * number + row) for row in range(4)]
        assert records == [{"id": 1, "name": "é"}] * 3
        assert whole == [[0, 1, 2, 3], [4, 5, 6, 7]]
        same, other_seed, shared, unshared = errors
        assert same is None and shared is None
        assert other_seed.startswith("run.seed: 0 in process 0") and "1 in process 1" in other_seed
        assert "not seen by process 1" in unshared and "all hosts share" in unshared
    assert not list(tmp_path.glob(".seen*")) and not list(tmp_path.glob("*/.seen*"))
