"""Two processes without a training: one of them is lost, or ends with an error alone."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from regionclip_jax.failures import ExitStatus
from regionclip_jax.sharding import watchdog

ROOT = Path(__file__).parents[2]

# Joins, prints a line when both processes are watched, and does as the second argument says.
MEMBER = """
import errno, sys, time
address, number, behaviour = sys.argv[1], int(sys.argv[2]), sys.argv[3]
from regionclip_jax.failures import one_line
from regionclip_jax.settings import ConfigError
from regionclip_jax.sharding import joining, watchdog
from regionclip_jax.sharding.barriers import barrier
watchdog.INTERVAL_SECONDS, watchdog.PATIENCE_SECONDS = 1, 5

@one_line(prefix="regionclip_jax")
def main():
    arguments = {"coordinator_address": address, "num_processes": 2, "process_id": number}
    joining.join(arguments, watchdog.end_as_lost)
    with watchdog.watched():
        barrier("started")
        print("started", flush=True)
        if behaviour == "same error":
            raise ConfigError("run.seed: the same in both")
        if behaviour == "one error" and number == 1:
            raise OSError(errno.ENOSPC, "No space left on device", "model/params")
        while behaviour != "finish":
            time.sleep(1)
    return 0

sys.exit(main())
"""


@pytest.fixture
def pair():
    """``pair(behaviour)``: two processes that have joined."""
    started = []

    def start(behaviour: str) -> list[subprocess.Popen]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        for number in range(2):
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", MEMBER, address, str(number), behaviour],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
        for process in started:
            lines = iter(process.stdout.readline, "")
            assert any(line == "started\n" for line in lines), process.communicate()[1]
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen) -> tuple[int, list[str]]:
    """Return the exit status and the lines of stderr that JAX does not log on every start."""
    # The members wait a few seconds; a loaded machine may take many times that.
    _, errors = process.communicate(timeout=240)
    return process.returncode, [line for line in errors.splitlines() if "Gloo" not in line]


@pytest.mark.command
def test_the_others_end_with_one_line_when_process_0_is_killed(pair):
    """The relay: JAX's client aborts the process when it sees that the connection is closed."""
    first, second = pair("wait")
    first.kill()
    status, lines = end(second)
    assert status == ExitStatus.LOST_PROCESS, lines
    assert len(lines) == 1 and "process 0 (127.0.0.1:" in lines[0]
    assert "start the same command again" in lines[0]


@pytest.mark.slow
@pytest.mark.command
@pytest.mark.parametrize(
    ("number", "how"), [(1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGSTOP)]
)
def test_a_killed_or_frozen_process_ends_the_other_with_one_line(pair, number, how):
    members = pair("wait")
    members[number].send_signal(how)
    status, lines = end(members[1 - number])
    assert status == ExitStatus.LOST_PROCESS, lines
    assert len(lines) == 1 and f"process {number} of the run was lost" in lines[0]


@pytest.mark.slow
@pytest.mark.command
def test_an_error_of_one_process_ends_both_with_their_own_line(pair):
    first, second = pair("one error")
    status, lines = end(second)
    assert status == ExitStatus.NO_SPACE, lines
    assert len(lines) == 1 and "model/params: No space left on device" in lines[0]
    status, lines = end(first)
    assert status == ExitStatus.LOST_PROCESS, lines
    assert len(lines) == 1 and "process 1 of the run was lost" in lines[0]


@pytest.mark.slow
@pytest.mark.command
@pytest.mark.parametrize(("behaviour", "expected"), [("finish", 0), ("same error", 1)])
def test_processes_that_end_together_have_their_own_status(pair, behaviour, expected):
    for process in pair(behaviour):
        status, lines = end(process)
        assert status == expected, lines
        assert lines == (["regionclip_jax: run.seed: the same in both"] if expected else [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Barrier timed out. Some timed out task names:\n1\n2\n\n\nRPC: /x", "process 1, 2"),
        ("task names:\n/job:jax_worker/replica:0/task:1\n\nRPC: /x", "process 1"),
        ("UNAVAILABLE: failed to connect to all addresses", "another process"),
    ],
)
def test_a_lost_process_is_named_if_the_barrier_names_it(text, expected):
    assert watchdog.name_missing(text) == expected
