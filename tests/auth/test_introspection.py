import asyncio
import time

import pytest

from auth.audit import SYSTEM, read_records
from auth.clients import CLIENT_CREDENTIALS, GRANTS
from auth.database import Database, DatabaseUnavailable
from auth.sessions import Sessions
from tests.auth.kit import AUDIENCE, ISSUER, LEEWAY_SECONDS, TTL_SECONDS, USERNAME, open_token
from tests.auth.oauth_kit import FORM, bearer, check_no_store, check_refused, granted, register

MACHINE = {"grant_type": CLIENT_CREDENTIALS}
INACTIVE = {"active": False}


@pytest.fixture
def database(engine):
    """Each database in turn, for all of this file."""
    return Database(engine)


@pytest.fixture
def client(client, ada):
    """And there is a user, with the scopes llm and usage:read."""
    return client


@pytest.fixture
async def app(auth):
    """A client of users."""
    return await register(auth)


@pytest.fixture
async def gateway(auth):
    """A client that may ask about all tokens."""
    return await register(auth, CLIENT_CREDENTIALS, scopes=("introspect",))


@pytest.fixture
def login(client, app):
    async def login(**more):
        return granted(await client.post("/token", data=FORM | more, **app.by_basic))

    return login


@pytest.fixture
def ask(client, gateway):
    """What /introspect says."""

    async def ask(token, asker=gateway, **more):
        answer = await client.post("/introspect", data={"token": token, **more}, **asker.by_basic)
        assert answer.status_code == 200, answer.text
        check_no_store(answer)
        return answer.json()

    return ask


@pytest.fixture
def revoke(client, app):
    async def revoke(token, revoker=app, **more):
        return await client.post("/revoke", data={"token": token, **more}, **revoker.by_basic)

    return revoke


def check_revoked(answer):
    assert (answer.status_code, answer.content) == (200, b"")
    check_no_store(answer)


async def works(client, body):
    return (await client.get("/users/me", headers=bearer(body["access_token"]))).status_code == 200


async def refreshes(client, body, **sent):
    form = {"grant_type": "refresh_token", "refresh_token": body["refresh_token"]}
    answer = await client.post("/token", data=form, **sent)
    if answer.status_code != 200:
        check_refused(answer, "invalid_grant")
    return answer.status_code == 200


# Asking


async def test_a_living_access_token_is_told_about(ask, login, app, ada, clock, events):
    body = await login()
    claims = open_token(body["access_token"])[1]
    assert await ask(body["access_token"]) == {
        "active": True,
        "scope": "llm usage:read",
        "client_id": app.id,
        "username": USERNAME,
        "token_type": "Bearer",
        "exp": int(clock.now) + TTL_SECONDS,
        "iat": int(clock.now),
        "sub": ada.id,
        "aud": AUDIENCE,
        "iss": ISSUER,
        "jti": claims["jti"],
    }
    assert events[-1] == ("introspect", "ok", "none")


async def test_a_living_refresh_token_is_told_about_and_not_spent(client, ask, login, app, ada, clock):
    body = await login(scope="llm")
    expected = {
        "active": True,
        "scope": "llm",
        "client_id": app.id,
        "username": USERNAME,
        "exp": int(clock.now) + 1000,
        "sub": ada.id,
        "iss": ISSUER,
    }
    for _ in range(2):
        assert await ask(body["refresh_token"]) == expected
    clock.now += 500  # far past the overlap
    assert await refreshes(client, body, **app.by_basic)


async def test_the_token_of_a_machine_is_told_about(client, ask, auth):
    machine = await register(auth, CLIENT_CREDENTIALS)
    body = granted(await client.post("/token", data=MACHINE, **machine.by_basic))
    found = await ask(body["access_token"])
    assert (found["active"], found["sub"], found["username"]) == (True, machine.id, f"client:{machine.id}")


async def test_without_the_scope_a_client_learns_of_its_own_tokens_alone(auth, ask, login, app):
    body, other = await login(), await register(auth, *GRANTS, scopes=("llm", "usage:read", "admin"))
    for token in (body["access_token"], body["refresh_token"]):
        assert (await ask(token, app))["active"]
        assert await ask(token, other) == INACTIVE


async def test_what_is_no_living_token_is_not_active_and_nothing_else_is_said(
    auth, client, ask, login, app, ada, clock, tokens
):
    _, key = await auth.api_keys.create(ada.id, "laptop", scopes=["llm"], by=SYSTEM)
    spent = await login()
    assert await refreshes(client, spent, **app.by_basic)
    forged = (await login())["access_token"]
    forged = forged[:-10] + ("A" if forged[-10] != "A" else "B") + forged[-9:]
    sent = ["x", "tbr_unknown", "a.b.c", "\0", key, app.secret, spent["refresh_token"], forged]
    for token in sent:
        assert await ask(token) == INACTIVE
    expired = await login()
    clock.now += TTL_SECONDS + LEEWAY_SECONDS - 1
    assert (await ask(expired["access_token"]))["active"]
    clock.now += 1
    assert await ask(expired["access_token"]) == INACTIVE
    clock.now += 1000
    assert await ask(expired["refresh_token"]) == INACTIVE


async def test_nothing_of_a_disabled_user_is_active(auth, users, ask, login, ada):
    body = await login()
    await users.set_disabled(ada.id, disabled=True, by=SYSTEM)
    auth.revocations.disable_now(users=[ada.id])
    for token in (body["access_token"], body["refresh_token"]):
        assert await ask(token) == INACTIVE


async def test_nothing_of_a_disabled_or_removed_client_is_active(auth, ask, login, app):
    body = await login()
    await auth.clients.update(app.id, disabled=True, by=SYSTEM)
    auth.revocations.disable_now(clients=[app.id])
    for token in (body["access_token"], body["refresh_token"]):
        assert await ask(token) == INACTIVE
    await auth.clients.delete(app.id, by=SYSTEM)
    assert await ask(body["refresh_token"]) == INACTIVE


async def test_a_refresh_token_that_its_client_may_not_use_any_more_is_not_active(auth, client, ask, login, app):
    body, built_in = await login(), granted(await client.post("/token", data=FORM))
    assert (await ask(body["refresh_token"]))["active"]
    assert (await ask(built_in["refresh_token"]))["active"]
    await auth.clients.update(app.id, grants=["password"], by=SYSTEM)
    auth.default_client = False
    for token in (body["refresh_token"], built_in["refresh_token"]):
        assert await ask(token) == INACTIVE


async def test_a_refresh_token_is_said_to_carry_what_the_user_still_has(users, ask, login, ada):
    body = await login()
    await users.update(ada.id, scopes=["llm", "admin"], by=SYSTEM)
    assert (await ask(body["refresh_token"]))["scope"] == "llm"


@pytest.mark.parametrize("hint", ["access_token", "refresh_token", "made_up", ""])
async def test_a_hint_changes_no_answer(ask, revoke, login, hint):
    body = await login()
    for name in ("access_token", "refresh_token"):
        assert (await ask(body[name], token_type_hint=hint))["active"]
        check_revoked(await revoke(body[name], token_type_hint=hint))
        assert await ask(body[name], token_type_hint=hint) == INACTIVE


async def test_who_cannot_keep_a_secret_cannot_ask(auth, client, login, events):
    token, public = (await login())["access_token"], await register(auth, confidential=False, scopes=("introspect",))
    for sent in ({}, {"client_id": "tollbook"}, public.fields):
        answer = await client.post("/introspect", data={"token": token} | sent)
        check_refused(answer, "invalid_client", 401)
        assert events[-1][:2] == ("introspect", "refused")
    answer = await client.post("/introspect", data={"token": token}, headers=bearer(token))
    check_refused(answer, "invalid_client", 401)


@pytest.mark.parametrize("path", ["/introspect", "/revoke"])
@pytest.mark.parametrize("form", [{}, {"token": ""}], ids=["missing", "empty"])
async def test_a_token_is_needed(client, app, events, path, form):
    answer = await client.post(path, data=form | {"token_type_hint": "access_token"}, **app.by_basic)
    check_refused(answer, "invalid_request")
    assert events == [(path[1:], "refused", "invalid_request")]


# Ending


async def test_ending_a_refresh_token_ends_its_session_at_once_and_no_other(client, login, revoke, app, events):
    body, other = await login(), await login()
    assert await works(client, body)
    check_revoked(await revoke(body["refresh_token"]))
    assert not await works(client, body)
    assert not await refreshes(client, body, **app.by_basic)
    assert await works(client, other)
    assert await refreshes(client, other, **app.by_basic)
    assert ("revoke", "ok", "none") in events


async def test_ending_a_spent_refresh_token_ends_its_session_too(client, login, revoke, app):
    spent = await login()
    form = {"grant_type": "refresh_token", "refresh_token": spent["refresh_token"]}
    body = granted(await client.post("/token", data=form, **app.by_basic))
    check_revoked(await revoke(spent["refresh_token"]))
    assert not await works(client, body)
    assert not await refreshes(client, body, **app.by_basic)


async def test_ending_an_access_token_ends_that_token_at_once_and_no_other(client, login, revoke, app):
    body = await login()
    form = {"grant_type": "refresh_token", "refresh_token": body["refresh_token"]}
    other = granted(await client.post("/token", data=form, **app.by_basic))
    assert await works(client, body)  # it is in the cache now
    check_revoked(await revoke(body["access_token"]))
    assert not await works(client, body)
    assert await works(client, other)
    assert await refreshes(client, other, **app.by_basic)


async def test_what_is_ended_is_ended_for_workers_that_only_read_of_it(auth, client, login, revoke, clock):
    clock.now = time.time()  # the database has the time of the machine
    session, token = await login(), await login()
    check_revoked(await revoke(session["refresh_token"]))
    check_revoked(await revoke(token["access_token"]))
    auth.revocations._known.clear()  # as it is in another worker
    assert await works(client, session)
    assert await works(client, token)
    await auth.revocations.refresh()
    assert not await works(client, session)
    assert not await works(client, token)


async def test_a_machine_ends_its_own_token(auth, client, revoke):
    machine = await register(auth, CLIENT_CREDENTIALS)
    body = granted(await client.post("/token", data=MACHINE, **machine.by_basic))
    check_revoked(await revoke(body["access_token"], machine))
    assert not await works(client, body)


async def test_a_public_client_ends_its_tokens_by_its_id_alone_and_our_own_without(auth, client):
    public = await register(auth, confidential=False)
    for fields in (public.fields, {}):
        for name in ("access_token", "refresh_token"):
            body = granted(await client.post("/token", data=FORM | fields))
            check_revoked(await client.post("/revoke", data={"token": body[name]} | fields))
            assert not await works(client, body)


async def test_the_tokens_of_another_client_are_refused_and_live_on(auth, client, login, revoke, app, events):
    body, other = await login(), await register(auth, *GRANTS, scopes=("llm", "introspect", "admin"))
    for token in (body["access_token"], body["refresh_token"]):
        check_refused(await revoke(token, other), "invalid_grant")
        assert events[-1] == ("revoke", "refused", "wrong_client")
        check_refused(await client.post("/revoke", data={"token": token}), "invalid_grant")
    assert await works(client, body)
    assert await refreshes(client, body, **app.by_basic)


async def test_what_is_not_alive_is_no_error(client, login, revoke, app, clock, events):
    ended = await login()
    check_revoked(await revoke(ended["refresh_token"]))
    events.clear()
    sent = ["x", "a.b.c", "tbr_unknown", "\0", app.secret, ended["refresh_token"], ended["access_token"]]
    for token in sent:
        check_revoked(await revoke(token))
    expired = await login()
    clock.now += TTL_SECONDS + LEEWAY_SECONDS
    check_revoked(await revoke(expired["access_token"]))
    assert [event for event in events if event[0] == "revoke"] == [("revoke", "ok", "unknown_token")] * 8


async def test_an_api_key_is_not_said_to_be_ended(auth, client, revoke, ada, events):
    _, key = await auth.api_keys.create(ada.id, "laptop", scopes=["llm"], by=SYSTEM)
    check_refused(await revoke(key), "unsupported_token_type")
    check_refused(await revoke("tbk_anything"), "unsupported_token_type")
    assert events[-1] == ("revoke", "refused", "unsupported_token_type")
    assert (await client.get("/users/me", headers=bearer(key))).status_code == 200


async def test_ending_the_same_token_many_times_at_once_is_no_error(client, login, revoke):
    body = await login()
    # Exceptions are gathered too, so that none is at work any more when the database is taken away.
    answers = await asyncio.gather(*(revoke(body["refresh_token"]) for _ in range(8)), return_exceptions=True)
    for answer in answers:
        check_revoked(answer)
    assert not await works(client, body)


@pytest.mark.parametrize("name", ["access_token", "refresh_token"])
async def test_what_cannot_be_written_down_is_not_said_to_be_ended(
    client, login, revoke, app, events, monkeypatch, name
):
    body = await login()

    async def failing(*_, **__):
        raise DatabaseUnavailable("OperationalError")

    with monkeypatch.context() as broken:
        broken.setattr("auth.service.write_revocation", failing)
        broken.setattr(Sessions, "revoke", failing)
        answer = await revoke(body[name])
    check_refused(answer, "temporarily_unavailable", 503)
    assert events[-1] == ("revoke", "error", "database")
    assert await works(client, body)
    assert await refreshes(client, body, **app.by_basic)


async def test_a_refresh_token_that_cannot_be_looked_up_is_not_said_to_be_dead(
    client, login, gateway, events, monkeypatch
):
    body = await login()

    async def failing(*_):
        raise DatabaseUnavailable("OperationalError")

    monkeypatch.setattr(Sessions, "look", failing)
    answer = await client.post("/introspect", data={"token": body["refresh_token"]}, **gateway.by_basic)
    check_refused(answer, "temporarily_unavailable", 503)
    assert events[-1] == ("introspect", "error", "database")


async def test_the_audit_log_names_the_client_by_its_id(auth, database, login, revoke, app):
    session, token = await login(), await login()
    check_revoked(await revoke(session["refresh_token"]))
    check_revoked(await revoke(token["access_token"]))
    async with database.transaction() as connection:
        records = await read_records(connection, actor=app.id)
    assert [(record["action"], record["actor_name"], record["address"]) for record in records] == [
        ("token.revoke", f"client:{app.id}", "127.0.0.1"),
        ("session.revoke", f"client:{app.id}", "127.0.0.1"),
    ]
    assert token["access_token"] not in str(records)
    assert session["refresh_token"] not in str(records)
