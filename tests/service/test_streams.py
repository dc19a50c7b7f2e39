"""Streams are relayed as the bytes that came; the final usage is always got, and hidden from who did not ask."""

import json
import re
from typing import Any

import httpx2
import openai
import pytest

from tests.support.calls import CHAT, body, chat, headers, open_call, post, read_until
from tests.support.catalog import ALIAS, cost_of
from tests.support.scripts import BRIEF_CHUNKS
from tests.support.shapes import ANSWER, DELTAS_806, TOOL_CALL, WORDS, usage_of

MODELS = [
    "ok",
    "stream-crlf",
    "stream-split",
    "stream-crlf-split",
    "stream-joined",
    "stream-comments",
    "stream-usage-zero",
    "stream-cached-reasoning",
    "stream-806",
    "tools",
]
TRUNCATED = ["half-stream", "half-stream-clean", "reset-mid-stream"]
USAGE_ASKED = {"stream_options": {"include_usage": True}}
USAGE_FRAME = re.compile(rb'data: \{[^\n]*"choices":\[\],"usage":\{[^\n]*\}\r?\n\r?\n')


def events(content: bytes) -> list[Any]:
    """The data of a stream's events, `[DONE]` as it is."""
    data = [line[6:] for line in content.decode().splitlines() if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


@pytest.mark.parametrize("model", MODELS)
def test_a_client_that_did_not_ask_for_usage_gets_the_upstreams_bytes_but_that_chunk(service, upstream, model, marker):
    answer = chat(service, model, marker, stream=True)
    sent = bytes(upstream.wait_request(marker).sent)
    expected, hidden = USAGE_FRAME.subn(b"", sent)
    assert hidden == 1
    assert answer.content == expected
    assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("model", MODELS)
def test_a_client_that_asked_for_usage_gets_every_byte(service, upstream, model, marker):
    answer = chat(service, model, marker, stream=True, **USAGE_ASKED)
    assert answer.content == bytes(upstream.wait_request(marker).sent)


@pytest.mark.parametrize("options", [{}, {"include_usage": False}, {"include_obfuscation": False}])
def test_usage_is_asked_for_whatever_the_client_says(service, upstream, options, marker):
    chat(service, "ok", marker, stream=True, stream_options=options)
    asked = json.loads(upstream.wait_request(marker).body)
    assert asked["stream_options"] == {**options, "include_usage": True}


def test_usage_is_not_asked_for_where_there_is_no_stream(service, upstream, marker):
    chat(service, "ok", marker)
    assert json.loads(upstream.wait_request(marker).body) == body("ok", marker)


@pytest.mark.parametrize("asked", [{}, USAGE_ASKED], ids=["not asked", "asked"])
@pytest.mark.parametrize("model", MODELS)
def test_the_books_have_the_upstreams_count(service, books, model, asked, marker):
    chat(service, model, marker, stream=True, **asked)
    record, usage = books.record(marker), usage_of(model)
    assert record.outcome == "ok"
    assert record.tokens == (usage.prompt, usage.completion, "provider")
    assert (record.row["cached_input_tokens"], record.row["reasoning_tokens"]) == (usage.cached, usage.reasoning)
    assert record.row["cost_usd"] == cost_of(usage)


def test_a_whole_stream_without_usage_is_not_booked_as_the_providers_count(service, books, marker):
    chat(service, "no-usage", marker, stream=True)
    record = books.record(marker)
    assert (record.outcome, record.row["cost_usd"]) == ("ok", None)
    assert record.row["usage_source"] in {"partial", "unknown"}
    assert record.row["output_tokens"] in {None, len(WORDS)}


async def test_the_sdk_reads_the_answer_and_the_tool_call(openai_client, marker):
    async def stream(model):
        return [c async for c in await openai_client.chat.completions.create(**body(model, marker, stream=True))]

    for model in ("ok", "stream-split", "stream-crlf-split", "stream-crlf", "stream-joined", "stream-comments"):
        chunks = await stream(model)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
        assert all(chunk.choices for chunk in chunks)
    calls = [call for chunk in await stream("tools") for call in chunk.choices[0].delta.tool_calls or []]
    assert "".join(call.function.arguments or "" for call in calls) == TOOL_CALL["arguments"]


@pytest.mark.parametrize(
    "model", ["ok", "stream-split", "stream-crlf-split", "stream-crlf", "stream-joined", "stream-comments"]
)
def test_plain_text_comes_out_whole_however_it_was_cut(service, model, marker):
    answer = post(service, marker, json.dumps({"question": marker, "model": model}).encode(), "/stream")
    assert answer.content.decode() == ANSWER
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", [CHAT, "/stream"])
def test_the_first_piece_is_on_its_way_while_the_upstream_still_writes(service, books, upstream, path, marker):
    content = body("brief-chunks", marker, stream=True)
    if path == "/stream":
        content = {"model": "brief-chunks", "question": marker}
    with httpx2.stream(
        "POST", service.base_url + path, json=content, headers=headers(service, marker), timeout=30
    ) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        assert upstream.wait_request(marker).events_sent < BRIEF_CHUNKS
        for _ in pieces:
            pass
    record = books.record(marker)
    assert record.row["ttft_ms"] < record.row["duration_ms"] / 2
    assert record.line["chunks"] >= BRIEF_CHUNKS


def test_806_deltas_are_not_one_token(service, books, marker):
    chat(service, "stream-806", marker, stream=True)
    record = books.record(marker)
    assert (record.row["output_tokens"], record.line["chunks"] >= DELTAS_806) == (DELTAS_806, True)


@pytest.mark.parametrize("model", TRUNCATED)
def test_a_client_is_told_that_the_upstream_cut_the_stream_short(service, books, model, marker):
    answer = chat(service, model, marker, stream=True)
    *deltas, last = events(answer.content)
    assert answer.status_code == 200
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in deltas) == "".join(WORDS[:4])
    assert set(last["error"]) == {"message", "type", "param", "code"}
    record = books.record(marker)
    assert (record.outcome, record.tokens) == ("upstream_truncated", (None, 4, "partial"))


@pytest.mark.parametrize("model", [*TRUNCATED, "hang-mid-stream", "stream-error-event"])
async def test_the_sdk_raises_when_a_stream_breaks(openai_client, model, marker):
    stream = await openai_client.chat.completions.create(**body(model, marker, stream=True))
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass


@pytest.mark.parametrize(
    ("model", "outcome"), [("hang-mid-stream", "upstream_timeout"), ("stream-error-event", "upstream_error")]
)
def test_trouble_in_mid_stream_is_told_and_booked(service, books, model, outcome, marker):
    answer = chat(service, model, marker, stream=True)
    assert "[DONE]" not in answer.text
    assert "error" in events(answer.content)[-1]
    assert sum("error" in event for event in events(answer.content)) == 1
    record = books.record(marker)
    assert (record.outcome, record.row["usage_source"]) == (outcome, "partial")


def test_a_text_stream_that_breaks_does_not_end_as_if_it_were_whole(service, books, marker):
    content = json.dumps({"question": marker, "model": "half-stream"}).encode()
    try:
        answer = post(service, marker, content, "/stream")
    except httpx2.RemoteProtocolError:
        pass
    else:
        raise AssertionError(f"nothing told the client that this is not all: {answer.text!r}")
    assert books.record(marker).outcome == "upstream_truncated"


def test_a_stream_over_a_bare_socket_is_framed_as_http_says(service, marker):
    with open_call(service, "ok", marker, stream=True) as sock:
        received = read_until(sock, b"\r\n0\r\n\r\n")
    head = received.split(b"\r\n\r\n")[0].lower()
    assert b"transfer-encoding: chunked" in head
    assert b"content-length" not in head


EVERYTHING = {
    "temperature": 0.1,
    "seed": 2**53 + 1,
    "logit_bias": {"50256": -100},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {}}},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    "parallel_tool_calls": False,
    "metadata": {"k": "\u2603 \U0001f600"},
    "field_of_the_future": {"deep": [1, 1.5, None, {"x": "\u0000"}]},
    "null_field": None,
}
PARTS = [
    {"type": "text", "text": "look"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
    {"type": "part_of_the_future", "payload": [{}]},
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_every_field_reaches_the_upstream_known_or_not(service, upstream, stream, marker):
    messages = [{"role": "system", "content": marker}, {"role": "user", "content": PARTS, "of_the_future": 1}]
    fields = {**EVERYTHING, "messages": messages, "stream": stream}
    assert chat(service, ALIAS, marker, **fields).status_code == 200
    asked = json.loads(upstream.wait_request(marker).body)
    expected = {**fields, "model": "echo"} | (USAGE_ASKED if stream else {})
    assert asked == expected


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_upstream_is_told_of_the_trace(service, upstream, otlp, stream, marker):
    """Its parent is the span of the attempt, and a client's baggage is not its business."""
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    content = json.dumps(body("ok", marker, stream=stream)).encode()
    post(service, marker, content, traceparent=parent, baggage="user=somebody")
    received = upstream.wait_request(marker)
    _, trace_id, span_id, _ = received.headers["traceparent"].split("-")
    attempt = otlp.wait_for(lambda span: span.span_id == span_id)
    assert (attempt.kind, attempt.trace_id, trace_id) == ("CLIENT", trace_id, "4bf92f3577b34da6a3ce929d0e0e4736")
    assert "baggage" not in received.headers
