"""The admin API without its database: a 503 that says when to come back, on every route, and no word of why."""

import pytest

from auth.users import User
from tests.service.admin.kit import NOBODY, PLAIN
from tests.service.admin.test_roles import ACCOUNT, TABLE
from tests.service.test_http import serving


@pytest.mark.parametrize(
    "url", ["postgresql+asyncpg://nobody@127.0.0.1:1/none", "sqlite+aiosqlite:///{missing}/tollbook.db"]
)
async def test_without_a_database_every_route_says_when_to_come_back(tmp_path, url):
    (tmp_path / "keys").mkdir(mode=0o700)
    url = url.format(missing=tmp_path / "missing")
    async with serving(tmp_path, database_url=url, migrated=False) as served:
        issued = served.state["auth"].tokens.issue(
            subject=NOBODY, username="root", scopes=["admin", *PLAIN], client_id="tollbook"
        )
        headers = {"Authorization": f"Bearer {issued.access_token}", "Content-Type": "application/json"}
        names = {"user_id": NOBODY, "team_id": NOBODY, "own_team_id": NOBODY, "session_id": NOBODY}
        names |= {"client_id": "c", "key_id": "a" * 16, "kid": "k"}
        for row in [*TABLE, *ACCOUNT]:
            method, _, path = row.route.partition(" ")
            answer = await served.client.request(method, path.format(**names), headers=headers, content=b"{}")
            assert answer.status_code == 503, (row.route, answer.text)
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["cache-control"] == "no-store"
            assert "127.0.0.1" not in answer.text
            assert "missing" not in answer.text
        assert served.logged.lines("unexpected_error") == []


async def test_an_api_key_that_nobody_can_look_up_is_no_reason_for_a_401(tmp_path):
    """Or every client would take its key for dead while the database is away."""
    (tmp_path / "keys").mkdir(mode=0o700)
    url = "postgresql+asyncpg://nobody@127.0.0.1:1/none"
    async with serving(tmp_path, database_url=url, migrated=False) as served:
        key = f"tbk_{'a' * 16}_{'x' * 43}"
        answer = await served.client.get("/admin/users", headers={"X-API-Key": key})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


async def test_a_change_that_cannot_be_written_down_is_not_made(world):
    root = await world.caller("root", "admin", *PLAIN)
    ada: User = await world.user("ada")
    async with world.auth.database._engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE audit_log RENAME TO elsewhere")
    for method, path, body in (
        ("PATCH", f"/admin/users/{ada.id}", {"disabled": True}),
        ("PUT", f"/admin/users/{ada.id}/password", {"password": "zebra crossing 4711"}),
        ("POST", "/admin/teams", {"name": "new"}),
        ("POST", "/admin/keys", {"user_id": ada.id, "name": "k", "scopes": ["llm"]}),
    ):
        assert (await world.ask(method, path, root, body)).status_code == 503
    assert await world.auth.users.get_by_id(ada.id) == ada
    assert await world.auth.teams.by_name("new") is None
    assert await world.auth.api_keys.list() == ()
