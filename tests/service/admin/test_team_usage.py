"""GET /usage for a team's admin: that of the team as it is now, and of nobody else."""

from datetime import UTC, datetime
from typing import Any

import pytest

from auth.audit import SYSTEM
from observability.ledger.table import ledger
from tests.observability.kit import entry
from tests.service.admin.kit import World

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
async def machine(world):
    return await world.client("llm", team=world.team)


@pytest.fixture
async def tina(world, machine):
    """The team's admin; there are calls of hers, of a member, of the team's client, and of others."""
    await world.user("ada", team=world.team)
    await world.user("bob", team=world.other_team)
    await world.user("eve")
    names = ["tina", "ada", f"client:{machine.id}", "bob", "eve", "", "oidc:ada", machine.id]
    async with world.auth.database.transaction() as connection:
        rows = [entry(n, principal=name, started_at=NOON).row() for n, name in enumerate(names)]
        await connection.execute(ledger.insert(), rows)
    return await world.user("tina", "team:admin", "usage:read", "llm", team=world.team)


async def whose(world: World, headers: dict[str, str], **query: str) -> Any:
    """Whose calls are shown; the status where none are."""
    answer = await world.ask("GET", "/usage", headers, params=query)
    if answer.status_code != 200:
        assert "calls" not in answer.json()
        return answer.status_code
    calls = {call["principal"] for call in answer.json()["calls"]}
    assert {row["principal"] for row in answer.json()["sums"]} == calls
    return calls


async def test_it_is_that_of_the_members_and_clients_and_one_may_be_named(world, tina, machine):
    headers = world.token(tina)
    client = f"client:{machine.id}"
    assert await whose(world, headers) == {"tina", "ada", client}
    assert await whose(world, headers, since="2026-03-02T00:00:00Z") == set()
    for name in ("tina", "ada", client):
        assert await whose(world, headers, principal=name) == {name}
    await world.user("new", team=world.team)
    assert await whose(world, headers, principal="new") == set()


async def test_of_others_nothing_is_told_whether_there_are_such_or_not(world, tina, machine):
    headers = world.token(tina)
    for name in ("bob", "eve", "", "nobody-of-this-name", "oidc:ada", machine.id, "ad_", "ada%", "ADA"):
        assert await whose(world, headers, principal=name) == 403, name


async def test_it_takes_the_scope_in_the_token_and_in_the_row(world, tina):
    narrow, full = world.token(tina, "usage:read", "llm"), world.token(tina)
    assert await whose(world, narrow) == {"tina"}
    assert await whose(world, narrow, principal="ada") == 403
    await world.auth.users.update(tina.id, scopes=["usage:read", "llm"], by=SYSTEM)
    assert await whose(world, full) == {"tina"}
    assert await whose(world, full, principal="ada") == 403
    assert await whose(world, world.token(tina, "team:admin")) == 403  # without the scope to read


async def test_it_is_that_of_the_team_of_now(world, tina):
    headers = world.token(tina)
    await world.auth.users.update(tina.id, team_id=world.other_team.id, by=SYSTEM)
    assert await whose(world, headers) == {"tina", "bob"}
    assert await whose(world, headers, principal="ada") == 403
    await world.auth.users.update(tina.id, team_id=None, by=SYSTEM)
    assert await whose(world, headers) == {"tina"}


async def test_who_is_disabled_reads_nothing_more(world, tina):
    headers = world.token(tina)
    await world.auth.users.set_disabled(tina.id, disabled=True, by=SYSTEM)
    assert await whose(world, headers) == 401


async def test_managing_users_is_not_reading_their_usage(world, tina):
    dora = await world.user("dora", "users:admin", "usage:read", team=world.team)
    assert await whose(world, world.token(dora)) == set()
    assert await whose(world, world.token(dora), principal="ada") == 403


async def test_an_admin_still_sees_everyone(world, tina):
    root = await world.caller("root", "admin", "usage:read", "team:admin", team=world.team)
    assert {"bob", "eve", ""} <= await whose(world, root)
    assert await whose(world, root, principal="bob") == {"bob"}
