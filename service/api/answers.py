"""Answers of model calls, as ASGI responses. The whole life of a call is one coroutine here: opened before the upstream
is asked, closed once on every way out.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from auth.principal import Principal
from observability.context import request_context
from observability.entry import Outcome
from observability.genai import Call, Caller, Target
from observability.middleware import HTTP_CLIENT_CLOSED_REQUEST
from service.api.disconnect import ClientGone, unless_disconnected
from service.llm.catalog import Model
from service.llm.failures import UpstreamFailure
from service.llm.pricing import cost
from service.llm.relay import Stream, deadline
from service.llm.sse import error_event, text_of
from service.state import Llm

# A client that leaves right after the last word takes nothing with it: the usage event is only moments away.
_USAGE_GRACE_SECONDS: Final = 1.0
_STREAM_HEADERS: Final = [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
_SHUTTING_DOWN: Final = {
    "message": "The service is shutting down.",
    "type": "server_error",
    "param": None,
    "code": "shutting_down",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that was found good."""

    principal: Principal
    model: Model
    body: bytes  # what the upstream is sent
    hide_usage: bool = False  # streams: we asked for the usage event, the client did not
    choices: int = 1  # answers asked for


def caller_of(principal: Principal) -> Caller:
    """What the books keep of a principal."""
    return Caller(principal.username, principal.auth_method)


class CallResponse(Response):
    """Makes the call when it is sent. Subclasses say how the answer goes out."""

    streamed = False

    def __init__(self, request: Request, asked: Asked) -> None:
        # Not the base class's, which would build a body.
        self.background = None
        self._llm: Llm = request.state.llm
        self._asked = asked
        self._started = False
        self._sending = False  # the client has yet to take what it was sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self._open(scope)
        connection = unless_disconnected(receive, grace=self._grace)
        try:
            async with connection:
                await self._answer(call, send, connection)
            self._close(call, Outcome.OK, HTTPStatus.OK)
        except ClientGone:
            self._close(call, self._outcome_when_gone(), HTTP_CLIENT_CLOSED_REQUEST)
        except UpstreamFailure as failure:
            if connection.gone or self._sending:
                # The client went first, or took nothing any more: what the upstream did then is no longer its answer.
                self._close(call, self._outcome_when_gone(), HTTP_CLIENT_CLOSED_REQUEST)
                return
            self._close(call, failure.outcome, failure.status, failure.error_type)
            if not self._started:
                raise
            await self._break_off(send, failure.error)
        except asyncio.CancelledError:
            # Nobody but the server cancels a request: its grace period is over.
            self._close(call, Outcome.CANCELLED_SHUTDOWN, HTTPStatus.SERVICE_UNAVAILABLE)
            with suppress(Exception):  # the connection may be gone already; we are leaving either way
                if self._started:
                    await self._break_off(send, _SHUTTING_DOWN)
                else:
                    await JSONResponse({"error": _SHUTTING_DOWN}, HTTPStatus.SERVICE_UNAVAILABLE)(scope, receive, send)
            raise
        finally:
            # Reached open only by a mistake of ours, which is on its way to becoming a 500.
            self._close(call, Outcome.UPSTREAM_ERROR, HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error")

    def _open(self, scope: Scope) -> Call:
        model = self._asked.model
        target = Target(
            model=model.name,
            upstream=model.upstream.name,
            upstream_model=model.upstream.model,
            provider=model.upstream.provider,
            cost=lambda usage: cost(model.price, usage),
            price_version=model.price.version if model.price else "",
        )
        caller = caller_of(self._asked.principal)
        return self._llm.books.open_call(request_context(scope), caller, target, operation="chat", stream=self.streamed)

    def _close(self, call: Call, outcome: Outcome, status: int, error_type: str = "") -> None:
        call.close(outcome, http_status=HTTPStatus.OK if self._started else status, error_type=error_type)

    def _grace(self) -> float:
        return 0.0

    def _outcome_when_gone(self) -> Outcome:
        return Outcome.CLIENT_DISCONNECT

    async def _answer(self, call: Call, send: Send, connection: unless_disconnected) -> None:
        raise NotImplementedError

    async def _break_off(self, send: Send, error: dict[str, Any]) -> None:
        """Tell a client that has part of its answer that there will be no more."""


class PlainAnswer(CallResponse):
    """The whole answer at once: the upstream's bytes, or what `shape` makes of them."""

    def __init__(
        self, request: Request, asked: Asked, shape: Callable[[Call, bytes, dict[str, Any]], bytes] | None = None
    ) -> None:
        super().__init__(request, asked)
        self._shape = shape

    async def _answer(self, call: Call, send: Send, connection: unless_disconnected) -> None:
        del connection
        data, answer = await self._llm.relay.complete(call, self._asked.model, self._asked.body)
        body = self._shape(call, data, answer) if self._shape else data
        # Closed before it is sent, so that the headers and the log line of this very answer can have it all.
        call.close(Outcome.OK, http_status=HTTPStatus.OK)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class EventStreamAnswer(CallResponse):
    """The upstream's events, as the bytes that arrive."""

    streamed = True
    content_type = b"text/event-stream; charset=utf-8"

    def __init__(self, request: Request, asked: Asked) -> None:
        super().__init__(request, asked)
        self._stream: Stream | None = None
        self._all_sent = False

    async def _answer(self, call: Call, send: Send, connection: unless_disconnected) -> None:
        asked = self._asked
        stream = await self._llm.relay.open_stream(
            call, asked.model, asked.body, hide_usage=asked.hide_usage, choices=asked.choices
        )
        self._stream = stream
        try:
            headers = [(b"content-type", self.content_type), *_STREAM_HEADERS]
            await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers})
            self._started = True
            async with deadline(stream.deadline), aclosing(stream.chunks()) as chunks:
                async for data in chunks:
                    body = self._encode(data)
                    if body:
                        self._sending = True
                        await send({"type": "http.response.body", "body": body, "more_body": True})
                        self._sending = False
                    # To a client that has gone nothing is sent, though the server does not say so.
                    self._all_sent = stream.watcher.done and not connection.gone
            await send({"type": "http.response.body", "body": b""})
        finally:
            await stream.close()

    def _encode(self, events: bytes) -> bytes:
        return events

    def _grace(self) -> float:
        return _USAGE_GRACE_SECONDS if self._stream is not None and self._stream.watcher.finished else 0.0

    def _outcome_when_gone(self) -> Outcome:
        # SDKs hang up at [DONE], before the end of the HTTP body: they have had everything. And at an error event.
        if self._stream is not None and self._stream.watcher.failed:
            return Outcome.UPSTREAM_ERROR
        return Outcome.OK if self._all_sent else Outcome.CLIENT_DISCONNECT

    async def _break_off(self, send: Send, error: dict[str, Any]) -> None:
        told = self._stream is not None and self._stream.watcher.failed  # in the upstream's own words
        await send({"type": "http.response.body", "body": b"" if told else error_event(error)})


class TextStreamAnswer(EventStreamAnswer):
    """Only the text of the answer, as it comes. Broken off, the HTTP body has no proper end: text cannot say more."""

    content_type = b"text/plain; charset=utf-8"

    def _encode(self, events: bytes) -> bytes:
        return text_of(events).encode("utf-8", "replace")

    async def _break_off(self, send: Send, error: dict[str, Any]) -> None:
        """Nothing: the server closes a connection whose answer has no end."""
