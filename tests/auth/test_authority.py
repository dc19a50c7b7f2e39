"""What a caller may administer: the rules as tables, and that they are asked of the database as it is now."""

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.audit import SYSTEM
from auth.authority import Authority, Level, authority_of, own_scopes
from auth.clients import Client, Clients
from auth.database import Database, DatabaseUnavailable
from auth.errors import InvalidToken
from auth.principal import ACCESS_TOKEN, API_KEY, CLIENT_TOKEN, OUTSIDE, Principal
from auth.scopes import Scope
from auth.teams import Teams
from auth.users import Users
from tests.auth.kit import PASSWORD

SERVICE = Authority(Level.SERVICE, frozenset({"admin"}), None, "root")
DIRECTORY = Authority(Level.DIRECTORY, frozenset({"users:admin", "llm", "usage:read", "account"}), "team-1", "dora")
TEAM = Authority(Level.TEAM, frozenset({"team:admin", "llm", "usage:read", "introspect"}), "team-1", "tina")
NONE = Authority(Level.NONE, frozenset({"llm", "usage:read", "account"}), "team-1", "ada")
ALL = (SERVICE, DIRECTORY, TEAM, NONE)


# The rules


@pytest.mark.parametrize(
    ("team_id", "seen_by"),
    [("team-1", {SERVICE, DIRECTORY, TEAM}), ("team-2", {SERVICE, DIRECTORY}), (None, {SERVICE, DIRECTORY})],
)
def test_who_sees_what_belongs_to_a_team(team_id, seen_by):
    assert {each for each in ALL if each.sees(team_id)} == seen_by


@pytest.mark.parametrize(
    ("scopes", "team_id", "managed_by"),
    [
        ({"llm", "usage:read", "account"}, "team-1", {SERVICE, DIRECTORY, TEAM}),
        ({"llm:small"}, "team-1", {SERVICE, DIRECTORY, TEAM}),
        (set(), "team-1", {SERVICE, DIRECTORY, TEAM}),
        ({"llm"}, "team-2", {SERVICE, DIRECTORY}),
        ({"llm"}, None, {SERVICE, DIRECTORY}),
        ({"team:admin", "llm"}, "team-1", {SERVICE, DIRECTORY}),  # not one's peers: setting a password is being them
        ({"introspect"}, "team-1", {SERVICE, DIRECTORY}),
        ({"users:admin"}, "team-1", {SERVICE, DIRECTORY}),
        ({"admin"}, "team-1", {SERVICE}),
        ({"admin", "llm"}, None, {SERVICE}),
    ],
)
def test_who_may_change_a_user(scopes, team_id, managed_by):
    assert {each for each in ALL if each.may_manage("somebody", frozenset(scopes), team_id)} == managed_by


def test_a_team_s_admin_may_reach_themselves_but_not_from_another_team():
    assert TEAM.may_manage("tina", frozenset({"team:admin"}), "team-1")
    assert not TEAM.may_manage("tina", frozenset({"team:admin"}), "team-2")


def test_nobody_without_a_user_is_one():
    """Two callers without a user are not the same one."""
    machine = dataclasses.replace(TEAM, user_id=None)
    assert not machine.may_manage("somebody", frozenset({"team:admin"}), "team-1")


@pytest.mark.parametrize(
    ("scopes", "managed_by"),
    [({"llm"}, {SERVICE, DIRECTORY}), ({"users:admin"}, {SERVICE, DIRECTORY}), ({"admin"}, {SERVICE}), (None, None)],
)
def test_who_may_change_a_client(scopes, managed_by):
    client = Client("c1", "c", None, frozenset(), None if scopes is None else frozenset(scopes), team_id="team-1")
    found = {each for each in ALL if each.may_manage_client(client)}
    assert found == (managed_by if managed_by is not None else {SERVICE, DIRECTORY})


@pytest.mark.parametrize(
    ("scopes", "given_by"),
    [
        ({"llm"}, {SERVICE, DIRECTORY, TEAM}),
        ({"llm:small"}, {SERVICE, DIRECTORY, TEAM}),  # who holds all models holds each
        ({"llm", "usage:read"}, {SERVICE, DIRECTORY, TEAM}),
        ({"account"}, {SERVICE, DIRECTORY}),  # which this team's admin does not hold
        ({"introspect"}, {SERVICE}),  # which a team's admin cannot give, and the other does not hold
        ({"team:admin"}, {SERVICE}),
        ({"users:admin"}, {SERVICE, DIRECTORY}),
        ({"users:admin", "admin"}, {SERVICE}),
        ({"admin"}, {SERVICE}),
        (set(), {SERVICE, DIRECTORY, TEAM}),
    ],
)
def test_who_may_give_scopes(scopes, given_by):
    assert {each for each in ALL if each.may_grant(scopes)} == given_by


def test_who_holds_one_model_gives_that_one_only():
    holder = dataclasses.replace(TEAM, scopes=frozenset({"team:admin", "llm:small"}))
    assert holder.may_grant({"llm:small"})
    assert not holder.may_grant({"llm:large"})
    assert not holder.may_grant({"llm"})
    assert not holder.may_grant({"llm:small", "llm"})


scopes_of_any_kind = st.frozensets(st.sampled_from([*map(str, Scope), "llm:small", "llm:large"]))


@given(scopes_of_any_kind, scopes_of_any_kind, st.sampled_from([Level.NONE, Level.TEAM, Level.DIRECTORY]))
def test_nobody_below_the_service_s_admin_gives_what_they_do_not_hold(held, wanted, level):
    authority = Authority(level, held, "team-1", "somebody")
    if authority.may_grant(wanted):
        assert all(scope in held or (scope.startswith("llm:") and "llm" in held) for scope in wanted)
        assert level > Level.NONE
        assert level > Level.TEAM or not wanted & {"admin", "users:admin", "team:admin", "introspect"}


# Asked of the database as it is now


@dataclasses.dataclass
class World:
    users: Users
    clients: Clients
    teams: Teams
    passwords: Any

    async def user(self, *scopes, team_id=None, name="ada"):
        return await self.users.add(name, PASSWORD, scopes, passwords=self.passwords, team_id=team_id)

    async def client(self, *scopes, team_id=None):
        made, _ = await self.clients.add("c", grants=["client_credentials"], scopes=scopes, team_id=team_id, by=SYSTEM)
        return made

    async def authority(self, principal):
        return await authority_of(principal, self.users, self.clients, self.teams)


@pytest.fixture
def world(engine, passwords):
    database = Database(engine)
    return World(Users(database), Clients(database), Teams(database), passwords)


@pytest.fixture
async def team(world):
    return await world.teams.add("research", by=SYSTEM)


def principal(subject, *scopes, method=ACCESS_TOKEN, team=""):
    return Principal(
        subject=subject,
        username="whoever",
        scopes=frozenset(scopes),
        auth_method=method,
        expires_at=float("inf"),
        client_id=subject if method == CLIENT_TOKEN else "tollbook",
        team=team,
    )


@pytest.mark.parametrize("method", [ACCESS_TOKEN, API_KEY])
@pytest.mark.parametrize(
    ("credential", "row", "level"),
    [
        ({"admin", "llm"}, {"admin", "llm"}, Level.SERVICE),
        ({"users:admin"}, {"users:admin", "admin"}, Level.DIRECTORY),
        ({"team:admin"}, {"team:admin"}, Level.TEAM),
        ({"admin", "users:admin", "team:admin"}, {"users:admin", "team:admin"}, Level.DIRECTORY),
        ({"admin", "users:admin", "team:admin"}, {"team:admin"}, Level.TEAM),
        ({"admin", "users:admin", "team:admin"}, {"llm"}, Level.NONE),
        ({"llm"}, {"admin"}, Level.NONE),
        ({"llm:small", "users:admin"}, {"llm", "users:admin"}, Level.DIRECTORY),
    ],
)
async def test_it_takes_both_the_credential_and_what_the_user_has_now(world, team, method, credential, row, level):
    user = await world.user(*row, team_id=team.id)
    found = await world.authority(principal(user.id, *credential, method=method))
    assert found.level == level
    assert found.scopes <= credential
    assert "llm:small" not in credential or "llm:small" in found.scopes  # of which the user has all models


async def test_a_right_that_is_taken_away_is_gone_at_the_next_request(world, team):
    user = await world.user("admin", "team:admin", team_id=team.id)
    await world.user("admin", name="other")
    caller = principal(user.id, "admin", "team:admin")
    assert (await world.authority(caller)).level == Level.SERVICE
    await world.users.update(user.id, scopes=["team:admin"], by=SYSTEM)
    assert (await world.authority(caller)).level == Level.TEAM
    await world.users.update(user.id, team_id=None, by=SYSTEM)
    assert (await world.authority(caller)).level == Level.NONE


async def test_the_team_is_the_one_of_now_whatever_the_token_says(world, team):
    other = await world.teams.add("sales", by=SYSTEM)
    user = await world.user("team:admin", team_id=team.id)
    caller = principal(user.id, "team:admin", team=other.id)
    assert (await world.authority(caller)).team_id == team.id
    await world.users.update(user.id, team_id=other.id, by=SYSTEM)
    assert (await world.authority(principal(user.id, "team:admin", team=team.id))).team_id == other.id


async def test_who_is_disabled_or_gone_has_no_credential_any_more(world):
    user, client = await world.user("admin", "llm"), await world.client("users:admin")
    await world.user("admin", name="other")
    await world.users.set_disabled(user.id, disabled=True, by=SYSTEM)
    await world.clients.update(client.id, disabled=True, by=SYSTEM)
    stranger = "6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55"
    for subject, method in (
        (user.id, ACCESS_TOKEN),
        (user.id, API_KEY),
        (stranger, ACCESS_TOKEN),
        (client.id, CLIENT_TOKEN),
        ("0123456789abcdef", CLIENT_TOKEN),
    ):
        with pytest.raises(InvalidToken) as caught:
            await world.authority(principal(subject, "admin", "users:admin", method=method))
        assert caught.value.reason == "disabled"


@pytest.mark.parametrize(
    ("credential", "row", "level"),
    [
        ({"users:admin"}, {"users:admin", "admin"}, Level.DIRECTORY),
        ({"team:admin"}, {"team:admin"}, Level.TEAM),
        ({"admin"}, {"llm"}, Level.NONE),
    ],
)
async def test_a_client_is_asked_for_among_the_clients(world, team, credential, row, level):
    client = await world.client(*row, team_id=team.id)
    found = await world.authority(principal(client.id, *credential, method=CLIENT_TOKEN))
    assert (found.level, found.team_id, found.user_id) == (level, team.id, None)


async def test_a_client_by_the_id_of_a_user_is_not_that_user(world):
    user = await world.user("admin")
    with pytest.raises(InvalidToken):
        await world.authority(principal(user.id, "admin", method=CLIENT_TOKEN))


async def test_of_an_outside_provider_the_token_says_it_and_the_team_is_the_one_of_its_name(world, team):
    for scopes, name, level, team_id in (
        ({"admin"}, "", Level.SERVICE, None),
        ({"users:admin"}, "research", Level.DIRECTORY, team.id),
        ({"team:admin"}, "research", Level.TEAM, team.id),
        ({"team:admin"}, "sales", Level.NONE, None),
        ({"team:admin"}, team.id, Level.NONE, None),  # its name, not its id
        ({"team:admin"}, "", Level.NONE, None),
    ):
        found = await world.authority(principal("oidc:sub-1", *scopes, method=OUTSIDE, team=name))
        assert (found.level, found.team_id, found.user_id) == (level, team_id, None)


async def test_who_administers_nothing_costs_no_look_into_the_database(connect, tmp_path, passwords):
    away = Database(connect(f"sqlite+aiosqlite:///{tmp_path / 'missing' / 'no.db'}"))
    world = World(Users(away), Clients(away), Teams(away), passwords)
    assert (await world.authority(principal("x", "llm", "account"))).level == Level.NONE
    for method, scope in itertools.product([ACCESS_TOKEN, API_KEY, CLIENT_TOKEN], ["team:admin", "admin"]):
        with pytest.raises(DatabaseUnavailable):
            await world.authority(
                principal("6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55", scope, method=method),
            )


async def test_the_team_whose_usage_may_be_read_takes_the_scope_for_it(world, team):
    user = await world.user("users:admin", "team:admin", team_id=team.id)
    assert (await world.authority(principal(user.id, "team:admin"))).own_team == team.id
    assert (await world.authority(principal(user.id, "team:admin", "users:admin"))).own_team == team.id
    assert (await world.authority(principal(user.id, "users:admin"))).own_team is None


async def test_what_one_can_pass_on_is_in_the_token_and_still_one_s_own(world):
    user = await world.user("llm", "usage:read")
    assert own_scopes(principal(user.id, "llm:small", "admin"), user) == {"llm:small"}
