"""GET /usage: who may see whose calls, which of them, page by page."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from auth.scopes import Scope
from observability.entry import Outcome, UsageSource
from observability.ledger.table import ledger
from service.database import make_engine
from tests.observability.kit import entry
from tests.service.test_http import Served, serving

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SEEDS: list[dict[str, Any]] = [
    {"principal": "ada", "started_at": NOON - HOUR},
    {"principal": "bob", "started_at": NOON},
    {"principal": "ada", "started_at": NOON, "model": "other", "outcome": Outcome.UPSTREAM_ERROR, "http_status": 502},
    {"principal": "", "started_at": NOON, "outcome": Outcome.REJECTED_AUTH, "http_status": 401},
    {"principal": "ada", "started_at": NOON + HOUR, "usage_source": UsageSource.UNKNOWN, "cost_usd": None}
    | {"input_tokens": None, "output_tokens": None},
]
ADA, BOB, NOBODY = [0, 2, 4], [1], [3]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as running:
        engine = make_engine(running.settings.effective_database_url)
        async with engine.begin() as connection:
            await connection.execute(ledger.insert(), [entry(n, **seed).row() for n, seed in enumerate(SEEDS)])
        await engine.dispose()
        yield running


async def usage(served: Served, scopes: tuple[Scope, ...] = (Scope.USAGE_READ,), **query: Any) -> httpx2.Response:
    return await served.client.get("/usage", params=query, headers=served.bearer("ada", *scopes))


async def as_admin(served: Served, **query: Any) -> httpx2.Response:
    return await usage(served, (Scope.USAGE_READ, Scope.ADMIN), **query)


def numbers(answer: httpx2.Response) -> list[int]:
    """Which of SEEDS the calls are, in their order."""
    assert answer.status_code == 200, answer.text
    return [int(call["call_id"][-12:], 16) for call in answer.json()["calls"]]


async def test_one_sees_one_s_own_calls_the_newest_first_and_their_sums(served):
    answer = await usage(served)
    assert numbers(answer) == ADA[::-1]
    sums = [(s["day"], s["principal"], s["model"], s["calls"], s["ok"]) for s in answer.json()["sums"]]
    assert sums == [("2026-03-01", "ada", "other", 1, 0), ("2026-03-01", "ada", "small", 2, 2)]
    assert numbers(await usage(served, principal="ada")) == ADA[::-1]


async def test_another_s_calls_are_refused_with_the_scope_that_is_missing(served):
    for principal in ("bob", "nobody-of-this-name", "ADA"):
        answer = await usage(served, principal=principal)
        assert answer.status_code == 403
        challenge = answer.headers["www-authenticate"]
        assert 'error="insufficient_scope"' in challenge
        assert 'scope="admin"' in challenge
        assert answer.json()["error"]["code"] == "insufficient_scope"
        assert "calls" not in answer.json()


async def test_an_empty_name_of_a_principal_shows_nobody_else_s_calls(served):
    answer = await usage(served, principal="")
    assert answer.status_code == 403 or set(numbers(answer)) <= set(ADA)


async def test_an_admin_sees_everyone_s_and_may_name_one(served):
    assert numbers(await as_admin(served)) == [4, 3, 2, 1, 0]
    assert numbers(await as_admin(served, principal="bob")) == BOB
    assert numbers(await as_admin(served, principal="ada")) == ADA[::-1]
    assert numbers(await as_admin(served, principal="bo%")) == []


async def test_an_admin_may_name_the_calls_of_nobody(served):
    """Those of callers who were not recognised; otherwise there is no way to look at them."""
    assert numbers(await as_admin(served, principal="")) == NOBODY


async def test_the_scope_to_read_is_needed_by_an_admin_too(served):
    answer = await usage(served, (Scope.ADMIN, Scope.LLM))
    assert answer.status_code == 403
    assert 'scope="usage:read"' in answer.headers["www-authenticate"]
    answer = await served.client.get("/usage")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer ")


async def test_a_range_begins_at_since_and_ends_before_until(served):
    query = {"since": "2026-03-01T12:00:00Z", "until": "2026-03-01T13:00:00Z"}
    answer = await as_admin(served, **query)
    assert numbers(answer) == [3, 2, 1]
    assert sum(row["calls"] for row in answer.json()["sums"]) == 3
    assert numbers(await as_admin(served, since="2026-03-01T13:00:00.000001Z")) == []
    assert numbers(await as_admin(served, since="2026-03-01T13:00:00Z", until="2026-03-01T12:00:00Z")) == []


async def test_an_instant_without_a_zone_is_utc_and_one_with_a_zone_is_converted(served):
    for noon in (
        "2026-03-01T12:00:00",
        "2026-03-01T12:00:00Z",
        "2026-03-01T14:00:00+02:00",
        "2026-03-01 07:00:00-05:00",
    ):
        assert numbers(await as_admin(served, since=noon)) == [4, 3, 2, 1]
        assert numbers(await as_admin(served, until=noon)) == [0]


async def test_the_edges_of_the_calendar_are_a_range_or_an_error_of_the_client(served):
    assert numbers(await usage(served, since="0001-01-01T00:00:00", until="9999-12-31T23:59:59.999999")) == ADA[::-1]
    for instant in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"):
        for name in ("since", "until"):
            answer = await usage(served, (Scope.USAGE_READ,), **{name: instant})
            assert answer.status_code == 422
            assert answer.json()["error"]["param"] == name


NONSENSE = {
    "since": ["yesterday", "2026-02-30", "2026-03-01T25:00:00Z", "nan", "inf", "1e400", ""],
    "until": ["9" * 400],
    "limit": ["-1", "1001", "many", "1.5", "", "9" * 400],
    "before": ["", "x", "0" * 35, "0" * 37, "'" * 36, "\x00" * 36],
    "principal": ["x" * 129, "a\x00b", "a\r\nb"],
}


async def test_a_query_that_makes_no_sense_is_refused_by_the_name_of_its_parameter(served):
    for name, values in NONSENSE.items():
        for value in values:
            answer = await as_admin(served, **{name: value})
            assert answer.status_code == 422, (name, value)
            error = answer.json()["error"]
            assert (error["type"], error["param"]) == ("invalid_request_error", name)


async def test_pages_hold_every_call_once(served):
    seen: list[int] = []
    before: dict[str, str] = {}
    for _ in range(10):
        answer = await as_admin(served, limit=2, **before)
        seen += numbers(answer)
        assert sum(row["calls"] for row in answer.json()["sums"]) == 5  # of the whole range, on each page
        if answer.json()["next_before"] is None:
            break
        before = {"before": answer.json()["next_before"]}
    assert seen == [4, 3, 2, 1, 0]
    assert numbers(await as_admin(served, before="00000000-0000-0000-0000-000000000000")) == []


async def test_another_s_call_as_a_page_mark_shows_nothing_of_it(served):
    assert numbers(await usage(served, before=entry(1).call_id)) == [0]


async def test_a_limit_of_zero_gives_the_sums_alone(served):
    answer = await usage(served, limit=0)
    assert numbers(answer) == []
    assert answer.json()["next_before"] is None
    assert sum(row["calls"] for row in answer.json()["sums"]) == len(ADA)


async def test_a_cost_is_a_plain_decimal_string_and_what_is_unknown_is_null(served):
    answer = (await usage(served)).json()
    newest, _, oldest = answer["calls"]
    assert (newest["cost_usd"], newest["input_tokens"], newest["usage_source"]) == (None, None, "unknown")
    assert oldest["cost_usd"] == "0.0000000001"
    for row in answer["sums"]:
        assert re.fullmatch(r"\d+\.\d{10}", row["cost_usd"])
    assert sum(Decimal(row["cost_usd"]) for row in answer["sums"]) == Decimal("0.0000000002")


async def test_a_call_is_shown_with_every_column_of_the_ledger_and_utc_times(served):
    call = (await usage(served)).json()["calls"][-1]
    assert set(call) == {column.name for column in ledger.columns}
    assert call["started_at"] == "2026-03-01T11:00:00Z"


async def test_without_its_database_it_is_a_503_that_says_when_to_come_back(tmp_path):
    url = "postgresql+asyncpg://nobody@127.0.0.1:1/none"
    async with serving(tmp_path, database_url=url, migrated=False) as served:
        answer = await usage(served)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"] == {
        "message": "The ledger cannot be read now.",
        "type": "server_error",
        "param": None,
        "code": "unavailable",
    }


async def test_before_the_schema_is_there_it_is_a_503_as_well(tmp_path):
    async with serving(tmp_path, migrated=False, migrate_on_start=False) as served:
        assert (await usage(served)).status_code == 503
