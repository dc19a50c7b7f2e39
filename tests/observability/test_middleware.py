"""The request middleware: ids, timing headers, and one log line once the response is really over."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import TracerProvider
from starlette.types import Message

from observability.context import note, request_context, timed
from observability.middleware import RequestMiddleware
from tests.observability.kit import json_lines

HEAD: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
END: Message = {"type": "http.response.body", "body": b"done"}


def scope(*headers: tuple[bytes, bytes], **fields: Any) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/x/1", "headers": headers, "client": ("10.0.0.7", 1), **fields}


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def answer(_scope: Any, _receive: Any, send: Any) -> None:
    await send(dict(HEAD))
    await send(dict(END))


async def run(app: Any, asked: dict[str, Any]) -> list[Message]:
    """What was sent."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await RequestMiddleware(app)(asked, receive, send)
    return sent


async def headers_of(app: Any, asked: dict[str, Any]) -> dict[str, str]:
    head = (await run(app, asked))[0]
    return {name.decode(): value.decode() for name, value in head["headers"]}


@pytest.mark.parametrize("sane", [b"a", b"mark-1", b"A.b_c:d+e/f=g@h", b"x" * 128])
async def test_a_sane_request_id_is_kept_in_header_and_line(logged, sane):
    headers = await headers_of(answer, scope((b"x-request-id", sane)))
    assert headers["x-request-id"] == json_lines(logged())[0]["request_id"] == sane.decode()


@pytest.mark.parametrize(
    "insane",
    [b"", b"x" * 129, b"two words", b"a\r\nset-cookie: x", b"a\n", b"a\0", b"\xc3\xa9", b'"', b"a,b", b"{}", b"%0a"],
)
async def test_any_other_request_id_is_replaced(logged, insane):
    headers = await headers_of(answer, scope((b"x-request-id", insane)))
    assert UUID(headers["x-request-id"]).version == 7
    assert json_lines(logged())[0]["request_id"] == headers["x-request-id"]


async def test_each_request_without_an_id_gets_its_own(logged):
    first, second = [(await headers_of(answer, scope()))["x-request-id"] for _ in "12"]
    assert first != second


async def test_timing_headers_stand_beside_those_of_the_app(logged):
    async def app(asked: Any, _receive: Any, send: Any) -> None:
        with timed(asked, "auth"), timed(asked, "limits"):
            pass
        await answer(asked, _receive, send)

    headers = await headers_of(app, scope())
    assert headers["content-type"] == "text/plain"
    assert float(headers["x-process-time"]) >= 0
    stages = [part.partition(";dur=") for part in headers["server-timing"].split(", ")]
    assert [name for name, _, _ in stages] == ["limits", "auth", "total"]
    assert all(float(milliseconds) >= 0 for _, _, milliseconds in stages)


async def test_time_of_a_stage_adds_up_and_is_told_in_milliseconds(logged, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("observability.context.time.perf_counter", lambda: now[0])

    async def app(asked: Any, _receive: Any, send: Any) -> None:
        request_context(asked).started = 100.0  # the default was bound to the real clock
        for _ in range(2):
            with timed(asked, "auth"):
                now[0] += 0.125
        await answer(asked, _receive, send)

    headers = await headers_of(app, scope())
    assert headers["server-timing"] == "auth;dur=250.00, total;dur=250.00"
    assert headers["x-process-time"] == "0.250000"
    assert json_lines(logged())[0]["duration_ms"] == 250


async def test_the_trace_is_in_the_answer_and_in_the_line(logged):
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("server") as span:
        headers = await headers_of(answer, scope())
    context = span.get_span_context()
    assert headers["traceresponse"] == (f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}")
    (line,) = json_lines(logged())
    assert (line["trace_id"], line["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")


async def test_without_a_trace_there_is_no_traceresponse(logged):
    assert "traceresponse" not in await headers_of(answer, scope())
    (line,) = json_lines(logged())
    assert (line["trace_id"], line["span_id"]) == (None, None)


async def test_a_call_is_named_in_the_answer(logged):
    async def app(asked: Any, _receive: Any, send: Any) -> None:
        note(asked, call_id="call-1", principal="ada")
        await answer(asked, _receive, send)

    assert (await headers_of(app, scope()))["x-tollbook-call-id"] == "call-1"
    (line,) = json_lines(logged())
    assert (line["call_id"], line["principal"]) == ("call-1", "ada")
    assert "x-tollbook-call-id" not in await headers_of(answer, scope())


async def test_the_line_has_the_route_and_not_the_path(logged):
    class Route:
        path = "/x/{number}"

    await run(answer, scope(route=Route()))
    (line,) = json_lines(logged())
    assert line["event"] == "request"
    assert (line["method"], line["route"], line["status"], line["client_ip"]) == ("GET", "/x/{number}", 200, "10.0.0.7")
    assert "/x/1" not in str(line)


async def test_a_client_without_an_address_is_logged_without_one(logged):
    await run(answer, scope(client=None))
    assert json_lines(logged())[0]["client_ip"] is None


async def test_the_line_is_written_once_and_only_when_all_was_sent_and_the_app_has_ended(logged):
    written: list[str] = []

    async def app(asked: Any, _receive: Any, send: Any) -> None:
        await send(dict(HEAD))
        await send({"type": "http.response.body", "body": b"piece", "more_body": True})
        await send(dict(END))
        written.append(logged())
        note(asked, outcome="ok")  # what is known only then is in the line too

    await run(app, scope())
    assert written == [""]
    (line,) = json_lines(logged())
    assert line["outcome"] == "ok"


async def _raise(error: BaseException) -> None:
    raise error


def broken(error: BaseException, *, after: list[Message]) -> Callable[..., Any]:
    """An app that ends like that after it sent these."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for message in after:
            await send(dict(message))
        await _raise(error)

    return app


@pytest.mark.parametrize("error", [RuntimeError("mistake"), OSError("gone"), asyncio.CancelledError()])
async def test_a_response_that_breaks_off_has_its_line_with_the_status_that_was_sent(logged, error):
    with pytest.raises(type(error)):
        await run(broken(error, after=[HEAD]), scope())
    (line,) = json_lines(logged())
    assert (line["event"], line["status"]) == ("request", 200)


async def test_a_request_cancelled_before_any_answer_is_logged_as_closed_by_the_client(logged):
    with pytest.raises(asyncio.CancelledError):
        await run(broken(asyncio.CancelledError(), after=[]), scope())
    assert json_lines(logged())[0]["status"] == 499


async def test_a_mistake_before_any_answer_is_logged_as_the_500_that_the_server_sends(logged):
    with pytest.raises(RuntimeError):
        await run(broken(RuntimeError("mistake"), after=[]), scope())
    assert json_lines(logged())[0]["status"] == 500


async def test_a_client_that_is_gone_when_something_is_sent_has_its_line(logged):
    async def send(message: Message) -> None:
        await _raise(OSError("the client is gone"))

    with pytest.raises(OSError, match="gone"):
        await RequestMiddleware(answer)(scope(), receive, send)
    assert len(json_lines(logged())) == 1


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_other_scopes_pass_untouched(logged, kind):
    asked = {"type": kind}
    seen = []

    async def app(*arguments: Any) -> None:
        seen.append(arguments)

    async def send(message: Message) -> None:
        pass

    await RequestMiddleware(app)(asked, receive, send)
    assert seen == [(asked, receive, send)]
    assert (asked, logged()) == ({"type": kind}, "")


def test_outside_a_request_notes_and_timings_do_nothing_but_asking_for_the_context_is_a_mistake():
    outside: dict[str, Any] = {}
    note(outside, principal="ada")
    with timed(outside, "auth"):
        pass
    assert outside == {}
    with pytest.raises(KeyError):
        request_context(outside)
