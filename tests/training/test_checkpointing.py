import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, strategies

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
        open_run(tmp_path)
    message = str(caught.value)
    assert f"no checkpoint of this run is sound ({tmp_path / '1' / 'state' / lost}" in message
    assert "missing" in message and "bring all files together again" in message
    # Without digests, as in older versions, the files are missed when the arrays are read.
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


def flip_bit(path, number: int) -> None:
    data = bytearray(path.read_bytes())
    data[number // 8] ^= 1 << number % 8
    path.write_bytes(data)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """Folder of a run with the checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    with contextlib.closing(open_run(folder)) as run:
        for step in (1, 2):
            run.save(step, fresh(step), records=8 * step)
    return folder


def files_of(checkpoint) -> list[str]:
    names = (path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())
    return sorted(map(str, names))


# Orbax writes them after the digests; they hold times and the path.
BESIDE_THE_ITEMS = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def test_a_flipped_bit_in_any_file_of_the_newest_checkpoint_is_found(two_checkpoints, tmp_path):
    """The run continues from the checkpoint before, says so, and keeps the damaged one."""
    names = [name for name in files_of(two_checkpoints / "2") if name not in BESIDE_THE_ITEMS]
    assert "digests.json" in names and "position/metadata" in names and len(names) > 8
    draws = np.random.default_rng(0)
    for number, name in enumerate(names):
        folder = shutil.copytree(two_checkpoints, tmp_path / str(number))
        bits = 8 * (folder / "2" / name).stat().st_size
        # The first bits of a file of digests are no white space.
        flip_bit(folder / "2" / name, int(draws.integers(bits)) if name != "digests.json" else 3)
        with contextlib.closing(open_run(folder)) as run:
            (text,) = run.set_aside
            state, position = run.restore_latest(abstract())
        assert f"{folder / '2'} is damaged ({folder / '2' / name}: " in text
        assert f"kept as {folder / '2.damaged'}, and the run continues from {folder / '1'}" in text
        assert position["step"] == 1
        equal(state, fresh(1))
        assert files_of(folder / "2.damaged") == files_of(two_checkpoints / "2")


@pytest.mark.property
@given(data=strategies.data())
def test_no_random_bit_of_a_checkpoint_changes_what_is_restored(
    two_checkpoints, tmp_path_factory, data
):
    """All files, also those without digests."""
    name = data.draw(strategies.sampled_from(files_of(two_checkpoints / "2")))
    folder = shutil.copytree(two_checkpoints, tmp_path_factory.mktemp("flipped") / "run")
    bits = 8 * (folder / "2" / name).stat().st_size
    flip_bit(folder / "2" / name, data.draw(strategies.integers(0, bits - 1)))
    with contextlib.closing(open_run(folder)) as run:
        state, position = run.restore_latest(abstract())
    # A bit of the spaces in a file of digests, or of Orbax's times, may change nothing.
    assert position["step"] == (1 if run.set_aside else 2)
    equal(state, fresh(position["step"]))


def test_a_checkpoint_damaged_twice_at_one_step_is_kept_twice(two_checkpoints, tmp_path, caplog):
    folder = shutil.copytree(two_checkpoints, tmp_path / "run")
    for kept in ("2.damaged", "2.damaged2"):
        flip_bit(folder / "2" / "position" / "metadata", 7)
        with contextlib.closing(open_run(folder)) as run:
            state, _ = run.restore_latest(abstract())
            run.save(2, state, records=16)
        assert (folder / kept).is_dir() and f"kept as {folder / kept}," in caplog.text
    with contextlib.closing(open_run(folder)) as run:
        assert run.set_aside == [] and run.latest() == folder / "2"


def test_a_run_without_a_sound_checkpoint_is_refused_and_keeps_its_files(two_checkpoints, tmp_path):
    folder = shutil.copytree(two_checkpoints, tmp_path / "run")
    for step in ("1", "2"):
        flip_bit(folder / step / "position" / "metadata", 7)
    with pytest.raises(CheckpointMismatch) as caught:
        open_run(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}: no checkpoint of this run is sound ({folder / '2'}")
    assert "another --workdir" in message and "\n" not in message
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_damaged_checkpoint_of_another_run_is_not_renamed(two_checkpoints, tmp_path):
    folder = shutil.copytree(two_checkpoints, tmp_path / "run")
    flip_bit(folder / "2" / "position" / "metadata", 7)
    with pytest.raises(CheckpointMismatch, match="belongs to another run"):
        open_run(folder, card={**CARD, "seed": 1})
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_checkpoint_of_an_older_version_has_no_digests(two_checkpoints, tmp_path, caplog):
    folder = shutil.copytree(two_checkpoints, tmp_path / "run")
    (folder / "2" / "digests.json").unlink()
    with caplog.at_level("INFO"), contextlib.closing(open_run(folder)) as run:
        assert run.set_aside == [] and run.restore_latest(abstract())[1]["step"] == 2
    assert f"{folder / '2'}: has no digests" in caplog.text
    (folder / "2" / "position" / "metadata").write_text('{"step":')
    with contextlib.closing(open_run(folder)) as run:
        assert "position: cannot be read" in run.set_aside[0]
        assert run.restore_latest(abstract())[1]["step"] == 1


def test_a_save_does_not_wait_for_the_commit_and_its_digests(tmp_path):
    """The digests come after ``before_commit``, which waits here until the save has returned."""
    returned = threading.Event()

    def before_commit():
        assert returned.wait(60) and not (tmp_path / "1").exists()

    with contextlib.closing(open_run(tmp_path)) as run:
        run.save(1, fresh(1), records=8, before_commit=before_commit)
        assert not (tmp_path / "1").exists()
        returned.set()
    assert (tmp_path / "1" / "digests.json").is_file()


def test_an_error_before_the_commit_leaves_no_checkpoint(tmp_path):
    def before_commit():
        raise OSError("disk full")

    run = open_run(tmp_path)
    run.save(1, fresh(1), records=8, before_commit=before_commit)
    with pytest.raises(OSError, match="disk full"):
        run.wait()
    assert not (tmp_path / "1").exists()


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
