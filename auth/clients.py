"""OAuth clients (RFC 6749 §2): the machines and programs that ask for tokens, each with what it may ask for."""

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from auth.audit import SYSTEM, Actor, AuditRecord
from auth.database import Database
from auth.errors import InvalidClient
from auth.names import validate_name
from auth.revocation import end_sessions, write_revocation
from auth.scopes import format_scope, grantable, parse_scope
from auth.secret_tokens import hash_secret, matches, new_secret
from auth.tables import clients, sessions
from auth.teams import UnknownTeam

DEFAULT_CLIENT_ID: Final = "tollbook"
"""The built-in public client, which stands for requests that name none."""
PASSWORD: Final = "password"  # noqa: S105  # a grant type
REFRESH_TOKEN: Final = "refresh_token"  # noqa: S105  # a grant type
CLIENT_CREDENTIALS: Final = "client_credentials"
GRANTS: Final = (PASSWORD, REFRESH_TOKEN, CLIENT_CREDENTIALS)
_UNKNOWN: Final = "there is no client of this id"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# A token for a client has its id as `sub`, where one for a user has the user's: RFC 9700 §4.15.
_ID_OF_A_USER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class InvalidClientData(ValueError):  # noqa: N818  # reads as what it says
    """Not a client that there can be; the message says why."""


class ClientIdTaken(ValueError):  # noqa: N818  # reads as what it says
    """There is a client of this id."""


class UnknownClient(LookupError):  # noqa: N818  # reads as what it says
    """There is no client of this id."""


@dataclass(frozen=True, slots=True)
class Client:
    """One row."""

    id: str
    name: str
    secret_hash: str | None = field(repr=False)
    grants: frozenset[str]
    scopes: frozenset[str] | None  # None: no limit of its own, which only the built-in client has
    disabled: bool = False
    team_id: str | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def public(self) -> bool:
        """Whether it has no secret: RFC 6749 §2.1."""
        return self.secret_hash is None


_TAKEN: Final = frozenset({DEFAULT_CLIENT_ID, "cli", SYSTEM.id})  # who acts by these names is someone else
DEFAULT_CLIENT: Final = Client(DEFAULT_CLIENT_ID, "Tollbook", None, frozenset({PASSWORD, REFRESH_TOKEN}), None)


class Clients:
    """The repository. Every method may raise `DatabaseUnavailable`.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, client_id: str) -> Client | None:
        """The client of this id. An id that none can have is not asked for."""
        if not _ID.fullmatch(client_id):
            return None
        async with self._database.transaction() as connection:
            row = (await connection.execute(clients.select().where(clients.c.id == client_id))).one_or_none()
        return None if row is None else _client(row)

    async def authenticate(self, client_id: str, secret: str | None) -> Client:
        """The client, if it is who it says: a confidential one by its secret, a public one by its id alone.

        Raises:
            InvalidClient: unknown, disabled, a wrong secret, none where there is one, or one where there is none. The
                answers cannot be told apart, and the work is the same.
        """
        client = await self.get(client_id)
        right = matches(secret or "", client.secret_hash if client else None)
        if client is None:
            raise InvalidClient(reason="unknown_client")
        if client.public and secret is None:
            right = True
        if not right:
            raise InvalidClient(reason="wrong_secret" if secret is not None else "no_secret")
        if client.disabled:
            raise InvalidClient(reason="disabled")
        return client

    async def add(
        self,
        name: str,
        *,
        grants: Iterable[str],
        scopes: Iterable[str],
        confidential: bool = True,
        team_id: str | None = None,
        client_id: str | None = None,
        by: Actor,
    ) -> tuple[Client, str | None]:
        """Make a client. Its secret is returned here and never again; None for a public one.

        Raises:
            InvalidClientData, InvalidName, InvalidScopeString, UnknownTeam, ClientIdTaken: nothing was stored.
        """
        identifier = secrets.token_hex(8) if client_id is None else client_id
        if not _ID.fullmatch(identifier):
            raise InvalidClientData("a client id has 1 to 64 letters, digits and . _ -")
        if identifier in _TAKEN or _ID_OF_A_USER.fullmatch(identifier):
            raise InvalidClientData("a client id is neither that of Tollbook itself nor what could be the id of a user")
        wanted = _grants(grants, confidential=confidential)
        secret = new_secret("tbs_") if confidential else None
        hashed = None if secret is None else hash_secret(secret)
        client = Client(identifier, validate_name(name), hashed, wanted, grantable(scopes), False, team_id)
        row = {
            "id": client.id,
            "name": client.name,
            "secret_hash": client.secret_hash,
            "grants": " ".join(sorted(client.grants)),
            "scopes": format_scope(client.scopes or ()),
            "team_id": team_id,
            "created_at": client.created_at,
            "updated_at": client.updated_at,
        }
        audit = by.did(
            "client.create",
            "client",
            client.id,
            target_name=client.name,
            team_id=team_id,
            scopes=row["scopes"],
            grants=row["grants"],
        )
        try:
            async with self._database.transaction(audit) as connection:
                await connection.execute(clients.insert().values(row))
        except IntegrityError as error:  # of the id or of the team; what each database says of it is its own
            if team_id is not None and await self.get(identifier) is None:
                raise UnknownTeam("there is no such team") from error
            raise ClientIdTaken("there is a client of this id") from error
        return client, secret

    async def update(
        self,
        client_id: str,
        *,
        name: str | None = None,
        grants: Iterable[str] | None = None,
        scopes: Iterable[str] | None = None,
        disabled: bool | None = None,
        by: Actor,
    ) -> Client:
        """Change what is not None. Access tokens that the client has are refused from now on.

        Raises:
            UnknownClient, InvalidClientData, InvalidName, InvalidScopeString: nothing was stored.
        """
        client = await self._existing(client_id)
        values: dict[str, Any] = {}
        if name is not None:
            values["name"] = validate_name(name)
        if grants is not None:
            values["grants"] = " ".join(sorted(_grants(grants, confidential=not client.public)))
        if scopes is not None:
            values["scopes"] = format_scope(grantable(scopes))
        action = "client.update"
        if disabled is not None:
            values["disabled"] = disabled
            action = "client.disable" if disabled else "client.enable"
        return await self._change(client, action, values, by, **values)

    async def new_secret(self, client_id: str, *, by: Actor) -> str:
        """Give a confidential client a new secret.

        There is one column for it: the old secret, and access tokens got with it, stop at once. Sessions stay, and can
        be refreshed with the new one.

        Raises:
            UnknownClient, InvalidClientData: there is none, or it is public.
        """
        client = await self._existing(client_id)
        if client.public:
            raise InvalidClientData("a public client has no secret")
        secret = new_secret("tbs_")
        await self._change(client, "client.secret", {"secret_hash": hash_secret(secret)}, by)
        return secret

    async def delete(self, client_id: str, *, by: Actor) -> None:
        """Remove a client, and end the sessions that began with it.

        Raises:
            UnknownClient: there is none.
        """
        client = await self._existing(client_id)
        async with self._database.transaction(_audit(client, "client.delete", by)) as connection:
            if (await connection.execute(clients.delete().where(clients.c.id == client_id))).rowcount != 1:
                raise UnknownClient(_UNKNOWN)
            await end_sessions(connection, sessions.c.client_id == client_id, "client_deleted")
            await write_revocation(connection, "client", client_id)

    async def list(self, *, after: str = "", limit: int = 50, team_id: str | None = None) -> tuple[Client, ...]:
        """Clients, by id, from the one after `after` on."""
        wanted = clients.select().where(clients.c.id > after).order_by(clients.c.id).limit(limit)
        if team_id is not None:
            wanted = wanted.where(clients.c.team_id == team_id)
        async with self._database.transaction() as connection:
            return tuple(_client(row) for row in await connection.execute(wanted))

    async def _existing(self, client_id: str) -> Client:
        client = await self.get(client_id)
        if client is None:
            raise UnknownClient(_UNKNOWN)
        return client

    async def _change(self, client: Client, action: str, values: dict[str, Any], by: Actor, **details: Any) -> Client:
        statement = clients.update().where(clients.c.id == client.id).values(**values, updated_at=datetime.now(UTC))
        async with self._database.transaction(_audit(client, action, by, **details)) as connection:
            if (await connection.execute(statement)).rowcount != 1:
                raise UnknownClient(_UNKNOWN)
            await write_revocation(connection, "client", client.id)
            row = (await connection.execute(clients.select().where(clients.c.id == client.id))).one()
        return _client(row)


def _audit(client: Client, action: str, by: Actor, **details: Any) -> AuditRecord:
    return by.did(action, "client", client.id, target_name=client.name, team_id=client.team_id, **details)


def _grants(grants: Iterable[str], *, confidential: bool) -> frozenset[str]:
    wanted = frozenset(grants)
    if not wanted or wanted - set(GRANTS):
        raise InvalidClientData(f"a client has one or more of the grants: {' '.join(GRANTS)}")
    if CLIENT_CREDENTIALS in wanted and not confidential:
        raise InvalidClientData("a public client cannot use client_credentials: anyone could be it (RFC 6749 §4.4)")
    return wanted


def _client(row: sa.Row[Any]) -> Client:
    return Client(
        id=row.id,
        name=row.name,
        secret_hash=row.secret_hash,
        grants=frozenset(row.grants.split()),
        scopes=parse_scope(row.scopes),
        disabled=row.disabled,
        team_id=row.team_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
