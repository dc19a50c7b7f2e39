"""API keys: a credential for tools that know no other, with at most the scopes of its user.

`tbk_<id>_<secret>`, shown once. The id finds the row, and the row has the hash of the secret. Allowed models are scopes
(`llm:<model>`).
"""

import base64
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from auth.audit import Actor, AuditRecord, log_record, write_record
from auth.database import Database
from auth.names import validate_name
from auth.revocation import write_revocation
from auth.scopes import format_scope, grantable, narrow, parse_scope
from auth.secret_tokens import hash_secret, matches, new_secret
from auth.tables import api_keys, users
from observability.columns import UtcDateTime

PREFIX: Final = "tbk_"
_FORM = re.compile(r"tbk_([a-z2-7]{16})_([A-Za-z0-9_-]{43})")
_MAX_OVERLAP_SECONDS: Final = 366 * 86400


class InvalidKeyData(ValueError):  # noqa: N818  # reads as what it says
    """Not a key that there can be; the message says why."""


class UnknownKey(LookupError):  # noqa: N818  # reads as what it says
    """There is no key of this id that can be used."""


class WrongKey(Exception):  # noqa: N818  # reads as what it says
    """A key that is not accepted. `reason` is a word of a closed set, for counters and logs."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One row, with whose it is."""

    id: str
    name: str
    user_id: str
    username: str
    team_id: str | None
    scopes: frozenset[str]
    user_scopes: frozenset[str] = field(repr=False)  # what the user has now
    user_disabled: bool
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None

    @property
    def effective_scopes(self) -> frozenset[str]:
        """What it can be used for now."""
        return narrow(self.scopes, self.user_scopes)


class ApiKeys:
    """The repository. Every method may raise `DatabaseUnavailable`.

    Args:
        database: where they are.
        clock: Unix time in seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    async def verify(self, presented: str) -> ApiKey:
        """The key that was presented. An unknown id costs the same work as a known one.

        Raises:
            WrongKey: it is not accepted.
        """
        key_id, secret = split_key(presented)
        found = await self._rows(api_keys.c.id == key_id, limit=1, more=(api_keys.c.secret_hash,))
        row = found[0] if found else None
        if not matches(secret, row.secret_hash if row else None) or row is None:
            raise WrongKey("unknown_key" if row is None else "wrong_secret")
        key = _key(row)
        if key.revoked_at is not None:
            raise WrongKey("revoked")
        if key.expires_at is not None and key.expires_at <= self._now():
            raise WrongKey("expired")
        if key.user_disabled:
            raise WrongKey("disabled")
        return key

    async def get(self, key_id: str) -> ApiKey | None:
        """The key of this id, also a revoked one."""
        found = await self._rows(api_keys.c.id == key_id, limit=1)
        return _key(found[0]) if found else None

    async def create(
        self, user_id: str, name: str, *, scopes: Iterable[str], expires_at: datetime | None = None, by: Actor
    ) -> tuple[ApiKey, str]:
        """Make a key. It is returned here and never again.

        Raises:
            InvalidName, InvalidScopeString, InvalidKeyData: nothing was stored.
        """
        now = self._now()
        if expires_at is not None and expires_at <= now:
            raise InvalidKeyData("the expiry of a key is in the future")
        row, key = _new(user_id, validate_name(name), grantable(scopes), now, expires_at)
        return await self._insert(row, by, "key.create"), key

    async def rotate(self, key_id: str, *, overlap_seconds: float, by: Actor) -> tuple[ApiKey, str]:
        """Make a key with the same name, scopes and expiry. The old one goes on for the overlap, if it does not expire
        before.

        Raises:
            UnknownKey: there is none that can be used.
            InvalidKeyData: the overlap is negative, or over a year.
        """
        if not 0 <= overlap_seconds <= _MAX_OVERLAP_SECONDS:
            raise InvalidKeyData("an overlap is 0 seconds or more, and at most a year")
        now, old = self._now(), await self.get(key_id)
        if old is None:
            raise UnknownKey("there is no such key")
        row, key = _new(old.user_id, old.name, old.scopes, now, old.expires_at)
        end = sa.literal(now + timedelta(seconds=overlap_seconds), UtcDateTime)
        # The earlier of the two by what the row has then: of two rotations at once the longer overlap must not win.
        endless = sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > end)
        change = _usable_key(key_id, now).values(expires_at=sa.case((endless, end), else_=api_keys.c.expires_at))
        return await self._insert(row, by, "key.rotate", change, replaces=key_id, overlap_seconds=overlap_seconds), key

    async def revoke(self, key_id: str, *, by: Actor) -> None:
        """Never accept a key again.

        Raises:
            UnknownKey: there is none that could be.
        """
        key = await self.get(key_id)
        if key is None or key.revoked_at is not None:
            raise UnknownKey("there is no such key")
        async with self._database.transaction(_audit(key, "key.revoke", by)) as connection:
            change = api_keys.update().where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
            if (await connection.execute(change.values(revoked_at=self._now()))).rowcount != 1:
                raise UnknownKey("there is no such key")
            await write_revocation(connection, "key", key_id)

    async def list(
        self, *, user_id: str | None = None, team_id: str | None = None, after: str = "", limit: int = 50
    ) -> tuple[ApiKey, ...]:
        """Keys, by id, from the one after `after` on; revoked ones too."""
        conditions = [
            column == value
            for column, value in ((api_keys.c.user_id, user_id), (users.c.team_id, team_id))
            if value is not None
        ]
        return tuple(_key(row) for row in await self._rows(api_keys.c.id > after, *conditions, limit=limit))

    async def touch(self, used: Mapping[str, datetime]) -> None:
        """Write down when keys were last used."""
        when = sa.bindparam("used_at", type_=UtcDateTime)
        later = sa.or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < when)
        change = api_keys.update().where(api_keys.c.id == sa.bindparam("key_id"), later).values(last_used_at=when)
        # In one order for all workers, so that none waits for a row of another that waits for one of its own.
        rows = [{"key_id": key_id, "used_at": used[key_id]} for key_id in sorted(used)]
        async with self._database.transaction() as connection:
            await connection.execute(change, rows)

    async def _insert(
        self, row: dict[str, Any], by: Actor, action: str, change: sa.Update | None = None, **details: Any
    ) -> ApiKey:
        async with self._database.transaction() as connection:
            if change is not None:
                if (await connection.execute(change)).rowcount != 1:
                    raise UnknownKey("there is no such key")
                await write_revocation(connection, "key", details["replaces"])
            await connection.execute(api_keys.insert().values(row))
            key = _key((await connection.execute(_SELECT.add_columns().where(api_keys.c.id == row["id"]))).one())
            record = _audit(key, action, by, scopes=row["scopes"], **details)
            await write_record(connection, record)
        log_record(record)
        return key

    async def _rows(
        self, *conditions: sa.ColumnElement[bool], limit: int, more: tuple[Any, ...] = ()
    ) -> Sequence[sa.Row[Any]]:
        wanted = _SELECT.add_columns(*more).where(*conditions).order_by(api_keys.c.id).limit(limit)
        async with self._database.transaction() as connection:
            return (await connection.execute(wanted)).all()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


_SELECT: Final = sa.select(
    *(column for column in api_keys.c if column.name != "secret_hash"),
    users.c.username,
    users.c.team_id,
    users.c.scopes.label("user_scopes"),
    users.c.disabled.label("user_disabled"),
).select_from(api_keys.join(users))


def split_key(presented: str) -> tuple[str, str]:
    """Id and secret of something that looks like a key.

    Raises:
        WrongKey: it does not.
    """
    match = _FORM.fullmatch(presented)
    if match is None:
        raise WrongKey("malformed")
    return match[1], match[2]


def _new(
    user_id: str, name: str, scopes: frozenset[str], now: datetime, expires_at: datetime | None
) -> tuple[dict[str, Any], str]:
    key_id, secret = base64.b32encode(secrets.token_bytes(10)).decode().lower(), new_secret()
    row = {
        "id": key_id,
        "secret_hash": hash_secret(secret),
        "name": name,
        "user_id": user_id,
        "scopes": format_scope(scopes),
        "created_at": now,
        "expires_at": expires_at,
    }
    return row, f"{PREFIX}{key_id}_{secret}"


def _usable_key(key_id: str, now: datetime) -> sa.Update:
    living = sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now)
    return api_keys.update().where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None), living)


def _key(row: sa.Row[Any]) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        user_id=row.user_id,
        username=row.username,
        team_id=row.team_id,
        scopes=parse_scope(row.scopes),
        user_scopes=parse_scope(row.user_scopes),
        user_disabled=row.user_disabled,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )


def _audit(key: ApiKey, action: str, by: Actor, **details: Any) -> AuditRecord:
    return by.did(
        action,
        "key",
        key.id,
        target_name=key.name,
        team_id=key.team_id,
        user=key.user_id,
        **details,
    )
