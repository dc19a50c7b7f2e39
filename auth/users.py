"""The users: the repository that reads and writes them."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.audit import SYSTEM, Actor, AuditRecord
from auth.database import Database
from auth.names import InvalidName, validate_name
from auth.passwords import Passwords
from auth.principal import RESERVED_PREFIXES
from auth.revocation import end_sessions, write_revocation
from auth.scopes import Scope, format_scope, grantable, parse_scope
from auth.tables import sessions, users
from auth.teams import UnknownTeam

KEEP: Final = "\0keep"  # no id of a team


class InvalidUsername(InvalidName):
    """Not a name a user can have; the message says why and does not contain it."""


class UsernameTaken(ValueError):  # noqa: N818  # reads as what it says
    """There is a user of this name."""


class UnknownUser(LookupError):  # noqa: N818  # reads as what it says
    """There is no such user."""


class UserChanged(ValueError):  # noqa: N818  # reads as what it says
    """The user is not any more what the change was decided on."""


class LastAdmin(ValueError):  # noqa: N818  # reads as what it says
    """Without this user nobody could administer the service."""


@dataclass(frozen=True, slots=True)
class User:
    """One row."""

    id: str
    username: str
    password_hash: str = field(repr=False)
    scopes: frozenset[str]
    disabled: bool
    created_at: datetime
    updated_at: datetime
    team_id: str | None = None


def validate_username(username: str) -> str:
    """The name in NFC, in which it is stored and looked up.

    Raises:
        InvalidUsername: as of `validate_name`, or it begins as the names of others than users do in the books.
    """
    try:
        name = validate_name(username)
    except InvalidName as error:
        raise InvalidUsername(f"username: {error}") from None
    if name.lower().startswith(RESERVED_PREFIXES):
        raise InvalidUsername(f"a username does not begin with {' or '.join(RESERVED_PREFIXES)}")
    return name


class Users:
    """The repository. Every method may raise `DatabaseUnavailable`. Changes end what they have to: see docs/auth.md.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, username: str) -> User | None:
        """The user of this name. A name no user can have is not asked for."""
        try:
            name = validate_username(username)
        except InvalidUsername:
            return None
        return await self._one(users.c.username == name)

    async def get_by_id(self, user_id: str) -> User | None:
        """The user of this id. An id that is none of ours is not asked for."""
        try:
            canonical = str(uuid.UUID(user_id))
        except ValueError:
            return None
        return await self._one(users.c.id == user_id) if canonical == user_id else None

    async def add(
        self,
        username: str,
        password: str,
        scopes: Iterable[str],
        *,
        passwords: Passwords,
        team_id: str | None = None,
        by: Actor = SYSTEM,
    ) -> User:
        """Make a user.

        Raises:
            InvalidUsername, UsernameTaken, InvalidPassword, InvalidScopeString, UnknownTeam: nothing was stored.
            PasswordsBusy: try again.
        """
        name, granted = validate_username(username), grantable(scopes)
        hashed = await passwords.hash_new(password, name)
        now = datetime.now(UTC)
        user = User(str(uuid.uuid4()), name, hashed, granted, False, now, now, team_id)
        row = {
            "id": user.id,
            "username": name,
            "password_hash": hashed,
            "scopes": format_scope(granted),
            "created_at": now,
            "updated_at": now,
            "team_id": team_id,
        }
        try:
            async with self._database.transaction(_audit(user, "user.create", by, scopes=row["scopes"])) as connection:
                await connection.execute(users.insert().values(row))
        except IntegrityError as error:  # of the name or of the team; what each database says of it is its own
            if team_id is not None and await self.get(name) is None:
                raise UnknownTeam("there is no such team") from error
            raise UsernameTaken("there is a user of this name") from error
        return user

    async def list(self, *, after: str = "", limit: int | None = None, team_id: str | None = None) -> tuple[User, ...]:
        """Users, by name, from the one after `after` on."""
        wanted = users.select().where(users.c.username > after).order_by(users.c.username).limit(limit)
        if team_id is not None:
            wanted = wanted.where(users.c.team_id == team_id)
        async with self._database.transaction() as connection:
            return tuple(user_of(row) for row in await connection.execute(wanted))

    async def count(self) -> int:
        """How many users there are, disabled ones among them."""
        async with self._database.transaction() as connection:
            return int((await connection.execute(sa.select(sa.func.count()).select_from(users))).scalar_one())

    async def update(
        self,
        user_id: str,
        *,
        scopes: Iterable[str] | None = None,
        team_id: str | None = KEEP,
        disabled: bool | None = None,
        seen: User | None = None,
        by: Actor,
    ) -> User:
        """Change some of it, all at once. Access tokens end; refresh tokens and API keys go on with what is left.

        Args:
            user_id: whose.
            scopes: what they have from now on.
            team_id: the team they are in from now on; None: in none.
            disabled: True ends sessions for good. API keys work again when the user is enabled.
            seen: the user as they were when the change was decided on; None: whatever they are.
            by: who does it.

        Raises:
            UnknownUser, UserChanged, UnknownTeam, LastAdmin, InvalidScopeString: nothing was stored.
        """
        user = seen or await self._existing(user_id)
        values: dict[str, Any] = {}
        if scopes is not None:
            values["scopes"] = format_scope(grantable(scopes))
        if team_id != KEEP:
            values["team_id"] = team_id
        details = {"to_team" if name == "team_id" else name: value for name, value in values.items()}
        action = "user.update"
        if disabled is not None:
            values["disabled"] = disabled
            action = "user.disable" if disabled else "user.enable"
        try:
            return await self._change(
                user,
                _audit(user, action, by, **details),
                values,
                sessions_end_because="disabled" if disabled else None,
                only_if=() if seen is None else _as_seen(seen),
            )
        except IntegrityError as error:
            raise UnknownTeam("there is no such team") from error

    async def set_disabled(self, user_id: str, *, disabled: bool, by: Actor) -> User:
        """`update` of this alone."""
        return await self.update(user_id, disabled=disabled, by=by)

    async def set_password(
        self, user_id: str, password: str, *, passwords: Passwords, seen: User | None = None, by: Actor
    ) -> User:
        """Give a user a new password. Sessions and access tokens end.

        Args:
            user_id: whose.
            password: the new one.
            passwords: hashes it.
            seen: as of `update`.
            by: who does it.

        Raises:
            UnknownUser, UserChanged: nothing was stored.
            InvalidPassword: the old one stays.
            PasswordsBusy: try again.
        """
        user = seen or await self._existing(user_id)
        hashed = await passwords.hash_new(password, user.username)
        return await self._change(
            user,
            _audit(user, "user.password", by),
            {"password_hash": hashed},
            sessions_end_because="password",
            only_if=() if seen is None else (*_as_seen(seen), users.c.password_hash == seen.password_hash),
        )

    async def set_password_hash(self, user_id: str, password_hash: str, *, replacing: str) -> bool:
        """Store a new hash of the same password, unless another request has changed it meanwhile."""
        condition = (users.c.id == user_id) & (users.c.password_hash == replacing)
        statement = users.update().where(condition).values(password_hash=password_hash)
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).rowcount == 1

    async def _one(self, condition: sa.ColumnElement[bool]) -> User | None:
        async with self._database.transaction() as connection:
            row = (await connection.execute(users.select().where(condition))).one_or_none()
        return None if row is None else user_of(row)

    async def _existing(self, user_id: str) -> User:
        user = await self.get_by_id(user_id)
        if user is None:
            raise UnknownUser("there is no such user")
        return user

    async def _change(
        self,
        user: User,
        audit: AuditRecord,
        values: dict[str, Any],
        *,
        sessions_end_because: str | None = None,
        only_if: Sequence[sa.ColumnElement[bool]] = (),
    ) -> User:
        remains_admin = not values.get("disabled") and Scope.ADMIN in values.get("scopes", Scope.ADMIN).split()
        change = users.update().where(users.c.id == user.id, *only_if)
        async with self._database.transaction(audit) as connection:
            # Locked in one order for all, so that admins who disable each other at once do not wait for one another.
            had_admin = not remains_admin and await _has_admin(connection, lock=True)
            done = await connection.execute(change.values(**values, updated_at=datetime.now(UTC)))
            if done.rowcount != 1:
                raise UserChanged("the user was changed meanwhile") if only_if else UnknownUser("there is no such user")
            # Asked after the change: of SQLite only a writer knows that nobody else writes.
            if had_admin and not await _has_admin(connection):
                raise LastAdmin("this is the last admin; make another one first")
            if sessions_end_because is not None:
                await end_sessions(connection, sessions.c.user_id == user.id, sessions_end_because)
            await write_revocation(connection, "user", user.id)
            row = (await connection.execute(users.select().where(users.c.id == user.id))).one()
        return user_of(row)


def _as_seen(user: User) -> tuple[sa.ColumnElement[bool], ...]:
    scopes = users.c.scopes == format_scope(user.scopes)
    return scopes, users.c.team_id.is_not_distinct_from(user.team_id), users.c.disabled.is_(user.disabled)


async def _has_admin(connection: AsyncConnection, *, lock: bool = False) -> bool:
    """Whether there is an enabled one."""
    like_admin = users.c.scopes.contains(Scope.ADMIN)  # and those whose scopes only contain the word
    enabled = sa.select(users.c.scopes).where(users.c.disabled.is_(False), like_admin).order_by(users.c.id)
    rows = await connection.execute(enabled.with_for_update() if lock else enabled)
    return any(Scope.ADMIN in row.scopes.split() for row in rows)


def user_of(row: sa.Row[Any]) -> User:
    """The user of a row of the table."""
    return User(
        id=row.id,
        username=row.username,
        password_hash=row.password_hash,
        scopes=parse_scope(row.scopes),
        disabled=row.disabled,
        created_at=row.created_at,
        updated_at=row.updated_at,
        team_id=row.team_id,
    )


def _audit(user: User, action: str, by: Actor, **details: Any) -> AuditRecord:
    return by.did(action, "user", user.id, target_name=user.username, team_id=user.team_id, **details)
