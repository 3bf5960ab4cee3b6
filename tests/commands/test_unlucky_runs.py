"""Full disks, folders that may not be written, ports in use: one line and a status of its own."""

import os
import resource
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from regionclip_jax.artifacts.model_checkpoint import flatten, load_model
from regionclip_jax.failures import ExitStatus

pytestmark = pytest.mark.command


def test_a_workdir_that_may_not_be_made_is_named(run_main, error_message):
    # Nobody may make a folder there, not even root.
    done = run_main("configs/pretrain.py", "/sys/regionclip_jax")
    assert done.returncode == ExitStatus.NOT_PERMITTED
    assert error_message(done).startswith("regionclip_jax: /sys/regionclip_jax: ")


def test_process_0_refuses_a_port_in_use(run_main, error_message, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        flags = [f"--coordinator={address}", "--num_processes=2", "--process_id=0"]
        done = run_main("configs/pretrain.py", tmp_path, *flags)
    assert done.returncode == ExitStatus.UNREACHABLE
    assert f"--coordinator={address}: process 0 cannot listen" in error_message(done)
    assert len(done.stderr.splitlines()) == 1


def limit_file_sizes():
    # The files of a checkpoint are larger, those of TensorBoard are smaller.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))


@pytest.mark.slow
def test_a_save_that_fails_leaves_a_run_that_continues_bit_for_bit(
    command, run_main, pretrain_recipe, tmp_path
):
    """A limit of file sizes stands for a full disk, also where nothing can be mounted."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = run_main(pretrain_recipe, whole)
    assert done.returncode == 0, done.stderr
    # The checkpoint of step 3, and not that of the last step.
    shutil.copytree(whole / "checkpoints" / "3", broken / "checkpoints" / "3")
    done = subprocess.run(
        **command(pretrain_recipe, broken),
        preexec_fn=limit_file_sizes, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == ExitStatus.NO_SPACE, done.stderr
    errors = [line for line in done.stderr.splitlines() if not is_logged(line)]
    assert len(errors) == 1 and f"regionclip_jax: {broken}/checkpoints/4" in errors[0]
    assert "File too large; raise the limit" in errors[0]
    done = run_main(pretrain_recipe, broken)
    assert done.returncode == 0 and "resumes after step 3" in done.stderr, done.stderr
    expected = flatten(load_model(whole / "model")[0])
    for path, value in flatten(load_model(broken / "model")[0]).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def is_logged(line: str) -> bool:
    return line[:1] in "IW" and line[1:5].isdigit()


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    tried = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        check=False,
    )
    return tried.returncode == 0


MOUNTED = """
mount -t tmpfs -o size={size} tmpfs {folder} && {before} && exec "$@"
"""


@pytest.fixture
def run_mounted(command, tmp_path):
    """``run_mounted(size, before, recipe)``: a run whose workdir is on a small disk of its own."""

    def run(size: str, before: str, recipe) -> subprocess.CompletedProcess:
        if not can_mount():
            pytest.skip("no user namespaces: a disk of its own cannot be mounted")
        folder = tmp_path / "disk"
        folder.mkdir()
        usual = command(recipe, folder / "run")
        script = MOUNTED.format(size=size, folder=folder, before=before.format(folder=folder))
        usual["args"] = ["unshare", "-rm", "sh", "-c", script, "sh", *usual["args"]]
        return subprocess.run(**usual, capture_output=True, timeout=300, check=False)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "before", "status", "where"),
    [
        ("4k", "true", ExitStatus.NO_SPACE, "run/settings.json"),
        # The checkpoint's file, or the workdir: events are written first, and name no file.
        ("2m", "true", ExitStatus.NO_SPACE, "run"),
        ("40m", "mount -o remount,ro {folder}", ExitStatus.NOT_PERMITTED, "run"),
    ],
)
def test_a_full_or_read_only_disk_is_one_line(
    run_mounted, pretrain_recipe, tmp_path, size, before, status, where
):
    done = run_mounted(size, before, pretrain_recipe)
    assert done.returncode == status, done.stderr
    errors = [line for line in done.stderr.splitlines() if not is_logged(line)]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(f"regionclip_jax: {tmp_path}/disk/{where}")


@pytest.mark.slow
def test_a_preparation_on_a_full_disk_is_one_line_and_goes_on(environment, coco_folder, tmp_path):
    arguments = [
        sys.executable, "-m", "regionclip_jax.commands.console", "prepare",
        "--source=coco_folder", f"--path={coco_folder}", "--split=val", "--boxes",
        f"--output={tmp_path / 'prepared'}", "--workers=1",
    ]  # fmt: skip
    code = "import sys; from regionclip_jax.commands.console import main; sys.exit(main())"
    arguments[1:3] = ["-c", code]
    how = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True}
    limit = 2**10
    done = subprocess.run(
        arguments, **how, timeout=300, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == ExitStatus.NO_SPACE, done.stderr
    errors = [line for line in done.stderr.splitlines() if not is_logged(line)]
    assert len(errors) == 1 and str(tmp_path / "prepared") in errors[0], done.stderr
    done = subprocess.run(arguments, **how, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert os.path.exists(tmp_path / "prepared" / "manifest.json")
