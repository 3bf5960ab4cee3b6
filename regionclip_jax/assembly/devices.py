"""Start the devices of a process, and keep its compiled programs on the disk."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import logging

from regionclip_jax.settings import UserError

PLATFORMS = ("cpu", "gpu", "tpu")
_EXTRAS = {"gpu": 'pip install -e ".[gpu]"', "tpu": 'pip install -e ".[tpu]"'}
# Bytes of the cache that all commands of a user share; the least recently used programs go first.
_LARGEST_CACHE = 2 * 2**30


class DeviceError(UserError):
    """The devices that were asked for are absent or do not start."""


def start_devices(require_platform: str | None = None) -> None:
    """Start JAX's devices. The first call logs them, and warns if an accelerator is not used.

    Call it after the processes of a run are joined.

    Args:
        require_platform: one of ``PLATFORMS``; None accepts any.

    Raises:
        DeviceError: JAX cannot start the platforms of ``JAX_PLATFORMS``, or its devices are of
            another platform than the required one.
    """
    if require_platform not in (None, *PLATFORMS):
        raise DeviceError(f"require_platform: {require_platform!r} is none of {list(PLATFORMS)}")
    wanted = jax.config.jax_platforms
    try:
        backend = jax.default_backend()
    # JAX fails an assertion if no plugin offers the platform.
    except (RuntimeError, AssertionError) as error:
        extra = _EXTRAS["tpu" if "tpu" in wanted else "gpu"]
        raise DeviceError(
            f"JAX_PLATFORMS={wanted}: JAX found no such device: {_reason(error)}; install the "
            f"plugin ({extra}) and check the driver, or set JAX_PLATFORMS=cpu"
        ) from None
    unused = _log_devices()
    if require_platform not in (None, backend):
        remedy = unused or f"{_EXTRAS[require_platform]} installs JAX for it"
        if wanted:
            remedy = f"JAX_PLATFORMS is {wanted}, leave it unset"
        raise DeviceError(
            f"require_platform: expected {require_platform}, found {describe_devices()}; {remedy}"
        )


@functools.cache
def _log_devices() -> str | None:
    """Log the devices; return why an accelerator is not used, if one is not."""
    logging.info("devices: %s", describe_devices())
    if jax.default_backend() != "cpu" or jax.config.jax_platforms:
        return None
    unused = unused_accelerator(_installed_plugins(), _visible_accelerators(), _failure())
    if unused:
        logging.warning("%s; computing on the CPU (JAX_PLATFORMS=cpu asks for that)", unused)
    return unused


def describe_devices() -> str:
    """Return the backend with its devices, e.g. ``gpu, 8 x NVIDIA H200``."""
    kinds = [device.device_kind for device in jax.devices()]
    parts = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
    if jax.process_count() > 1:
        parts.append(f"{jax.local_device_count()} of them of this process")
    return ", ".join((jax.default_backend(), *parts))


def unused_accelerator(
    plugins: Sequence[str], visible: Sequence[str], failure: str | None
) -> str | None:
    """Return why a process on the CPU does not use an accelerator; None if there is none to use.

    Args:
        plugins: installed plugins of JAX.
        visible: accelerators of the machine, e.g. ``an NVIDIA GPU (/dev/nvidia0)``.
        failure: JAX's message about the plugins, if any.
    """
    if plugins:
        shown = " and ".join(visible) or "no accelerator"
        because = f": {failure}" if failure else ""
        return (
            f"the JAX plugin {', '.join(plugins)} is installed but gave no device, and the machine "
            f"shows {shown}{because}"
        )
    if visible:
        return (
            f"the machine shows {' and '.join(visible)}, but no plugin of JAX is installed: "
            f"{_EXTRAS['tpu' if 'TPU' in visible[0] else 'gpu']}"
        )
    return None


def cache_programs(folder: Path | None = None) -> None:
    """Keep compiled programs in a folder, so that the next process does not compile them again.

    JAX's own settings (``JAX_COMPILATION_CACHE_DIR``, ``JAX_ENABLE_COMPILATION_CACHE``) take
    precedence. With several CPU processes nothing is kept: only the first would find its programs,
    and Gloo has aborted runs that mix loaded and compiled programs.

    Args:
        folder: of the programs; None is ``regionclip_jax`` in the user's folder of caches
            (``XDG_CACHE_HOME``, or ``~/.cache``), of limited size.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        return
    if folder is None:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        # Homes are shared by machines, and a program of one CPU may crash on another.
        folder = Path(caches) / "regionclip_jax" / f"compiled-{_cpu_kind()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logging.info("compiled programs are not kept: %s", error)
            return
        # JAX limits a cache with the help of filelock, which tokenizers brings.
        if importlib.util.find_spec("filelock") and jax.config.jax_compilation_cache_max_size == -1:
            jax.config.update("jax_compilation_cache_max_size", _LARGEST_CACHE)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or "its plugin is not installed or did not start"


def _installed_plugins() -> list[str]:
    return sorted({entry.name for entry in importlib.metadata.entry_points(group="jax_plugins")})


def _visible_accelerators() -> list[str]:
    known = {"/dev/nvidia0": "an NVIDIA GPU", "/dev/kfd": "an AMD GPU", "/dev/accel0": "a TPU"}
    return [f"{kind} ({path})" for path, kind in known.items() if Path(path).exists()]


def _failure() -> str | None:
    """Return JAX's message about a GPU that did not start, if it has one."""
    try:
        jax.devices("gpu")
    except RuntimeError as error:
        return _reason(error) if "failed to initialize" in str(error) else None
    return None


def _cpu_kind() -> str:
    """Return a short hash of the instructions that the CPU knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    # "flags" on x86, "Features" on Arm.
    known = [line for line in lines if line.lower().startswith(("flags", "features"))][:1]
    described = "".join(known) or f"{platform.machine()} {platform.processor()}"
    return hashlib.sha256(described.encode()).hexdigest()[:12]
