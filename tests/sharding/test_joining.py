import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regionclip_jax.failures import ExitStatus, Unreachable
from regionclip_jax.sharding import joining

ROOT = Path(__file__).parents[2]


@pytest.fixture
def taken():
    """Port on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use_is_refused_with_its_number(taken):
    with pytest.raises(Unreachable, match=rf"listen on port {taken}: Address already in use") as e:
        joining.require_free_port(f"127.0.0.1:{taken}")
    assert e.value.exit_status == ExitStatus.UNREACHABLE
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    joining.require_free_port(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("no-such-host.invalid:1234", "(not known|resolution|No address)"),
        ("127.0.0.1:1", "refused"),
    ],
)
def test_a_process_0_that_cannot_be_reached_is_named_with_the_reason(address, reason):
    with pytest.raises(Unreachable, match=rf"--coordinator={address}: process 0 .*{reason}"):
        joining.connect(address, deadline=time.monotonic())


def test_the_relay_passes_bytes_on_and_keeps_the_connection_that_process_0_closes():
    closed = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        own = joining.relay(f"127.0.0.1:{port}", lambda: closed.append(True))
        host, _, relayed = own.rpartition(":")
        with socket.create_connection((host, int(relayed)), timeout=60) as client:
            client.sendall(b"request")
            remote, _ = server.accept()
            assert remote.recv(100) == b"request"
            remote.sendall(b"answer")
            assert client.recv(100) == b"answer"
            remote.close()
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.recv(100)
    assert closed == [True]


MEMBER = """
import sys
from regionclip_jax.sharding import joining, watchdog
joining.JOINING_SECONDS = 3
arguments = {"coordinator_address": sys.argv[1], "num_processes": 2, "process_id": 1}
joining.join(arguments, watchdog.end_as_lost)
"""


@pytest.mark.slow
@pytest.mark.command
def test_a_process_that_meets_another_program_ends_with_one_line(taken):
    """JAX's client would wait for minutes, and then abort."""
    done = subprocess.run(
        [sys.executable, "-c", MEMBER, f"127.0.0.1:{taken}"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == ExitStatus.UNREACHABLE, done.stderr
    assert done.stderr.count("\n") == 1 and "did not join in 3 seconds" in done.stderr
