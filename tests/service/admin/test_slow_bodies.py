"""A body takes as long as its sender likes. What they may do is asked once it is there, and not before."""

import asyncio
import json
from typing import Any

import pytest

from auth.audit import SYSTEM
from tests.service.admin.kit import World

NEW_PASSWORD = "zebra crossing 4711"
NEW_USER = {"username": "backdoor", "password": NEW_PASSWORD, "scopes": ["admin"]}


@pytest.mark.parametrize("way", ["disabled", "demoted", "token revoked"])
async def test_who_is_stopped_while_their_body_comes_in_is_stopped(world: World, way: str) -> None:
    await world.user("other", "admin")
    root = await world.user("root", "admin", "account", "llm")
    victim = await world.user("victim")
    headers = {**world.token(root), "Content-Type": "application/json"}
    first_half_sent, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def slowly(body: dict[str, Any]) -> Any:
        text = json.dumps(body).encode()
        yield text[:5]
        first_half_sent.release()
        await go_on.wait()
        yield text[5:]

    requests = {
        "POST /admin/users": NEW_USER,
        f"PUT /admin/users/{victim.id}/password": {"password": NEW_PASSWORD},
        "POST /users/me/keys": {"name": "backdoor"},
    }
    tasks = [
        asyncio.create_task(
            world.served.client.request(*route.split(" "), headers=headers, content=slowly(body))  # type: ignore[arg-type]
        )
        for route, body in requests.items()
    ]
    for _ in tasks:
        async with asyncio.timeout(30):
            await first_half_sent.acquire()
    if way == "disabled":
        await world.auth.users.set_disabled(root.id, disabled=True, by=SYSTEM)
    elif way == "demoted":
        await world.auth.users.update(root.id, scopes=["llm"], by=SYSTEM)
    else:
        world.auth.revocations.apply_now("user", root.id)
    go_on.set()
    answers = await asyncio.gather(*tasks)
    assert {answer.status_code for answer in answers} <= {401, 403}, [answer.text for answer in answers]
    assert await world.auth.users.get("backdoor") is None
    assert await world.auth.api_keys.list(user_id=root.id) == ()
    assert (await world.auth.users.get("victim")) == victim


@pytest.mark.parametrize("change", [{}, {"scopes": None}, {"disabled": None}])
async def test_a_change_of_nothing_is_refused_and_ends_nothing(world: World, change: dict[str, Any]) -> None:
    headers, ada = await world.caller("root", "admin"), await world.user("ada")
    token = world.token(ada)
    assert (await world.ask("PATCH", f"/admin/users/{ada.id}", headers, change)).status_code == 422
    assert (await world.ask("GET", "/users/me", token)).status_code == 200


@pytest.mark.parametrize("length", [37, 64, 500])
async def test_an_id_that_is_longer_than_any_is_told_so_by_each_database(world: World, length: int) -> None:
    headers, ada = await world.caller("root", "admin"), await world.user("ada")
    wanted = {"username": "eve", "password": NEW_PASSWORD, "team_id": "x" * length}
    assert (await world.ask("POST", "/admin/users", headers, wanted)).status_code == 422
    answer = await world.ask("PATCH", f"/admin/users/{ada.id}", headers, {"team_id": "x" * length})
    assert answer.status_code == 422
