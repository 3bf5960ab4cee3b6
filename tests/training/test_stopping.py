"""Immediate end of a process at a signal, tested in child processes."""

import os
import signal
import socket
import subprocess
import sys

import pytest

# One instruction of the main thread takes minutes, like compiling a large program.
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

# One of two processes. Its steps run no program, as the test checks only the last step.
ONE_OF_TWO = """
import itertools, sys, time
from regionclip_jax.training import loop, stopping
stopping.end_at_once(0)
import jax
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))

def step_fn(state, batch):
    time.sleep(0.02)
    return state + 1, {}

def started(step, *_):
    if step == 3:
        print("started", flush=True)

try:
    loop.run(step_fn, 0, itertools.repeat(0), start_step=0, num_steps=10**6, hooks=[(1, started)])
except stopping.Preempted as error:
    print(error, flush=True)
    sys.exit(stopping.exit_status(error.number, 75))
"""


# A signal while the interpreter ends: between its own exit functions and after them.
AT_THE_END = """
import atexit, os, signal, sys
number, moment, status = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def send(kill=os.kill, pid=os.getpid()):
    kill(pid, number)

class Kept:
    def __del__(self, send=send):
        send()

if moment == "last exit function":
    atexit.register(send)
if moment == "modules are cleared":
    kept = Kept()
from regionclip_jax.training import stopping
stopping.end_at_once(75)
sys.exit(status)
"""


def stopped_by(number: signal.Signals, code: str) -> tuple[int, str, str]:
    """Return the exit status, the line before the signal and the stderr after it."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        process.send_signal(number)
        # The child has the pipe open too, so this waits for the end of both processes.
        return process.wait(timeout=60), line.strip(), process.communicate(timeout=60)[1]
    finally:
        process.kill()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_a_process_during_a_long_instruction(number, status):
    actual, _, error = stopped_by(number, LONG_INSTRUCTION)
    assert actual == status
    assert error == (
        f"regionclip_jax: stopped by {number.name} outside of training steps; start the same "
        "command again to continue\n"
    )


def test_the_children_of_a_process_end_with_it():
    status, _, error = stopped_by(signal.SIGTERM, WITH_CHILD)
    assert status == 0 and "stopped by SIGTERM" in error


def test_all_processes_stop_after_the_same_step():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, address, str(rank)],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert [process.stdout.readline() for process in processes] == ["started\n"] * 2
        processes[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert outputs[0] == outputs[1] and outputs[0].startswith("stopped by SIGTERM after step ")
    assert [process.returncode for process in processes] == [75, 75]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["last exit function", "modules are cleared"])
@pytest.mark.parametrize("status", [0, 1])
def test_a_signal_while_the_interpreter_ends_does_not_change_the_status(number, moment, status):
    """Without ``end_at_once`` the status is that of the signal."""
    arguments = [str(int(number)), moment, str(status)]
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status and done.stderr == ""
