"""What an upstream says of an answer: what is malformed is unknown, and zero is a number."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.columns import COST_DIGITS
from observability.entry import Usage
from service.llm.pricing import Price, cost
from service.llm.usage import read_finish_reasons, read_text, read_usage

BAD = [True, False, -1, 1.0, 7.5, float("nan"), float("inf"), 2**63, 10**30, "7", "", None, [], [7], {}, {"n": 7}]


def test_openais_object_is_read_whole():
    found = {
        "prompt_tokens": 70,
        "completion_tokens": 50,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 20, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 10},
    }
    assert read_usage(found) == Usage(70, 50, 20, 10)


def test_zero_stays_zero():
    found = {
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert read_usage(found) == Usage(0, 0, 0, 0)
    assert read_usage({"prompt_tokens": 0}) == Usage(input_tokens=0)


@pytest.mark.parametrize("bad", BAD)
def test_a_count_that_is_none_is_unknown_and_does_not_spoil_the_other(bad):
    assert read_usage({"prompt_tokens": bad, "completion_tokens": 5}) == Usage(output_tokens=5)
    assert read_usage({"prompt_tokens": 7, "completion_tokens": bad}) == Usage(input_tokens=7)
    assert read_usage({"prompt_tokens": bad, "completion_tokens": bad}) is None


@pytest.mark.parametrize("bad", BAD)
def test_a_detail_that_is_none_is_unknown(bad):
    plain = {"prompt_tokens": 7, "completion_tokens": 5}
    for details in ({"cached_tokens": bad}, bad):
        assert read_usage({**plain, "prompt_tokens_details": details}) == Usage(7, 5)
    for details in ({"reasoning_tokens": bad}, bad):
        assert read_usage({**plain, "completion_tokens_details": details}) == Usage(7, 5)


@pytest.mark.parametrize("found", [None, {}, [], "usage", 7, True, {"total_tokens": 12}, {"prompt_tokens_details": {}}])
def test_an_object_that_says_nothing_of_use_is_no_usage(found):
    assert read_usage(found) is None


@given(st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "prompt_tokens_details"]), st.integers()))
def test_a_count_that_was_read_is_the_one_that_was_sent(found: dict[str, Any]):
    usage = read_usage(found)
    if usage is not None:
        assert usage.input_tokens in (None, found.get("prompt_tokens"))
        assert usage.output_tokens in (None, found.get("completion_tokens"))


def test_the_largest_count_that_is_believed_costs_no_more_than_the_ledger_can_hold():
    """Else one upstream that counts wrong makes a row that no database takes."""
    largest = max(n for n in (10**k for k in range(20)) if read_usage({"prompt_tokens": n}))
    price = Price(version="1", input=Decimal("999999.9999"), output=Decimal("999999.9999"))
    highest = cost(price, Usage(largest, largest))
    assert highest is not None
    assert highest < 10**10  # NUMERIC(20, 10)
    assert highest.scaleb(COST_DIGITS) < 2**63  # the whole number that SQLite keeps


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("gpt-4o", "gpt-4o"),
        ("x" * 300, "x" * 200),
        ("", ""),
        ("two\nlines", ""),
        ("\x1b[31m", ""),
        ("half\ud800", ""),
        (None, ""),
        (7, ""),
        (["a"], ""),
    ],
)
def test_text_for_a_label_is_short_and_printable_or_empty(value, text):
    assert read_text({"model": value}, "model") == text


def test_text_that_is_absent_is_empty():
    assert read_text({}, "model") == ""


def test_each_choice_that_has_a_finish_reason_gives_it():
    choices = [{"finish_reason": "stop"}, {"finish_reason": None}, {}, "junk", {"finish_reason": "length"}]
    assert read_finish_reasons({"choices": choices}) == ("stop", "length")


@pytest.mark.parametrize("choices", [None, {}, "stop", 7, []])
def test_without_choices_there_is_no_finish_reason(choices):
    assert read_finish_reasons({"choices": choices}) == ()
