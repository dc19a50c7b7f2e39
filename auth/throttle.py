"""Delays after failed logins, shared by all workers and replicas. auth/throttle_policy.py says how long."""

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.database import Database
from auth.errors import SlowDown
from auth.tables import login_failures
from auth.throttle_policy import KNOWN_FOR_SECONDS, Count, Keys, ThrottlePolicy, is_known, is_suspect, wait_seconds

__all__ = ["Attempt", "DatabaseThrottle", "LoginThrottle", "MemoryThrottle", "ThrottlePolicy"]

# Attempts of one account and address at work at once, in each worker: those checked together pass together. So where
# nobody was let in before, at most `free_failures - 1 + 4 * workers` passwords are tried before the first delay.
_IN_FLIGHT: Final = 4
_IN_FLIGHT_KNOWN: Final = 64
# A success is written down again after a day, long before it stops to count.
_RENEWED_AFTER_SECONDS: Final = 86400.0
_PRUNED_AT_ONCE: Final = 1000


class Attempt(Protocol):
    """One login that is being looked at. Neither is called when it could not be decided: that counts for nothing."""

    async def succeeded(self) -> None:
        """The password was right."""

    async def failed(self) -> None:
        """It was not, or there is no such user, or they are disabled."""


class LoginThrottle(Protocol):
    """Whatever delays logins."""

    def attempt(self, username: str, address: str) -> AbstractAsyncContextManager[Attempt]:
        """Look at a login, from the start of the block to its end, before any work is done for it.

        Args:
            username: any string; there need not be such a user.
            address: an IP address; empty where there is none.

        Raises:
            SlowDown: it has to wait. Nothing in it tells whether there is such a user.
        """

    async def prune(self) -> None:
        """Remove what says nothing any more."""


class _Throttle(ABC):
    """What both implementations have in common: the policy, and the bound on attempts in flight in this process."""

    def __init__(self, policy: ThrottlePolicy, clock: Callable[[], float]) -> None:
        self.policy = policy
        self.clock = clock
        self._in_flight: Counter[str] = Counter()

    @asynccontextmanager
    async def attempt(self, username: str, address: str) -> AsyncIterator[Attempt]:
        """As in the protocol."""
        keys = Keys.of(username, address)
        ahead, others = self._in_flight[keys.pair], max(self._in_flight[key] for key in keys.all())
        if ahead >= _IN_FLIGHT_KNOWN:
            raise SlowDown(retry_after_seconds=1)
        # It takes its place before it reads: those that were before it are either counted in what it reads, or ahead.
        self._in_flight.update(keys.all())
        try:
            counts = await self.read(keys)
            now = self.clock()
            pair = counts.get(keys.pair, Count())
            known = is_known(pair, now)
            wait = wait_seconds(self.policy, keys, counts, now)
            crowd = others if is_suspect(self.policy, keys, counts, now) else ahead
            if not wait and not known and crowd >= _IN_FLIGHT:
                wait = 1
            if wait:
                raise SlowDown(retry_after_seconds=wait)
            yield _Attempt(self, keys, pair, known=known)
        finally:
            for key in keys.all():
                self._in_flight[key] -= 1
                if not self._in_flight[key]:
                    del self._in_flight[key]

    @abstractmethod
    async def read(self, keys: Keys) -> Mapping[str, Count]:
        """What is counted under these keys."""

    @abstractmethod
    async def add_failure(self, keys: list[str]) -> None:
        """Count a failure under each key. Of many at once none is lost."""

    @abstractmethod
    async def set_success(self, pair: str) -> None:
        """Forget the failures of an account and address, and remember that it is known."""

    @abstractmethod
    async def prune(self) -> None:
        """As in the protocol."""


class _Attempt:
    def __init__(self, throttle: _Throttle, keys: Keys, pair: Count, *, known: bool) -> None:
        self._throttle = throttle
        self._keys = keys
        self._pair = pair
        self._known = known

    async def succeeded(self) -> None:
        fresh = self._pair.last_success_at > self._throttle.clock() - _RENEWED_AFTER_SECONDS
        if self._pair.failures or not fresh:  # so that a login as usual writes nothing
            await self._throttle.set_success(self._keys.pair)

    async def failed(self) -> None:
        # Mistakes from where the user is known do not bring the account nearer to a delay for others.
        keys = [key for key in self._keys.all() if not (self._known and key == self._keys.account)]
        await self._throttle.add_failure(keys)


class MemoryThrottle(_Throttle):
    """Counts in this process alone."""

    def __init__(self, policy: ThrottlePolicy, clock: Callable[[], float] = time.time) -> None:
        super().__init__(policy, clock)
        self._counts: dict[str, Count] = {}

    async def read(self, keys: Keys) -> Mapping[str, Count]:
        return {key: self._counts[key] for key in keys.all() if key in self._counts}

    async def add_failure(self, keys: list[str]) -> None:
        now = self.clock()
        for key in keys:
            old = self._counts.get(key, Count())
            stale = old.last_failure_at <= now - self.policy.forgotten_after_seconds
            self._counts[key] = Count(1 if stale else old.failures + 1, now, old.last_success_at)

    async def set_success(self, pair: str) -> None:
        self._counts[pair] = Count(0, self._counts.get(pair, Count()).last_failure_at, self.clock())

    async def prune(self) -> None:
        now = self.clock()
        before = now - self.policy.forgotten_after_seconds
        self._counts = {
            key: count for key, count in self._counts.items() if count.last_failure_at > before or is_known(count, now)
        }


class DatabaseThrottle(_Throttle):
    """Counts in the database. Every method may raise `DatabaseUnavailable`; without it there is no login anyway."""

    def __init__(self, database: Database, policy: ThrottlePolicy, clock: Callable[[], float] = time.time) -> None:
        super().__init__(policy, clock)
        self._database = database

    async def read(self, keys: Keys) -> Mapping[str, Count]:
        async with self._database.transaction() as connection:
            rows = await connection.execute(login_failures.select().where(login_failures.c.key.in_(keys.all())))
            return {
                row.key: Count(row.failures, _unix(row.last_failure_at), _unix(row.last_success_at)) for row in rows
            }

    async def add_failure(self, keys: list[str]) -> None:
        now = self._now()
        forgotten = login_failures.c.last_failure_at <= now - timedelta(seconds=self.policy.forgotten_after_seconds)
        never = login_failures.c.last_failure_at.is_(None)
        grown = sa.case((sa.or_(never, forgotten), 1), else_=login_failures.c.failures + 1)
        # In one order for all, or two at once could wait for each other.
        rows = [{"key": key, "failures": 1, "last_failure_at": now, "updated_at": now} for key in sorted(keys)]
        async with self._database.transaction() as connection:
            await _upsert(connection, rows, {"failures": grown, "last_failure_at": now, "updated_at": now})

    async def set_success(self, pair: str) -> None:
        now = self._now()
        values = {"failures": 0, "last_success_at": now, "updated_at": now}
        async with self._database.transaction() as connection:
            await _upsert(connection, [{"key": pair, **values}], values)

    async def prune(self) -> None:
        now = self._now()
        forgotten = login_failures.c.updated_at <= now - timedelta(seconds=self.policy.forgotten_after_seconds)
        last_success = login_failures.c.last_success_at
        unknown = sa.or_(last_success.is_(None), last_success <= now - timedelta(seconds=KNOWN_FOR_SECONDS))
        # Nobody waits for rows that another worker removes, or counts on, right now.
        batch = sa.select(login_failures.c.key).where(forgotten, unknown).limit(_PRUNED_AT_ONCE)
        removed = login_failures.delete().where(login_failures.c.key.in_(batch.with_for_update(skip_locked=True)))
        while True:
            async with self._database.transaction() as connection:
                if (await connection.execute(removed)).rowcount < _PRUNED_AT_ONCE:
                    return

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)


async def _upsert(connection: AsyncConnection, rows: list[dict[str, Any]], changes: dict[str, Any]) -> None:
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    await connection.execute(
        insert(login_failures).values(rows).on_conflict_do_update(index_elements=["key"], set_=changes)
    )


def _unix(moment: datetime | None) -> float:
    return 0.0 if moment is None else moment.timestamp()
