"""Devices of a process: the first log line, a required platform, the cache of programs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from regionclip_jax.assembly import devices

ROOT = Path(__file__).parents[2]


def test_devices_are_named_with_their_number():
    kind = jax.devices()[0].device_kind
    assert devices.describe_devices() == f"{jax.default_backend()}, {jax.device_count()} x {kind}"


def test_the_required_platform_is_compared_with_the_devices():
    devices.start_devices(jax.default_backend())
    other = "tpu" if jax.default_backend() != "tpu" else "gpu"
    with pytest.raises(devices.DeviceError, match=rf"expected {other}, found .* x "):
        devices.start_devices(other)
    with pytest.raises(devices.DeviceError, match="'cuda' is none of"):
        devices.start_devices("cuda")


GPU = "an NVIDIA GPU (/dev/nvidia0)"


@pytest.mark.parametrize(
    ("plugins", "visible", "failure", "said"),
    [
        ([], [], None, None),
        ([], [GPU], None, "/dev/nvidia0.*no plugin of JAX.*gpu"),
        ([], ["a TPU (/dev/accel0)"], None, "/dev/accel0.*no plugin of JAX.*tpu"),
        (["xla_cuda12"], [GPU], "no driver", "xla_cuda12 is installed.*/dev/nvidia0.*no driver"),
        (["xla_cuda12"], [], None, "xla_cuda12 is installed.*no accelerator"),
    ],
)
def test_an_accelerator_that_is_not_used_is_named(plugins, visible, failure, said):
    found = devices.unused_accelerator(plugins, visible, failure)
    assert found is None if said is None else re.search(said, found)


@pytest.mark.command
@pytest.mark.parametrize("broken_plugin", [False, True])
def test_absent_devices_end_in_one_line_and_a_broken_plugin_in_a_warning(tmp_path, broken_plugin):
    """A plugin that cannot load its driver, and JAX_PLATFORMS=cuda without a plugin."""
    environment = os.environ | {"JAX_PLATFORMS": "cuda", "PYTHONPATH": str(ROOT)}
    if broken_plugin:
        (tmp_path / "broken.py").write_text("def initialize(): raise RuntimeError('no libcuda')")
        (tmp_path / "broken-1.dist-info").mkdir()
        (tmp_path / "broken-1.dist-info" / "METADATA").write_text("Name: broken\nVersion: 1\n")
        entry = "[jax_plugins]\nxla_cuda12 = broken\n"
        (tmp_path / "broken-1.dist-info" / "entry_points.txt").write_text(entry)
        environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
        environment["JAX_PLATFORMS"] = ""
    code = "from regionclip_jax.commands.doctor import main; raise SystemExit(main([]))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    if broken_plugin:
        assert done.returncode == 0 and "devices: cpu, 1 x " in done.stdout
        assert "W" in done.stderr and "xla_cuda12 is installed but gave no device" in done.stderr
    else:
        assert done.returncode == 1 and "Traceback" not in done.stderr
        last = done.stdout.splitlines()[-1]
        assert last.startswith("wrong: JAX_PLATFORMS=cuda: JAX found no such device")


@pytest.fixture
def settings():
    """JAX's settings of the cache as a user finds them; restored after the test."""
    names = ("compilation_cache_dir", "enable_compilation_cache", "compilation_cache_max_size")
    before = {name: getattr(jax.config, f"jax_{name}") for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    yield
    for name, value in before.items():
        jax.config.update(f"jax_{name}", value)


def test_programs_are_kept_in_the_users_caches_or_where_jax_is_told(
    settings, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    devices.cache_programs()
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert folder.is_dir() and folder.parent == tmp_path / "regionclip_jax"
    assert 0 < jax.config.jax_compilation_cache_max_size < 10 * 2**30
    devices.cache_programs(tmp_path / "run")  # the first choice stays
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_no_cache_is_kept_if_jax_is_told_so_or_the_folder_cannot_be_made(
    settings, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    devices.cache_programs()
    assert jax.config.jax_compilation_cache_dir is None
    jax.config.update("jax_enable_compilation_cache", False)
    devices.cache_programs(tmp_path / "run")
    assert jax.config.jax_compilation_cache_dir is None
