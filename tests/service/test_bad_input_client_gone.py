"""A client that goes away: the upstream's call is cancelled at once, and what was spent is in the books."""

import json
import socket
import time

import pytest

from tests.support.calls import CHAT, chat, headers, open_call, read_until
from tests.support.scripts import SLOW_CHUNKS
from tests.support.shapes import usage_of
from tests.support.waiting import eventually

PROVIDER = (usage_of("ok").prompt, usage_of("ok").completion, "provider")
USAGE_ASKED = {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_gone_before_the_answer_began(service, upstream, books, stream, marker):
    with open_call(service, "slow-first", marker, stream=stream):
        received = upstream.wait_request(marker)
    assert received.cancelled.wait(10)
    assert not received.sent
    record = books.record(marker)
    assert (record.outcome, record.row["http_status"]) == ("client_disconnect", 499)
    assert record.tokens == (None, None, "unknown")


def test_gone_while_a_whole_answer_is_made(service, upstream, books, marker):
    with open_call(service, "hang", marker):
        received = upstream.wait_request(marker)
    assert received.cancelled.wait(10)
    assert books.record(marker).outcome in {"client_disconnect", "upstream_timeout"}


def test_gone_in_mid_stream(service, upstream, books, marker):
    with open_call(service, "slow-chunks", marker, stream=True) as sock:
        read_until(sock, b'"content":"tick "', 3)
    received = upstream.wait_request(marker)
    assert received.cancelled.wait(10)
    assert received.events_sent < SLOW_CHUNKS
    record = books.record(marker)
    assert record.outcome == "client_disconnect"
    given, taken, source = record.tokens
    assert (given, source) == (None, "partial")
    assert taken is not None
    assert 3 <= taken <= received.events_sent
    assert record.row["cost_usd"] is None


@pytest.mark.parametrize("asked", [{}, USAGE_ASKED], ids=["not asked", "asked"])
def test_gone_when_all_was_said_but_the_end(service, upstream, books, asked, marker):
    """The usage came in the last frame, and the client left before `[DONE]`: the count is kept."""
    with open_call(service, "usage-then-hang", marker, stream=True, **asked) as sock:
        read_until(sock, b'"choices":[],"usage":{' if asked else b'"finish_reason":"stop"')
        received = upstream.wait_request(marker)
        eventually(lambda: b'"choices":[]' in received.sent, "the usage chunk to be sent")
        time.sleep(0.3)  # not waited for in vain: it lets the service read what the upstream has sent
    assert received.cancelled.wait(10)
    record = books.record(marker)
    assert (record.outcome, record.tokens) == ("client_disconnect", PROVIDER)


def test_gone_at_the_last_word_when_usage_is_moments_away(service, books, marker):
    with open_call(service, "late-usage", marker, stream=True) as sock:
        read_until(sock, b'"finish_reason":"stop"')
    record = books.record(marker)
    assert record.outcome in {"ok", "client_disconnect"}
    assert record.tokens == PROVIDER


@pytest.mark.parametrize("attempt", range(5))
def test_gone_just_after_the_end(service, books, attempt, marker):
    with open_call(service, "ok", marker, stream=True) as sock:
        read_until(sock, b"data: [DONE]")
    record = books.record(marker)
    assert (record.outcome, record.tokens) == ("ok", PROVIDER)


def test_gone_with_a_reset(service, upstream, books, marker):
    with open_call(service, "slow-chunks", marker, stream=True) as sock:
        read_until(sock, b'"content":"tick "')
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    assert upstream.wait_request(marker).cancelled.wait(10)
    assert books.record(marker).outcome == "client_disconnect"


def test_gone_in_the_middle_of_its_own_body(service, upstream, marker):
    sent = {**headers(service, marker), "Host": "127.0.0.1", "Content-Length": "1000"}
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    content = json.dumps({"model": "ok", "messages": [{"role": "user", "content": marker}]})[:-2]
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as sock:
        sock.sendall(f"POST {CHAT} HTTP/1.1\r\n{head}\r\n{content}".encode())
    assert service.wait_line(request_id=marker)["status"] in {400, 408, 499}
    assert upstream.requests(marker) == []


def test_a_stream_nobody_reads_does_not_stop_the_others(service, upstream, marker):
    with open_call(service, "slow-chunks", marker, stream=True):
        upstream.wait_request(marker)
        assert chat(service, "ok", f"{marker}-other").status_code == 200
    assert upstream.wait_request(marker).cancelled.wait(10)


def test_nothing_is_left_in_flight(service):
    """After all that leaving, the gauges are back at nothing."""

    gauges = ("tollbook_calls_in_flight", "tollbook_streams_in_flight")
    eventually(lambda: all(service.metric(name) == 0 for name in gauges), "nothing to be in flight")
