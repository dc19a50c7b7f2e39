"""The clerk when the database is down: it costs memory, not calls."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from observability.ledger import clerk as module
from observability.ledger.clerk import BATCH, Clerk
from observability.ledger.table import ledger, metadata
from tests.observability.kit import entry, json_lines, until
from tests.observability.ledger.kit import Gauges, ids


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.01)


class Down:
    """An engine that is told each time it is asked, and cannot be reached."""

    class dialect:  # noqa: N801
        name = "sqlite"

    def __init__(self) -> None:
        self.asked = 0

    def begin(self) -> Any:
        self.asked += 1
        raise OperationalError("INSERT", {}, OSError("no route to host"))


def clerk_of(engine: Any, **options: Any) -> Clerk:
    return Clerk(engine, options.pop("report", Gauges()), **options)


async def test_entries_of_an_outage_are_all_there_once_it_is_over_and_in_their_order(
    tmp_path, connect, hurried, logged
):
    directory: Path = tmp_path / "volume"
    engine = connect(f"sqlite+aiosqlite:///{directory / 'ledger.db'}")
    gauges = Gauges()
    clerk = clerk_of(engine, report=gauges)
    clerk.start()
    for number in range(3):
        clerk.enqueue(entry(number))
    await until(lambda: gauges.rounds >= 3, "several rounds in vain")
    assert clerk.pending == gauges.pending == 3
    clerk.enqueue(entry(3))

    await asyncio.to_thread(directory.mkdir)  # the volume is mounted
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await until(lambda: clerk.pending == 0, "the entries to be written")
    await clerk.stop(20)
    assert await ids(engine) == [entry(number).call_id for number in range(4)]
    events = [line["event"] for line in json_lines(logged())]
    assert events == ["ledger_unreachable", "ledger_caught_up"]  # said once, not at every try


async def test_a_table_that_is_not_there_yet_is_an_outage_too(tmp_path, connect, hurried):
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}")
    gauges = Gauges()
    clerk = clerk_of(engine, report=gauges)
    clerk.start()
    clerk.enqueue(entry(1))
    await until(lambda: gauges.rounds >= 2, "two rounds in vain")
    async with engine.begin() as connection:
        await connection.run_sync(ledger.create)
    await until(lambda: clerk.pending == 0, "the entry to be written")
    await clerk.stop(20)


async def test_the_lag_is_the_age_of_the_oldest_entry(hurried):
    gauges = Gauges()
    first = entry(1)
    clerk = clerk_of(Down(), report=gauges, clock=(first.ended_at + timedelta(seconds=90)).timestamp)
    clerk.start()
    clerk.enqueue(first)
    clerk.enqueue(entry(2, ended_at=first.ended_at + timedelta(seconds=60)))
    await until(lambda: gauges.pending == 2, "a round in vain")
    assert gauges.lag_seconds == pytest.approx(90)
    await clerk.stop(0)


async def test_a_database_that_is_down_is_not_asked_again_at_every_call(monkeypatch):
    """However many entries wait, it is left in peace until the next try is due."""
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 3600)
    down = Down()
    clerk = clerk_of(down)
    clerk.start()
    for number in range(BATCH + 50):
        clerk.enqueue(entry(number))
        for _ in range(5):  # the clerk gets its turn
            await asyncio.sleep(0)
    assert down.asked == 1
    await clerk.stop(0)


async def test_what_cannot_be_written_at_the_end_is_in_the_log_line_by_line(hurried, logged):
    clerk = clerk_of(Down())
    clerk.start()
    for number in range(2):
        clerk.enqueue(entry(number))
    await clerk.stop(0.5)
    lost = [line for line in json_lines(logged()) if line["event"] == "ledger_entry_unwritten"]
    assert [line["call_id"] for line in lost] == [entry(number).call_id for number in range(2)]
    assert lost[0]["cost_usd"] == str(entry().cost_usd)
    assert (lost[0]["input_tokens"], lost[0]["outcome"], lost[0]["model"]) == (7, "ok", "small")


async def test_a_database_that_hangs_does_not_hold_up_the_end(hurried, logged):
    class Hanging(Down):
        def begin(self) -> Any:
            class Connection:
                async def __aenter__(self) -> None:
                    await asyncio.Event().wait()

                async def __aexit__(self, *_: object) -> None:
                    pass

            return Connection()

    clerk = clerk_of(Hanging())
    clerk.start()
    clerk.enqueue(entry(1))
    async with asyncio.timeout(30):
        await clerk.stop(0.01)
    assert [line["event"] for line in json_lines(logged())] == ["ledger_flush_failed", "ledger_entry_unwritten"]
