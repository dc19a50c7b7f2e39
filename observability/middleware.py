"""Opens a request and closes it: id, clock, timing headers, and the one canonical log line once it is really over."""

import re
import time
from collections.abc import Iterable

from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from observability.context import RequestContext, open_request
from observability.ids import time_ordered_id
from observability.logging import get_logger

log = get_logger("tollbook.request")

HTTP_INTERNAL_SERVER_ERROR = 500
HTTP_CLIENT_CLOSED_REQUEST = 499  # nginx's code: the client left before it was answered

# An id of a client is kept when it is sane: short, and of characters that need no escaping anywhere.
_SANE_ID = re.compile(rb"[A-Za-z0-9._:+/=@-]{1,128}")


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return value.decode("ascii")
    return time_ordered_id()


def _server_timing(request: RequestContext, elapsed: float) -> str:
    parts = [f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in request.timings.items()]
    return ", ".join([*parts, f"total;dur={elapsed * 1000:.2f}"])


class RequestMiddleware:
    """Pure ASGI. Wraps everything but the server span."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = open_request(scope, _request_id(scope["headers"]))
        span = trace.get_current_span().get_span_context()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                elapsed = time.perf_counter() - request.started
                headers = [
                    (b"x-request-id", request.request_id.encode("ascii")),
                    (b"x-process-time", f"{elapsed:.6f}".encode("ascii")),
                    (b"server-timing", _server_timing(request, elapsed).encode("ascii")),
                ]
                call_id = request.fields.get("call_id")
                if call_id is not None:
                    headers.append((b"x-tollbook-call-id", call_id.encode("ascii")))
                if span.is_valid:  # W3C Trace Context Level 2 §4, the response header
                    value = f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
                    headers.append((b"traceresponse", value.encode("ascii")))
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            status = status or HTTP_INTERNAL_SERVER_ERROR  # which is what the server will answer
            raise
        finally:
            route = scope.get("route")
            log.info(
                "request",
                request_id=request.request_id,
                trace_id=f"{span.trace_id:032x}" if span.is_valid else None,
                span_id=f"{span.span_id:016x}" if span.is_valid else None,
                method=scope["method"],
                route=getattr(route, "path", None),
                status=status or HTTP_CLIENT_CLOSED_REQUEST,
                duration_ms=round((time.perf_counter() - request.started) * 1000, 3),
                client_ip=scope["client"][0] if scope.get("client") else None,
                **request.fields,
            )
