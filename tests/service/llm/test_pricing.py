from dataclasses import dataclass
from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.llm.pricing import Price, cost


@dataclass(frozen=True, slots=True)
class Usage:
    input_tokens: int | None = 0
    output_tokens: int | None = 0
    cached_input_tokens: int | None = 0
    reasoning_tokens: int | None = 0


PRICE = Price(version="2026-11-01", input=Decimal("0.15"), output=Decimal("0.60"), cached_input=Decimal("0.075"))

amounts = st.decimals(min_value=0, max_value=999_999, places=4)
prices = st.builds(Price, version=st.just("v1"), input=amounts, output=amounts, cached_input=st.none() | amounts)
counts = st.integers(min_value=0, max_value=2**62)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    cached, uncached, reasoning, visible = (draw(counts) for _ in range(4))
    return Usage(cached + uncached, reasoning + visible, cached, reasoning)


def paid(price: Price, usage: Usage) -> Decimal:
    amount = cost(price, usage)
    assert amount is not None
    return amount


def test_cached_input_is_part_of_input_and_has_its_own_price():
    # 600 x 0.15 + 400 x 0.075 + 200 x 0.60 = 240 per million
    assert cost(PRICE, Usage(1000, 200, 400, 0)) == Decimal("0.000240")


def test_reasoning_is_part_of_output_and_is_not_charged_again():
    assert cost(PRICE, Usage(1000, 200, 0, 150)) == cost(PRICE, Usage(1000, 200, 0, 0)) == Decimal("0.000270")


def test_without_a_cached_price_cached_input_costs_as_much_as_other_input():
    price = Price(version="v1", input=Decimal(2), output=Decimal(8))
    assert cost(price, Usage(1000, 0, 400, 0)) == cost(price, Usage(1000, 0, 0, 0)) == Decimal("0.002")


def test_a_provider_that_does_not_report_cached_or_reasoning_tokens_is_priced_by_its_totals():
    assert cost(PRICE, Usage(1000, 200, None, None)) == cost(PRICE, Usage(1000, 200, 0, 0))


@pytest.mark.parametrize("usage", [Usage(None, 5), Usage(5, None), Usage(None, None, None, None)])
def test_unknown_tokens_make_an_unknown_cost_not_an_estimate(usage):
    assert cost(PRICE, usage) is None


def test_without_a_price_the_cost_is_unknown_not_zero():
    assert cost(None, Usage(1, 1)) is None
    assert cost(None, Usage(0, 0)) is None


@pytest.mark.parametrize(
    "usage",
    [
        Usage(10, 1, 11, 0),
        Usage(10, 1, 0, 2),
        Usage(-1, 1),
        Usage(1, -1),
        Usage(1, 1, -1, 0),
        Usage(1, 1, 0, -1),
        Usage(2**63, 1),
        Usage(1, 10**200),
    ],
)
def test_counts_that_contradict_each_other_make_an_unknown_cost(usage):
    assert cost(PRICE, usage) is None


def test_the_smallest_price_of_one_token_is_not_lost():
    price = Price(version="v1", input=Decimal("0.0001"), output=Decimal(0))
    assert format(paid(price, Usage(1, 0)), "f") == "0.0000000001"


@pytest.mark.parametrize(
    ("amount", "expected"), [("3", "0.0000030000"), ("0.15", "0.0000001500"), ("0", "0.0000000000")]
)
def test_a_cost_has_ten_decimals_however_its_price_was_written(amount, expected):
    price = Price(version="v1", input=Decimal(amount), output=Decimal(0))
    assert format(paid(price, Usage(1, 0)), "f") == expected


def test_the_cost_does_not_depend_on_the_decimal_context_of_the_caller():
    usage = Usage(123_456_789, 987_654_321, 23_456_789, 0)
    expected = cost(PRICE, usage)
    with localcontext(prec=3):
        assert cost(PRICE, usage) == expected == Decimal("609.3518517750")


@given(prices)
def test_zero_tokens_cost_zero_and_not_unknown(price):
    assert cost(price, Usage(0, 0, 0, 0)) == Decimal(0)


@given(prices, usages(), usages())
def test_the_cost_of_two_calls_is_the_sum_of_their_costs(price, one, other):
    both = Usage(
        (one.input_tokens or 0) + (other.input_tokens or 0),
        (one.output_tokens or 0) + (other.output_tokens or 0),
        (one.cached_input_tokens or 0) + (other.cached_input_tokens or 0),
        (one.reasoning_tokens or 0) + (other.reasoning_tokens or 0),
    )
    if max(both.input_tokens or 0, both.output_tokens or 0) >= 2**63:
        assert cost(price, both) is None
        return
    with localcontext(prec=60):
        assert paid(price, both) == paid(price, one) + paid(price, other)


@given(prices, usages())
def test_the_cost_is_what_exact_fractions_say_with_ten_decimals(price, usage):
    if max(usage.input_tokens or 0, usage.output_tokens or 0) >= 2**63:
        return
    cached_price = price.input if price.cached_input is None else price.cached_input
    units = {name: int(amount.scaleb(4)) for name, amount in [("in", price.input), ("out", price.output)]}
    cached = usage.cached_input_tokens or 0
    total = (
        ((usage.input_tokens or 0) - cached) * units["in"]
        + cached * int(cached_price.scaleb(4))
        + (usage.output_tokens or 0) * units["out"]
    )
    amount = paid(price, usage)
    assert amount.as_tuple().exponent == -10
    with localcontext(prec=60):
        assert int(amount.scaleb(10)) == total


@given(prices, counts, st.data())
def test_more_cached_input_never_costs_more_when_it_is_cheaper(price, total, data):
    cached = data.draw(st.integers(0, total))
    cheaper = price.cached_input is None or price.cached_input <= price.input
    with_cache, without = paid(price, Usage(total, 0, cached, 0)), paid(price, Usage(total, 0, 0, 0))
    assert with_cache <= without if cheaper else with_cache >= without


@pytest.mark.parametrize("amount", [0.15, True, "0.00001", "-1", "NaN", "Infinity", "10000000", "", "free", None])
def test_a_price_is_an_exact_amount_of_at_most_four_decimals(amount):
    with pytest.raises(ValidationError) as caught:
        Price.model_validate({"version": "v1", "input": amount, "output": "1"})
    assert [error["loc"] for error in caught.value.errors()] == [("input",)]


@pytest.mark.parametrize("version", ["", "a b", "x" * 65, "v1\n", "a\u202eb"])
def test_a_price_version_is_a_short_plain_label(version):
    with pytest.raises(ValidationError):
        Price(version=version, input=Decimal(1), output=Decimal(1))


def test_a_price_cannot_be_changed_once_made():
    with pytest.raises(ValidationError):
        PRICE.input = Decimal(1)  # type: ignore[misc]
