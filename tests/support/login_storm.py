"""Many logins at once, to be sent from a process of its own: whoever measures streams must not share a core's time."""

import asyncio
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True, slots=True)
class Login:
    """One to send."""

    username: str
    password: str
    address: str
    """Sent as X-Forwarded-For."""


@dataclass(frozen=True, slots=True)
class Answered:
    """How it was answered."""

    status: int
    error: str
    retry_after: str | None


def storm(base_url: str, logins: list[Login]) -> list[Answered]:
    """Send them all at once, each over a connection of its own; the answers in the same order."""
    return asyncio.run(_storm(base_url, logins))


async def _storm(base_url: str, logins: list[Login]) -> list[Answered]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(base_url, connector=connector, timeout=timeout) as http:

        async def send(login: Login) -> Answered:
            form = {"grant_type": "password", "username": login.username, "password": login.password}
            async with http.post("/token", data=form, headers={"X-Forwarded-For": login.address}) as answer:
                body: dict[str, Any] = await answer.json()
                return Answered(answer.status, body.get("error", ""), answer.headers.get("Retry-After"))

        return list(await asyncio.gather(*(send(login) for login in logins)))
