"""Who counted the tokens, and when a cost is known: nothing is made up."""

from decimal import Decimal

import pytest

from observability.entry import Entry, Outcome, Usage, UsageSource
from tests.observability.kit import Desk, attributes

CUT_SHORT = [outcome for outcome in Outcome if outcome is not Outcome.OK]


def closed(desk: Desk, outcome: Outcome, *, usage: Usage | None = None, deltas: int = 0) -> Entry:
    call = desk.open_call(cost="0.5")
    if deltas:
        call.record_chunks(deltas + 1, deltas)
    call.usage = usage
    call.close(outcome, http_status=200)
    (row,) = desk.entries
    return row


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.CLIENT_DISCONNECT, Outcome.UPSTREAM_TRUNCATED])
def test_what_the_upstream_said_stands_whatever_came_after(desk, outcome):
    row = closed(desk, outcome, usage=Usage(7, 5), deltas=806)
    assert (row.input_tokens, row.output_tokens, row.usage_source) == (7, 5, UsageSource.PROVIDER)
    assert row.cost_usd == Decimal("0.5")


def test_an_explicit_zero_is_the_providers_word_and_not_an_absence(desk):
    row = closed(desk, Outcome.OK, usage=Usage(0, 0, 0, 0), deltas=3)
    assert (row.input_tokens, row.output_tokens, row.usage_source) == (0, 0, UsageSource.PROVIDER)
    assert row.cost_usd == Decimal("0.5")
    said = attributes(desk.call_span())
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (0, 0)
    assert desk.total("gen_ai_client_token_usage_count") == 2
    assert ("tollbook_tokens_total", frozenset({"model": "small", "type": "output", "usage_source": "provider"}.items())) in desk.samples()  # fmt: skip # noqa: E501


@pytest.mark.parametrize("outcome", CUT_SHORT)
def test_a_stream_cut_short_without_usage_counts_what_went_by(desk, outcome):
    row = closed(desk, outcome, deltas=806)
    assert (row.input_tokens, row.output_tokens, row.usage_source) == (None, 806, UsageSource.PARTIAL)
    assert (row.cost_usd, row.price_version) == (None, "")
    assert attributes(desk.call_span())["gen_ai.usage.output_tokens"] == 806
    assert desk.total("tollbook_tokens_total", type="output", usage_source="partial") == 806
    assert desk.total("tollbook_principal_tokens_total") == 806
    # The convention's histogram is of billable tokens, and nobody bills a partial count.
    assert desk.total("gen_ai_client_token_usage_count") == 0


def test_a_whole_answer_without_usage_is_unknown_and_not_estimated(desk):
    row = closed(desk, Outcome.OK, deltas=806)
    assert (row.input_tokens, row.output_tokens, row.usage_source) == (None, None, UsageSource.UNKNOWN)
    assert row.cost_usd is None
    said = attributes(desk.call_span())
    assert not any(name.startswith("gen_ai.usage.") for name in said)
    assert said["tollbook.usage_source"] == "unknown"
    assert desk.total("tollbook_tokens_total") == desk.total("tollbook_cost_usd_total") == 0


@pytest.mark.parametrize("outcome", CUT_SHORT)
def test_a_call_cut_short_before_any_output_is_unknown(desk, outcome):
    assert closed(desk, outcome).usage_source is UsageSource.UNKNOWN


def test_half_a_usage_is_reported_as_half(desk):
    row = closed(desk, Outcome.OK, usage=Usage(input_tokens=7))
    assert (row.input_tokens, row.output_tokens, row.usage_source) == (7, None, UsageSource.PROVIDER)
    assert "gen_ai.usage.output_tokens" not in attributes(desk.call_span())
    assert desk.total("tollbook_tokens_total") == 7


def test_a_call_without_a_price_has_no_cost_and_no_price_version(desk):
    call = desk.open_call()
    call.usage = Usage(7, 5)
    call.close(Outcome.OK, http_status=200)
    (row,) = desk.entries
    assert (row.cost_usd, row.price_version, desk.request.fields["cost_usd"]) == (None, "", None)
    assert desk.total("tollbook_cost_usd_total") == 0


def test_a_call_that_costs_nothing_costs_zero(desk):
    call = desk.open_call(cost="0.0000000000")
    call.usage = Usage(7, 5)
    call.close(Outcome.OK, http_status=200)
    assert (desk.entries[0].cost_usd, desk.request.fields["cost_usd"]) == (Decimal(0), "0.0000000000")


def test_tokens_and_cost_of_a_caller_nobody_knows_are_no_principals(desk):
    call = desk.open_call(principal="", cost="0.5")
    call.usage = Usage(7, 5)
    call.close(Outcome.OK, http_status=200)
    assert desk.total("tollbook_tokens_total") == 12
    assert desk.total("tollbook_principal_tokens_total") == desk.total("tollbook_principal_cost_usd_total") == 0
