import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from auth.audit import SYSTEM
from auth.clients import CLIENT_CREDENTIALS, DEFAULT_CLIENT, GRANTS, REFRESH_TOKEN, Client
from auth.clients import PASSWORD as PASSWORD_GRANT
from auth.database import Database, DatabaseUnavailable
from auth.errors import InvalidScope
from auth.grants import _limited
from auth.keys import KeyRing
from auth.passwords import Passwords
from auth.scopes import narrow
from auth.sessions import Sessions
from tests.auth.kit import LEEWAY_SECONDS, TTL_SECONDS, USERNAME, open_token
from tests.auth.oauth_kit import FORM, bearer, check_refused, granted, register

MACHINE = {"grant_type": CLIENT_CREDENTIALS}
OVERLAP_SECONDS = 10


@pytest.fixture
def database(engine):
    """Each database in turn, for all of this file."""
    return Database(engine)


@pytest.fixture
def client(client, ada):
    """And there is a user, with the scopes llm and usage:read."""
    return client


def claims(body):
    return open_token(body["access_token"])[1]


def refresh_form(token, **more):
    return {"grant_type": REFRESH_TOKEN, "refresh_token": token, **more}


# The password grant


async def test_a_login_gives_a_token_for_the_client_and_a_session_that_it_can_refresh(auth, client, ada):
    registered = await register(auth)
    body = granted(await client.post("/token", data=FORM, **registered.by_basic))
    found = claims(body)
    session = await auth.sessions.get(found["sid"])
    assert (found["sub"], found["username"], found["client_id"]) == (ada.id, USERNAME, registered.id)
    assert (session.user_id, session.client_id, session.scopes) == (ada.id, registered.id, ada.scopes)
    assert session.address == "127.0.0.1"
    assert body["refresh_token"].startswith("tbr_")


async def test_a_client_that_may_not_refresh_gets_neither_refresh_token_nor_session(auth, client, ada):
    registered = await register(auth, PASSWORD_GRANT)
    body = granted(await client.post("/token", data=FORM, **registered.by_basic))
    assert "refresh_token" not in body
    assert "sid" not in claims(body)
    assert await auth.sessions.list(user_id=ada.id) == ()


async def test_a_token_carries_the_team(auth, client, users, ada):
    team = await auth.teams.add("engines", by=SYSTEM)
    await users.update(ada.id, team_id=team.id, by=SYSTEM)
    body = granted(await client.post("/token", data=FORM))
    assert claims(body)["team"] == team.id
    refreshed = granted(await client.post("/token", data=refresh_form(body["refresh_token"])))
    assert claims(refreshed)["team"] == team.id


@pytest.mark.parametrize(
    ("limit", "asked", "given"),
    [
        (("llm",), "", "llm"),
        (("llm",), "llm usage:read", "llm"),
        (("llm", "usage:read", "admin"), "", "llm usage:read"),
        (("llm:a", "llm:b"), "llm", "llm:a llm:b"),
        (("llm:a", "llm:b"), "llm:b llm:c", "llm:b"),
        (("llm",), "llm:a", "llm:a"),
    ],
)
async def test_a_token_has_what_was_asked_for_and_the_user_has_and_the_client_may_have(
    auth, client, limit, asked, given
):
    registered = await register(auth, scopes=limit)
    body = granted(await client.post("/token", data=FORM | {"scope": asked}, **registered.by_basic))
    assert body["scope"] == claims(body)["scope"] == given


@pytest.mark.parametrize(("limit", "asked"), [(("admin",), ""), (("llm",), "usage:read"), (("llm:a",), "llm:b")])
async def test_when_nothing_is_left_it_is_an_invalid_scope(auth, client, ada, limit, asked):
    registered = await register(auth, scopes=limit)
    answer = await client.post("/token", data=FORM | {"scope": asked}, **registered.by_basic)
    check_refused(answer, "invalid_scope")
    assert await auth.sessions.list(user_id=ada.id) == ()


@pytest.mark.parametrize("grant", GRANTS)
async def test_a_grant_that_the_client_may_not_use_is_refused_before_anything_is_looked_at(
    auth, client, events, monkeypatch, grant
):
    async def called(*_):
        raise AssertionError("a password was hashed")

    monkeypatch.setattr(Passwords, "verify", called)
    registered = await register(auth, *(set(GRANTS) - {grant}))
    form = FORM | {"grant_type": grant, "refresh_token": "tbr_x"}
    check_refused(await client.post("/token", data=form, **registered.by_basic), "unauthorized_client")
    event = {PASSWORD_GRANT: "login", REFRESH_TOKEN: "refresh", CLIENT_CREDENTIALS: "client_credentials"}[grant]
    assert events == [(event, "refused", "unauthorized_client")]


scopes = st.frozensets(
    st.sampled_from(["llm", "llm:a", "llm:b", "usage:read", "account", "admin", "users:admin", "introspect", "other"])
)


@given(scopes, scopes, st.none() | scopes)
def test_a_token_has_no_more_than_was_asked_for_and_held_and_allowed_and_no_less(asked, held, limit):
    client = Client("x", "x", None, frozenset(GRANTS), limit)
    bounds = [held, *([asked] if asked else []), *([] if limit is None else [limit])]
    try:
        given = _limited(asked, held, client)
    except InvalidScope:
        given = frozenset()
    for scope in given:
        assert all(scope in narrow({scope}, bound) for bound in bounds)
    assert frozenset.intersection(*bounds) <= given


# The refresh token grant


@pytest.fixture
async def login(client):
    """Logs in as the built-in client; the refresh token."""

    async def login(**more):
        return granted(await client.post("/token", data=FORM | more))["refresh_token"]

    return login


async def test_a_refresh_token_gets_a_token_of_the_same_session_and_the_next_refresh_token(client, login, ada, events):
    first = granted(await client.post("/token", data=FORM))
    second = granted(await client.post("/token", data=refresh_form(first["refresh_token"])))
    assert second.keys() == first.keys()
    old, new = claims(first), claims(second)
    assert (new["sid"], new["sub"], new["client_id"], new["scope"]) == (
        old["sid"],
        ada.id,
        "tollbook",
        "llm usage:read",
    )
    assert new["jti"] != old["jti"]
    assert second["refresh_token"] != first["refresh_token"]
    assert (await client.get("/users/me", headers=bearer(second["access_token"]))).json()["username"] == USERNAME
    assert ("refresh", "ok", "none") in events
    granted(await client.post("/token", data=refresh_form(second["refresh_token"])))


async def test_a_refresh_may_ask_for_less_and_the_next_has_all_again(client, login):
    body = granted(await client.post("/token", data=refresh_form(await login(), scope="llm:small")))
    assert body["scope"] == claims(body)["scope"] == "llm:small"
    body = granted(await client.post("/token", data=refresh_form(body["refresh_token"])))
    assert body["scope"] == "llm usage:read"


@pytest.mark.parametrize("asked", ["usage:read", "llm usage:read", "llm admin", "llm:small usage:read"])
async def test_a_refresh_for_more_than_was_granted_is_refused_and_spends_nothing(client, login, events, clock, asked):
    token = await login(scope="llm")
    check_refused(await client.post("/token", data=refresh_form(token, scope=asked)), "invalid_scope")
    assert events[-1] == ("refresh", "refused", "invalid_scope")
    clock.now += OVERLAP_SECONDS + 1
    assert granted(await client.post("/token", data=refresh_form(token)))["scope"] == "llm"


async def test_a_refresh_for_more_than_was_granted_is_refused_within_the_overlap_too(client, login):
    token = await login(scope="llm")
    granted(await client.post("/token", data=refresh_form(token)))
    check_refused(await client.post("/token", data=refresh_form(token, scope="llm usage:read")), "invalid_scope")


async def test_what_the_user_has_lost_is_not_refreshed(client, users, login, ada):
    token = await login()
    await users.update(ada.id, scopes=["usage:read", "admin"], by=SYSTEM)
    body = granted(await client.post("/token", data=refresh_form(token)))
    assert body["scope"] == claims(body)["scope"] == "usage:read"


async def test_when_the_user_has_lost_all_of_it_the_refresh_token_is_kept_for_better_days(
    client, users, login, ada, clock
):
    token = await login(scope="llm")
    await users.update(ada.id, scopes=["usage:read"], by=SYSTEM)
    check_refused(await client.post("/token", data=refresh_form(token)), "invalid_scope")
    await users.update(ada.id, scopes=["llm"], by=SYSTEM)
    clock.now += OVERLAP_SECONDS + 1
    granted(await client.post("/token", data=refresh_form(token)))


async def test_what_the_client_may_not_have_any_more_is_not_refreshed(auth, client):
    registered = await register(auth)
    token = granted(await client.post("/token", data=FORM, **registered.by_basic))["refresh_token"]
    await auth.clients.update(registered.id, scopes=["usage:read"], by=SYSTEM)
    body = granted(await client.post("/token", data=refresh_form(token), **registered.by_basic))
    assert body["scope"] == "usage:read"


@pytest.mark.parametrize("scope", ["", "admin"])
async def test_another_client_learns_nothing_of_a_refresh_token_and_does_it_no_harm(auth, client, login, scope):
    token, thief = await login(), await register(auth)
    usual = await client.post("/token", data=refresh_form("tbr_unknown", scope=scope), **thief.by_basic)
    answer = await client.post("/token", data=refresh_form(token, scope=scope), **thief.by_basic)
    check_refused(answer, "invalid_grant")
    assert (answer.content, answer.headers) == (usual.content, usual.headers)
    granted(await client.post("/token", data=refresh_form(token)))


async def test_a_client_that_lost_the_answer_gets_the_same_refresh_token_again(client, login, clock):
    token = await login()
    first = granted(await client.post("/token", data=refresh_form(token)))
    clock.now += OVERLAP_SECONDS
    assert granted(await client.post("/token", data=refresh_form(token)))["refresh_token"] == first["refresh_token"]


async def test_twenty_at_once_get_the_same_refresh_token(client, login):
    token = await login()
    answers = await asyncio.gather(*(client.post("/token", data=refresh_form(token)) for _ in range(20)))
    bodies = [granted(answer) for answer in answers]
    assert len({body["refresh_token"] for body in bodies}) == 1
    assert len({claims(body)["jti"] for body in bodies}) == 20


async def test_a_spent_refresh_token_is_refused_and_ends_the_session(auth, client, login, clock, events, ada):
    token = await login()
    successor = granted(await client.post("/token", data=refresh_form(token)))["refresh_token"]
    clock.now += OVERLAP_SECONDS + 1
    check_refused(await client.post("/token", data=refresh_form(token)), "invalid_grant")
    assert events[-1] == ("refresh", "refused", "reuse")
    check_refused(await client.post("/token", data=refresh_form(successor)), "invalid_grant")
    assert events[-1] == ("refresh", "refused", "revoked")
    assert await auth.sessions.list(user_id=ada.id) == ()


async def test_every_way_to_fail_a_refresh_gets_the_very_same_answer(auth, client, users, clock, events, ada):
    async def login():
        return granted(await client.post("/token", data=FORM))

    spent, ended = await login(), await login()
    successor = granted(await client.post("/token", data=refresh_form(spent["refresh_token"])))
    granted(await client.post("/token", data=refresh_form(successor["refresh_token"])))
    await auth.sessions.revoke(claims(ended)["sid"], because="logout", by=SYSTEM)
    sent = ["tbr_unknown", "x", "\0", spent["refresh_token"], ended["refresh_token"], successor["access_token"]]
    answers = [await client.post("/token", data=refresh_form(token)) for token in sent]
    expired = (await login())["refresh_token"]
    clock.now += 1001
    answers.append(await client.post("/token", data=refresh_form(expired)))
    last = (await login())["refresh_token"]
    await users.set_disabled(ada.id, disabled=True, by=SYSTEM)
    answers.append(await client.post("/token", data=refresh_form(last)))
    for answer in answers:
        check_refused(answer, "invalid_grant")
        assert (answer.content, answer.headers) == (answers[0].content, answers[0].headers)
    reasons = [reason for event, result, reason in events if (event, result) == ("refresh", "refused")]
    assert reasons == [*["unknown_token"] * 3, "reuse", "revoked", "unknown_token", "expired", "revoked"]


# The client credentials grant


async def test_a_machine_gets_a_token_for_itself_and_nothing_to_refresh_it_with(auth, client, events):
    registered = await register(auth, CLIENT_CREDENTIALS)
    body = granted(await client.post("/token", data=MACHINE, **registered.by_basic))
    assert body.keys() == {"access_token", "token_type", "expires_in", "scope"}
    found = claims(body)
    assert (found["sub"], found["username"], found["client_id"]) == (
        registered.id,
        f"client:{registered.id}",
        registered.id,
    )
    assert "sid" not in found
    me = (await client.get("/users/me", headers=bearer(body["access_token"]))).json()
    assert (me["id"], me["username"]) == (registered.id, f"client:{registered.id}")
    assert events == [("client_credentials", "ok", "none")]


async def test_a_machine_has_its_own_scopes_and_its_team(auth, client):
    team = await auth.teams.add("engines", by=SYSTEM)
    registered = await register(auth, CLIENT_CREDENTIALS, scopes=("usage:read", "llm:a"), team_id=team.id)
    body = granted(await client.post("/token", data=MACHINE, **registered.by_basic))
    assert body["scope"] == "llm:a usage:read"
    assert claims(body)["team"] == team.id
    body = granted(await client.post("/token", data=MACHINE | {"scope": "llm admin"}, **registered.by_basic))
    assert body["scope"] == "llm:a"
    answer = await client.post("/token", data=MACHINE | {"scope": "admin"}, **registered.by_basic)
    check_refused(answer, "invalid_scope")


async def test_our_own_client_is_no_machine(client):
    for client_id in ("", "tollbook"):
        check_refused(await client.post("/token", data=MACHINE | {"client_id": client_id}), "invalid_client", 401)
    assert CLIENT_CREDENTIALS not in DEFAULT_CLIENT.grants


# What is not the client's fault


async def test_without_a_key_that_signs_nothing_is_spent_opened_or_hashed(
    auth, client, keys, login, ada, events, monkeypatch
):
    token, machine = await login(), await register(auth, CLIENT_CREDENTIALS)
    opened = await auth.sessions.list(user_id=ada.id)
    ring = keys.ring
    keys.ring = KeyRing([], algorithm="ES256", ttl_seconds=TTL_SECONDS, leeway_seconds=LEEWAY_SECONDS)
    events.clear()
    answers = [
        await client.post("/token", data=FORM),
        await client.post("/token", data=refresh_form(token)),
        await client.post("/token", data=MACHINE, **machine.by_basic),
    ]
    for answer in answers:
        check_refused(answer, "temporarily_unavailable", 503)
        assert answer.headers["retry-after"] == "1"
    expected = ("login", "refresh", "client_credentials")
    assert events == [(event, "error", "no_signing_key") for event in expected]
    assert await auth.sessions.list(user_id=ada.id) == opened
    keys.ring = ring
    granted(await client.post("/token", data=refresh_form(token)))


@pytest.mark.parametrize(
    ("method", "form", "event"),
    [
        ("open", FORM, "login"),
        ("look", refresh_form("tbr_x"), "refresh"),
        ("refresh", refresh_form("tbr_x"), "refresh"),
    ],
)
async def test_without_a_database_the_client_is_told_to_come_again(client, events, monkeypatch, method, form, event):
    async def failing(*_, **__):
        raise DatabaseUnavailable("OperationalError")

    monkeypatch.setattr(Sessions, method, failing)
    answer = await client.post("/token", data=form)
    check_refused(answer, "temporarily_unavailable", 503)
    assert answer.headers["retry-after"] == "1"
    assert events[-1] == (event, "error", "database")


# What is written down


async def test_the_log_says_who_got_what_and_never_a_secret(auth, client):
    registered = await register(auth, *GRANTS)
    with capture_logs() as logs:
        body = granted(await client.post("/token", data=FORM, **registered.by_basic))
        granted(await client.post("/token", data=refresh_form(body["refresh_token"]), **registered.by_basic))
        granted(await client.post("/token", data=MACHINE, **registered.by_basic))
        await client.post("/token", data=refresh_form("tbr_wrong"), **registered.by_basic)
        await client.post("/token", data=MACHINE | {"client_id": registered.id, "client_secret": "wrong secret"})
    issued = [entry for entry in logs if entry["event"] == "token_issued"]
    assert [(entry["grant"], entry["client_id"]) for entry in issued] == [(grant, registered.id) for grant in GRANTS]
    assert issued[0]["jti"] == claims(body)["jti"]
    refused = [entry for entry in logs if entry["event"] == "oauth_refused"]
    assert [(entry["operation"], entry["reason"], entry["client_id"]) for entry in refused] == [
        ("refresh", "unknown_token", registered.id),
        ("client_credentials", "wrong_secret", ""),
    ]
    text = str(logs)
    for secret in (body["access_token"], body["refresh_token"], str(registered.secret), "tbr_wrong", "wrong secret"):
        assert secret not in text
