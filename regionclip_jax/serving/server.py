"""Listen on a port, and run the application on it until a signal."""

import asyncio
import contextlib
import errno
import json
import logging
import socket
from collections.abc import Callable

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from regionclip_jax.serving.limits import DISCARD_SECONDS, Limits
from regionclip_jax.settings import UserError


class PortError(UserError):
    """The server cannot listen on the port."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: name or address of this machine.
        port: 0 takes a free one.

    Raises:
        PortError: the port is in use or not permitted, or the host is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise PortError(
            f"--host: found {host!r} ({error.strerror}), expected a name or address of this "
            "machine; leave it out for this machine alone"
        ) from error
    listening = socket.socket(family, kind, protocol)
    try:
        # A server that ended a moment ago blocks its port otherwise.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise PortError(
                f"--port: {port} of {host} is in use by another program; end that one, or give "
                f"another port, such as --port {port + 1 if port < 65535 else 0}"
            ) from error
        if error.errno == errno.EACCES:
            raise PortError(
                f"--port: {port} is not permitted to this user; give a port from 1024 to 65535"
            ) from error
        raise PortError(
            f"--host: cannot listen on {host} ({error.strerror}), expected a name or address of "
            "this machine; leave it out for this machine alone"
        ) from error
    return listening


def url_of(listening: socket.socket, host: str) -> str:
    """Return the URL of the page."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"


def serve(
    app: ASGIApp, listening: socket.socket, limits: Limits, announce: Callable[[], None]
) -> None:
    """Run an application until SIGINT or SIGTERM; then raise the signal again.

    Args:
        listening: from ``listen``.
        announce: called when requests are answered.
    """

    # Its warnings of damaged forms are in the answers.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)

    def make_protocol(**arguments) -> asyncio.Protocol:
        return _Protocol(limits, **arguments)

    # uvicorn states a class for ``http``, and only calls it.
    config = uvicorn.Config(
        app,
        http=make_protocol,  # type: ignore[arg-type]
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=limits.head_bytes,
        timeout_graceful_shutdown=limits.ending_seconds,
    )
    _Server(config, announce).run([listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]):
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()


class _Protocol(H11Protocol):
    """Connection that ends if the head of a request is slow, and refuses in JSON.

    uvicorn waits for a head without an end, and refuses damaged ones as text.
    """

    def __init__(self, limits: Limits, **arguments):
        super().__init__(**arguments)
        self._limits = limits
        self._waiting: asyncio.TimerHandle | None = None
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        most = self._limits.connections
        if len(self.connections) > 2 * most:
            transport.abort()
        elif len(self.connections) > most:
            self._refuse(503, f"the server has {most} open connections; try again later")
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait_for_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        most = self._limits.head_bytes
        self._refuse(400, f"{msg} Expected HTTP/1.1 with a head of at most {most} bytes.")

    def _wait_for_head(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(self._limits.head_seconds, self._end_waiting)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _end_waiting(self) -> None:
        if not self.transport.is_closing():
            seconds = self._limits.head_seconds
            self._refuse(408, f"found no whole head of a request within {seconds:g} seconds")

    def _refuse(self, status: int, message: str) -> None:
        content = json.dumps({"error": message}).encode()
        headers = [("content-type", "application/json"), ("connection", "close")]
        headers += [("content-length", str(len(content)))]
        if status == 503:
            headers.append(("retry-after", "1"))
        events = (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=content),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        # A client that still sends loses the answer if the connection is closed at once.
        self._stop_waiting()
        self._is_refused = True
        with contextlib.suppress(OSError):  # the client is gone
            self.transport.write_eof()
        self.loop.call_later(DISCARD_SECONDS, self.transport.close)
