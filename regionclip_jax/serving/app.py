"""The application of the server: the page, its settings, and detections of uploads."""

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regionclip_jax import __version__
from regionclip_jax.assembly.devices import describe_devices
from regionclip_jax.model import RegionCLIP
from regionclip_jax.reporting.detection_drawing import DRAWN_SCORE
from regionclip_jax.serving.detections import Detections
from regionclip_jax.serving.forms import read_upload
from regionclip_jax.serving.limits import DISCARD_SECONDS, Limits, Refused
from regionclip_jax.serving.page import read_page_files
from regionclip_jax.untrusted import short

# The page loads its own files only, and no other page can show it.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


def make_app(model: RegionCLIP, detections: Detections, host: str, limits: Limits) -> ASGIApp:
    """Return the application.

    Args:
        model: states what the page shows of it.
        host: the name or address that the server was told to listen on.
    """

    async def detect(request: Request) -> Response:
        with detections.admission():
            upload = await read_upload(request, limits)
            answer = await detections.detect(upload, request.is_disconnected)
        return Response(status_code=204) if answer is None else JSONResponse(answer)

    async def settings(request: Request) -> Response:
        scores = model.scores.detection
        return JSONResponse(
            {
                "version": __version__,
                "model": model.directory.resolve().name,
                "device": describe_devices(),
                "own_names": len(detections.own_names),
                "probabilities": scores.gives_probabilities,
                "score_above": scores.score_threshold,
                "drawn_score": DRAWN_SCORE,
                "most_bytes": limits.body_bytes,
                "most_words": limits.words,
            }
        )

    routes = [Route(url, _page_file(*file)) for url, file in read_page_files().items()]
    routes += [Route("/settings", settings), Route("/detect", detect, methods=["POST"])]
    app = Starlette(
        routes=routes,
        exception_handlers={
            Refused: _refuse,
            ClientDisconnect: _say_nothing,
            HTTPException: _refuse_route,
            Exception: _report_bug,
        },
    )
    app.router.redirect_slashes = False
    return _Guard(app, host)


def _page_file(content: bytes, kind: str) -> Callable:
    async def page_file(request: Request) -> Response:
        return Response(content, media_type=kind)

    return page_file


def error_response(error: Refused) -> JSONResponse:
    """Return the answer to a refused request: JSON with the message as ``error``."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return JSONResponse({"error": error.message}, error.status, headers)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error_response(error)


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {short(request.url.path)}: {error.detail}; open / for the page"
    response = error_response(Refused(error.status_code, what))
    response.headers.update(error.headers or {})
    return response


async def _say_nothing(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # the client is gone


async def _report_bug(request: Request, error: Exception) -> Response:
    what = f"the server failed ({type(error).__name__}); its terminal shows the error"
    return error_response(Refused(500, what))


class _Guard:
    """Check who asks, and add the headers of every answer.

    A page of another site could make a browser send uploads (``Origin``), or read answers under a
    name of its own that it points to this machine (``Host``). It has no name that is an address.

    Args:
        host: the name or address that the server was told to listen on.
    """

    def __init__(self, app: ASGIApp, host: str):
        self._app, self._names = app, ("localhost", host.lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        exchange = _Exchange(request.headers, receive, send)
        try:
            refusal = self._refusal(request.headers)
            app = self._app if refusal is None else error_response(refusal)
            await app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            # The server ends, and uvicorn would report a bug.
            if not exchange.is_answered:
                ended = error_response(Refused(503, "the server was stopped; start it again"))
                await ended(scope, exchange.receive, exchange.send)

    def _refusal(self, headers: Headers) -> Refused | None:
        host = headers.get("host", "")
        if not self._is_known(host):
            return Refused(
                400,
                f"Host: found {short(host)}, expected an address or one of "
                f"{', '.join(dict.fromkeys(self._names))}; for another name start the server with "
                "--host NAME",
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            return Refused(
                403, f"Origin: found {short(origin)}, expected http://{host}; open the page there"
            )
        return None

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class _Exchange:
    """Messages of a request and its answer.

    Attributes:
        is_answered: True once the answer began.
    """

    def __init__(self, headers: Headers, receive: Receive, send: Send):
        self.is_answered = False
        self._headers, self._receive, self._send = headers, receive, send
        self._is_received = False

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self._is_received = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_answered = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            if message["status"] not in (200, 408):
                await self._discard_body()
            if not self._is_received and message["status"] != 200:
                headers["connection"] = "close"
        await self._send(message)

    async def _discard_body(self) -> None:
        """Receive what a refused client still sends: it would lose an answer before the end."""
        # Such a client waits for the answer before it sends the body.
        if "expect" in self._headers:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while not self._is_received:
                    await self.receive()
