"""What the scripted upstream does, by the name of the model that is asked for."""

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from tests.support.rawhttp import Exchange
from tests.support.shapes import DELTAS_806, TOOL_CALL, Stream, completion, dump, error, usage_of

SLOW_FIRST_SECONDS = 0.7
CHUNK_PAUSE_SECONDS = 0.05
SLOW_CHUNKS = 400
"""With the pause: a stream of twenty seconds, which no test waits to the end of."""
BRIEF_CHUNKS = 40
"""With the pause: a stream of two seconds."""
HANG_SECONDS = 60.0
LATE_USAGE_SECONDS = 0.4
CROWD = 1000
"""Calls of the model `crowd` that are all open before the first of them is answered."""
RETRY_AFTER = "7"
UPSTREAM_MARKER = "said-by-the-upstream"
UPSTREAM_SECRET = "sk-upstream-secret-0123456789"
"""Both stand in every error body, to see which of them reach a client."""
SECRET_ANSWER = "what-the-model-said-to-one-alone"
ENDLESS_PIECE = b" " * 2**20
ENDLESS_PIECES = 256
"""A body without an end, for whoever gives up before a quarter of a gigabyte."""
BULK_PIECES = 1000
"""Of 64 KiB each: much more than sockets hold for a client that does not read."""

JSON_TYPE = {"Content-Type": "application/json"}
HTML_TYPE = {"Content-Type": "text/html; charset=utf-8"}
SSE_TYPE = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
HTML = f"<html><head><title>Trouble</title></head><body>{UPSTREAM_MARKER}</body></html>".encode()

Request = dict[str, Any]
Behaviour = Callable[[Exchange, Request], Awaitable[None]]


async def _answer(exchange: Exchange, body: bytes, headers: dict[str, str] | None = None) -> None:
    await exchange.respond(200, body, {**JSON_TYPE, "x-request-id": "req_scripted", **(headers or {})})


async def _relay(exchange: Exchange, frames: list[bytes], pause: float = 0.0) -> None:
    await exchange.open_stream(headers=SSE_TYPE)
    for frame in frames:
        await exchange.send(frame)
        if pause:
            await asyncio.sleep(pause)


async def ok(exchange: Exchange, request: Request) -> None:
    if request.get("stream"):
        await _relay(exchange, Stream(request).frames())
        await exchange.end_stream()
    else:
        await _answer(exchange, dump(completion(request["model"])))


async def slow_first(exchange: Exchange, request: Request) -> None:
    """Wait before the headers."""
    await asyncio.sleep(SLOW_FIRST_SECONDS)
    await ok(exchange, request)


async def hang(exchange: Exchange, request: Request) -> None:
    await asyncio.sleep(HANG_SECONDS)


async def paced(exchange: Exchange, request: Request, *, words: int) -> None:
    await _relay(exchange, Stream(request).frames(["tick "] * words), CHUNK_PAUSE_SECONDS)
    await exchange.end_stream()


async def hang_mid_stream(exchange: Exchange, request: Request) -> None:
    """Three deltas, then silence on an open connection."""
    await _relay(exchange, Stream(request).frames()[:4])
    await asyncio.sleep(HANG_SECONDS)


async def usage_then_hang(exchange: Exchange, request: Request) -> None:
    """All of the answer and its usage, but never the end."""
    await _relay(exchange, Stream(request).frames(done=False))
    await asyncio.sleep(HANG_SECONDS)


async def late_usage(exchange: Exchange, request: Request) -> None:
    """A pause between the finish reason and the usage."""
    *answer, usage, done = Stream(request).frames()
    await _relay(exchange, answer)
    await asyncio.sleep(LATE_USAGE_SECONDS)
    for frame in (usage, done):
        await exchange.send(frame)
    await exchange.end_stream()


async def fault(exchange: Exchange, request: Request, *, status: int) -> None:
    kind, code, param = ERRORS[status]
    message = f"{UPSTREAM_MARKER} {status}: {UPSTREAM_SECRET}"
    extra = {"Retry-After": RETRY_AFTER} if status == 429 else {}
    await exchange.respond(status, error(message, kind, code, param), {**JSON_TYPE, **extra})


ERRORS: dict[int, tuple[str, str | None, str | None]] = {
    400: ("invalid_request_error", "invalid_value", "temperature"),
    401: ("invalid_request_error", "invalid_api_key", None),
    403: ("invalid_request_error", "unsupported_country_region_territory", None),
    404: ("invalid_request_error", "model_not_found", None),
    413: ("invalid_request_error", None, None),
    422: ("invalid_request_error", None, "messages"),
    429: ("requests", "rate_limit_exceeded", None),
    500: ("server_error", None, None),
    503: ("server_error", None, None),
}
"""status -> type, code, param, as OpenAI answers."""


async def html(exchange: Exchange, request: Request, *, status: int) -> None:
    await exchange.respond(status, HTML, HTML_TYPE)


async def endless(exchange: Exchange, request: Request, *, status: int) -> None:
    await exchange.open_stream(status, JSON_TYPE)
    for _ in range(ENDLESS_PIECES):
        await exchange.send(ENDLESS_PIECE)
        exchange.received.sent.clear()
    await exchange.end_stream()


async def bulk(exchange: Exchange, request: Request) -> None:
    """A stream faster than a client that does not read."""
    stream = Stream(request)
    word = stream.frames(["w" * 2**16])[1]
    await exchange.open_stream(headers=SSE_TYPE)
    for _ in range(BULK_PIECES):
        await exchange.send(word)
        exchange.received.sent.clear()
    for frame in stream.frames([])[1:]:
        await exchange.send(frame)
    await exchange.end_stream()


async def odd_fault(exchange: Exchange, request: Request, *, body: bytes) -> None:
    """A 400 whose body JSON's writers refuse, though readers take it."""
    await exchange.respond(400, body, JSON_TYPE)


LONE_SURROGATE = b'{"error":{"message":"bad \\ud800 here","type":"invalid_request_error","param":null,"code":null}}'
NOT_A_NUMBER = b'{"error":{"message":"bad","type":"invalid_request_error","param":NaN,"code":Infinity}}'


async def error_in_200(exchange: Exchange, request: Request) -> None:
    await _answer(exchange, error(f"{UPSTREAM_MARKER} overloaded", "server_error", "overloaded"))


async def cookie(exchange: Exchange, request: Request) -> None:
    await _answer(exchange, dump(completion(request["model"])), {"Set-Cookie": "session=of-one-alone; Path=/"})


async def parts(exchange: Exchange, request: Request) -> None:
    """An answer in parts where text is usual."""
    await _answer(exchange, dump(completion(request["model"]) | {"choices": [_PARTS]}))


_PARTS = {
    "index": 0,
    "message": {"role": "assistant", "content": [{"type": "text", "text": SECRET_ANSWER}]},
    "finish_reason": "stop",
}


async def half_of_two(exchange: Exchange, request: Request, *, repeated: bool) -> None:
    """The first of two choices to its end, which may be told twice; the second breaks off."""
    *first, end = Stream(request).frames(usage=False, done=False)
    second = first[1].replace(b'"index":0', b'"index":1')
    await exchange.open_stream(headers=SSE_TYPE)
    for frame in (*first, second, end, *([end] if repeated else []), second):
        await exchange.send(frame)
    await exchange.end_stream()


async def half_json(exchange: Exchange, request: Request) -> None:
    """Announce the whole body and send half of it."""
    body = dump(completion(request["model"]))
    await exchange.respond(200, body[: len(body) // 2], {**JSON_TYPE, "Content-Length": str(len(body))})
    exchange.cut()


async def bad_json(exchange: Exchange, request: Request) -> None:
    await _answer(exchange, b'{"id": "chatcmpl-scripted", "choices": [}')


async def half_stream(exchange: Exchange, request: Request, *, end: str) -> None:
    """Four deltas, and then the connection ends: properly, without the last HTTP chunk, or with a reset."""
    await _relay(exchange, Stream(request).frames()[:5])
    if end == "chunk":
        await exchange.end_stream()
    elif end == "fin":
        exchange.cut()
    else:
        # A reset throws away what was not read, so let the reader have it first.
        await asyncio.sleep(0.2)
        exchange.reset()


async def stream_no_usage(exchange: Exchange, request: Request) -> None:
    """An upstream that does not know `stream_options`."""
    await _relay(exchange, Stream(request).frames(usage=False))
    await exchange.end_stream()


async def answer_no_usage(exchange: Exchange, request: Request) -> None:
    answer = completion(request["model"])
    del answer["usage"]
    await _answer(exchange, dump(answer))


async def no_usage(exchange: Exchange, request: Request) -> None:
    await (stream_no_usage if request.get("stream") else answer_no_usage)(exchange, request)


async def stream_806(exchange: Exchange, request: Request) -> None:
    await _relay(exchange, Stream(request).frames(["w "] * DELTAS_806))
    await exchange.end_stream()


async def stream_error_event(exchange: Exchange, request: Request) -> None:
    """An error in the middle of a stream that began with a 200."""
    trouble = b"data: " + error(f"{UPSTREAM_MARKER} overloaded", "server_error", "overloaded") + b"\n\n"
    await _relay(exchange, [*Stream(request).frames()[:4], trouble])
    await exchange.end_stream()


async def stream_error_then_silence(exchange: Exchange, request: Request) -> None:
    """The connection stays open after the error: it is the client that hangs up."""
    trouble = b"data: " + error(f"{UPSTREAM_MARKER} overloaded", "server_error", "overloaded") + b"\n\n"
    await _relay(exchange, [*Stream(request).frames()[:4], trouble])
    await asyncio.sleep(HANG_SECONDS)


async def stream_error_with_usage(exchange: Exchange, request: Request) -> None:
    """One event says both what went wrong and what it has cost."""
    said = json.loads(error(f"{UPSTREAM_MARKER} overloaded", "server_error", "overloaded"))
    trouble = b"data: " + dump({**said, "usage": usage_of(request["model"]).as_json()}) + b"\n\n"
    await _relay(exchange, [*Stream(request).frames()[:4], trouble])
    await exchange.end_stream()


async def stream_crlf(exchange: Exchange, request: Request) -> None:
    await _relay(exchange, [frame.replace(b"\n", b"\r\n") for frame in Stream(request).frames()])
    await exchange.end_stream()


async def stream_split(exchange: Exchange, request: Request, *, line_end: bytes) -> None:
    """Every byte in a write of its own, so that no frame and no character arrives whole."""
    await exchange.open_stream(headers=SSE_TYPE)
    for byte in b"".join(Stream(request).frames()).replace(b"\n", line_end):
        await exchange.send(bytes([byte]))
        await asyncio.sleep(0)
    await exchange.end_stream()


async def stream_joined(exchange: Exchange, request: Request) -> None:
    """All frames in one write."""
    await _relay(exchange, [b"".join(Stream(request).frames())])
    await exchange.end_stream()


async def stream_comments(exchange: Exchange, request: Request) -> None:
    frames = [b": connected\n\n"]
    for frame in Stream(request).frames():
        frames += [b": ping\n\n", frame]
    await _relay(exchange, frames)
    await exchange.end_stream()


async def tools(exchange: Exchange, request: Request) -> None:
    if request.get("stream"):
        await _relay(exchange, Stream(request).frames(tool=True))
        await exchange.end_stream()
    else:
        calls = [{"id": "call_1", "type": "function", "function": TOOL_CALL}]
        await _answer(exchange, dump(completion(request["model"], None, tool_calls=calls)))


async def echo(exchange: Exchange, request: Request) -> None:
    """Answer with the very text of the request body."""
    content = exchange.received.body.decode()
    if request.get("stream"):
        await _relay(exchange, Stream(request).frames([content]))
        await exchange.end_stream()
    else:
        await _answer(exchange, dump(completion(request["model"], content)))


async def gzipped(exchange: Exchange, request: Request) -> None:
    body = dump(completion(request["model"]))
    if "gzip" in exchange.received.headers.get("accept-encoding", ""):
        await _answer(exchange, gzip.compress(body), {"Content-Encoding": "gzip"})
    else:
        await _answer(exchange, body)


async def flaky(exchange: Exchange, request: Request, *, seen: set[bytes]) -> None:
    """Refuse each body once with a 503, and answer it the second time."""
    if exchange.received.body in seen:
        await ok(exchange, request)
    else:
        seen.add(exchange.received.body)
        await fault(exchange, request, status=503)


class Gate:
    """Holds every caller back until `size` of them are waiting."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting = 0
        self._open = asyncio.Event()

    async def __call__(self, exchange: Exchange, request: Request) -> None:
        self._waiting += 1
        if self._waiting >= self._size:
            self._open.set()
        await self._open.wait()
        await ok(exchange, request)


def behaviours() -> dict[str, Behaviour]:
    """A fresh table; what a behaviour remembers is its own."""
    return {
        "ok": ok,
        "slow-first": slow_first,
        "slow-chunks": partial(paced, words=SLOW_CHUNKS),
        "brief-chunks": partial(paced, words=BRIEF_CHUNKS),
        "hang": hang,
        "hang-mid-stream": hang_mid_stream,
        "usage-then-hang": usage_then_hang,
        "late-usage": late_usage,
        **{f"error-{status}": partial(fault, status=status) for status in ERRORS},
        "html-200": partial(html, status=200),
        "html-502": partial(html, status=502),
        "endless-200": partial(endless, status=200),
        "endless-500": partial(endless, status=500),
        "bulk": bulk,
        "error-400-surrogate": partial(odd_fault, body=LONE_SURROGATE),
        "error-400-nan": partial(odd_fault, body=NOT_A_NUMBER),
        "error-in-200": error_in_200,
        "cookie": cookie,
        "parts": parts,
        "half-of-two": partial(half_of_two, repeated=False),
        "half-of-two-repeated": partial(half_of_two, repeated=True),
        "silent": hang,
        "stream-error-then-silence": stream_error_then_silence,
        "stream-error-with-usage": stream_error_with_usage,
        "half-json": half_json,
        "bad-json": bad_json,
        "half-stream": partial(half_stream, end="fin"),
        "half-stream-clean": partial(half_stream, end="chunk"),
        "reset-mid-stream": partial(half_stream, end="rst"),
        "no-usage": no_usage,
        "stream-usage-zero": ok,
        "stream-cached-reasoning": ok,
        "stream-806": stream_806,
        "stream-error-event": stream_error_event,
        "stream-crlf": stream_crlf,
        "stream-split": partial(stream_split, line_end=b"\n"),
        "stream-crlf-split": partial(stream_split, line_end=b"\r\n"),
        "stream-joined": stream_joined,
        "stream-comments": stream_comments,
        "tools": tools,
        "echo": echo,
        "gzip": gzipped,
        "crowd": Gate(CROWD),
        "flaky": partial(flaky, seen=set()),
    }
