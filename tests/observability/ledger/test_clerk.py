"""The clerk: closed calls into the ledger, in batches, behind the calls."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from observability.ledger import clerk as module
from observability.ledger.clerk import BATCH, Clerk
from tests.observability.kit import entry, until
from tests.observability.ledger.kit import Gauges, ids, rows


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.01)


@pytest.fixture
async def running(engine: AsyncEngine) -> AsyncIterator[Clerk]:
    clerk = Clerk(engine, Gauges())
    clerk.start()
    yield clerk
    await clerk.stop(20)


def inserts(engine: AsyncEngine) -> list[int]:
    """Grows by the number of rows of each INSERT from now on."""
    found: list[int] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def note(_connection, _cursor, statement, parameters, _context, many):
        if statement.startswith("INSERT"):
            found.append(len(parameters) if many else 1)

    return found


async def test_an_entry_is_in_the_ledger_soon_with_every_field(engine, running):
    written = entry(1, cached_input_tokens=2, reasoning_tokens=0, ttft_ms=12.5)
    running.enqueue(written)
    await until(lambda: running.pending == 0, "the entry to be written")
    assert await rows(engine) == [written.row()]


async def test_entries_go_in_batches(engine):
    clerk = Clerk(engine, Gauges())
    for number in range(2 * BATCH + 1):
        clerk.enqueue(entry(number))
    counted = inserts(engine)
    while clerk.pending:
        await clerk.write_batch()
    assert sum(counted) == len(await ids(engine)) == 2 * BATCH + 1
    assert len(counted) < BATCH


async def test_a_full_batch_does_not_wait_for_the_interval(engine, monkeypatch):
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 3600)
    clerk = Clerk(engine, Gauges())
    clerk.start()
    for number in range(BATCH):
        clerk.enqueue(entry(number))
    await until(lambda: clerk.pending == 0, "the batch to be written")
    await clerk.stop(20)


async def test_a_batch_whose_commit_was_not_confirmed_is_written_again_without_doubles(engine, logged):
    clerk = Clerk(engine, Gauges())
    for number in (1, 2):
        clerk.enqueue(entry(number))
    await clerk.write_batch()
    for number in (1, 2, 3):  # the queue as it would be had the answer of the database been lost
        clerk.enqueue(entry(number, model="changed"))
    await clerk.write_batch()
    assert [row["model"] for row in await rows(engine)] == ["small", "small", "changed"]
    assert logged() == ""  # and nobody is told that an entry was refused


async def test_what_fails_to_be_written_stays_queued_in_its_order(sqlite, monkeypatch):
    clerk = Clerk(sqlite, Gauges())
    for number in range(3):
        clerk.enqueue(entry(number))

    async def fail(_batch):
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(clerk, "_insert", fail)
        with pytest.raises(OSError):  # noqa: PT011 - it says no more than that
            await clerk.write_batch()
    assert clerk.pending == 3
    await clerk.write_batch()
    assert await ids(sqlite) == [entry(number).call_id for number in range(3)]


async def test_stopping_writes_what_is_left(engine):
    clerk = Clerk(engine, Gauges())
    clerk.start()
    for number in range(BATCH + 1):
        clerk.enqueue(entry(number))
    await clerk.stop(20)
    assert clerk.pending == 0
    assert len(await ids(engine)) == BATCH + 1


async def test_stopping_a_clerk_that_never_started_writes_what_is_left(engine):
    clerk = Clerk(engine, Gauges())
    clerk.enqueue(entry(1))
    await clerk.stop(20)
    assert len(await ids(engine)) == 1


async def test_stopping_in_the_middle_of_a_write_loses_and_doubles_nothing(engine):
    clerk = Clerk(engine, Gauges())
    begun = asyncio.Event()

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def note(*_):
        begun.set()

    clerk.start()
    for number in range(BATCH):
        clerk.enqueue(entry(number))
    await begun.wait()
    await clerk.stop(20)
    assert len(await ids(engine)) == BATCH


async def test_it_tells_how_far_behind_it_is(sqlite):
    gauges = Gauges()
    late = entry(1)
    clerk = Clerk(sqlite, gauges, clock=(late.ended_at + timedelta(seconds=90)).timestamp)
    clerk.start()
    await until(lambda: gauges.rounds, "a round")
    assert (gauges.pending, gauges.lag_seconds) == (0, 0)
    await clerk.stop(20)
