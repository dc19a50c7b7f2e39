"""The audit log: it is added to and nothing else, by whatever means, and has no room for a secret."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from auth.audit import SYSTEM
from tests.service.admin.kit import PASSWORD, PLAIN, ids


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET result = 'ok'",
        "UPDATE audit_log SET actor_name = 'somebody else'",
        "DELETE FROM audit_log",
        "DELETE FROM audit_log WHERE actor = 'system'",
    ],
)
async def test_records_are_neither_changed_nor_removed(world, statement):
    await world.write_down(3)
    before = await world.records()
    with pytest.raises(DBAPIError, match="append-only"):
        async with world.auth.database._engine.begin() as connection:
            await connection.execute(text(statement))
    assert await world.records() == before


async def test_nor_emptied_all_at_once(postgres_world):
    await postgres_world.write_down(3)
    with pytest.raises(DBAPIError, match="append-only"):
        async with postgres_world.auth.database._engine.begin() as connection:
            await connection.execute(text("TRUNCATE audit_log"))
    assert len(await postgres_world.records()) >= 3


async def test_no_route_writes_to_it_or_takes_from_it(sqlite_world):
    root = await sqlite_world.caller("root", "admin", *PLAIN)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert (await sqlite_world.ask(method, "/admin/audit", root, {})).status_code == 405
    record = (await sqlite_world.records(1))[0]
    for method in ("DELETE", "PATCH"):
        assert (await sqlite_world.ask(method, f"/admin/audit/{record['id']}", root, {})).status_code == 404


async def test_what_was_done_says_by_whom_from_where_and_in_which_request_also_as_a_log_line(world):
    root = await world.caller("root", "admin", *PLAIN)
    admin = await world.auth.users.get("root")
    assert admin is not None
    new = {"username": "newcomer", "password": PASSWORD, "scopes": ["llm"], "team_id": world.team.id}
    answer = await world.ask("POST", "/admin/users", root | {"X-Request-ID": "the-request"}, new)
    record = (await world.records(1))[0]
    assert record["details"] == {"scopes": "llm"}
    wanted = {
        "actor": admin.id,
        "actor_name": "root",
        "action": "user.create",
        "target_kind": "user",
        "target": answer.json()["id"],
        "target_name": "newcomer",
        "team_id": world.team.id,
        "result": "ok",
        "address": "127.0.0.1",
        "request_id": "the-request",
    }
    assert {name: record[name] for name in wanted} == wanted
    line = world.served.logged.lines("audit")[-1]
    assert (line["audit_id"], line["actor"], line["request_id"]) == (record["id"], admin.id, "the-request")
    assert (line["action"], line["result"], line["client_ip"]) == ("user.create", "ok", "127.0.0.1")
    assert PASSWORD not in world.served.logged.text
    assert PASSWORD not in str(await world.records())


async def test_an_outside_caller_with_a_long_name_is_written_down_too(world):
    """What a provider calls its users is its business: up to the length of a name here."""
    actor = "oidc:" + "x" * 123
    ada = await world.user("ada")
    by = type(SYSTEM)(actor, actor, "2001:db8::1", "r")
    await world.auth.users.set_disabled(ada.id, disabled=True, by=by)
    record = (await world.records(1))[0]
    assert record["actor"] == actor
    root = await world.caller("root", "admin")
    assert ids(await world.ask("GET", "/admin/audit", root, params={"actor": actor})) == [record["id"]]
