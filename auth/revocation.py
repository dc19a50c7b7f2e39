"""What is revoked, known to each worker without a round trip per request.

A change writes a row in its own transaction (`write_revocation`). Every worker reads what is new every few seconds, and
looks it up in memory at each request. When the database is away the last known stands: serving never depends on it, and
a token lives an hour or so anyway.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.database import Database
from auth.principal import API_KEY, Principal
from auth.tables import clients, revocations, sessions, users
from observability.ids import time_ordered_id

Kind = Literal["token", "session", "user", "client", "key"]
_KEPT: Final = timedelta(days=2)  # longer than any access token lives
# A reading goes back this far, so that rows committed late, or by a machine whose clock is behind, are not missed.
_OVERLAP: Final = timedelta(seconds=60)
_PRUNED_AT_ONCE: Final = 1000
_FORGET_SECONDS: Final = 3600.0
_ABOUT_KEYS: Final = frozenset({"key", "user"})  # what an API key is read anew for


async def write_revocation(connection: AsyncConnection, kind: Kind, value: str, until: datetime | None = None) -> None:
    """Have every worker forget what was issued, or read from the database, up to now. In a transaction of the caller's.

    Args:
        connection: of the transaction that makes the change.
        kind: `token` refuses an access token, `session` and `client` all of theirs; `user` refuses their access tokens
            and has their API keys read anew, `key` has one API key read anew.
        value: `jti`, session id, client id, user id or key id.
        until: when it is of no use any more; None: when every token that there is now has expired.
    """
    now = datetime.now(UTC)
    row = {
        "id": time_ordered_id(),
        "kind": kind,
        "value": value,
        "issued_before": now,
        "created_at": now,
        "expires_at": now + _KEPT if until is None else until,
    }
    await connection.execute(revocations.insert().values(row))


async def end_sessions(connection: AsyncConnection, which: sa.ColumnElement[bool], because: str) -> None:
    """End the sessions that the condition names, in a transaction of the caller's. Their access tokens go on."""
    change = sessions.update().where(which, sessions.c.revoked_at.is_(None))
    await connection.execute(change.values(revoked_at=datetime.now(UTC), revoked_because=because))


@dataclass(frozen=True, slots=True)
class _Known:
    """What this worker knows of one user, client, session, token or API key."""

    issued_before: float  # Unix time, seconds: tokens issued up to then are refused
    until: float  # Unix time, seconds: of no use any more after it
    turn: int  # how many things this worker had learned with it


class Revocations:
    """What this worker knows to be revoked.

    `learned` counts what it was told. An API key is read anew when something that concerns it was learned after it was
    read. By this count and not by time: a clock that differs from another machine's must not keep a key alive.

    Args:
        database: where it is read from.
        clock: Unix time in seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self.learned = 0
        self._database = database
        self._clock = clock
        self._read_up_to: datetime | None = None
        self._last_read: frozenset[str] = frozenset()  # ids of rows: the next reading overlaps with the last
        self._disabled_users: frozenset[str] = frozenset()
        self._disabled_clients: frozenset[str] = frozenset()
        self._known: dict[tuple[str, str], _Known] = {}
        self._forgotten = 0  # how many things were learned with the last that is forgotten and was about API keys
        self._forget_at = 0.0

    async def refresh(self) -> None:
        """Read what is new. At the first time all of it.

        Raises:
            DatabaseUnavailable: the last known stands.
        """
        now = datetime.fromtimestamp(self._clock(), UTC)
        wanted = revocations.select().where(revocations.c.expires_at > now)
        if self._read_up_to is not None:
            wanted = wanted.where(revocations.c.created_at > self._read_up_to - _OVERLAP)
        async with self._database.transaction() as connection:
            disabled_users = frozenset(await connection.scalars(sa.select(users.c.id).where(users.c.disabled)))
            disabled_clients = frozenset(await connection.scalars(sa.select(clients.c.id).where(clients.c.disabled)))
            rows = (await connection.execute(wanted)).all()
        self._disabled_users, self._disabled_clients = disabled_users, disabled_clients
        for row in rows:
            if row.id not in self._last_read:
                self._learn(row.kind, row.value, row.issued_before.timestamp(), row.expires_at.timestamp())
        self._last_read, self._read_up_to = frozenset(row.id for row in rows), now
        self._forget()

    def apply_now(self, kind: Kind, value: str) -> None:
        """Do not wait for the next reading: this worker has made the change itself."""
        now = self._clock()
        self._learn(kind, value, now, now + _KEPT.total_seconds())

    def disable_now(self, users: Iterable[str] = (), clients: Iterable[str] = ()) -> None:
        """The same for users and clients that were disabled."""
        self._disabled_users |= frozenset(users)
        self._disabled_clients |= frozenset(clients)

    def refuses(self, principal: Principal) -> str | None:
        """Why the credential is not accepted any more, in a word; None when it is. Asks nobody."""
        if principal.subject in self._disabled_users or principal.client_id in self._disabled_clients:
            return "disabled"
        # What became of an API key is in its row: see `changed`.
        if not self._known or principal.auth_method == API_KEY:
            return None
        if ("token", principal.credential_id) in self._known or ("session", principal.session_id) in self._known:
            return "revoked"
        holders = (self._known.get(("user", principal.subject)), self._known.get(("client", principal.client_id)))
        return "revoked" if any(each and principal.issued_at <= each.issued_before for each in holders) else None

    def changed(self, principal: Principal, *, since: int) -> bool:
        """Whether an API key is to be read anew: it, or its user, was changed.

        Args:
            principal: of the key.
            since: `learned`, as it was before the key was read.
        """
        if self.learned == since:
            return False
        if since < self._forgotten:  # nobody knows any more
            return True
        about = (self._known.get(("key", principal.credential_id)), self._known.get(("user", principal.subject)))
        return any(each and each.turn > since for each in about)

    async def prune(self) -> None:
        """Remove rows that are of no use any more from the database, in batches."""
        old = sa.select(revocations.c.id).where(revocations.c.expires_at <= datetime.fromtimestamp(self._clock(), UTC))
        # Another worker is at it too: each takes rows that the other does not have.
        batch = old.limit(_PRUNED_AT_ONCE).with_for_update(skip_locked=True)
        removed = _PRUNED_AT_ONCE
        while removed == _PRUNED_AT_ONCE:
            async with self._database.transaction() as connection:
                ids = (await connection.scalars(batch)).all()
                await connection.execute(revocations.delete().where(revocations.c.id.in_(ids)))
            removed = len(ids)

    def _learn(self, kind: str, value: str, issued_before: float, until: float) -> None:
        self.learned += 1
        known = self._known.get((kind, value))
        if known is not None:  # machines whose clocks differ write in any order
            issued_before, until = max(issued_before, known.issued_before), max(until, known.until)
        self._known[kind, value] = _Known(issued_before, until, self.learned)

    def _forget(self) -> None:
        """Seldom, because API keys that were read before what is forgotten are all read anew."""
        now = self._clock()
        if now < self._forget_at:
            return
        self._forget_at = now + _FORGET_SECONDS
        for about in [about for about, known in self._known.items() if known.until <= now]:
            turn = self._known.pop(about).turn
            if about[0] in _ABOUT_KEYS:
                self._forgotten = max(self._forgotten, turn)
