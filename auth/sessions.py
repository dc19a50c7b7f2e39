"""Sessions: what a login begins, and the refresh tokens that keep it going (RFC 6749 §6, RFC 9700 §4.14).

A refresh token works once. Of any number of requests with the same one exactly one spends it; the others, within a
short overlap and before the successor was used, get the same successor: they are the client that lost the answer.
Anything else is reuse and ends the session. docs/adr/0013-refresh-token-rotation.md says why.
"""

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.audit import SYSTEM, Actor, AuditRecord, log_record, write_record
from auth.database import Database
from auth.errors import InvalidGrant
from auth.revocation import write_revocation
from auth.scopes import format_scope, parse_scope
from auth.secret_tokens import hash_secret, new_secret, seal, unseal
from auth.tables import refresh_tokens, sessions, users
from auth.users import User
from observability.ids import time_ordered_id

log = structlog.get_logger("auth.sessions")

PREFIX: Final = "tbr_"
_PRUNED_AT_ONCE: Final = 500
_KEPT_AFTER_END: Final = timedelta(days=1)


class UnknownSession(LookupError):  # noqa: N818  # reads as what it says
    """There is no living session of this id."""


@dataclass(frozen=True, slots=True)
class Session:
    """One row, with whose it is."""

    id: str
    user_id: str
    username: str
    team_id: str | None
    client_id: str
    scopes: frozenset[str]  # as granted at login; a refresh never adds to it
    user_scopes: frozenset[str]  # what the user has now
    address: str
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime


class Refreshed(NamedTuple):
    """What a refresh gives."""

    session: Session
    refresh_token: str


class Sessions:
    """The repository. Every method may raise `DatabaseUnavailable`.

    Args:
        database: where they are.
        refresh_ttl_seconds: life of a refresh token that is not used.
        session_ttl_seconds: longest life of a session.
        overlap_seconds: how long a spent token may be sent again.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        database: Database,
        *,
        refresh_ttl_seconds: float,
        session_ttl_seconds: float,
        overlap_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._refresh_ttl = timedelta(seconds=refresh_ttl_seconds)
        self._session_ttl = timedelta(seconds=session_ttl_seconds)
        self._overlap = timedelta(seconds=overlap_seconds)
        self._clock = clock

    async def open(
        self, user_id: str, client_id: str, scopes: Iterable[str], address: str, *, seen: User | None = None
    ) -> tuple[str, str]:
        """Begin a session. Returns its id and its first refresh token.

        Args:
            user_id: whose.
            client_id: the client that asked for it.
            scopes: what is granted.
            address: where the login came from.
            seen: the user as the password was verified against.

        Raises:
            InvalidGrant: the user was disabled meanwhile, or is another than was seen: to verify a password takes time.
        """
        now, session_id, token = self._now(), time_ordered_id(self._clock()), new_secret(PREFIX)
        expires_at = now + self._session_ttl
        row = {
            "id": session_id,
            "user_id": user_id,
            "client_id": client_id,
            "scopes": format_scope(scopes),
            "address": address,
            "created_at": now,
            "last_used_at": now,
            "expires_at": expires_at,
        }
        async with self._database.transaction() as connection:
            await connection.execute(sessions.insert().values(row))
            await self._add_token(connection, token, session_id, now, expires_at)
            now_is = sa.select(users.c.disabled, users.c.password_hash, users.c.scopes).where(users.c.id == user_id)
            user = (await connection.execute(now_is.with_for_update(read=True))).one()
            if user.disabled:
                raise InvalidGrant(reason="disabled", subject=user_id)
            if seen is not None and (user.password_hash, parse_scope(user.scopes)) != (seen.password_hash, seen.scopes):
                raise InvalidGrant(reason="changed", subject=user_id)
        return session_id, token

    async def refresh(self, token: str, *, client_id: str) -> Refreshed:
        """Trade a refresh token for the next.

        Args:
            token: as presented; any string.
            client_id: of the client that presents it.

        Raises:
            InvalidGrant: it is not accepted: unknown_token, wrong_client, revoked, expired, disabled, or reuse, which
                has ended the session then. One description for all.
        """
        now, hashed, successor = self._now(), hash_secret(token), new_secret(PREFIX)
        async with self._database.transaction() as connection:
            if await self._spend(connection, token, hashed, client_id, successor, now):
                session = await self._carry_on(connection, hashed, now)
                await self._add_token(connection, successor, session.id, now, session.expires_at)
                return Refreshed(session, successor)
            session, sent_again = await self._judge(connection, token, hashed, client_id, now)
            if sent_again is not None:
                return Refreshed(session, sent_again)
            record = await self._end_family(connection, session)
        # Out here: the end of the session is to be committed, and not undone by the error.
        if record is not None:
            log_record(record)
        log.warning("refresh_token_reused", subject=session.user_id, session_id=session.id)
        raise _refused("reuse")

    async def look(self, token: str) -> tuple[Session, datetime] | None:
        """The session of a living refresh token and when the token expires, spending nothing. None: it is not alive."""
        now = self._now()
        async with self._database.transaction() as connection:
            wanted = _with_user(refresh_tokens.c.spent_at, refresh_tokens.c.expires_at.label("token_expires_at")).where(
                refresh_tokens.c.token_hash == hash_secret(token)
            )
            row = (await connection.execute(wanted)).one_or_none()
        if row is None or row.spent_at or row.token_expires_at <= now or _ended(row, now) or row.disabled:
            return None
        return _session(row), row.token_expires_at

    async def revoke_by_token(self, token: str, *, client_id: str, by: Actor) -> str | None:
        """End the session of a refresh token, spent or not (RFC 7009 §2.1). Returns its id; None: there is none living.

        Raises:
            InvalidGrant: the token was issued to another client.
        """
        async with self._database.transaction() as connection:
            wanted = _with_user().where(refresh_tokens.c.token_hash == hash_secret(token))
            row = (await connection.execute(wanted)).one_or_none()
        if row is None or _ended(row, self._now()):
            return None
        if row.client_id != client_id:
            raise _refused("wrong_client")
        await self.revoke(row.id, because="revoked", by=by)
        return str(row.id)

    async def revoke(self, session_id: str, *, because: str, by: Actor) -> None:
        """End a session and its access tokens.

        Raises:
            UnknownSession: there is none living.
        """
        session = await self.get(session_id)
        if session is None:
            raise UnknownSession("there is no such session")
        async with self._database.transaction(_audit(session, because, by)) as connection:
            if not await self._end(connection, sessions.c.id == session_id, because):
                raise UnknownSession("the session was ended meanwhile")
            await write_revocation(connection, "session", session_id)

    async def revoke_user(self, user_id: str, *, because: str, by: Actor, team_id: str | None = None) -> None:
        """End all sessions and access tokens of a user."""
        audit = by.did("session.revoke", "user", user_id, team_id=team_id, because=because, all=True)
        async with self._database.transaction(audit) as connection:
            await self._end(connection, sessions.c.user_id == user_id, because)
            await write_revocation(connection, "user", user_id)

    async def get(self, session_id: str) -> Session | None:
        """The session of this id, if it was not ended and has not expired. An id that is none of ours is not asked for.

        It is still there when its last refresh token has expired: there may be an access token to end.
        """
        try:
            uuid.UUID(session_id)
        except ValueError:
            return None
        found = await self._living(sessions.c.id == session_id, limit=1)
        return found[0] if found else None

    async def list(
        self, *, user_id: str | None = None, team_id: str | None = None, before: str | None = None, limit: int = 50
    ) -> tuple[Session, ...]:
        """Sessions that can be refreshed, the newest first, from the one before `before` on."""
        conditions = [
            column == value
            for column, value in ((sessions.c.user_id, user_id), (users.c.team_id, team_id))
            if value is not None
        ]
        if before is not None:
            conditions.append(sessions.c.id < before)
        return await self._living(_has_token(self._now()), *conditions, limit=limit)

    async def prune(self) -> None:
        """Remove sessions that ended, or could last be refreshed, more than a day ago, with their tokens."""
        ended = self._now() - _KEPT_AFTER_END
        idle = sa.and_(sessions.c.last_used_at < ended, ~_has_token(ended))
        old = sa.or_(sessions.c.expires_at < ended, sessions.c.revoked_at < ended, idle)
        removed = _PRUNED_AT_ONCE
        while removed == _PRUNED_AT_ONCE:  # in batches, so that nobody waits long for a lock
            async with self._database.transaction() as connection:
                ids = (await connection.scalars(sa.select(sessions.c.id).where(old).limit(_PRUNED_AT_ONCE))).all()
                await connection.execute(refresh_tokens.delete().where(refresh_tokens.c.session_id.in_(ids)))
                await connection.execute(sessions.delete().where(sessions.c.id.in_(ids)))
            removed = len(ids)

    async def _spend(
        self, connection: AsyncConnection, token: str, hashed: str, client_id: str, successor: str, now: datetime
    ) -> bool:
        """Mark the token spent; whether it was ours to spend. The first statement of the transaction, so that SQLite
        gives it the write lock before anything is read.
        """
        # `exists`, because SQLite would make a list of all living sessions for an `in`.
        living = sa.exists().where(
            sessions.c.id == refresh_tokens.c.session_id,
            sessions.c.client_id == client_id,
            sessions.c.revoked_at.is_(None),
        )
        change = (
            refresh_tokens.update()
            .where(
                refresh_tokens.c.token_hash == hashed,
                refresh_tokens.c.spent_at.is_(None),
                refresh_tokens.c.expires_at > now,  # never later than the session's
                living,
            )
            .values(spent_at=now, successor_hash=hash_secret(successor), successor_sealed=seal(successor, token))
        )
        return (await connection.execute(change)).rowcount == 1

    async def _carry_on(self, connection: AsyncConnection, hashed: str, now: datetime) -> Session:
        """The session of the token that was just spent. What is refused here undoes the spending too.

        Somebody may be ending the session, or changing the user, at this moment, and PostgreSQL has not shown it to
        `_spend`. Both rows are locked, in the order in which auth/users.py does it: who came first is waited for, and
        who comes later waits for us.
        """
        wanted = _with_user().where(refresh_tokens.c.token_hash == hashed).with_for_update(read=True, of=users)
        row = (await connection.execute(wanted)).one()
        if row.disabled:
            raise _refused("disabled")
        change = sessions.update().where(sessions.c.id == row.id, sessions.c.revoked_at.is_(None))
        if (await connection.execute(change.values(last_used_at=now))).rowcount != 1:
            raise _refused("revoked")
        # Its sender had the token, so it need not be given to anyone again.
        parent = (refresh_tokens.c.session_id == row.id) & (refresh_tokens.c.successor_hash == hashed)
        await connection.execute(refresh_tokens.update().where(parent).values(successor_sealed=None))
        return replace(_session(row), last_used_at=now)

    async def _judge(
        self, connection: AsyncConnection, token: str, hashed: str, client_id: str, now: datetime
    ) -> tuple[Session, str | None]:
        """A token that could not be spent: refuse it, or give its successor once more. (session, None) is reuse."""
        columns = (refresh_tokens.c.spent_at, refresh_tokens.c.successor_sealed)
        wanted = _with_user(*columns).where(refresh_tokens.c.token_hash == hashed)
        row = (await connection.execute(wanted)).one_or_none()
        if row is None:
            raise _refused("unknown_token")
        if row.client_id != client_id:
            raise _refused("wrong_client")
        if row.revoked_at is not None:
            raise _refused("revoked")
        if row.expires_at <= now or row.spent_at is None:
            raise _refused("expired")
        if row.disabled:
            raise _refused("disabled")
        # An overlap of 0 is none, even within the same instant. The successor is erased as soon as it was used.
        if self._overlap and row.successor_sealed is not None and now - row.spent_at <= self._overlap:
            return _session(row), unseal(row.successor_sealed, token)
        return _session(row), None

    async def _end(self, connection: AsyncConnection, which: sa.ColumnElement[bool], because: str) -> bool:
        """End the sessions that the condition names; whether there was one that had not ended."""
        change = sessions.update().where(which, sessions.c.revoked_at.is_(None))
        return (await connection.execute(change.values(revoked_at=self._now(), revoked_because=because))).rowcount > 0

    async def _end_family(self, connection: AsyncConnection, session: Session) -> AuditRecord | None:
        """End the session of a token that was reused. Of many at once the first does, and has a record to log."""
        if not await self._end(connection, sessions.c.id == session.id, "reuse"):
            return None
        record = _audit(session, "reuse", SYSTEM)
        await write_revocation(connection, "session", session.id)
        await write_record(connection, record)
        return record

    async def _add_token(
        self, connection: AsyncConnection, token: str, session_id: str, now: datetime, session_expires_at: datetime
    ) -> None:
        row = {
            "token_hash": hash_secret(token),
            "session_id": session_id,
            "created_at": now,
            "expires_at": min(now + self._refresh_ttl, session_expires_at),
        }
        await connection.execute(refresh_tokens.insert().values(row))

    async def _living(self, *conditions: sa.ColumnElement[bool], limit: int) -> tuple[Session, ...]:
        wanted = (
            sa.select(*_COLUMNS)
            .select_from(sessions.join(users))
            .where(sessions.c.revoked_at.is_(None), sessions.c.expires_at > self._now(), *conditions)
            .order_by(sessions.c.id.desc())
            .limit(limit)
        )
        async with self._database.transaction() as connection:
            return tuple(_session(row) for row in await connection.execute(wanted))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


_COLUMNS: Final = (
    *sessions.c,
    users.c.username,
    users.c.team_id,
    users.c.disabled,
    users.c.scopes.label("user_scopes"),
)


def _with_user(*more: Any) -> sa.Select[Any]:
    """A refresh token's session and user."""
    return sa.select(*_COLUMNS, *more).select_from(refresh_tokens.join(sessions).join(users))


def _has_token(at: datetime) -> sa.Exists:
    """Whether a session has a refresh token that has not expired at this instant. The one not spent is the last to."""
    return sa.exists().where(refresh_tokens.c.session_id == sessions.c.id, refresh_tokens.c.expires_at > at)


def _session(row: sa.Row[Any]) -> Session:
    return Session(
        id=row.id,
        user_id=row.user_id,
        username=row.username,
        team_id=row.team_id,
        client_id=row.client_id,
        scopes=parse_scope(row.scopes),
        user_scopes=parse_scope(row.user_scopes),
        address=row.address,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        expires_at=row.expires_at,
    )


def _ended(row: sa.Row[Any], now: datetime) -> bool:
    return row.revoked_at is not None or row.expires_at <= now


def _audit(session: Session, because: str, by: Actor) -> AuditRecord:
    return by.did(
        "session.revoke",
        "session",
        session.id,
        target_name=session.username,
        team_id=session.team_id,
        because=because,
        user=session.user_id,
    )


def _refused(reason: str) -> InvalidGrant:
    return InvalidGrant("The refresh token is not valid.", reason=reason)
