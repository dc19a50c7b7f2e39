"""Every route of the admin API and of the account, by every role: who may do what, and what is written down about it.

The tables are held against the application: a route without a row fails.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from fastapi.routing import iter_route_contexts

from auth.audit import SYSTEM
from auth.users import User
from tests.service.admin.kit import NOBODY, PLAIN, Headers, World
from tests.service.test_http import serving

NEW_USER = {"username": "newcomer", "password": "correct horse battery staple", "scopes": ["llm"]}
NEW_CLIENT = {"name": "nightly", "grants": ["client_credentials"], "scopes": ["llm"]}


@dataclass(frozen=True)
class Row:
    """What is answered to: an admin, a directory's admin, the target's team's admin, another team's admin."""

    route: str
    answers: tuple[int, int, int, int]
    action: str = ""  # as the audit log has it; empty where nothing is changed
    body: Any = ...


TABLE = [
    Row("GET /admin/users", (200, 200, 200, 200)),
    Row("POST /admin/users", (201, 201, 201, 201), "user.create", NEW_USER),
    Row("GET /admin/users/{user_id}", (200, 200, 200, 404)),
    Row("PATCH /admin/users/{user_id}", (200, 200, 200, 404), "user.update", {"scopes": ["llm", "account"]}),
    Row(
        "PUT /admin/users/{user_id}/password",
        (204, 204, 204, 404),
        "user.password",
        {"password": "zebra crossing 4711"},
    ),
    Row("DELETE /admin/users/{user_id}/sessions", (204, 204, 204, 404), "session.revoke"),
    Row("GET /admin/teams", (200, 200, 200, 200)),
    Row("POST /admin/teams", (201, 201, 403, 403), "team.create", {"name": "new"}),
    Row("GET /admin/teams/{own_team_id}", (200, 200, 200, 404)),
    Row("PATCH /admin/teams/{team_id}", (200, 200, 403, 403), "team.update", {"name": "renamed"}),
    Row("DELETE /admin/teams/{team_id}", (204, 204, 403, 403), "team.delete"),
    Row("GET /admin/clients", (200, 200, 403, 403)),
    Row("POST /admin/clients", (201, 201, 403, 403), "client.create", NEW_CLIENT),
    Row("GET /admin/clients/{client_id}", (200, 200, 403, 403)),
    Row("PATCH /admin/clients/{client_id}", (200, 200, 403, 403), "client.update", {"name": "renamed"}),
    Row("POST /admin/clients/{client_id}/secret", (200, 200, 403, 403), "client.secret"),
    Row("DELETE /admin/clients/{client_id}", (204, 204, 403, 403), "client.delete"),
    Row("GET /admin/keys", (200, 200, 200, 200)),
    Row(
        "POST /admin/keys",
        (201, 201, 201, 404),
        "key.create",
        {"name": "ci", "user_id": "{user_id}", "scopes": ["llm"]},
    ),
    Row("GET /admin/keys/{key_id}", (200, 200, 200, 404)),
    Row("POST /admin/keys/{key_id}/rotate", (201, 201, 201, 404), "key.rotate", {}),
    Row("DELETE /admin/keys/{key_id}", (204, 204, 204, 404), "key.revoke"),
    Row("GET /admin/sessions", (200, 200, 200, 200)),
    Row("GET /admin/sessions/{session_id}", (200, 200, 200, 404)),
    Row("DELETE /admin/sessions/{session_id}", (204, 204, 204, 404), "session.revoke"),
    Row("GET /admin/audit", (200, 200, 200, 200)),
    Row("GET /admin/signing-keys", (200, 403, 403, 403)),
    Row("POST /admin/signing-keys", (201, 403, 403, 403), "signing_key.rotate", {}),
    Row("DELETE /admin/signing-keys/{kid}", (204, 403, 403, 403), "signing_key.revoke"),
]


def _service(number: int) -> Callable[[Row], int]:
    return lambda row: row.answers[number]


def _always(status: int) -> Callable[[Row], int]:
    return lambda _: status


# Each role: how its header is made, what it is answered, and whether its attempts are those of somebody who
# administers, and so are in the audit log.
Maker = Callable[[World, str], Awaitable[Headers]]


async def _nobody(_world: World, _name: str) -> Headers:
    return {}


async def _forged(_world: World, _name: str) -> Headers:
    return {"Authorization": "Bearer eyJhbGciOiJub25lIn0.e30."}


async def _plain(world: World, name: str) -> Headers:
    return await world.caller(name, team=world.team)


async def _narrow(world: World, name: str) -> Headers:
    return world.token(await world.user(name, "admin", "users:admin", "team:admin", *PLAIN, team=world.team), *PLAIN)


async def _team(world: World, name: str) -> Headers:
    return await world.caller(name, "team:admin", *PLAIN, team=world.team)


async def _team_key(world: World, name: str) -> Headers:
    return (await world.key(await world.user(name, "team:admin", *PLAIN, team=world.team)))[1]


async def _team_machine(world: World, _name: str) -> Headers:
    return await world.machine("team:admin", *PLAIN, team=world.team)


async def _stranger(world: World, name: str) -> Headers:
    return await world.caller(name, "team:admin", *PLAIN, team=world.other_team)


async def _stranger_key(world: World, name: str) -> Headers:
    return (await world.key(await world.user(name, "team:admin", *PLAIN, team=world.other_team)))[1]


async def _teamless(world: World, name: str) -> Headers:
    return await world.caller(name, "team:admin", *PLAIN)


async def _directory(world: World, name: str) -> Headers:
    return await world.caller(name, "users:admin", *PLAIN)


async def _directory_key(world: World, name: str) -> Headers:
    return (await world.key(await world.user(name, "users:admin", *PLAIN)))[1]


async def _directory_machine(world: World, _name: str) -> Headers:
    return await world.machine("users:admin", *PLAIN)


async def _service_user(world: World, name: str) -> Headers:
    return await world.caller(name, "admin")


async def _service_key(world: World, name: str) -> Headers:
    return (await world.key(await world.user(name, "admin")))[1]


async def _service_machine(world: World, _name: str) -> Headers:
    return await world.machine("admin")


async def _disabled(world: World, name: str) -> Headers:
    """With a live token, at a worker that has not heard of it yet."""
    user = await world.user(name, "admin", *PLAIN)
    headers = world.token(user)
    await world.auth.users.set_disabled(user.id, disabled=True, by=SYSTEM)
    return headers


async def _demoted(world: World, name: str) -> Headers:
    """With a token from before."""
    user = await world.user(name, "admin", "users:admin", "team:admin", *PLAIN)
    headers = world.token(user)
    await world.auth.users.update(user.id, scopes=PLAIN, by=SYSTEM)
    return headers


ROLES: dict[str, tuple[Maker, Callable[[Row], int], bool]] = {
    "anonymous": (_nobody, _always(401), False),
    "forger": (_forged, _always(401), False),
    "plain": (_plain, _always(403), False),
    "admin with a narrow token": (_narrow, _always(403), False),
    "admin who was disabled": (_disabled, _always(401), False),
    "admin who was demoted": (_demoted, _always(403), True),
    "team admin without a team": (_teamless, _always(403), True),
    "team admin": (_team, _service(2), True),
    "team admin's key": (_team_key, _service(2), True),
    "team's client": (_team_machine, _service(2), True),
    "another team's admin": (_stranger, _service(3), True),
    "another team's admin's key": (_stranger_key, _service(3), True),
    "users admin": (_directory, _service(1), True),
    "users admin's key": (_directory_key, _service(1), True),
    "users admin client": (_directory_machine, _service(1), True),
    "admin": (_service_user, _service(0), True),
    "admin's key": (_service_key, _service(0), True),
    "admin client": (_service_machine, _service(0), True),
}


async def _targets(world: World, number: int, row: Row) -> dict[str, str]:
    """Something of each kind that the row needs, to do it to; users are in the world's first team."""
    text = f"{row.route}{row.body}"
    user = await world.user(f"target-{number}", team=world.team)
    targets = {"user_id": user.id, "own_team_id": world.team.id}
    if "{key_id}" in text:
        targets["key_id"] = (await world.key(user, "llm"))[0].id
    if "{session_id}" in text:
        targets["session_id"], _ = await world.session(user)
    if "{team_id}" in text:
        targets["team_id"] = (await world.auth.teams.add(f"team-{number}", by=SYSTEM)).id
    if "{client_id}" in text:
        targets["client_id"] = (await world.client("llm")).id
    if "{kid}" in text:
        targets["kid"] = (await world.auth.keys.rotate(by=SYSTEM)).kid
    return targets


def _filled(text: Any, targets: dict[str, str]) -> Any:
    if isinstance(text, dict):
        return {name: _filled(value, targets) for name, value in text.items()}
    return text.format(**targets) if isinstance(text, str) else text


def _routes(world_app: Any, *prefixes: str) -> set[str]:
    return {
        f"{method} {context.path_format}"
        for context in iter_route_contexts(world_app.routes)
        if context.path_format and context.path_format.startswith(prefixes)
        for method in context.methods or ()
    }


async def test_every_route_has_its_row(tmp_path):
    async with serving(tmp_path, migrated=False, migrate_on_start=False) as served:
        rows = {row.route.replace("own_team_id", "team_id") for row in TABLE}
        assert _routes(served.app, "/admin") == rows
        assert _routes(served.app, "/users/me/") == {row.route for row in ACCOUNT}
        assert len(rows) == len(TABLE)


@pytest.mark.parametrize("role", ROLES)
async def test_what_a_role_is_answered_at_every_route(world, role):
    await world.user("the-last-admin", "admin")
    make, expected, administers = ROLES[role]
    headers = await make(world, role)
    wrong = {}
    for number, row in enumerate(TABLE):
        targets = await _targets(world, number, row)
        method, _, path = row.route.partition(" ")
        before = (await world.records(1))[0]["id"]
        answer = await world.ask(method, path.format(**targets), headers, _filled(row.body, targets))
        if answer.status_code != expected(row):
            wrong[row.route] = (answer.status_code, expected(row), answer.text)
        assert answer.headers["cache-control"] == "no-store"
        assert "hash" not in answer.text
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        newest = (await world.records(1))[0]
        if not row.action or (answer.status_code >= 400 and not administers):
            assert newest["id"] == before, row.route
            continue
        result = "ok" if answer.status_code < 400 else "refused"
        assert (newest["action"], newest["result"]) == (row.action, result), row.route
        assert newest["request_id"] == answer.headers["x-request-id"]
        assert newest["address"] == "127.0.0.1"
        assert newest["actor_name"] == role or newest["actor_name"].startswith("client:")
        kind = row.action.partition(".")[0]
        aimed_at = targets.get("kid" if kind == "signing_key" else f"{kind}_id")
        if "{" in path and "/users/" not in path:
            assert newest["target"] == aimed_at or (row.action == "key.rotate" and result == "ok"), row.route
    assert wrong == {}


async def test_what_is_not_there_is_answered_as_what_is_not_to_be_seen(world):
    """By status, body and headers: another team's is nothing, and so is nothing. And neither changes anything."""
    await world.user("the-last-admin", "admin")
    missing = {"user_id": NOBODY, "session_id": NOBODY, "key_id": "a" * 16, "own_team_id": NOBODY}
    rows = [row for row in TABLE if any(f"{{{name}}}" in f"{row.route}{row.body}" for name in missing)]
    assert len(rows) > 10
    number = 0
    for role, (make, expected, administers) in ROLES.items():
        headers = await make(world, role)
        for row in rows if administers else ():
            method, _, path = row.route.partition(" ")
            nothing = await world.ask(method, path.format(**missing), headers, _filled(row.body, missing))
            assert nothing.status_code == (403 if expected(row) == 403 else 404), (role, row.route)
            if expected(row) == 404:
                number += 1
                targets = await _targets(world, number, row)
                hidden = await world.ask(method, path.format(**targets), headers, _filled(row.body, targets))
                assert _told(hidden) == _told(nothing)
                await _is_untouched(world, targets)
    assert number > 10


def _told(answer: httpx2.Response) -> tuple[int, Any, set[str]]:
    return answer.status_code, answer.json(), {*answer.headers}


async def _is_untouched(world: World, targets: dict[str, str]) -> None:
    user = await world.auth.users.get_by_id(targets["user_id"])
    assert user is not None
    assert (user.scopes, user.disabled, user.updated_at) == (frozenset(PLAIN), False, user.created_at)
    if "key_id" in targets:
        key = await world.auth.api_keys.get(targets["key_id"])
        assert key is not None
        assert (key.revoked_at, key.expires_at) == (None, None)
    if "session_id" in targets:
        assert await world.auth.sessions.get(targets["session_id"]) is not None


# One's own account


ACCOUNT = [
    Row(
        "PUT /users/me/password",
        (204, 0, 0, 0),
        "user.password",
        {"current_password": "correct horse battery staple", "new_password": "zebra crossing 4711"},
    ),
    Row("GET /users/me/keys", (200, 0, 0, 0)),
    Row("POST /users/me/keys", (201, 0, 0, 0), "key.create", {"name": "mine", "scopes": ["llm"]}),
    Row("POST /users/me/keys/{key_id}/rotate", (201, 0, 0, 0), "key.rotate", {}),
    Row("DELETE /users/me/keys/{key_id}", (204, 0, 0, 0), "key.revoke"),
    Row("GET /users/me/sessions", (200, 0, 0, 0)),
    Row("DELETE /users/me/sessions", (204, 0, 0, 0), "session.revoke"),
    Row("DELETE /users/me/sessions/{session_id}", (204, 0, 0, 0), "session.revoke"),
]


@dataclass(frozen=True)
class _Owner:
    user: User
    headers: Headers
    places: dict[str, str]


OWNERS: dict[str, int] = {
    "owner": 0,
    "anonymous": 401,
    "disabled": 401,
    "without the scope in the token": 403,
    "without the scope any more": 403,
    "key": 403,
    "admin's key": 403,
    "client": 403,
}


async def _as(world: World, owner: str, name: str) -> _Owner:
    user = await world.user(name, "admin", *PLAIN)
    headers = world.token(user)
    places = {"key_id": (await world.key(user, "llm"))[0].id, "session_id": (await world.session(user))[0]}
    if owner == "anonymous":
        headers = {}
    elif owner == "disabled":
        await world.auth.users.set_disabled(user.id, disabled=True, by=SYSTEM)
    elif owner == "without the scope in the token":
        headers = world.token(user, "admin", "llm")
    elif owner == "without the scope any more":
        await world.auth.users.update(user.id, scopes=["admin", "llm"], by=SYSTEM)
    elif owner in {"key", "admin's key"}:
        _, headers = await world.key(user, *(PLAIN if owner == "key" else ("admin", *PLAIN)))
    elif owner == "client":
        headers = await world.machine(*PLAIN)
    return _Owner(user, headers, places)


async def test_what_an_owner_is_answered_at_every_route_of_the_account(world):
    await world.user("the-last-admin", "admin")
    for owner, refused in OWNERS.items():
        for number, row in enumerate(ACCOUNT):
            found = await _as(world, owner, f"{owner} {number}")
            method, _, path = row.route.partition(" ")
            before = (await world.records(1))[0]["id"]
            answer = await world.ask(method, path.format(**found.places), found.headers, row.body)
            assert answer.status_code == (refused or row.answers[0]), (owner, row.route, answer.text)
            assert answer.headers["cache-control"] == "no-store"
            newest = (await world.records(1))[0]
            if answer.status_code >= 400:
                assert set(answer.json()) == {"error", "error_description"}
                assert newest["id"] == before
            elif row.action:
                assert (newest["action"], newest["result"], newest["actor"]) == (row.action, "ok", found.user.id)
                assert newest["request_id"] == answer.headers["x-request-id"]


async def test_nobody_reaches_what_is_another_s_by_way_of_their_own_account(world):
    ada, bob = await world.user("ada", "admin", *PLAIN, team=world.team), await world.user("bob", team=world.team)
    key, _ = await world.key(bob, "llm")
    session_id, _ = await world.session(bob)
    headers = world.token(ada)
    for method, path, body, action in (
        ("POST", "/users/me/keys/{}/rotate", {}, "key.rotate"),
        ("DELETE", "/users/me/keys/{}", ..., "key.revoke"),
        ("DELETE", "/users/me/sessions/{}", ..., "session.revoke"),
    ):
        target, missing = (session_id, NOBODY) if "sessions" in path else (key.id, "a" * 16)
        hidden = await world.ask(method, path.format(target), headers, body)
        nothing = await world.ask(method, path.format(missing), headers, body)
        assert hidden.status_code == nothing.status_code == 404
        assert hidden.json() == nothing.json()
        refused = (await world.records(1))[0]
        assert (refused["action"], refused["result"], refused["target"]) == (action, "refused", target)
    assert (await world.auth.api_keys.get(key.id)).revoked_at is None
    assert await world.auth.sessions.get(session_id) is not None
