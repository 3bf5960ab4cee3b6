"""Join the processes of a run, in bounded time and without JAX's abort.

JAX aborts a process that cannot join, or that loses its connection to process 0. Process 0 crashes
if its port is in use. So the port is tried before, a deadline ends the process with one line, and
other processes reach process 0 through a relay of their own, which keeps JAX's connection open.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable

import jax
from absl import logging

from regionclip_jax.failures import ExitStatus, Unreachable

# All processes must start within this time; JAX's own default.
JOINING_SECONDS = 300
_SECONDS_BETWEEN_TRIES = 0.5


def join(arguments: dict, lost: Callable[[str], object]) -> None:
    """Call ``jax.distributed.initialize``.

    Args:
        arguments: of the call, from ``processes.distributed_arguments``.
        lost: called in a thread with the name of process 0 when it closes the connection.

    Raises:
        Unreachable: process 0 cannot use its port, or another process cannot reach it.
        ValueError, RuntimeError: JAX finds no cluster.
    """
    deadline = time.monotonic() + JOINING_SECONDS
    address = arguments.get("coordinator_address")
    joined = threading.Event()
    if address is not None and arguments["process_id"] == 0:
        require_free_port(address)
    elif address is not None:
        connect(address, deadline).close()

        def closed():
            if joined.is_set():
                lost(f"process 0 ({address})")
            else:
                _end(f"--coordinator={address}: what listens there closed the connection")

        arguments = arguments | {"coordinator_address": relay(address, closed)}
    threading.Thread(target=_limit, args=(joined, deadline, address), daemon=True).start()
    try:
        # JAX aborts at its own limit, so that one must come later.
        jax.distributed.initialize(**arguments, initialization_timeout=2 * JOINING_SECONDS)
    finally:
        joined.set()


def require_free_port(address: str) -> None:
    """Raise Unreachable if this process cannot listen on the port of ``address`` (host:port)."""
    port = int(address.rpartition(":")[2])
    try:
        with _listener(port):
            pass
    except OSError as error:
        raise Unreachable(
            f"--coordinator={address}: process 0 cannot listen on port {port}: "
            f"{_reason(error)}; end the process that has it, or give "
            "another port, the same in all processes"
        ) from error


def connect(address: str, deadline: float) -> socket.socket:
    """Connect to process 0; try until ``deadline`` (of ``time.monotonic``), as it may start later.

    Raises:
        Unreachable: it was not reached; the message has the reason of the last try.
    """
    host, _, port = address.rpartition(":")
    logged = False
    while True:
        try:
            connection = socket.create_connection(
                (host.strip("[]"), int(port)), timeout=max(deadline - time.monotonic(), 0.1)
            )
            connection.settimeout(None)
            return connection
        except OSError as error:
            reason = _reason(error)
            if time.monotonic() + _SECONDS_BETWEEN_TRIES > deadline:
                raise Unreachable(
                    f"--coordinator={address}: process 0 was not reached in {JOINING_SECONDS} "
                    f"seconds: {reason}; start process 0, and check the host, the port and the "
                    "firewall between the hosts"
                ) from error
        if not logged:
            logging.info("waiting for process 0 at %s: %s", address, reason)
            logged = True
        time.sleep(_SECONDS_BETWEEN_TRIES)


def relay(target: str, closed: Callable[[], object]) -> str:
    """Pass the bytes of JAX's client on to process 0, from a port of the loopback.

    When process 0 closes a connection, JAX's client does not see it: it would abort this process
    before another thread could say why.

    Args:
        target: host:port of process 0.
        closed: called in a thread when process 0 closes a connection.

    Returns:
        host:port for JAX's client.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def start(function: Callable, *arguments) -> None:
        threading.Thread(target=function, args=arguments, name="relay", daemon=True).start()

    def accept():
        while True:
            local, _ = listener.accept()
            try:
                remote = connect(target, time.monotonic())
            except Unreachable:
                closed()
                return
            start(_pass_on, local, remote, remote.close)
            start(_pass_on, remote, local, closed)

    start(accept)
    return f"127.0.0.1:{listener.getsockname()[1]}"


def _pass_on(source: socket.socket, sink: socket.socket, at_end: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(1 << 16):
            sink.sendall(content)
    at_end()


def _listener(port: int) -> socket.socket:
    # As JAX's service: on all addresses, also those of IPv4.
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _reason(error: OSError) -> str:
    # Python adds the address to the text of a number; numbers of name servers are negative.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _limit(joined: threading.Event, deadline: float, address: str | None) -> None:
    if not joined.wait(deadline - time.monotonic()):
        where = "" if address is None else f"--coordinator={address}: "
        _end(f"{where}the processes of the run did not join in {JOINING_SECONDS} seconds")


def _end(problem: str) -> None:
    line = (
        f"regionclip_jax: {problem}; start all processes with the same --coordinator and "
        "--num_processes, and give a port that nothing else uses\n"
    )
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    os._exit(ExitStatus.UNREACHABLE)
