"""The command `regionclip serve` in a child process, for tests of several files."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZES = ["--short_side", "64", "--max_long_side", "64"]


@contextlib.contextmanager
def served(directory: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Start the command on a free port; yield the URL and the process, and kill it at the end."""
    code = "import sys; from regionclip_jax.commands.console import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(directory), "--port", "0", *SIZES, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false",
            "PYTHONPATH": str(ROOT),
        },
    )  # fmt: skip
    waiting = threading.Timer(120, process.kill)
    waiting.start()
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        waiting.cancel()
        found = re.search(r"http://\S+", line)
        assert found, process.stderr.read()
        yield found[0], process
    finally:
        waiting.cancel()
        process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen) -> tuple[int, str, str]:
    """Send Ctrl-C; return the exit status, stdout and stderr."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err
