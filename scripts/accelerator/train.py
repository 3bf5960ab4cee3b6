"""Train a real job on synthetic scenes for thirty steps, kill it, resume it, and compare bits."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from accelerator.recorder import Recorder

_ROOT = Path(__file__).parents[2]
_STEPS = 15  # steps of the teacher, and of the student
_RECIPE = "configs/pretrain.py"


def run(recorder: Recorder) -> None:
    environment = dict(os.environ)
    # Do not query JAX here: a TPU admits one process, which must be the job's.
    if environment.get("JAX_PLATFORMS") == "cuda":
        # Sums of scattered gradients by atomics are not deterministic.
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
        recorder.note("XLA_FLAGS=--xla_gpu_deterministic_ops=true, which bit-equal runs need")
    whole, killed = recorder.folder / "train_whole", recorder.folder / "train_killed"
    for folder in (whole, killed):
        # Runs of an earlier check would be resumed.
        shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    _finish(recorder, whole, environment)
    recorder.fact("seconds_of_an_uninterrupted_run", round(time.monotonic() - began, 1))
    _kill_after_checkpoint(recorder, killed, environment)
    began = time.monotonic()
    said = _finish(recorder, killed, environment)
    recorder.fact("seconds_of_the_resumed_run", round(time.monotonic() - began, 1))
    resumed = [line for line in said.splitlines() if "resumes after step" in line]
    if not resumed:
        raise RuntimeError("the second start did not say that it resumes")
    recorder.fact("resumed", resumed[-1].rpartition("] ")[2])
    different = _different(whole / "student" / "model", killed / "student" / "model")
    recorder.fact("arrays_that_differ", different)
    recorder.fact("bit_equal", not different)
    if different:
        raise RuntimeError(f"{len(different)} arrays differ between the two runs: {different[:5]}")


def _command(workdir: Path) -> list[str]:
    batch = "8"
    changes = {
        "scenes.num_closeups": 40, "scenes.num_scenes": 40, "scenes.num_test": 8,
        "train_clip.run.num_steps": _STEPS, "train_clip.optimizer.warmup_steps": 2,
        "train_clip.run.checkpoint_every": 5, "train_clip.run.log_every": 5,
        "train_clip.run.batch_size": batch,
        "pretrain.run.num_steps": _STEPS, "pretrain.optimizer.warmup_steps": 2,
        "pretrain.run.checkpoint_every": 5, "pretrain.run.log_every": 5,
        "pretrain.run.batch_size": batch, "evaluation.batch_size": batch,
    }  # fmt: skip
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    return [
        sys.executable, "-m", "regionclip_jax.main", f"--config={_RECIPE}",
        f"--workdir={workdir}", *flags,
    ]  # fmt: skip


def _finish(recorder: Recorder, workdir: Path, environment: dict) -> str:
    """Run to the end, and return the log."""
    done = subprocess.run(
        _command(workdir), cwd=_ROOT, env=environment, capture_output=True, text=True,
        timeout=max(recorder.seconds_left, 1), check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{workdir.name} ended with {done.returncode}: {done.stderr[-2000:]}")
    print(f"{workdir.name}: finished", flush=True)
    return done.stderr


def _kill_after_checkpoint(recorder: Recorder, workdir: Path, environment: dict) -> None:
    """Kill the student's training by SIGKILL after a checkpoint before its last."""
    checkpoints = workdir / "student" / "checkpoints"
    log = recorder.folder / "train_killed.log"
    with log.open("w") as said:
        process = subprocess.Popen(
            _command(workdir), cwd=_ROOT, env=environment, stdout=said, stderr=said
        )
        try:
            while not (found := _steps(checkpoints)):
                if process.poll() is not None or recorder.seconds_left < 1:
                    raise RuntimeError(f"no checkpoint before its end: {log.read_text()[-2000:]}")
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                raise RuntimeError("the run had ended before it could be killed")
        finally:
            process.kill()
    recorder.fact("killed_with_checkpoint_of_step", max(found))


def _steps(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.glob("*") if path.name.isdigit()]


def _different(one: Path, other: Path) -> list[str]:
    """Return the names of arrays that differ in any bit between two model directories."""
    from regionclip_jax.artifacts.model_checkpoint import flatten, load_model

    found, expected = (flatten(load_model(folder)[0]) for folder in (one, other))
    assert found.keys() == expected.keys()
    return [name for name in found if not np.array_equal(found[name], expected[name])]
