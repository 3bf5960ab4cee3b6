import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.sharding.global_arrays import abstract_arrays, shard
from regionclip_jax.sharding.mesh import make_mesh
from regionclip_jax.training import checkpointing

CARD = {"architecture": {"layers": (1, 2)}, "batch": 8, "seed": 0}


@flax.struct.dataclass
class State:
    params: dict
    opt_state: optax.OptState
    step: jax.Array


OPTIMIZER = optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(0.1))


def fresh(fill=0.0):
    params = {"conv": {"kernel": jnp.full((4, 3), fill), "bias": jnp.arange(3.0) + fill}}
    return State(params=params, opt_state=OPTIMIZER.init(params), step=jnp.int32(fill))


def open_run(directory, card=CARD, max_to_keep=2):
    return checkpointing.TrainingCheckpoints(directory, max_to_keep=max_to_keep, card=card)


def test_a_fact_missing_in_an_older_checkpoint_has_its_default(tmp_path):
    old = {"regions": {"weight": 1.0}, "sizes": [[8, 8]]}
    with contextlib.closing(open_run(tmp_path, old)) as run:
        run.save(1, fresh(1.0), records=8)
    added = {"regions": {"weight": 2.0, "margin": 0.5}, "sizes": [[8, 8], [9, 9]]}

    def resume(card):
        return checkpointing.TrainingCheckpoints(tmp_path, max_to_keep=2, card=card, added=added)

    resume({"regions": {"weight": 1.0, "margin": 0.5}, "sizes": [[8, 8]]}).close()
    with pytest.raises(CheckpointMismatch, match=r"regions\.margin: there 0\.5, here 0\.7"):
        resume({"regions": {"weight": 1.0, "margin": 0.7}, "sizes": [[8, 8]]})
    # A list is one fact, so the default does not add its second size.
    with pytest.raises(CheckpointMismatch, match=r"sizes\.1\.0: there 'absent', here 9"):
        resume({"regions": {"weight": 1.0, "margin": 0.5}, "sizes": [[8, 8], [9, 9]]})


def abstract():
    return jax.eval_shape(fresh)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_new_directory_has_nothing_to_resume(tmp_path):
    run = open_run(tmp_path / "new")
    assert run.restore_latest(abstract()) is None
    assert run.latest() is None
    run.close()


def test_the_newest_state_is_restored_bit_for_bit_with_its_position(tmp_path):
    run = open_run(tmp_path)
    for step in (1, 2, 3):
        run.save(step, fresh(step), records=8 * step)
    run.save(3, fresh(9), records=24)  # already saved, so not overwritten
    run.close()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"2", "3"}

    run = open_run(tmp_path)
    state, position = run.restore_latest(abstract())
    equal(state, fresh(3))
    assert (position["step"], position["records"]) == (3, 24)
    assert run.latest() == tmp_path / "3"
    run.close()


def test_restored_arrays_have_the_requested_shardings(tmp_path):
    run = open_run(tmp_path)
    run.save(1, fresh(1), records=8)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract()
    )
    state, _ = run.restore_latest(wanted)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(state))
    run.close()


@pytest.mark.parametrize("lost", ["ocdbt.process_0", "d"])
def test_a_checkpoint_without_the_files_of_one_host_is_refused_with_the_remedy(tmp_path, lost):
    """Remove files of a checkpoint, as if each host had written to a separate disk."""
    mesh = make_mesh(fsdp=4)
    sharding = jax.NamedSharding(mesh, jax.P("fsdp"))
    values = np.random.default_rng(0).random(4096, np.float32)
    state = shard({"w": values}, {"w": sharding})
    run = open_run(tmp_path)
    run.save(1, state, records=8)
    run.wait()
    shutil.rmtree(tmp_path / "1" / "state" / lost)
    with pytest.raises(checkpointing.CheckpointMismatch) as caught:
        run.restore_latest(abstract_arrays(state, {"w": sharding}))
    message = str(caught.value)
    assert f"{tmp_path / '1'}: cannot be read" in message and "bring all of them" in message
    run.close()


def test_a_save_is_a_copy_that_survives_the_donation_of_its_buffers(tmp_path):
    size = 1_000_000
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    run = open_run(tmp_path, max_to_keep=None)
    expected = {}
    state = {"w": jnp.arange(size, dtype=jnp.float32)}
    for step in (1, 2, 3):
        expected[step] = np.array(state["w"])  # a copy, as the buffer is donated below
        run.save(step, state, records=step)
        state = jax.block_until_ready(overwrite(state))  # during the write of the checkpoint
        state = jax.tree.map(lambda x, step=step: x + step, state)
    run.close()
    with ocp.StandardCheckpointer() as reader:
        for step, values in expected.items():
            restored = reader.restore(tmp_path / str(step) / "state")
            np.testing.assert_array_equal(restored["w"], values)


def test_the_directory_of_another_run_is_refused_with_both_values(tmp_path):
    run = open_run(tmp_path)
    run.save(1, fresh(), records=8)
    run.close()
    being_written = tmp_path / "2.orbax-checkpoint-tmp"
    being_written.mkdir()
    with pytest.raises(checkpointing.CheckpointMismatch) as caught:
        open_run(tmp_path, card={"architecture": {"layers": (1, 3)}, "batch": 8})
    message = str(caught.value)
    assert "architecture.layers.1: there 2, here 3" in message
    assert "seed: there 0, here 'absent'" in message
    assert "batch" not in message
    assert "another --workdir" in message
    assert being_written.exists(), "a refused run tidied another's directory"


def test_a_checkpoint_with_a_truncated_position_is_refused_by_name(tmp_path):
    run = open_run(tmp_path)
    run.save(1, fresh(), records=8)
    run.close()
    position = tmp_path / "1" / "position" / "metadata"
    position.write_text(position.read_text()[:10])
    with pytest.raises(checkpointing.CheckpointMismatch, match="1: its position cannot be read"):
        open_run(tmp_path)


def test_a_state_of_another_shape_is_refused(tmp_path):
    run = open_run(tmp_path)
    run.save(1, fresh(), records=8)
    wrong = jax.eval_shape(lambda: {"other": jnp.zeros(3)})
    with pytest.raises(checkpointing.CheckpointMismatch, match="not those of this run"):
        run.restore_latest(wrong)
    reshaped = jax.tree.map(lambda s: jax.ShapeDtypeStruct((7, *s.shape), s.dtype), abstract())
    with pytest.raises(checkpointing.CheckpointMismatch, match="not those of this run"):
        run.restore_latest(reshaped)
    run.close()


def test_an_unfinished_directory_is_ignored_and_removed(tmp_path):
    run = open_run(tmp_path)
    run.save(1, fresh(1), records=8)
    run.close()
    debris = tmp_path / "2.orbax-checkpoint-tmp"
    (debris / "state").mkdir(parents=True)
    (debris / "state" / "half").write_bytes(b"\0" * 10)
    run = open_run(tmp_path)
    state, position = run.restore_latest(abstract())
    assert position["step"] == 1
    equal(state, fresh(1))
    run.save(2, fresh(2), records=16)
    run.close()
    assert not debris.exists()


def test_sigkill_during_a_save_keeps_the_previous_checkpoint(tmp_path):
    script = textwrap.dedent("""
        import os, signal, sys
        import jax.numpy as jnp
        from regionclip_jax.training.checkpointing import TrainingCheckpoints
        run = TrainingCheckpoints(sys.argv[1], max_to_keep=1, card={})
        run.save(1, {"w": jnp.ones(4_000_000)}, records=1)
        run.wait()
        run.save(2, {"w": jnp.zeros(4_000_000)}, records=2)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        timeout=60,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    run = open_run(tmp_path, card={})
    state, position = run.restore_latest({"w": jax.ShapeDtypeStruct((4_000_000,), jnp.float32)})
    assert position["step"] == 1
    assert (state["w"] == 1).all()
    run.close()
