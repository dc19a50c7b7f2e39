"""Moves closed calls into the ledger, in batches, behind the calls: no call ever waits for the database."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final, Protocol

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from observability.entry import Entry
from observability.ledger.table import ledger
from observability.logging import get_logger

log = get_logger("observability.ledger")

BATCH: Final = 500  # rows in one statement; SQLite takes 32,766 variables, and a row has 24
INTERVAL_SECONDS: Final = 0.25
_INSERT_SECONDS: Final = 10.0  # past it the database is taken to be down
_MAX_BACKOFF_SECONDS: Final = 5.0


class Gauges(Protocol):
    """What the clerk tells of itself."""

    def __call__(self, *, pending: int, lag_seconds: float) -> None:
        """Called after each round."""


class Clerk:
    """Holds closed calls until they are in the database. A database that is down costs memory, not calls."""

    def __init__(self, engine: AsyncEngine, report: Gauges, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._report = report
        self._clock = clock
        self._pending: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._down = False

    def enqueue(self, entry: Entry) -> None:
        """Take an entry. Never blocks."""
        self._pending.append(entry)
        if len(self._pending) >= BATCH:
            self._wake.set()

    @property
    def pending(self) -> int:
        """Entries that are not in the ledger yet."""
        return len(self._pending)

    def start(self) -> None:
        """Begin writing, in the running event loop."""
        self._task = asyncio.create_task(self._run(), name="clerk")

    async def stop(self, timeout_seconds: float) -> None:
        """Write what is left, for at most so long, and end. What could not be written is logged, line by line.

        A write that is under way is not cancelled: SQLite would still hold its lock when the next one begins.
        """
        self._stopping.set()
        self._wake.set()
        if self._task is None:
            self.start()
        assert self._task is not None  # noqa: S101 - started just now, if not before
        await asyncio.wait({self._task}, timeout=timeout_seconds)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._pending:
            log.error("ledger_flush_failed", pending=len(self._pending))
            for entry in self._pending:
                log.error("ledger_entry_unwritten", **entry.row())

    async def _rest(self, backoff: float) -> None:
        """Until there is something to do. While the database is down a full batch is no reason to ask again sooner."""
        if self._stopping.is_set():
            await asyncio.sleep(INTERVAL_SECONDS if self._down else 0)
            return
        waking, seconds = (self._stopping, backoff) if self._down else (self._wake, INTERVAL_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # not wait_for, which may swallow a cancellation before Python 3.12
                await waking.wait()

    async def _run(self) -> None:
        backoff = INTERVAL_SECONDS
        while not (self._stopping.is_set() and not self._pending):
            await self._rest(backoff)
            self._wake.clear()
            self._tell()  # before the try too, which may take long
            try:
                while self._pending:
                    await self.write_batch()
            except Exception as error:  # noqa: BLE001 - whatever it is, the entries stay and are tried again
                if not self._down:
                    log.warning("ledger_unreachable", pending=len(self._pending), error=type(error).__name__)
                self._down = True
                backoff = min(backoff * 2, _MAX_BACKOFF_SECONDS)
            else:
                if self._down:
                    log.info("ledger_caught_up")
                self._down = False
                backoff = INTERVAL_SECONDS
            self._tell()

    def _tell(self) -> None:
        oldest = self._pending[0].ended_at.timestamp() if self._pending else self._clock()
        self._report(pending=len(self._pending), lag_seconds=max(0.0, self._clock() - oldest))

    async def write_batch(self) -> None:
        """Write the oldest entries. They leave the queue only when the database has them.

        Raises:
            Exception: of the driver; the database did not take them, and they stay queued.
        """
        batch = list(islice(self._pending, BATCH))
        try:
            await self._insert(batch)
        except Exception as error:
            if not _row_is_at_fault(error):
                raise
            await self._insert_one_by_one(batch)
        for _ in batch:
            self._pending.popleft()

    async def _insert_one_by_one(self, batch: Sequence[Entry]) -> None:
        """A row that the database refuses must not hold up the others for ever: it goes to the log instead."""
        for entry in batch:
            try:
                await self._insert([entry])
            except Exception as error:
                if not _row_is_at_fault(error):
                    raise
                log.exception("ledger_entry_refused", **entry.row())

    async def _insert(self, batch: Sequence[Entry]) -> None:
        insert = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
        # Idempotent: a batch whose commit was not confirmed may be written again.
        statement = insert(ledger).on_conflict_do_nothing(index_elements=[ledger.c.call_id])
        async with asyncio.timeout(_INSERT_SECONDS), self._engine.begin() as connection:
            await connection.execute(statement, [entry.row() for entry in batch])


def _row_is_at_fault(error: Exception) -> bool:
    """Whether the database, or its driver, refuses the values themselves: trying again would never help.

    Not "everything but a lost connection": a full disk is an outage, and the rows are good.
    """
    if isinstance(error, DataError | IntegrityError | ValueError | TypeError | OverflowError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    # SQLSTATE classes 22 (data exception) and 23 (integrity), which asyncpg's errors carry.
    state = getattr(error.orig, "sqlstate", None) or ""
    return state[:2] in {"22", "23"} or isinstance(getattr(error.orig, "__cause__", None), ValueError)
