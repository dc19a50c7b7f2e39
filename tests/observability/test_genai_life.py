"""A call while it lives: gauges, attempts, clocks, stalls, and waiting for it at shutdown."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.trace import SpanKind, StatusCode

from observability.attempt import AttemptResult
from observability.entry import Outcome
from observability.ids import time_ordered_id
from tests.observability.kit import MODEL, STALL_SECONDS, UPSTREAM, attempt, attributes

GAUGES = ("tollbook_calls_in_flight", "tollbook_streams_in_flight")


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("stream", [True, False])
def test_gauges_go_up_with_a_call_and_back_to_zero_however_it_ends(desk, outcome, stream):
    call = desk.open_call(stream=stream)
    assert [desk.total(name, model=MODEL) for name in GAUGES] == [1, int(stream)]
    assert desk.books.open_calls == 1
    call.close(outcome, http_status=200)
    call.close(outcome, http_status=200)
    assert [desk.total(name, model=MODEL) for name in GAUGES] == [0, 0]
    assert desk.books.open_calls == 0


def test_a_wall_clock_that_is_stepped_back_cannot_end_a_call_before_it_began(desk, monkeypatch):
    class SteppedBack(datetime):
        hours = 0

        @classmethod
        def now(cls, tz=None):
            cls.hours += 1
            return datetime(2026, 3, 1, 12, tzinfo=UTC) - timedelta(hours=cls.hours)

    monkeypatch.setattr("observability.genai.datetime", SteppedBack)
    desk.open_call().close(Outcome.OK, http_status=200)
    (row,) = desk.entries
    assert row.ended_at >= row.started_at
    assert (row.ended_at - row.started_at) / timedelta(milliseconds=1) == pytest.approx(row.duration_ms, abs=0.01)
    assert desk.total("gen_ai_client_operation_duration_seconds_sum") >= 0


def test_an_attempt_is_a_client_span_below_the_call_and_carries_its_trace_on(desk):
    token = context.attach(baggage.set_baggage("secret", "of the client"))
    try:
        call = desk.open_call()
        sent = attempt(call)
    finally:
        context.detach(token)
    sent.answered(200)
    call.close(Outcome.OK, http_status=200)
    (span,) = desk.spans(SpanKind.CLIENT)
    parent = desk.call_span().get_span_context()
    assert span.context is not None
    assert span.parent is not None
    assert parent is not None
    assert (span.parent.span_id, span.context.trace_id) == (parent.span_id, parent.trace_id)
    assert sent.headers["traceparent"].split("-")[1:3] == [f"{parent.trace_id:032x}", f"{span.context.span_id:016x}"]
    assert "baggage" not in sent.headers
    assert span.name == "POST /v1/chat/completions"
    said = attributes(span)
    assert (said["server.address"], said["server.port"], said["http.response.status_code"]) == ("127.0.0.1", 8080, 200)
    assert "http.request.resend_count" not in said


def test_the_call_span_is_a_child_of_the_span_around_it(desk):
    with desk.tracer.start_as_current_span("server") as server:
        call = desk.open_call()
        assert trace.get_current_span() is server  # nothing is left attached
    call.close(Outcome.OK, http_status=200)
    span = next(span for span in desk.spans(SpanKind.INTERNAL) if span.name == f"chat {MODEL}")
    assert span.parent is not None
    assert span.parent.span_id == server.get_span_context().span_id


def test_retries_are_counted_each_with_its_own_result_and_number(desk):
    call = desk.open_call()
    attempt(call).answered(500)
    attempt(call).answered(429)
    attempt(call).end(AttemptResult.CONNECTION_ERROR, error_type="ConnectError")
    attempt(call).answered(200)
    call.close(Outcome.OK, http_status=200)
    for result in ("server_error", "rate_limited", "connection_error", "ok"):
        assert desk.total("tollbook_upstream_attempts_total", upstream=UPSTREAM, model=MODEL, result=result) == 1
    spans = desk.spans(SpanKind.CLIENT)
    assert [attributes(span).get("http.request.resend_count") for span in spans] == [None, 1, 2, 3]
    assert [attributes(span).get("error.type") for span in spans] == ["500", "429", "ConnectError", None]
    assert desk.entries[0].attempts == desk.request.fields["attempts"] == 4


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (Outcome.OK, "ok"),
        (Outcome.CLIENT_DISCONNECT, "cancelled"),
        (Outcome.CANCELLED_SHUTDOWN, "cancelled"),
        (Outcome.UPSTREAM_TIMEOUT, "timeout"),
        (Outcome.UPSTREAM_TRUNCATED, "truncated"),
        (Outcome.UPSTREAM_ERROR, "server_error"),
    ],
)
def test_an_attempt_still_open_at_the_end_ends_as_the_call_did(desk, outcome, result):
    call = desk.open_call()
    attempt(call).answered(200)
    call.close(outcome, http_status=200)
    (span,) = desk.spans(SpanKind.CLIENT)
    assert desk.total("tollbook_upstream_attempts_total", result=result) == 1
    assert attributes(span).get("error.type", "ok") == result
    is_error = result not in {"ok", "cancelled"}
    assert span.status.status_code is (StatusCode.ERROR if is_error else StatusCode.UNSET)


@pytest.mark.parametrize(
    ("status", "result"),
    [
        (200, "ok"),
        (302, "ok"),
        (400, "client_error"),
        (404, "client_error"),
        (429, "rate_limited"),
        (503, "server_error"),
    ],
)
def test_what_a_status_means_for_an_attempt(status, result):
    assert AttemptResult.of_status(status) == result


def test_a_gap_over_the_limit_is_a_stall_and_one_below_is_not(desk, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("observability.genai.time.perf_counter", lambda: now[0])
    call = desk.open_call()
    for seconds in (60.0, STALL_SECONDS, STALL_SECONDS + 0.01):  # waiting for the first chunk is no gap
        now[0] += seconds
        call.record_chunks(1, 1)
    assert desk.total("tollbook_stream_stalls_total", model=MODEL) == 1
    assert desk.total("gen_ai_client_operation_time_to_first_chunk_seconds_sum") == 60
    assert desk.total("gen_ai_client_operation_time_per_output_chunk_seconds_sum") == pytest.approx(
        2 * STALL_SECONDS + 0.01
    )


async def test_waiting_ends_with_the_last_open_call(desk):
    calls = [desk.open_call() for _ in range(3)]
    waiting = asyncio.create_task(desk.books.wait_until_closed(60))
    for call in calls:
        await asyncio.sleep(0)
        assert not waiting.done()
        call.close(Outcome.CANCELLED_SHUTDOWN, http_status=503)
    async with asyncio.timeout(30):
        await waiting


async def test_waiting_without_open_calls_ends_at_once(desk):
    async with asyncio.timeout(30):
        await desk.books.wait_until_closed(3600)


async def test_waiting_gives_up_after_its_limit_and_leaves_nothing_running(desk):
    desk.open_call()
    before = asyncio.all_tasks()
    async with asyncio.timeout(30):
        await desk.books.wait_until_closed(0.01)
    assert desk.books.open_calls == 1
    assert asyncio.all_tasks() == before


def test_ids_sort_by_time_and_are_version_7(monkeypatch):
    first = time_ordered_id()
    monkeypatch.setattr("observability.ids.time.time_ns", lambda: 4_102_444_800_000_000_000)  # the year 2100
    later = [time_ordered_id() for _ in range(100)]
    assert all(first < each for each in later)
    assert len(set(later)) == 100
    assert {(each[14], each[19] in "89ab") for each in later} == {("7", True)}
