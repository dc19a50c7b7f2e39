"""Middleware of the HTTP surface: what a browser may do with an answer, and how large a body may be."""

import asyncio
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, RequestTimeout

_LINGER_BYTES: Final = 64 * 2**20
_LINGER_SECONDS: Final = 5.0
_UNREAD: Final = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT}
OPERATIONAL_PATHS: Final = ("/livez", "/readyz", "/metrics")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# The documentation pages carry one inline script each; everything else is data and needs nothing.
_DOCUMENT_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'"
)
_DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"


class SecurityHeadersMiddleware:
    """Adds the headers to every answer."""

    def __init__(self, app: ASGIApp, *, hsts_seconds: int) -> None:
        self.app = app
        self._headers = dict(_HEADERS)
        if hsts_seconds:
            self._headers["Strict-Transport-Security"] = f"max-age={hsts_seconds}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                document = headers.get("content-type", "").startswith("text/html")
                headers.setdefault("Content-Security-Policy", _DOCUMENT_POLICY if document else _DATA_POLICY)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class AllowedHostsMiddleware(TrustedHostMiddleware):
    """Refuses other host names, but not for probes and scrapes, which come by address."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in OPERATIONAL_PATHS:
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class TurnstileMiddleware:
    """Lets requests for a path in one by one, with a turn of the event loop for everybody else between two.

    Hundreds of logins that come at once would else be begun in one turn, and hold up every stream meanwhile.
    """

    def __init__(self, app: ASGIApp, *, path: str) -> None:
        self.app = app
        self._path = path
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == self._path:
            async with self._lock:
                await asyncio.sleep(0)
        await self.app(scope, receive, send)


class BodyLimitsMiddleware:
    """Counts the bytes of a body as they come, whether or not it said how many there would be, and the time it takes.

    A refusal is raised where the body is read, inside the route, so that it is answered in the route's own shape.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_seconds: float) -> None:
        self.app = app
        self._max = max_bytes
        self._timeout = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        too_large = declared.isdigit() and int(declared) > self._max
        ends_at = asyncio.get_running_loop().time() + self._timeout
        received = 0
        complete = False

        async def limited_receive() -> Message:
            nonlocal received, complete
            if complete:  # what is still to come is the client's leaving, which may take as long as the answer
                return await receive()
            if too_large:
                raise self._too_large()
            try:
                async with asyncio.timeout_at(ends_at):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeout("The body did not arrive in time.") from None
            received += len(message.get("body", b""))
            if received > self._max:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        refused = False

        async def send_lingering(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in _UNREAD:
                MutableHeaders(scope=message)["Connection"] = "close"
                refused = message["status"] == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            if not refused or message["type"] != "http.response.body" or message.get("more_body", False):
                await send(message)
                return
            # A connection that is closed on a client which is still sending is reset, and the answer lost with it.
            await send({**message, "more_body": True})
            await _discard(receive)
            await send({"type": "http.response.body", "body": b""})

        await self.app(scope, limited_receive, send_lingering)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The body is larger than {self._max} bytes.")


async def _discard(receive: Receive) -> None:
    """Take in the rest of a body, within limits, and keep none of it."""
    left = _LINGER_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while left > 0:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))
