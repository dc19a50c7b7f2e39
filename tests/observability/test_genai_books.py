"""The four books of a call: written once, from the same numbers, whatever the outcome."""

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from observability.context import RequestContext
from observability.entry import Outcome, Usage, UsageSource
from observability.genai import UNKNOWN_MODEL, Call, Caller
from tests.observability.kit import MODEL, PRINCIPAL, UPSTREAM, Desk, attempt, attributes

USAGE = Usage(input_tokens=70, output_tokens=50, cached_input_tokens=20, reasoning_tokens=10)
COUNTS = {"input": 70, "output": 50, "cached_input": 20, "reasoning": 10}


def made(desk: Desk, outcome: Outcome) -> Call:
    """A call with everything: attempts, chunks, usage, a price."""
    call = desk.open_call(cost="0.0000123000")
    attempt(call)
    call.record_chunks(2, 1)
    call.record_chunks(1, 1)
    call.usage = USAGE
    call.response_model = MODEL
    call.finish_reasons = ("stop",)
    call.close(outcome, http_status=200, error_type="" if outcome is Outcome.OK else "why")
    return call


@pytest.mark.parametrize("outcome", Outcome)
def test_the_four_books_say_the_same_of_each_outcome(desk, outcome):
    call = made(desk, outcome)
    (row,) = desk.entries
    span, line = attributes(desk.call_span()), desk.request.fields

    assert row.outcome == span["tollbook.outcome"] == line["outcome"] == outcome
    assert desk.total("tollbook_calls_total") == desk.total("tollbook_calls_total", model=MODEL, outcome=outcome) == 1
    assert row.call_id == span["tollbook.call_id"] == line["call_id"] == call.call_id
    assert row.model == span["gen_ai.request.model"] == line["model"] == MODEL
    assert row.upstream == span["tollbook.upstream"] == line["upstream"] == UPSTREAM
    assert row.input_tokens == span["gen_ai.usage.input_tokens"] == line["input_tokens"] == 70
    assert row.output_tokens == span["gen_ai.usage.output_tokens"] == line["output_tokens"] == 50
    assert row.cached_input_tokens == span["gen_ai.usage.cache_read.input_tokens"] == 20
    assert row.reasoning_tokens == span["gen_ai.usage.reasoning.output_tokens"] == 10
    assert row.usage_source == span["tollbook.usage_source"] == line["usage_source"] == UsageSource.PROVIDER
    assert row.attempts == line["attempts"] == len(desk.spans(SpanKind.CLIENT)) == 1
    assert desk.total("tollbook_upstream_attempts_total") == 1
    assert row.principal == span["enduser.id"] == PRINCIPAL
    assert row.request_id == span["tollbook.request_id"] == desk.request.request_id
    context = desk.call_span().get_span_context()
    assert context is not None
    assert row.trace_id == f"{context.trace_id:032x}"
    assert (row.stream, line["chunks"]) == (span["gen_ai.request.stream"], 3)

    for kind, count in COUNTS.items():
        assert desk.total("tollbook_tokens_total", type=kind, model=MODEL, usage_source="provider") == count
    assert desk.total("tollbook_tokens_total") == sum(COUNTS.values())
    assert desk.total("gen_ai_client_token_usage_sum", gen_ai_token_type="input") == 70
    assert desk.total("gen_ai_client_token_usage_sum", gen_ai_token_type="output") == 50
    assert desk.total("tollbook_principal_tokens_total", principal=PRINCIPAL) == 120

    assert line["cost_usd"] == "0.0000123000" == f"{row.cost_usd:f}"
    assert desk.total("tollbook_cost_usd_total", model=MODEL) == pytest.approx(0.0000123)
    assert desk.total("tollbook_principal_cost_usd_total", principal=PRINCIPAL) == pytest.approx(0.0000123)
    assert row.price_version == "2026-01"

    assert desk.total("gen_ai_client_operation_duration_seconds_count") == 1
    assert desk.total("gen_ai_client_operation_duration_seconds_sum") == pytest.approx(row.duration_ms / 1000)
    assert (
        row.ttft_ms
        == line["ttft_ms"]
        == pytest.approx(desk.total("gen_ai_client_operation_time_to_first_chunk_seconds_sum") * 1000, abs=0.001)
    )
    assert span["gen_ai.response.time_to_first_chunk"] * 1000 == pytest.approx(row.ttft_ms, abs=0.001)
    assert desk.total("gen_ai_client_operation_time_per_output_chunk_seconds_count") == 2  # gaps between 3 chunks


@pytest.mark.parametrize("outcome", Outcome)
def test_an_error_type_is_on_the_span_and_in_the_metrics_and_never_on_a_call_that_went_well(desk, outcome):
    made(desk, outcome)
    span = desk.call_span()
    said = "" if outcome is Outcome.OK else "why"
    assert attributes(span).get("error.type", "") == said
    assert desk.total("gen_ai_client_operation_duration_seconds_count", error_type=said) == 1
    blameless = outcome in {Outcome.OK, Outcome.CLIENT_DISCONNECT}  # who leaves early is not an error of the service
    assert span.status.status_code is (StatusCode.UNSET if blameless else StatusCode.ERROR)


def test_without_a_better_word_the_error_type_is_the_outcome(desk):
    desk.open_call().close(Outcome.UPSTREAM_TIMEOUT, http_status=504)
    assert attributes(desk.call_span())["error.type"] == "upstream_timeout"


@pytest.mark.parametrize("second", [Outcome.OK, Outcome.UPSTREAM_ERROR, Outcome.CLIENT_DISCONNECT])
def test_a_second_close_changes_nothing_in_any_book(desk, second):
    call = made(desk, Outcome.UPSTREAM_TRUNCATED)
    spans = desk.exporter.get_finished_spans()
    before = (list(desk.entries), desk.samples(), dict(desk.request.fields), [dict(attributes(s)) for s in spans])

    call.usage = Usage(input_tokens=1, output_tokens=1)
    call.close(second, http_status=500, error_type="other")

    spans = desk.exporter.get_finished_spans()
    after = (list(desk.entries), desk.samples(), dict(desk.request.fields), [dict(attributes(s)) for s in spans])
    assert after == before


def test_a_call_is_in_no_book_but_the_gauges_until_it_is_closed(desk):
    desk.open_call()
    assert desk.entries == []
    assert desk.exporter.get_finished_spans() == ()
    assert desk.total("tollbook_calls_total") == 0


@pytest.mark.parametrize("outcome", [Outcome.REJECTED_AUTH, Outcome.REJECTED_INVALID, Outcome.REJECTED_LIMIT])
def test_a_refused_call_is_in_all_the_books_without_an_upstream(desk, outcome):
    call = desk.books.refuse_call(desk.request, Caller(), outcome, operation="chat", http_status=401)
    (row,) = desk.entries
    span = attributes(desk.call_span())
    assert call.is_closed
    assert (row.outcome, row.http_status, row.model, row.upstream, row.principal) == (
        outcome, 401, UNKNOWN_MODEL, "", "",
    )  # fmt: skip
    assert (row.usage_source, row.cost_usd, row.attempts, row.ttft_ms) == (UsageSource.UNKNOWN, None, 0, None)
    assert (span["tollbook.outcome"], span["gen_ai.request.model"]) == (outcome, UNKNOWN_MODEL)
    assert "tollbook.upstream" not in span
    assert "gen_ai.provider.name" not in span
    assert "enduser.id" not in span
    assert (desk.request.fields["outcome"], desk.request.fields["call_id"]) == (outcome, row.call_id)
    assert desk.total("tollbook_calls_total", model=UNKNOWN_MODEL, outcome=outcome) == 1
    # No upstream was asked, so there was no GenAI operation that took time.
    assert desk.total("gen_ai_client_operation_duration_seconds_count") == 0


def test_a_refusal_names_who_and_what_when_it_is_known(desk):
    desk.books.refuse_call(
        desk.request,
        Caller("bob", "password"),
        Outcome.REJECTED_BUDGET,
        operation="chat",
        http_status=429,
        model=MODEL,
        stream=True,
    )
    (row,) = desk.entries
    assert (row.principal, row.auth_method, row.model, row.stream) == ("bob", "password", MODEL, True)
    assert desk.total("tollbook_streams_in_flight") == 0


def test_two_calls_of_one_worker_stay_apart(desk):
    first, second = desk.open_call(), desk.open_call(stream=False)
    first.usage, second.usage = Usage(1, 2), Usage(10, 20)
    second.close(Outcome.OK, http_status=200)
    first.close(Outcome.UPSTREAM_ERROR, http_status=502)
    assert [(row.call_id, row.input_tokens) for row in desk.entries] == [(second.call_id, 10), (first.call_id, 1)]
    assert first.call_id != second.call_id


def test_time_before_the_upstream_is_told_by_stage_and_the_rest_is_the_route(desk):
    desk.request = RequestContext("slow", started=0.0, timings={"auth": 0.25, "limits": 0.5})
    desk.open_call()
    assert desk.total("tollbook_overhead_seconds_sum", stage="auth") == 0.25
    assert desk.total("tollbook_overhead_seconds_sum", stage="limits") == 0.5
    assert desk.total("tollbook_overhead_seconds_count") == 3
