"""Logins that come at once are begun one by one, and others have their turns in between."""

import asyncio
from typing import Any

from service.http import TurnstileMiddleware


async def test_between_two_logins_everybody_else_has_a_turn():
    order: list[str] = []

    async def app(scope, receive, send):
        order.append(scope["path"])

    turnstile: Any = TurnstileMiddleware(app, path="/token")

    async def other():
        for _ in range(20):
            order.append("turn")
            await asyncio.sleep(0)

    logins = [turnstile({"type": "http", "path": "/token"}, None, None) for _ in range(10)]
    await asyncio.gather(other(), *logins)
    assert order.count("/token") == 10
    assert "/token /token" not in " ".join(order)


async def test_other_paths_do_not_wait_for_logins():
    async def app(scope, receive, send):
        if scope.get("path") == "/token":
            await asyncio.Event().wait()

    turnstile: Any = TurnstileMiddleware(app, path="/token")
    login = asyncio.create_task(turnstile({"type": "http", "path": "/token"}, None, None))
    async with asyncio.timeout(5):
        await turnstile({"type": "http", "path": "/v1/models"}, None, None)
        await turnstile({"type": "lifespan"}, None, None)
    login.cancel()
    await asyncio.gather(login, return_exceptions=True)
