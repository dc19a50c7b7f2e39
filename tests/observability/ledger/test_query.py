"""Reading the ledger, on both databases: exact sums by UTC day and model, and pages of calls."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from observability.entry import Outcome, UsageSource
from observability.ledger.clerk import Clerk
from observability.ledger.query import LedgerReader, Range
from tests.observability.kit import entry
from tests.observability.ledger.kit import Gauges, rows

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


async def write(engine: AsyncEngine, *entries: dict[str, Any]) -> LedgerReader:
    """A reader of a ledger with these, numbered from 0."""
    clerk = Clerk(engine, Gauges())
    for number, changes in enumerate(entries):
        clerk.enqueue(entry(number, **changes))
    await clerk.stop(20)
    assert len(await rows(engine)) == len(entries)
    return LedgerReader(engine)


async def test_an_empty_ledger_has_no_sums_and_no_calls(engine):
    reader = await write(engine)
    assert (await reader.sums(Range()), await reader.calls(Range(), limit=10, before=None)) == ([], [])


async def test_sums_are_by_day_principal_and_model_the_newest_day_first(engine):
    next_day = NOON + timedelta(days=1)
    reader = await write(
        engine,
        {"model": "a", "principal": "ada"},
        {"model": "a", "principal": "ada", "outcome": Outcome.UPSTREAM_ERROR},
        {"model": "b", "principal": "ada"},
        {"model": "a", "principal": "bob"},
        {"model": "a", "principal": "ada", "started_at": next_day},
    )
    found = [(r["day"], r["principal"], r["model"], r["calls"], r["ok"]) for r in await reader.sums(Range())]
    assert found == [
        ("2026-03-02", "ada", "a", 1, 1),
        ("2026-03-01", "ada", "a", 2, 1),
        ("2026-03-01", "ada", "b", 1, 1),
        ("2026-03-01", "bob", "a", 1, 1),
    ]


async def test_costs_sum_exactly_where_floats_would_not(engine):
    costs = ["0.1000000000", "0.2000000000", "0.0000000001", "1234567.0000000003"]
    reader = await write(engine, *({"cost_usd": Decimal(cost)} for cost in costs))
    (found,) = await reader.sums(Range())
    assert found["cost_usd"] == Decimal("1234567.3000000004")
    assert isinstance(found["cost_usd"], Decimal)
    calls = await reader.calls(Range(), limit=10, before=None)
    assert [f"{call['cost_usd']:.10f}" for call in calls] == costs[::-1]


async def test_sums_of_many_small_costs_do_not_drift(engine):
    reader = await write(engine, *({"cost_usd": Decimal("0.0000001000")} for _ in range(1000)))
    (found,) = await reader.sums(Range())
    assert found["cost_usd"] == Decimal("0.0001")


async def test_what_is_unknown_adds_nothing_and_does_not_turn_into_zero(engine):
    unknown = {"input_tokens": None, "output_tokens": None, "cost_usd": None, "usage_source": UsageSource.UNKNOWN}
    reader = await write(
        engine, {"model": "mixed"}, {"model": "mixed", **unknown}, {"model": "unknown", **unknown},
        {"model": "zero", "input_tokens": 0, "output_tokens": 0, "cost_usd": Decimal(0)},
    )  # fmt: skip
    found = {r["model"]: (r["input_tokens"], r["output_tokens"], r["cost_usd"]) for r in await reader.sums(Range())}
    assert found == {
        "mixed": (7, 5, Decimal("0.0000000001")),
        "unknown": (None, None, None),
        "zero": (0, 0, Decimal(0)),
    }


async def test_token_sums_are_whole_numbers(engine):
    reader = await write(engine, *({"input_tokens": 2**53 + 1, "cached_input_tokens": 1} for _ in range(3)))
    (found,) = await reader.sums(Range())
    assert (found["input_tokens"], found["cached_input_tokens"]) == (3 * (2**53 + 1), 3)
    assert {type(found[name]) for name in ("calls", "ok", "input_tokens", "output_tokens")} == {int}


@pytest.mark.parametrize(
    ("started", "day"),
    [
        (datetime(2026, 3, 1, 0, 0, 0, tzinfo=UTC), "2026-03-01"),
        (datetime(2026, 3, 1, 23, 59, 59, 999999, tzinfo=UTC), "2026-03-01"),
        (datetime(2026, 3, 2, 0, 0, 0, tzinfo=UTC), "2026-03-02"),
        (datetime(2026, 3, 2, 1, 0, tzinfo=timezone(timedelta(hours=2))), "2026-03-01"),
        (datetime(2026, 3, 1, 20, 0, tzinfo=timezone(timedelta(hours=-5))), "2026-03-02"),
        (datetime(2028, 2, 29, 23, 59, tzinfo=UTC), "2028-02-29"),
    ],
)
async def test_a_day_is_a_utc_day_whatever_the_zone_of_the_writer_or_of_the_database(engine, started, day):
    reader = await write(engine, {"started_at": started})
    assert [row["day"] for row in await reader.sums(Range())] == [day]
    (call,) = await reader.calls(Range(), limit=1, before=None)
    assert call["started_at"] == started
    assert call["started_at"].utcoffset() == timedelta(0)


async def test_a_range_includes_its_beginning_and_not_its_end(engine):
    step = timedelta(microseconds=1)
    reader = await write(engine, *({"started_at": NOON + n * step} for n in range(4)))
    which = Range(since=NOON + step, until=NOON + 3 * step)
    calls = await reader.calls(which, limit=10, before=None)
    assert [call["call_id"] for call in calls] == [entry(2).call_id, entry(1).call_id]
    assert [row["calls"] for row in await reader.sums(which)] == [2]


async def test_a_range_may_be_given_in_another_zone(engine):
    reader = await write(engine, {"started_at": NOON})
    there = NOON.astimezone(timezone(timedelta(hours=9)))
    assert len(await reader.calls(Range(since=there, until=there + timedelta(seconds=1)), limit=10, before=None)) == 1
    assert await reader.calls(Range(until=there), limit=10, before=None) == []


async def test_a_principal_sees_its_own_and_no_name_is_a_pattern(engine):
    reader = await write(engine, {"principal": "ada"}, {"principal": "ad"}, {"principal": "%"}, {"principal": ""})
    for name in ("ada", "ad", "%", ""):
        assert [call["principal"] for call in await reader.calls(Range(name), limit=10, before=None)] == [name]
        assert [row["calls"] for row in await reader.sums(Range(name))] == [1]
    assert await reader.calls(Range("ADA"), limit=10, before=None) == []


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
async def test_pages_hold_every_call_once_the_newest_first(engine, size):
    reader = await write(engine, *({} for _ in range(7)))
    seen: list[str] = []
    before = None
    while page := await reader.calls(Range(), limit=size, before=before):
        assert len(page) <= size
        seen += [call["call_id"] for call in page]
        before = seen[-1]
    assert seen == [entry(number).call_id for number in reversed(range(7))]


async def test_a_page_goes_on_where_it_was_while_new_calls_come_in(engine):
    reader = await write(engine, {}, {}, {})
    first = await reader.calls(Range(), limit=2, before=None)
    clerk = Clerk(engine, Gauges())
    clerk.enqueue(entry(9))
    await clerk.write_batch()
    second = await reader.calls(Range(), limit=2, before=first[-1]["call_id"])
    assert [call["call_id"] for call in second] == [entry(0).call_id]
