"""Who may ask for tokens, on both databases."""

import asyncio
import hashlib
import re
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from auth.audit import SYSTEM, Actor
from auth.clients import (
    CLIENT_CREDENTIALS,
    DEFAULT_CLIENT,
    DEFAULT_CLIENT_ID,
    PASSWORD,
    REFRESH_TOKEN,
    Client,
    ClientIdTaken,
    Clients,
    InvalidClientData,
    UnknownClient,
)
from auth.database import Database, DatabaseUnavailable
from auth.errors import InvalidClient
from auth.names import InvalidName
from auth.scopes import InvalidScopeString
from auth.secret_tokens import hash_secret, matches, new_secret, seal, unseal
from auth.sessions import Sessions
from auth.tables import audit_log, revocations
from auth.tables import clients as table
from auth.teams import Teams, UnknownTeam

ADMIN = Actor("id-admin", "grace", "192.0.2.7", "req-1")
MACHINE: dict[str, Any] = {"grants": [CLIENT_CREDENTIALS], "scopes": ["llm"], "by": ADMIN}


@pytest.fixture
def database(engine: AsyncEngine) -> Database:
    """Each database in turn, for the fixtures of conftest.py too."""
    return Database(engine)


@pytest.fixture
def clients(database: Database) -> Clients:
    return Clients(database)


async def rows(database, columns):
    async with database.transaction() as connection:
        return [tuple(row) for row in await connection.execute(sa.select(*columns))]


async def audited(database):
    columns = (audit_log.c.action, audit_log.c.target_kind, audit_log.c.target, audit_log.c.actor)
    return await rows(database, columns)


async def revoked(database):
    return await rows(database, (revocations.c.kind, revocations.c.value))


async def refusal(clients, client_id, secret):
    with pytest.raises(InvalidClient) as caught:
        await clients.authenticate(client_id, secret)
    return caught.value


# Making one


async def test_a_confidential_client_has_a_secret_that_is_told_once_and_stored_as_a_hash(clients, database):
    client, secret = await clients.add("nightly report", **MACHINE)
    assert re.fullmatch(r"tbs_[A-Za-z0-9_-]{43}", secret)
    assert not client.public
    assert await rows(database, (table.c.secret_hash,)) == [(hashlib.sha256(secret.encode()).hexdigest(),)]
    assert secret not in repr(client)
    assert client.secret_hash not in repr(client)
    assert await clients.get(client.id) == client


async def test_a_public_client_has_no_secret(clients):
    client, secret = await clients.add(
        "cli", grants=[PASSWORD, REFRESH_TOKEN], scopes=["llm"], confidential=False, by=ADMIN
    )
    assert (secret, client.public, client.secret_hash) == (None, True, None)


async def test_what_was_given_is_what_is_kept(clients, database):
    team = await Teams(database).add("engines", by=SYSTEM)
    made, _ = await clients.add(
        "e\u0301t\u00e9 \U0001f600",
        grants=["refresh_token", "password", "password"],
        scopes=["usage:read", "llm:a/b"],
        team_id=team.id,
        client_id="Report_1.x-y",
        by=ADMIN,
    )
    client = await clients.get("Report_1.x-y")
    assert client == made
    assert (client.id, client.name, client.team_id) == ("Report_1.x-y", "\u00e9t\u00e9 \U0001f600", team.id)
    assert client.grants == {"password", "refresh_token"}
    assert client.scopes == {"usage:read", "llm:a/b"}
    assert not client.disabled
    assert await audited(database) == [
        ("team.create", "team", team.id, "system"),
        ("client.create", "client", client.id, "id-admin"),
    ]


async def test_ids_are_made_up_and_secrets_differ(clients):
    made = [await clients.add("same name", **MACHINE) for _ in range(5)]
    assert len({client.id for client, _ in made}) == len({secret for _, secret in made}) == 5


@pytest.mark.parametrize(
    "client_id",
    [
        "",
        "a" * 65,
        "a b",
        "a:b",
        "a\n",
        "a\0",
        "\u00e9",
        "a'--",
        DEFAULT_CLIENT_ID,
        "0196f3a0-0000-4000-8000-00000000ABCD",  # could be a user's
    ],
)
async def test_an_id_that_no_client_can_have_is_refused(clients, database, client_id):
    with pytest.raises(InvalidClientData) as caught:
        await clients.add("x", client_id=client_id, **MACHINE)
    assert not client_id or client_id not in str(caught.value)
    assert await rows(database, (table.c.id,)) == []


@pytest.mark.parametrize(
    "grants", [[], ["implicit"], ["password", "authorization_code"], [""], ["client_credentials "]]
)
async def test_grants_that_there_are_not_are_refused(clients, grants):
    with pytest.raises(InvalidClientData, match="password refresh_token client_credentials"):
        await clients.add("x", grants=grants, scopes=["llm"], by=ADMIN)


async def test_a_public_client_cannot_have_client_credentials_now_or_later(clients):
    with pytest.raises(InvalidClientData, match="public"):
        await clients.add("x", confidential=False, **MACHINE)
    client, _ = await clients.add("x", grants=[PASSWORD], scopes=["llm"], confidential=False, by=ADMIN)
    with pytest.raises(InvalidClientData, match="public"):
        await clients.update(client.id, grants=[PASSWORD, CLIENT_CREDENTIALS], by=ADMIN)
    with pytest.raises(InvalidClientData, match="public"):
        await clients.new_secret(client.id, by=ADMIN)
    assert (await clients.get(client.id)).grants == {PASSWORD}


@pytest.mark.parametrize("scopes", [[], ["root"], ["llm", "llm:"], ["llm usage:read"], ["llm:a\n"]])
async def test_scopes_that_nobody_can_have_are_refused(clients, scopes):
    with pytest.raises(InvalidScopeString):
        await clients.add("x", grants=[PASSWORD], scopes=scopes, by=ADMIN)


@pytest.mark.parametrize("name", ["", " x", "a\r\nb", "a\0b", "x" * 129])
async def test_names_that_nothing_can_have_are_refused(clients, name):
    with pytest.raises(InvalidName):
        await clients.add(name, **MACHINE)


async def test_of_clients_with_one_id_there_is_one(clients, database):
    first, secret = await clients.add("first", client_id="same", **MACHINE)
    with pytest.raises(ClientIdTaken):
        await clients.add("second", client_id="same", **MACHINE)
    assert await clients.get("same") == first
    assert await clients.authenticate("same", secret) == first
    assert len(await audited(database)) == 1


async def test_a_team_that_there_is_not_is_refused_by_its_name(clients, database):
    with pytest.raises(UnknownTeam):
        await clients.add("x", team_id="no-team", **MACHINE)
    team = await Teams(database).add("engines", by=SYSTEM)
    await clients.add("x", client_id="same", team_id=team.id, **MACHINE)
    with pytest.raises(ClientIdTaken):
        await clients.add("x", client_id="same", team_id=team.id, **MACHINE)


# Proving who it is


async def test_a_client_is_who_it_says_by_its_secret_or_if_public_by_its_id(clients):
    confidential, secret = await clients.add("x", **MACHINE)
    public, _ = await clients.add("y", grants=[PASSWORD], scopes=["llm"], confidential=False, by=ADMIN)
    assert await clients.authenticate(confidential.id, secret) == confidential
    assert await clients.authenticate(public.id, None) == public


async def test_everybody_else_is_refused_with_the_very_same_words(clients):
    client, secret = await clients.add("x", **MACHINE)
    other, other_secret = await clients.add("y", **MACHINE)
    public, _ = await clients.add("z", grants=[PASSWORD], scopes=["llm"], confidential=False, by=ADMIN)
    await clients.update(other.id, disabled=True, by=ADMIN)
    tries = [
        ("nobody", secret, "unknown_client"),
        ("nobody", None, "unknown_client"),
        ("a\0b", secret, "unknown_client"),
        ("\ud800", "\ud800", "unknown_client"),
        ("' OR 1=1 --", secret, "unknown_client"),
        (DEFAULT_CLIENT_ID, None, "unknown_client"),
        (client.id.upper() + "x", secret, "unknown_client"),
        (client.id, None, "no_secret"),
        (client.id, "", "wrong_secret"),
        (client.id, secret[:-1], "wrong_secret"),
        (client.id, secret + " ", "wrong_secret"),
        (client.id, "\ud800", "wrong_secret"),
        (client.id, other_secret, "wrong_secret"),
        (client.id, client.secret_hash, "wrong_secret"),
        (other.id, other_secret, "disabled"),
        (other.id, "wrong", "wrong_secret"),  # that it is disabled only its holder learns, in the books
        (public.id, "", "wrong_secret"),
        (public.id, secret, "wrong_secret"),
    ]
    errors = [(await refusal(clients, client_id, secret), reason) for client_id, secret, reason in tries]
    assert [error.reason for error, _ in errors] == [reason for _, reason in errors]
    shown = {(error.status, error.error, error.description, *error.headers.items()) for error, _ in errors}
    assert len(shown) == 1


async def test_a_disabled_public_client_is_refused(clients):
    public, _ = await clients.add("z", grants=[PASSWORD], scopes=["llm"], confidential=False, by=ADMIN)
    await clients.update(public.id, disabled=True, by=ADMIN)
    assert (await refusal(clients, public.id, None)).reason == "disabled"
    await clients.update(public.id, disabled=False, by=ADMIN)
    assert (await clients.authenticate(public.id, None)).id == public.id


async def test_an_unknown_client_costs_the_same_work_as_a_known_one(clients, engine, monkeypatch):
    client, secret = await clients.add("x", **MACHINE)
    work = []

    def compare(presented, stored_hash):
        work.append("compare")
        return matches(presented, stored_hash)

    monkeypatch.setattr("auth.clients.matches", compare)
    sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: work.append("statement"))
    for client_id, presented in ((client.id, "wrong"), (client.id, None), ("nobody", "wrong"), ("nobody", None)):
        work.clear()
        await refusal(clients, client_id, presented)
        assert work == ["statement", "compare"], (client_id, presented)
    work.clear()
    await clients.authenticate(client.id, secret)
    assert work == ["statement", "compare"]


# Changing one


async def test_a_new_secret_replaces_the_old_one_at_once(clients, database):
    client, old = await clients.add("x", **MACHINE)
    new = await clients.new_secret(client.id, by=ADMIN)
    assert re.fullmatch(r"tbs_[A-Za-z0-9_-]{43}", new)
    assert (await refusal(clients, client.id, old)).reason == "wrong_secret"
    assert (await clients.authenticate(client.id, new)).id == client.id
    assert await revoked(database) == [("client", client.id)]
    assert [action for action, *_ in await audited(database)] == ["client.create", "client.secret"]


async def test_no_secret_and_no_hash_is_in_the_audit_log(clients, database):
    client, old = await clients.add("x", **MACHINE)
    new = await clients.new_secret(client.id, by=ADMIN)
    written = str(await rows(database, (*audit_log.c,)))
    for secret in (old, new):
        assert secret not in written
        assert hash_secret(secret) not in written


@pytest.mark.parametrize(
    ("change", "action"),
    [
        ({"grants": [PASSWORD, REFRESH_TOKEN]}, "client.update"),
        ({"scopes": ["usage:read"]}, "client.update"),
        ({"disabled": True}, "client.disable"),
        ({"disabled": False}, "client.enable"),
        ({"name": "b", "grants": [PASSWORD], "scopes": ["llm:a"], "disabled": True}, "client.disable"),
    ],
)
async def test_a_change_is_kept_told_to_the_workers_and_audited(clients, database, change, action):
    before, _ = await clients.add("a", client_id="x", **MACHINE)
    changed = await clients.update("x", **change, by=ADMIN)
    assert await clients.get("x") == changed
    for name in ("name", "grants", "scopes", "disabled"):
        expected = change.get(name, getattr(before, name))
        assert getattr(changed, name) == (frozenset(expected) if isinstance(expected, list) else expected)
    assert (changed.secret_hash, changed.created_at) == (before.secret_hash, before.created_at)
    assert await revoked(database) == [("client", "x")]
    assert (await audited(database))[-1] == (action, "client", "x", "id-admin")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"scopes": []}, InvalidScopeString),
        ({"scopes": ["root"]}, InvalidScopeString),
        ({"grants": []}, InvalidClientData),
        ({"grants": ["implicit"]}, InvalidClientData),
        ({"name": "a\nb"}, InvalidName),
    ],
)
async def test_a_change_that_cannot_be_leaves_all_as_it_was(clients, database, change, error):
    before, _ = await clients.add("a", client_id="x", **MACHINE)
    with pytest.raises(error):
        await clients.update("x", **{"disabled": True, **change}, by=ADMIN)
    assert await clients.get("x") == before
    assert await revoked(database) == []
    assert len(await audited(database)) == 1


async def test_a_client_that_there_is_not_cannot_be_changed(clients, database):
    for client_id in ("nobody", DEFAULT_CLIENT_ID, "\0"):
        with pytest.raises(UnknownClient):
            await clients.update(client_id, disabled=True, by=ADMIN)
        with pytest.raises(UnknownClient):
            await clients.new_secret(client_id, by=ADMIN)
        with pytest.raises(UnknownClient):
            await clients.delete(client_id, by=ADMIN)
    assert await audited(database) == []


async def test_deleting_a_client_ends_its_sessions_and_tokens_and_no_others(clients, database, ada, clock):
    sessions = Sessions(database, refresh_ttl_seconds=1000, session_ttl_seconds=5000, overlap_seconds=10, clock=clock)
    client, secret = await clients.add("x", **MACHINE)
    await sessions.open(ada.id, client.id, ["llm"], "")
    other, _ = await sessions.open(ada.id, DEFAULT_CLIENT_ID, ["llm"], "")
    await clients.delete(client.id, by=ADMIN)
    assert await clients.get(client.id) is None
    assert (await refusal(clients, client.id, secret)).reason == "unknown_client"
    assert [session.id for session in await sessions.list()] == [other]
    assert await revoked(database) == [("client", client.id)]
    assert (await audited(database))[-1] == ("client.delete", "client", client.id, "id-admin")


async def test_of_many_who_delete_a_client_at_once_one_has_done_it(clients, database):
    client, _ = await clients.add("x", **MACHINE)
    results = await asyncio.gather(*(clients.delete(client.id, by=ADMIN) for _ in range(5)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["NoneType", *["UnknownClient"] * 4]
    assert [action for action, *_ in await audited(database)] == ["client.create", "client.delete"]


async def test_a_client_deleted_meanwhile_is_not_changed(clients, database, monkeypatch):
    client, _ = await clients.add("x", **MACHINE)
    await clients.delete(client.id, by=ADMIN)

    async def as_it_was(_):
        return client

    monkeypatch.setattr(clients, "get", as_it_was)
    for attempt in (
        clients.update(client.id, disabled=False, by=ADMIN),
        clients.new_secret(client.id, by=ADMIN),
        clients.delete(client.id, by=ADMIN),
    ):
        with pytest.raises(UnknownClient):
            await attempt
    assert len(await audited(database)) == 2


# Lists


async def test_clients_are_listed_by_id_a_page_at_a_time(clients, database):
    team = await Teams(database).add("engines", by=SYSTEM)
    for client_id in ("c", "a", "b"):
        await clients.add("x", client_id=client_id, team_id=None if client_id == "b" else team.id, **MACHINE)
    first = await clients.list(limit=2)
    assert [client.id for client in first] == ["a", "b"]
    assert [client.id for client in await clients.list(after="b", limit=2)] == ["c"]
    assert [client.id for client in await clients.list(team_id=team.id)] == ["a", "c"]
    assert await clients.list(after="c") == ()


def test_the_built_in_client_is_public_and_cannot_be_a_machine():
    assert isinstance(DEFAULT_CLIENT, Client)
    assert DEFAULT_CLIENT.public
    assert DEFAULT_CLIENT.grants == {PASSWORD, REFRESH_TOKEN}
    assert DEFAULT_CLIENT.scopes is None


async def test_without_a_database_it_says_so(connect, tmp_path):
    clients = Clients(Database(connect(f"sqlite+aiosqlite:///{tmp_path}/no/such/directory.db")))
    with pytest.raises(DatabaseUnavailable):
        await clients.authenticate("x", "y")
    with pytest.raises(DatabaseUnavailable):
        await clients.add("x", **MACHINE)


# The secrets themselves


def test_a_secret_has_256_bits_and_a_prefix_that_says_what_it_is():
    made = {new_secret("tbr_") for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"tbr_[A-Za-z0-9_-]{43}", secret) for secret in made)


@given(st.text(alphabet=st.characters(codec=None)), st.text(alphabet=st.characters(codec=None)))
def test_a_secret_matches_its_own_hash_only(secret, other):
    assert matches(secret, hash_secret(secret))
    assert matches(other, hash_secret(secret)) == (other == secret)
    assert not matches(secret, None)
    assert not matches(hash_secret(secret), hash_secret(secret))


def test_no_credential_is_matched_by_nothing():
    assert not matches("", None)
    assert not matches("", "")


def test_hashes_are_compared_in_constant_time(monkeypatch):
    compared = []

    def compare(one, other):
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("auth.secret_tokens.hmac.compare_digest", compare)
    assert matches("a", hash_secret("a"))
    assert not matches("b", hash_secret("a"))
    assert not matches("b", None)
    assert compared == [(hash_secret(x), hash_secret(y)) for x, y in (("a", "a"), ("b", "a"), ("b", ""))]


@given(st.text(), st.text())
def test_what_is_sealed_under_a_secret_is_read_with_that_secret_only(under, other):
    successor = new_secret("tbr_")
    sealed = seal(successor, under)
    assert successor.encode() not in sealed
    assert seal(successor, under) != sealed
    assert unseal(sealed, under) == successor
    if other != under:
        with pytest.raises(InvalidTag):
            unseal(sealed, other)
    with pytest.raises(InvalidTag):
        unseal(sealed[:-1] + bytes([sealed[-1] ^ 1]), under)
