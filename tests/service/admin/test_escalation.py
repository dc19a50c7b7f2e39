"""The ways by which somebody who administers a little could come to administer more."""

import asyncio

import pytest

from auth.audit import SYSTEM
from auth.teams import Team
from tests.service.admin.kit import PASSWORD, PLAIN, World

NEW_PASSWORD = "zebra crossing 4711"


async def refused(world: World, answer, reason: str, status: int = 403) -> None:
    """Refused, written down why, and it is the newest thing that happened."""
    assert answer.status_code == status, answer.text
    record = (await world.records(1))[0]
    assert (record["result"], record["details"]["reason"]) == ("refused", reason)
    assert record["request_id"] == answer.headers["x-request-id"]


@pytest.fixture
async def tina(world):
    """A team's admin."""
    return await world.user("tina", "team:admin", *PLAIN, team=world.team)


@pytest.fixture
async def dora(world):
    """The directory's admin."""
    return await world.user("dora", "users:admin", *PLAIN)


@pytest.fixture
async def root(world):
    return await world.user("root", "admin", *PLAIN)


# Giving what one does not have


@pytest.mark.parametrize("scope", ["admin", "users:admin", "team:admin", "introspect"])
async def test_a_team_s_admin_makes_no_managers(world, tina, scope):
    headers = world.token(tina)
    new = {"username": "newcomer", "password": NEW_PASSWORD, "scopes": ["llm", scope]}
    await refused(world, await world.ask("POST", "/admin/users", headers, new), "scopes")
    ada = await world.user("ada", team=world.team)
    change = {"scopes": [*PLAIN, scope]}
    await refused(world, await world.ask("PATCH", f"/admin/users/{ada.id}", headers, change), "scopes")
    key = {"user_id": ada.id, "name": "k", "scopes": [scope]}
    await refused(world, await world.ask("POST", "/admin/keys", headers, key), "scopes")
    assert await world.auth.users.get_by_id(ada.id) == ada
    assert await world.auth.users.get("newcomer") is None


async def test_a_team_s_admin_gives_no_model_that_they_may_not_call(world):
    headers = await world.caller("tina", "team:admin", "llm:small", team=world.team)
    ada = await world.user("ada", "llm:small", team=world.team)
    path = f"/admin/users/{ada.id}"
    for scope in ("llm", "llm:large", "usage:read", "account"):
        await refused(world, await world.ask("PATCH", path, headers, {"scopes": ["llm:small", scope]}), "scopes")
    new = {"username": "newcomer", "password": NEW_PASSWORD}
    await refused(world, await world.ask("POST", "/admin/users", headers, new), "scopes")  # those of any new user
    assert (await world.ask("POST", "/admin/users", headers, new | {"scopes": ["llm:small"]})).status_code == 201
    assert await world.auth.users.get_by_id(ada.id) == ada


async def test_nor_takes_away_what_they_could_not_give(world):
    """Or a member that others have trusted with more would be at their mercy."""
    headers = await world.caller("tina", "team:admin", "llm", team=world.team)
    ada = await world.user("ada", "llm", "account", team=world.team)
    path = f"/admin/users/{ada.id}"
    await refused(world, await world.ask("PATCH", path, headers, {"scopes": ["llm"]}), "scopes")
    answer = await world.ask("PATCH", path, headers, {"scopes": ["llm:small", "account"]})
    assert answer.json()["scopes"] == ["account", "llm:small"]


async def test_the_directory_s_admin_makes_no_admin(world, dora):
    headers = world.token(dora)
    ada = await world.user("ada")
    for method, path, body in (
        ("POST", "/admin/users", {"username": "newcomer", "password": NEW_PASSWORD, "scopes": ["admin"]}),
        ("PATCH", f"/admin/users/{ada.id}", {"scopes": [*PLAIN, "admin"]}),
        ("POST", "/admin/clients", {"name": "c", "grants": ["client_credentials"], "scopes": ["admin"]}),
    ):
        await refused(world, await world.ask(method, path, headers, body), "scopes")
    assert (await world.ask("PATCH", f"/admin/users/{ada.id}", headers, {"scopes": ["users:admin"]})).status_code == 200


async def test_a_narrow_token_gives_no_more_than_is_in_it(world, dora):
    headers = world.token(dora, "users:admin", "account")
    ada = await world.user("ada", "account")
    for method, path, body in (
        ("POST", "/admin/users", {"username": "newcomer", "password": NEW_PASSWORD, "scopes": ["llm"]}),
        ("PATCH", f"/admin/users/{ada.id}", {"scopes": ["account", "llm"]}),
        ("POST", "/admin/clients", {"name": "c", "grants": ["client_credentials"], "scopes": ["llm:small"]}),
    ):
        await refused(world, await world.ask(method, path, headers, body), "scopes")


async def test_a_client_s_powers_are_not_widened_and_not_taken_over(world, dora):
    headers = world.token(dora)
    power, plain, other = [await world.client(*scopes) for scopes in (("admin", "llm"), ("llm",), ("introspect",))]
    for method, path, body, reason in (
        ("PATCH", f"/admin/clients/{power.id}", {"disabled": True}, "authority"),
        ("PATCH", f"/admin/clients/{power.id}", {"name": "mine"}, "authority"),
        ("POST", f"/admin/clients/{power.id}/secret", ..., "authority"),
        ("DELETE", f"/admin/clients/{power.id}", ..., "authority"),
        ("PATCH", f"/admin/clients/{plain.id}", {"scopes": ["llm", "admin"]}, "scopes"),
        ("PATCH", f"/admin/clients/{plain.id}", {"scopes": ["llm", "introspect"]}, "scopes"),
        ("POST", f"/admin/clients/{other.id}/secret", ..., "scopes"),
    ):
        await refused(world, await world.ask(method, path, headers, body), reason)
    for before in (power, plain, other):
        assert await world.auth.clients.get(before.id) == before
    assert (await world.ask("PATCH", f"/admin/clients/{other.id}", headers, {"disabled": True})).status_code == 200


# Becoming somebody else


@pytest.mark.parametrize("scopes", [("admin",), ("users:admin",), ("team:admin",), ("introspect",)])
async def test_a_team_s_admin_does_not_become_a_more_powerful_member(world, tina, scopes):
    await world.user("root", "admin")
    boss = await world.user("boss", *scopes, *PLAIN, team=world.team)
    key, _ = await world.key(boss, "llm")
    session_id, _ = await world.session(boss)
    headers = world.token(tina)
    assert (await world.ask("GET", f"/admin/users/{boss.id}", headers)).status_code == 200  # who is in the team is seen
    for method, path, body in (
        ("PUT", f"/admin/users/{boss.id}/password", {"password": NEW_PASSWORD}),
        ("PATCH", f"/admin/users/{boss.id}", {"scopes": ["llm"]}),
        ("PATCH", f"/admin/users/{boss.id}", {"disabled": True}),
        ("DELETE", f"/admin/users/{boss.id}/sessions", ...),
        ("POST", "/admin/keys", {"user_id": boss.id, "name": "k", "scopes": ["llm"]}),
        ("POST", f"/admin/keys/{key.id}/rotate", {}),
        ("DELETE", f"/admin/keys/{key.id}", ...),
        ("DELETE", f"/admin/sessions/{session_id}", ...),
    ):
        await refused(world, await world.ask(method, path, headers, body), "authority")
    assert await world.auth.users.get_by_id(boss.id) == boss
    assert (await world.auth.api_keys.get(key.id)).revoked_at is None
    assert await world.auth.sessions.get(session_id) is not None
    assert (await world.log_in("boss", NEW_PASSWORD)).status_code == 400


async def test_the_directory_s_admin_does_not_become_an_admin(world, dora, root):
    key, _ = await world.key(root, "llm")
    session_id, _ = await world.session(root)
    headers = world.token(dora)
    for method, path, body in (
        ("PUT", f"/admin/users/{root.id}/password", {"password": NEW_PASSWORD}),
        ("PATCH", f"/admin/users/{root.id}", {"scopes": ["llm"]}),
        ("PATCH", f"/admin/users/{root.id}", {"team_id": world.team.id}),
        ("PATCH", f"/admin/users/{root.id}", {"disabled": True}),
        ("POST", "/admin/keys", {"user_id": root.id, "name": "k", "scopes": ["llm"]}),
        ("POST", f"/admin/keys/{key.id}/rotate", {}),
        ("DELETE", f"/admin/keys/{key.id}", ...),
        ("DELETE", f"/admin/sessions/{session_id}", ...),
    ):
        await refused(world, await world.ask(method, path, headers, body), "authority")
    assert await world.auth.users.get_by_id(root.id) == root


async def test_an_admin_in_the_team_is_not_an_admin_of_the_team_s_making(world, root, tina):
    """Who is put into a team with their powers keeps out of the reach of its admin."""
    await world.auth.users.update(root.id, team_id=world.team.id, by=SYSTEM)
    answer = await world.ask("PATCH", f"/admin/users/{root.id}", world.token(tina), {"scopes": ["llm"]})
    await refused(world, answer, "authority")


# Changing what one may do oneself


async def test_nobody_changes_their_own_rights_by_way_of_the_admin_api(world, tina, dora):
    for user in (tina, dora):
        for change in (
            {"scopes": [*PLAIN, "team:admin", "users:admin"]},
            {"scopes": [*PLAIN]},
            {"team_id": world.other_team.id},
            {"team_id": None},
            {"disabled": True},
            {"disabled": False},
        ):
            answer = await world.ask("PATCH", f"/admin/users/{user.id}", world.token(user), change)
            await refused(world, answer, "self")
        assert await world.auth.users.get_by_id(user.id) == user


async def test_one_s_own_password_takes_the_old_one(world, tina, dora, root):
    for user in (tina, dora, root):
        path = f"/admin/users/{user.id}/password"
        answer = await world.ask("PUT", path, world.token(user), {"password": NEW_PASSWORD})
        await refused(world, answer, "self")
        assert await world.auth.users.get_by_id(user.id) == user


async def test_a_key_makes_no_key_for_its_own_user_and_does_not_rotate_itself(world, tina, dora, root):
    for user in (tina, dora, root):
        key, headers = await world.key(user)
        for path, body in (
            ("/admin/keys", {"user_id": user.id, "name": "k", "scopes": ["llm"]}),
            (f"/admin/keys/{key.id}/rotate", {}),
        ):
            await refused(world, await world.ask("POST", path, headers, body), "self")
        assert len(await world.auth.api_keys.list(user_id=user.id)) == 1


async def test_an_admin_may_give_up_their_own_rights_but_the_last_one_stays(world, root):
    headers = world.token(root)
    path = f"/admin/users/{root.id}"
    for change in ({"disabled": True}, {"scopes": [*PLAIN]}, {"scopes": ["admin"], "disabled": True}):
        await refused(world, await world.ask("PATCH", path, headers, change), "last_admin", 409)
    assert await world.auth.users.get_by_id(root.id) == root
    await world.user("second", "admin")
    answer = await world.ask("PATCH", path, headers, {"scopes": [*PLAIN]})
    assert (answer.status_code, answer.json()["scopes"]) == (200, sorted(PLAIN))
    assert (await world.ask("GET", path, headers)).status_code == 401  # the token from before


async def test_admins_who_disable_each_other_at_once_leave_one(world):
    admins = [await world.user(name, "admin") for name in ("ada", "bob", "eve")]
    attempts = [
        world.ask("PATCH", f"/admin/users/{target.id}", world.token(admin), {"disabled": True})
        for admin, target in zip(admins, [*admins[1:], admins[0]], strict=True)
    ]
    statuses = [answer.status_code for answer in await asyncio.gather(*attempts)]
    assert 200 in statuses
    assert 503 not in statuses
    left = [user for user in await world.auth.users.list() if not user.disabled]
    assert len(left) >= 1


# Across teams


async def test_a_team_s_admin_moves_nobody_in_or_out(world, tina):
    headers = world.token(tina)
    mine = await world.user("ada", team=world.team)
    foreign = await world.user("bob", team=world.other_team)
    free = await world.user("eve")
    for team_id in (world.other_team.id, None, world.team.id):
        answer = await world.ask("PATCH", f"/admin/users/{mine.id}", headers, {"team_id": team_id})
        await refused(world, answer, "team")
    for user in (foreign, free):
        answer = await world.ask("PATCH", f"/admin/users/{user.id}", headers, {"team_id": world.team.id})
        await refused(world, answer, "authority", 404)
    for user in (mine, foreign, free):
        assert await world.auth.users.get_by_id(user.id) == user


async def test_a_team_s_admin_makes_members_of_no_other_team(world, tina):
    headers = world.token(tina)
    new = {"username": "newcomer", "password": NEW_PASSWORD, "scopes": ["llm"]}
    answers = [
        await world.ask("POST", "/admin/users", headers, new | {"team_id": team_id})
        for team_id in (world.other_team.id, "6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55")
    ]
    await refused(world, answers[1], "team")
    assert answers[0].status_code == 403
    assert answers[0].json() == answers[1].json()  # of what other teams there are they learn nothing
    assert await world.auth.users.get("newcomer") is None
    for number, more in enumerate(({}, {"team_id": None}, {"team_id": world.team.id})):
        made = await world.ask("POST", "/admin/users", headers, new | more | {"username": f"member-{number}"})
        assert (made.status_code, made.json()["team_id"]) == (201, world.team.id)


async def test_a_team_is_the_one_of_now_not_that_of_the_token(world, tina):
    headers = world.token(tina)
    ada = await world.user("ada", team=world.team)
    await world.auth.users.update(tina.id, team_id=world.other_team.id, by=SYSTEM)
    assert (await world.ask("GET", f"/admin/users/{ada.id}", headers)).status_code == 404
    await world.auth.users.update(ada.id, team_id=world.other_team.id, by=SYSTEM)
    assert (await world.ask("GET", f"/admin/users/{ada.id}", headers)).status_code == 200


# Keys wider than the token


async def login(world: World, name: str, scope: str, team: Team | None = None) -> dict[str, str]:
    answer = await world.log_in(name, PASSWORD, scope=scope)
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


@pytest.mark.parametrize(
    "wish",
    [
        {"scopes": ["admin"]},
        {"scopes": ["llm"]},
        {"scopes": ["usage:read"]},
        {"scopes": ["llm:small"]},
        {"models": ["small"]},
        {"scopes": ["account", "users:admin"]},
        {},
    ],
)
async def test_a_narrow_token_makes_no_wider_key(world, root, wish):
    headers = await login(world, "root", "account")
    await refused(world, await world.ask("POST", "/users/me/keys", headers, {"name": "k"} | wish), "scopes")
    assert await world.auth.api_keys.list(user_id=root.id) == ()


async def test_a_narrow_token_does_not_get_a_wider_key_by_rotating(world, root):
    key, old = await world.key(root, "llm", "admin")
    headers = await login(world, "root", "account llm")
    await refused(world, await world.ask("POST", f"/users/me/keys/{key.id}/rotate", headers, {}), "scopes")
    assert (await world.auth.api_keys.get(key.id)).expires_at is None
    assert (await world.ask("GET", "/admin/users", old)).status_code == 200
    headers = await login(world, "root", "account llm admin")
    assert (await world.ask("POST", f"/users/me/keys/{key.id}/rotate", headers, {})).status_code == 201


async def test_a_token_for_one_model_makes_a_key_for_that_one(world):
    await world.user("ada", "account", "llm")
    headers = await login(world, "ada", "account llm:small")
    for wish in ({"scopes": ["llm"]}, {"models": ["large"]}, {"models": ["small", "large"]}):
        await refused(world, await world.ask("POST", "/users/me/keys", headers, {"name": "k"} | wish), "scopes")
    for wish in ({"models": ["small"]}, {"scopes": ["llm:small"]}, {}):
        made = await world.ask("POST", "/users/me/keys", headers, {"name": "k"} | wish)
        assert (made.status_code, made.json()["scopes"]) == (201, ["llm:small"])


async def test_scopes_that_were_taken_away_since_are_in_no_new_key(world):
    ada = await world.user("ada", "account", "llm", "usage:read")
    headers = world.token(ada)
    await world.auth.users.update(ada.id, scopes=["account", "llm:small"], by=SYSTEM)
    for wish in ({"scopes": ["usage:read"]}, {"scopes": ["llm"]}, {"models": ["large"]}):
        await refused(world, await world.ask("POST", "/users/me/keys", headers, {"name": "k"} | wish), "scopes")
    made = await world.ask("POST", "/users/me/keys", headers, {"name": "k"})
    assert made.json()["scopes"] == ["llm:small"]


async def test_a_manager_makes_no_key_with_more_than_they_or_its_user_have(world):
    headers = await world.caller("dora", "users:admin", "llm")
    ada = await world.user("ada", "usage:read", "llm:small")
    key, _ = await world.key(ada, "usage:read")
    for wish in (
        {"scopes": ["llm"]},
        {"scopes": ["usage:read"]},
        {"models": ["large"]},
        {"scopes": ["users:admin"]},
        {},
    ):
        body = {"user_id": ada.id, "name": "k"} | wish
        await refused(world, await world.ask("POST", "/admin/keys", headers, body), "scopes")
    await refused(world, await world.ask("POST", f"/admin/keys/{key.id}/rotate", headers, {}), "scopes")
    made = await world.ask("POST", "/admin/keys", headers, {"user_id": ada.id, "name": "k", "models": ["small"]})
    assert (made.status_code, made.json()["scopes"]) == (201, ["llm:small"])
