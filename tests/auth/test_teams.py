"""The repository of teams."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from auth.audit import SYSTEM, Actor, read_records
from auth.clients import Clients
from auth.database import Database
from auth.names import InvalidName
from auth.teams import TeamNameTaken, TeamNotEmpty, Teams, UnknownTeam
from auth.users import Users
from tests.auth.kit import PASSWORD

NOBODY = "6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55"
BOSS = Actor("4a7d6c1e-0000-4000-8000-000000000000", "boss", "192.0.2.7", "request-1")
HOSTILE_IDS = ["", "x", "x\0", "x\r\n", "\U0001f600", "\ud800", NOBODY.upper(), NOBODY.replace("-", "")]


@pytest.fixture
def database(engine):
    """Each database in turn."""
    return Database(engine)


@pytest.fixture
def teams(database):
    return Teams(database)


@pytest.fixture
def join(database, passwords):
    """Makes a member."""

    async def join(team_id, name="ada"):
        return await Users(database).add(name, PASSWORD, ["llm"], passwords=passwords, team_id=team_id)

    return join


@pytest.fixture
def register(database):
    """Makes a client of the team."""

    async def register(team_id):
        made, _ = await Clients(database).add(
            "nightly", grants=["client_credentials"], scopes=["llm"], team_id=team_id, by=SYSTEM
        )
        return made

    return register


@pytest.fixture
def audited(engine):
    async def audited():
        async with engine.connect() as connection:
            return [
                (row["actor"], row["action"], row["target_name"], row["team_id"], row["details"])
                for row in await read_records(connection)
            ]

    return audited


async def test_a_team_is_found_by_id_and_by_name(teams):
    team = await teams.add("cafe\u0301", by=SYSTEM)
    assert team.name == "caf\u00e9"
    assert await teams.get(team.id) == await teams.by_name("caf\u00e9") == await teams.by_name("cafe\u0301") == team
    assert await teams.get(NOBODY) is None
    assert await teams.by_name("other") is None


@pytest.mark.parametrize("text", HOSTILE_IDS)
async def test_an_id_or_a_name_that_none_has_is_not_asked_for(teams, engine, text):
    asked = []

    def listener(_connection, _cursor, statement, *_):
        asked.append(statement)

    sa.event.listen(engine.sync_engine, "before_cursor_execute", listener)
    assert await teams.get(text) is None
    if text in {"", "x\0", "x\r\n", "\ud800"}:
        assert await teams.by_name(text) is None
    sa.event.remove(engine.sync_engine, "before_cursor_execute", listener)
    assert asked == []


@pytest.mark.parametrize("name", ["", " x", "a\r\nb", "a\0b", "\ud800", "x" * 129, "a\u202eb"])
async def test_a_name_that_is_none_is_refused(teams, name):
    team = await teams.add("research", by=SYSTEM)
    with pytest.raises(InvalidName):
        await teams.add(name, by=SYSTEM)
    with pytest.raises(InvalidName):
        await teams.rename(team.id, name, by=SYSTEM)
    assert await teams.list() == (team,)


async def test_a_name_is_given_once(teams):
    team = await teams.add("research", by=SYSTEM)
    other = await teams.add("sales", by=SYSTEM)
    with pytest.raises(TeamNameTaken):
        await teams.add("research", by=SYSTEM)
    with pytest.raises(TeamNameTaken):
        await teams.rename(other.id, "research", by=SYSTEM)
    assert await teams.list() == (team, other)
    assert (await teams.rename(team.id, "research", by=SYSTEM)).name == "research"


async def test_teams_are_listed_by_name_a_page_at_a_time(teams):
    for name in ("b", "d", "a", "c"):
        await teams.add(name, by=SYSTEM)
    assert [team.name for team in await teams.list(limit=2)] == ["a", "b"]
    await teams.add("aa", by=SYSTEM)
    assert [team.name for team in await teams.list(after="b", limit=2)] == ["c", "d"]
    assert await teams.list(after="d") == ()


async def test_a_team_goes_when_nobody_is_in_it(teams, database, join, register):
    team = await teams.add("research", by=SYSTEM)
    ada = await join(team.id)
    with pytest.raises(TeamNotEmpty):
        await teams.delete(team.id, by=SYSTEM)
    await Users(database).update(ada.id, team_id=None, by=SYSTEM)
    client = await register(team.id)
    with pytest.raises(TeamNotEmpty):
        await teams.delete(team.id, by=SYSTEM)
    assert await teams.get(team.id) == team
    await Clients(database).delete(client.id, by=SYSTEM)
    await teams.delete(team.id, by=SYSTEM)
    assert await teams.get(team.id) is None


async def test_who_joins_as_a_team_goes_is_in_one_or_the_team_is_gone(teams, database, join):
    for round_ in range(8):
        team = await teams.add("research", by=SYSTEM)
        attempts: list[Any] = [join(team.id, f"ada-{round_}"), teams.delete(team.id, by=SYSTEM)]
        results: list[Any] = await asyncio.gather(*attempts, return_exceptions=True)
        joined, gone = results
        if gone is None:
            assert isinstance(joined, UnknownTeam)
            continue
        assert isinstance(gone, TeamNotEmpty)
        assert joined.team_id == team.id
        await Users(database).update(joined.id, team_id=None, by=SYSTEM)
        await teams.delete(team.id, by=SYSTEM)


async def test_what_is_not_there_cannot_be_changed(teams, audited):
    with pytest.raises(UnknownTeam):
        await teams.rename(NOBODY, "research", by=SYSTEM)
    with pytest.raises(UnknownTeam):
        await teams.delete(NOBODY, by=SYSTEM)
    assert await audited() == []


async def test_each_change_has_its_record_and_what_fails_has_none(teams, audited, join):
    team = await teams.add("research", by=BOSS)
    await teams.rename(team.id, "science", by=BOSS)
    with pytest.raises(TeamNameTaken):
        await teams.add("science", by=BOSS)
    await teams.delete(team.id, by=BOSS)
    kept = await teams.add("kept", by=SYSTEM)
    await join(kept.id)
    with pytest.raises(TeamNotEmpty):
        await teams.delete(kept.id, by=BOSS)
    assert [entry for entry in await audited() if entry[0] == BOSS.id] == [
        (BOSS.id, "team.delete", "science", team.id, {}),
        (BOSS.id, "team.update", "research", team.id, {"name": "science"}),
        (BOSS.id, "team.create", "research", team.id, {}),
    ]


async def test_the_books_names_of_a_team_are_those_of_its_members_and_clients(teams, database, engine, join, register):
    team, other = await teams.add("research", by=SYSTEM), await teams.add("sales", by=SYSTEM)
    await join(team.id, "ada")
    await join(other.id, "bob")
    await join(None, "eve")
    client = await register(team.id)
    name = f"client:{client.id}"
    async with engine.connect() as connection:
        found = (await connection.scalars(teams.names_in_books(team.id))).all()
    assert sorted(found) == sorted(["ada", name])
    for asked, there in (("ada", True), (name, True), ("bob", False), ("eve", False), (client.id, False), ("", False)):
        assert await teams.has(team.id, asked) is there, asked
    assert not await teams.has(NOBODY, "ada")
