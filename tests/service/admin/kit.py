"""A service in this process with teams and users in it, and the headers of whoever is to call."""

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
from sqlalchemy import text

from auth.apikeys import ApiKey
from auth.audit import SYSTEM, read_records
from auth.clients import Client
from auth.revocation import Revocations
from auth.service import AuthService
from auth.teams import Team
from auth.users import User
from service.database import make_engine
from tests.service.test_http import Served, serving

PASSWORD = "correct horse battery staple"
NOBODY = "6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55"
PLAIN = ("llm", "usage:read", "account")
Headers = dict[str, str]


class _OneHash:
    """In place of the hasher: everyone here has the same password, and it is hashed once."""

    def __init__(self, hashed: str) -> None:
        self._hashed = hashed

    async def hash_new(self, _password: str, _username: str) -> str:
        return self._hashed


@dataclass
class World:
    served: Served
    auth: AuthService
    passwords: Any
    team: Team
    other_team: Team

    async def user(self, name: str, *scopes: str, team: Team | None = None) -> User:
        """A user with these scopes; those of an ordinary user when none are named."""
        team_id = team.id if team else None
        return await self.auth.users.add(name, PASSWORD, scopes or PLAIN, passwords=self.passwords, team_id=team_id)

    def token(self, user: User, *scopes: str) -> Headers:
        """The header of a user who has logged in, for all their scopes when none are named."""
        issued = self.auth.tokens.issue(
            subject=user.id,
            username=user.username,
            scopes=scopes or user.scopes,
            client_id="tollbook",
            team=user.team_id or "",
        )
        return {"Authorization": f"Bearer {issued.access_token}"}

    async def caller(self, name: str, *scopes: str, team: Team | None = None) -> Headers:
        """The header of a new user."""
        return self.token(await self.user(name, *scopes, team=team))

    async def key(self, user: User, *scopes: str) -> tuple[ApiKey, Headers]:
        """A key of a user."""
        key, secret = await self.auth.api_keys.create(user.id, "laptop", scopes=scopes or user.scopes, by=SYSTEM)
        return key, {"X-API-Key": secret}

    async def client(self, *scopes: str, team: Team | None = None) -> Client:
        """A confidential client."""
        team_id = team.id if team else None
        client, _ = await self.auth.clients.add(
            "machine", grants=["client_credentials"], scopes=scopes, team_id=team_id, by=SYSTEM
        )
        return client

    async def machine(self, *scopes: str, team: Team | None = None) -> Headers:
        """The header of a new client."""
        client = await self.client(*scopes, team=team)
        issued = self.auth.tokens.issue(
            subject=client.id, username=f"client:{client.id}", scopes=scopes, client_id=client.id
        )
        return {"Authorization": f"Bearer {issued.access_token}"}

    async def session(self, user: User) -> tuple[str, str]:
        """A session of a user: its id and its refresh token."""
        return await self.auth.sessions.open(user.id, "tollbook", user.scopes, "192.0.2.1")

    async def ask(
        self, method: str, path: str, headers: Headers | None = None, body: Any = ..., **options: Any
    ) -> httpx2.Response:
        """One request, with a body of JSON where one is given."""
        if body is not ...:
            options["content"] = json.dumps(body)
            headers = {"Content-Type": "application/json"} | (headers or {})
        return await self.served.client.request(method, path, headers=headers, **options)

    async def log_in(self, name: str, password: str = PASSWORD, **more: str) -> httpx2.Response:
        """The password grant."""
        form = {"grant_type": "password", "username": name, "password": password, **more}
        return await self.served.client.post("/token", data=form)

    async def records(self, limit: int = 100) -> list[dict[str, Any]]:
        """The audit log, the newest first."""
        async with self.auth.database.transaction() as connection:
            return [dict(row) for row in await read_records(connection, limit=limit)]

    async def write_down(self, count: int, team: Team | None = None) -> None:
        """Add audit records."""
        for number in range(count):
            record = SYSTEM.did("user.update", "user", f"n{number}", team_id=team.id if team else None)
            async with self.auth.database.transaction(record):
                pass


@asynccontextmanager
async def making_world(state_dir: Path, **settings: Any) -> AsyncIterator[World]:
    """The service, with two teams and nobody in it.

    Its worker hears nothing of what was revoked elsewhere: what it does at once it does by itself.
    """
    (state_dir / "keys").mkdir(mode=0o700, exist_ok=True)
    with mock.patch.object(Revocations, "refresh", mock.AsyncMock()):
        async with serving(state_dir, **settings) as served:
            auth: AuthService = served.state["auth"]
            hashed = await auth.passwords.hash(PASSWORD)
            team, other = [await auth.teams.add(name, by=SYSTEM) for name in ("research", "sales")]
            yield World(served, auth, _OneHash(hashed), team, other)


async def emptied(url: str) -> str:
    """A PostgreSQL database with nothing in it."""
    engine = make_engine(url)
    async with engine.begin() as connection:
        for statement in ("DROP SCHEMA public CASCADE", "CREATE SCHEMA public"):
            await connection.execute(text(statement))
    await engine.dispose()
    return url


def ids(answer: httpx2.Response, name: str = "id") -> list[str]:
    """Of a page."""
    assert answer.status_code == 200, answer.text
    return [each[name] for each in answer.json()["data"]]


def without(fields: Iterable[str], row: dict[str, Any]) -> dict[str, Any]:
    """A row without some of its fields."""
    return {name: value for name, value in row.items() if name not in set(fields)}
