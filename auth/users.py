"""The users: one table, and the repository that reads and writes it. SQLite and PostgreSQL."""

import asyncio
import unicodedata
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from auth.passwords import Passwords, validate_new_password
from auth.scopes import format_scope, grantable, parse_scope
from observability.columns import UtcDateTime

MAX_USERNAME_CHARACTERS = 128
# They reorder or break a line of text in which a name stands, and so could make it read as something else.
_LINE_AND_BIDI_CONTROLS = frozenset(
    "\u2028\u2029\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)


metadata = sa.MetaData()
users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("username", sa.Text, nullable=False),
    sa.Column("password_hash", sa.Text, nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),  # a scope string
    sa.Column("disabled", sa.Boolean, nullable=False, default=False, server_default=sa.false()),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.UniqueConstraint("username", name="uq_users_username"),
)


class InvalidUsername(ValueError):  # noqa: N818  # reads as what it says
    """Not a name a user can have; the message says why and does not contain it."""


class UsernameTaken(ValueError):  # noqa: N818  # reads as what it says
    """There is a user of this name."""


class UnknownUser(LookupError):  # noqa: N818  # reads as what it says
    """There is no user of this name."""


class UsersUnavailable(Exception):  # noqa: N818  # a state, not a fault
    """The database did not answer, or not in time."""


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


def validate_username(username: str) -> str:
    """The name in NFC, in which it is stored and looked up.

    Raises:
        InvalidUsername: empty, over 128 characters, with white space around it, or with a control character.
    """
    name = unicodedata.normalize("NFC", username)
    if not 1 <= len(name) <= MAX_USERNAME_CHARACTERS:
        raise InvalidUsername(f"a username has 1 to {MAX_USERNAME_CHARACTERS} characters")
    if any(unicodedata.category(c) in {"Cc", "Cs"} or c in _LINE_AND_BIDI_CONTROLS for c in name):
        raise InvalidUsername("a username has no control characters")
    if name != name.strip():
        raise InvalidUsername("a username does not begin or end with white space")
    return name


class Users:
    """The repository. Every method may raise `UsersUnavailable`.

    Args:
        engine: sqlite+aiosqlite or postgresql+asyncpg.
        timeout_seconds: how long a database that does not answer is waited for.
    """

    def __init__(self, engine: AsyncEngine, *, timeout_seconds: float = 5.0) -> None:
        self._engine = engine
        self._timeout_seconds = timeout_seconds

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

    async def add(self, username: str, password: str, scopes: Iterable[str], *, passwords: Passwords) -> User:
        """Make a user.

        Raises:
            InvalidUsername, UsernameTaken, InvalidPassword, InvalidScopeString: nothing was stored.
            PasswordsBusy: try again.
        """
        name, granted = validate_username(username), grantable(scopes)
        validate_new_password(password)
        now = datetime.now(UTC)
        user = User(str(uuid.uuid4()), name, await passwords.hash(password), granted, False, now, now)
        row = {
            "id": user.id,
            "username": name,
            "password_hash": user.password_hash,
            "scopes": format_scope(granted),
            "created_at": now,
            "updated_at": now,
        }
        async with self._transaction() as connection:
            try:
                await connection.execute(users.insert().values(row))
            except IntegrityError as error:
                raise UsernameTaken("there is a user of this name") from error
        return user

    async def list(self) -> tuple[User, ...]:
        """All users, by name."""
        async with self._transaction() as connection:
            rows = await connection.execute(users.select().order_by(users.c.username))
            return tuple(_user(row) for row in rows)

    async def count(self) -> int:
        """How many users there are, disabled ones among them."""
        async with self._transaction() as connection:
            return int((await connection.execute(sa.select(sa.func.count()).select_from(users))).scalar_one())

    async def disabled_ids(self) -> frozenset[str]:
        """The ids of the users who are disabled."""
        async with self._transaction() as connection:
            return frozenset(await connection.scalars(sa.select(users.c.id).where(users.c.disabled)))

    async def set_disabled(self, username: str, *, disabled: bool) -> None:
        """Disable or enable a user. Tokens that are out are refused as soon as `DisabledUsers` has read it.

        Raises:
            UnknownUser: nobody has this name.
        """
        await self._set(username, disabled=disabled)

    async def set_password(self, username: str, password: str, *, passwords: Passwords) -> None:
        """Give a user a new password.

        Raises:
            UnknownUser: nobody has this name.
            InvalidPassword: the old one stays.
            PasswordsBusy: try again.
        """
        validate_new_password(password)
        await self._set(username, password_hash=await passwords.hash(password))

    async def set_password_hash(self, user_id: str, password_hash: str, *, replacing: str) -> bool:
        """Replace one hash of a password by another of the same; False if the password was changed meanwhile."""
        return await self._update(
            sa.and_(users.c.id == user_id, users.c.password_hash == replacing), password_hash=password_hash
        )

    async def _one(self, condition: sa.ColumnElement[bool]) -> User | None:
        async with self._transaction() as connection:
            row = (await connection.execute(users.select().where(condition))).one_or_none()
        return None if row is None else _user(row)

    async def _set(self, username: str, **values: Any) -> None:
        try:
            name = validate_username(username)
        except InvalidUsername:
            name = None
        if name is None or not await self._update(users.c.username == name, **values):
            raise UnknownUser("there is no user of this name")

    async def _update(self, condition: sa.ColumnElement[bool], **values: Any) -> bool:
        async with self._transaction() as connection:
            statement = users.update().where(condition).values(**values, updated_at=datetime.now(UTC))
            return (await connection.execute(statement)).rowcount == 1

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with asyncio.timeout(self._timeout_seconds), self._engine.begin() as connection:
                yield connection
        except (DBAPIError, PoolTimeoutError, OSError) as error:  # OSError: no route, no socket, or our timeout
            raise UsersUnavailable(type(error).__name__) from error


def _user(row: sa.Row[Any]) -> User:
    return User(
        id=row.id,
        username=row.username,
        password_hash=row.password_hash,
        scopes=parse_scope(row.scopes),
        disabled=row.disabled,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
