"""Ending at once, in processes of their own."""

import signal
import subprocess
import sys

import pytest

# One instruction of the main thread that takes minutes, as compiling a large program does.
LONG_INSTRUCTION = """
import hashlib
from regionclip_jax.training import stopping
stopping.end_at_once(75)
print("started", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""

WITH_CHILD = """
import multiprocessing, time
from regionclip_jax.training import stopping
if __name__ == "__main__":
    stopping.end_at_once(0)
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(1000,))
    child.start()
    print(child.pid, flush=True)
    child.join()
"""


def stopped_by(number: signal.Signals, code: str) -> tuple[int, str, str]:
    """Exit status, the line before the signal, what was said after it."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        process.send_signal(number)
        # The child holds the pipe as well: this ends only when both have.
        return process.wait(timeout=60), line.strip(), process.communicate(timeout=60)[1]
    finally:
        process.kill()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_a_process_in_the_middle_of_one_long_instruction(number, status):
    found, _, said = stopped_by(number, LONG_INSTRUCTION)
    assert found == status
    assert said == (
        f"regionclip_jax: stopped by {number.name} outside of training steps; start the same "
        "command again to continue\n"
    )


def test_the_children_of_a_process_end_with_it():
    status, _, said = stopped_by(signal.SIGTERM, WITH_CHILD)
    assert status == 0 and "stopped by SIGTERM" in said
