"""Lists: in an order, a page at a time, each thing once whatever is added meanwhile, and nothing that is another's."""

from typing import Any

import pytest

from auth.audit import SYSTEM
from tests.service.admin.kit import NOBODY, PLAIN, World, ids


async def walk(
    world: World, path: str, headers: dict[str, str], cursor: str, meanwhile: Any, **query: Any
) -> list[Any]:
    """All pages of two; `meanwhile` is done after each."""
    found: list[Any] = []
    place: dict[str, str] = {}
    for _ in range(20):
        answer = await world.ask("GET", path, headers, params=query | {"limit": 2} | place)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["data"]) <= 2
        found += page["data"]
        if page["next"] is None:
            return found
        place = {cursor: page["next"]}
        await meanwhile()
    raise AssertionError("it never ends")


@pytest.fixture
async def root(world):
    return await world.caller("root", "admin", *PLAIN)


async def nothing() -> None:
    pass


async def test_users_and_teams_come_by_name_and_those_added_before_the_place_do_not_move_it(world, root):
    for name in ("bob", "dan", "eve", "ada", "flo"):
        await world.user(name, team=world.team)
        await world.auth.teams.add(f"team of {name}", by=SYSTEM)
    names = ["ada", "bob", "dan", "eve", "flo", "root"]
    assert [user["username"] for user in await walk(world, "/admin/users", root, "after", nothing)] == names
    added = iter(("aaron", "abby", "adam", "adele"))

    async def meanwhile() -> None:
        name = next(added)
        await world.user(name)
        await world.auth.teams.add(name, by=SYSTEM)

    assert [user["username"] for user in await walk(world, "/admin/users", root, "after", meanwhile)] == names
    teams = await walk(world, "/admin/teams", root, "after", nothing)
    assert [team["name"] for team in teams] == sorted(team["name"] for team in teams)
    assert {"research", "sales", "team of ada", "aaron"} <= {team["name"] for team in teams}


async def test_keys_and_clients_come_by_id_each_once(world, root):
    ada = await world.user("ada")
    made = {(await world.key(ada))[0].id for _ in range(5)}
    clients = {(await world.client("llm")).id for _ in range(5)}

    async def meanwhile() -> None:
        await world.key(ada)
        await world.client("llm")

    keys = [key["id"] for key in await walk(world, "/admin/keys", root, "after", meanwhile)]
    assert keys == sorted(set(keys))
    assert made <= set(keys)
    found = [client["client_id"] for client in await walk(world, "/admin/clients", root, "after", meanwhile)]
    assert found == sorted(set(found))
    assert clients <= set(found)


async def test_sessions_and_records_come_from_the_newest_and_what_is_added_is_not_in_the_way(world, root):
    ada = await world.user("ada")
    sessions = [(await world.session(ada))[0] for _ in range(5)]
    await world.write_down(5)
    records = [str(record["id"]) for record in await world.records()]

    async def meanwhile() -> None:
        await world.session(ada)
        await world.write_down(1)

    found = [session["id"] for session in await walk(world, "/admin/sessions", root, "before", meanwhile)]
    assert sorted(found, reverse=True) == found
    assert set(found) == set(sessions)
    assert [record["id"] for record in await walk(world, "/admin/audit", root, "before", nothing)][
        -len(records) :
    ] == records


async def test_one_s_own_lists_are_paged_too(world):
    ada, bob = await world.user("ada"), await world.user("bob")
    headers = world.token(ada)
    keys = {(await world.key(ada))[0].id for _ in range(3)}
    sessions = {(await world.session(ada))[0] for _ in range(3)}
    await world.key(bob)
    await world.session(bob)
    assert {key["id"] for key in await walk(world, "/users/me/keys", headers, "after", nothing)} == keys
    assert {each["id"] for each in await walk(world, "/users/me/sessions", headers, "before", nothing)} == sessions


async def test_a_page_that_is_full_says_where_the_next_begins(world, root):
    await world.user("ada")
    answer = await world.ask("GET", "/admin/users", root, params={"limit": 1})
    assert (ids(answer, "username"), answer.json()["next"]) == (["ada"], "ada")
    answer = await world.ask("GET", "/admin/users", root, params={"limit": 3})
    assert (ids(answer, "username"), answer.json()["next"]) == (["ada", "root"], None)


@pytest.mark.parametrize(
    "path", ["/admin/users", "/admin/audit", "/admin/keys", "/users/me/keys", "/users/me/sessions"]
)
async def test_a_query_that_makes_no_sense_is_refused_by_name(sqlite_world, path):
    root = await sqlite_world.caller("root", "admin", *PLAIN)
    cursor = "before" if path in {"/admin/audit", "/users/me/sessions"} else "after"
    for name, values in {
        "limit": ["0", "201", "-1", "many", "1.5", "", "9" * 400],
        cursor: ["a\0b", "a\r\nb", "x" * 129],
        "team_id": ["a b", "", "x" * 65, "'", "a\0"] if path.startswith("/admin") else [],
    }.items():
        for value in values:
            answer = await sqlite_world.ask("GET", path, root, params={name: value})
            assert answer.status_code == 422, (name, value)
            assert value == "" or len(value) < 4 or value not in answer.text
            if path.startswith("/admin"):
                assert answer.json()["error"]["param"] == name


@pytest.mark.parametrize("cursor", ["'; DROP TABLE users; --", "%", "\U0001f600", "zzz", "\u00e9", NOBODY])
async def test_a_cursor_of_any_text_is_only_a_place(world, root, cursor):
    for path in ("/admin/users", "/admin/teams", "/admin/keys", "/admin/clients", "/admin/sessions", "/admin/audit"):
        name = "before" if path in {"/admin/sessions", "/admin/audit"} else "after"
        assert (await world.ask("GET", path, root, params={name: cursor})).status_code == 200
    assert await world.auth.users.count() == 1


# Whose


async def test_a_team_s_admin_is_shown_what_is_of_the_team_and_nothing_else(world, root):
    tina = await world.user("tina", "team:admin", *PLAIN, team=world.team)
    headers = world.token(tina)
    mine, foreign, free = [
        await world.user(name, team=team)
        for name, team in (("ada", world.team), ("bob", world.other_team), ("eve", None))
    ]
    boss = await world.user("boss", "users:admin", team=world.team)
    keys = {user.id: (await world.key(user, *user.scopes))[0].id for user in (mine, foreign, free)}
    sessions = {user.id: (await world.session(user))[0] for user in (mine, foreign, free)}
    await world.write_down(2, world.other_team)
    assert ids(await world.ask("GET", "/admin/users", headers), "username") == ["ada", "boss", "tina"]
    assert ids(await world.ask("GET", "/admin/teams", headers)) == [world.team.id]
    assert ids(await world.ask("GET", "/admin/keys", headers)) == [keys[mine.id]]
    assert ids(await world.ask("GET", "/admin/sessions", headers)) == [sessions[mine.id]]
    records = (await world.ask("GET", "/admin/audit", headers)).json()["data"]
    assert {record["team_id"] for record in records} == {world.team.id}
    assert {record["target"] for record in records} >= {mine.id, boss.id, world.team.id, keys[mine.id]}

    for path in ("/admin/users", "/admin/keys", "/admin/sessions", "/admin/audit"):
        for team_id in (world.other_team.id, NOBODY):
            answer = await world.ask("GET", path, headers, params={"team_id": team_id})
            assert answer.json() == {"data": [], "next": None}
        own = await world.ask("GET", path, headers, params={"team_id": world.team.id})
        assert own.json()["data"] == (await world.ask("GET", path, headers)).json()["data"] != []
    for path in ("/admin/keys", "/admin/sessions"):
        for user in (foreign, free):
            assert ids(await world.ask("GET", path, headers, params={"user_id": user.id})) == []
    for target in (foreign.id, world.other_team.id):
        assert ids(await world.ask("GET", "/admin/audit", headers, params={"target": target})) == []
    assert ids(await world.ask("GET", "/admin/audit", headers, params={"actor": "system", "before": "f"})) != []

    everyone = ["ada", "bob", "boss", "eve", "root", "tina"]
    assert ids(await world.ask("GET", "/admin/users", root), "username") == everyone
    assert ids(await world.ask("GET", "/admin/users", root, params={"team_id": world.other_team.id})) == [foreign.id]
    assert set(ids(await world.ask("GET", "/admin/keys", root, params={"user_id": free.id}))) == {keys[free.id]}
    assert ids(await world.ask("GET", "/admin/sessions", root, params={"team_id": world.other_team.id})) == [
        sessions[foreign.id]
    ]


async def test_the_teams_page_of_a_team_s_admin_ends(world):
    headers = await world.caller("tina", "team:admin", team=world.team)
    first = await world.ask("GET", "/admin/teams", headers, params={"limit": 1})
    assert (ids(first, "name"), first.json()["next"]) == (["research"], None)
    assert ids(await world.ask("GET", "/admin/teams", headers, params={"after": "research"})) == []


async def test_records_are_found_by_who_did_it_and_by_what_it_was_done_to(world, root):
    ada = await world.user("ada")
    admin = await world.auth.users.get("root")
    assert admin is not None
    await world.ask("PATCH", f"/admin/users/{ada.id}", root, {"scopes": ["llm"]})
    by_actor = (await world.ask("GET", "/admin/audit", root, params={"actor": admin.id})).json()["data"]
    assert [(record["action"], record["target"]) for record in by_actor] == [("user.update", ada.id)]
    by_target = (await world.ask("GET", "/admin/audit", root, params={"target": ada.id})).json()["data"]
    assert [record["action"] for record in by_target] == ["user.update", "user.create"]
    assert by_target[0]["details"] == {"scopes": "llm"}
    assert by_target[0]["at"].endswith("Z")


async def test_who_is_disabled_and_what_is_revoked_is_shown_as_that(world, root):
    ada = await world.user("ada")
    key, _ = await world.key(ada)
    session_id, _ = await world.session(ada)
    await world.auth.api_keys.revoke(key.id, by=SYSTEM)
    await world.auth.users.set_disabled(ada.id, disabled=True, by=SYSTEM)
    (found,) = (await world.ask("GET", "/admin/keys", root)).json()["data"]
    assert found["revoked_at"] is not None
    assert (await world.ask("GET", f"/admin/users/{ada.id}", root)).json()["disabled"] is True
    assert ids(await world.ask("GET", "/admin/sessions", root)) == []  # only those alive
    assert (await world.ask("GET", f"/admin/sessions/{session_id}", root)).status_code == 404
