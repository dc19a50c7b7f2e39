import asyncio
import re
from datetime import UTC, datetime

import pytest

from auth.audit import SYSTEM
from auth.clients import GRANTS
from auth.database import DatabaseUnavailable
from auth.jwt import MAX_TOKEN_BYTES
from auth.passwords import Passwords, PasswordsBusy
from auth.scopes import InvalidScopeString, parse_scope
from auth.users import Users
from tests.auth.kit import PASSWORD, TTL_SECONDS, USERNAME
from tests.auth.oauth_kit import FORM, URLENCODED, basic, bearer, check_refused, granted, register

ENDPOINTS = ("/token", "/revoke", "/introspect")


@pytest.fixture(autouse=True)
def _ada(ada):
    """There is a user."""


async def test_logging_in_and_asking_who_one_is(client, ada, clock):
    body = granted(await client.post("/token", data=FORM))
    assert body.keys() == {"access_token", "token_type", "expires_in", "scope", "refresh_token"}
    assert (body["token_type"], body["expires_in"], body["scope"]) == ("Bearer", TTL_SECONDS, "llm usage:read")
    me = await client.get("/users/me", headers=bearer(body["access_token"]))
    assert me.status_code == 200
    assert me.json() == {
        "id": ada.id,
        "username": USERNAME,
        "scopes": ["llm", "usage:read"],
        "team": None,
        "expires_at": datetime.fromtimestamp(clock.now + TTL_SECONDS, UTC).isoformat().replace("+00:00", "Z"),
    }


async def test_who_one_is_with_a_key_that_never_expires(client, auth, ada):
    _, key = await auth.api_keys.create(ada.id, "laptop", scopes=["llm"], by=SYSTEM)
    body = (await client.get("/users/me", headers=bearer(key))).json()
    assert (body["id"], body["scopes"], body["expires_at"]) == (ada.id, ["llm"], None)


async def test_who_one_is_says_the_team(client, auth, users, ada):
    team = await auth.teams.add("engines", by=SYSTEM)
    await users.update(ada.id, team_id=team.id, by=SYSTEM)
    token = granted(await client.post("/token", data=FORM))["access_token"]
    assert (await client.get("/users/me", headers=bearer(token))).json()["team"] == team.id


async def test_who_one_is_needs_a_token(client):
    answer = await client.get("/users/me")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="tollbook"'


async def test_a_narrower_scope_is_granted_and_said(client):
    answer = await client.post("/token", data=FORM | {"scope": "llm admin"})
    assert answer.json()["scope"] == "llm"


async def test_a_scope_that_cannot_be_granted_is_invalid_scope(client):
    check_refused(await client.post("/token", data=FORM | {"scope": "admin"}), "invalid_scope")
    check_refused(await client.post("/token", data=FORM | {"scope": "llm\r\nadmin"}), "invalid_scope")


@pytest.mark.parametrize(
    "change",
    [
        {"password": "wrong password"},
        {"password": PASSWORD + "\0"},
        {"password": PASSWORD + "\r\n"},
        {"password": "\U0001f600" * 12},
        {"username": "bob"},
        {"username": "ada\0"},
        {"username": "ada\r\nSet-Cookie: a=b"},
        {"username": "\U0001f600"},
        {"username": "ada\u202e"},
        {"username": "a" * 129},
    ],
    ids=str,
)
async def test_every_failed_login_gets_the_very_same_answer(client, change):
    usual = await client.post("/token", data=FORM | {"password": "usual wrong password"})
    answer = await client.post("/token", data=FORM | change)
    check_refused(answer, "invalid_grant")
    assert (answer.content, answer.headers) == (usual.content, usual.headers)


async def test_a_disabled_user_gets_the_answer_of_a_wrong_password(client, users, ada):
    usual = await client.post("/token", data=FORM | {"password": "usual wrong password"})
    await users.set_disabled(ada.id, disabled=True, by=SYSTEM)
    answer = await client.post("/token", data=FORM)
    assert (answer.status_code, answer.content, answer.headers) == (400, usual.content, usual.headers)


async def test_four_byte_characters_log_in(client, users, passwords):
    name, password = "\U0001f600 ada", "\U0001f40e\U0001f50b\U0001f4ce \U0001f996 quartz \U0001f30b lantern"
    await users.add(name, password, ["llm"], passwords=passwords)
    token = granted(await client.post("/token", data=FORM | {"username": name, "password": password}))["access_token"]
    assert (await client.get("/users/me", headers=bearer(token))).json()["username"] == name


@pytest.mark.parametrize(
    "content",
    [
        {"json": FORM},
        {"files": {name: (None, value) for name, value in FORM.items()}},
        {"content": b"grant_type=password&username=ada", "headers": {"Content-Type": "text/plain"}},
        {"content": b"grant_type=password&username=ada"},
        {"content": b""},
    ],
    ids=["json", "multipart", "text", "no type", "nothing"],
)
@pytest.mark.parametrize("path", ENDPOINTS)
async def test_what_is_not_a_form_is_refused_saying_what_to_send(client, path, content):
    answer = await client.post(path, **content)
    check_refused(answer, "invalid_request")
    assert URLENCODED in answer.json()["error_description"]


async def test_json_under_the_type_of_a_form_is_refused(client):
    answer = await client.post("/token", content=b'{"grant_type": "password"}', headers={"Content-Type": URLENCODED})
    check_refused(answer, "invalid_request")


@pytest.mark.parametrize("content_type", [URLENCODED, f"{URLENCODED}; charset=utf-8", URLENCODED.upper()])
async def test_the_type_of_a_form_may_have_a_charset_and_any_case(client, content_type):
    body = f"grant_type=password&username={USERNAME}&password={PASSWORD.replace(' ', '+')}"
    answer = await client.post("/token", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 200


@pytest.mark.parametrize("name", ["grant_type", "username", "password"])
@pytest.mark.parametrize("how", ["missing", "empty"])
async def test_a_missing_parameter_is_named(client, name, how):
    form = {k: v for k, v in FORM.items() if k != name} | ({name: ""} if how == "empty" else {})
    answer = await client.post("/token", data=form)
    check_refused(answer, "invalid_request")
    assert name in answer.json()["error_description"]


@pytest.mark.parametrize("name", [*FORM, "scope", "made_up"])
async def test_a_parameter_twice_is_refused(client, name):
    answer = await client.post("/token", data=FORM | {name: [FORM.get(name, "llm")] * 2})
    check_refused(answer, "invalid_request")


@pytest.mark.parametrize("grant", ["implicit", "authorization_code", "Password", "password ", "<script>", "\0"])
async def test_another_grant_is_unsupported_and_not_quoted(client, grant):
    answer = await client.post("/token", data=FORM | {"grant_type": grant})
    check_refused(answer, "unsupported_grant_type")
    assert "<script>" not in answer.text


@pytest.mark.parametrize("name", ["username", "password", "scope", "grant_type", "client_id", "made_up"])
async def test_an_over_long_parameter_is_refused(client, name):
    check_refused(await client.post("/token", data=FORM | {name: "x" * 1025}), "invalid_request")


async def test_an_endless_form_is_not_read_to_its_end(client):
    sent = 0

    async def body():
        nonlocal sent
        while sent < 20 * 2**20:
            sent += 4096
            yield b"a" * 4096

    answer = await client.post("/token", content=body(), headers={"Content-Type": URLENCODED})
    check_refused(answer, "invalid_request")
    assert sent < 100_000


async def test_bytes_that_are_not_utf8_are_refused(client):
    body = b"grant_type=password&username=ada&password=%ff%fe"
    check_refused(await client.post("/token", content=body, headers={"Content-Type": URLENCODED}), "invalid_request")


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "query",
    [
        {"password": PASSWORD},
        {"client_secret": "x"},
        {"access_token": "x"},
        {"Password": PASSWORD},
        {"anything": ""},
    ],
    ids=str,
)
async def test_parameters_in_the_query_string_are_refused_even_if_all_is_right(client, auth, path, query):
    machine = await register(auth, *GRANTS)
    answer = await client.post(path, params=query, data=FORM | {"token": "x"}, **machine.by_basic)
    check_refused(answer, "invalid_request")
    assert "query" in answer.json()["error_description"]
    assert PASSWORD not in answer.text


async def test_a_query_string_alone_does_not_log_in(client):
    check_refused(await client.post("/token", params=FORM), "invalid_request")


async def test_what_swagger_and_oauth_libraries_send_besides_is_passed_over(client):
    empty = {"scope": "", "client_id": "", "client_secret": "", "audience": "x"}
    granted(await client.post("/token", data=FORM | empty, headers=basic("", "")))


@pytest.mark.parametrize(
    ("owner", "method", "failure"),
    [(Passwords, "verify", PasswordsBusy()), (Users, "get", DatabaseUnavailable("OperationalError"))],
    ids=["busy", "database"],
)
async def test_what_is_not_the_clients_fault_is_503_with_retry_after(client, monkeypatch, owner, method, failure):
    async def failing(*_):
        raise failure

    monkeypatch.setattr(owner, method, failing)
    answer = await client.post("/token", data=FORM)
    check_refused(answer, "temporarily_unavailable", 503)
    assert answer.headers["retry-after"] == "1"


async def test_a_storm_of_logins_is_served_or_told_to_wait_and_nothing_else(client):
    answers = await asyncio.gather(*(client.post("/token", data=FORM) for _ in range(60)))
    assert {answer.status_code for answer in answers} <= {200, 429, 503}
    assert any(answer.status_code == 200 for answer in answers)
    for answer in answers:
        assert ("retry-after" in answer.headers) == (answer.status_code != 200)


async def test_an_account_that_failed_too_often_is_told_how_long_to_wait(client):
    wrong = FORM | {"password": "wrong password"}
    for _ in range(20):
        answer = await client.post("/token", data=wrong)
        if answer.status_code != 400:
            break
    check_refused(answer, "slow_down", 429)
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_a_get_is_not_answered(client, path):
    assert (await client.get(path, params=FORM)).status_code == 405


@pytest.mark.parametrize(
    ("form", "event"),
    [
        (FORM, ("login", "ok", "none")),
        (FORM | {"password": "wrong password"}, ("login", "refused", "wrong_password")),
        (FORM | {"grant_type": "x"}, ("login", "refused", "unsupported_grant_type")),
        (FORM | {"username": ""}, ("login", "refused", "invalid_request")),
        (FORM | {"grant_type": ""}, ("login", "refused", "invalid_request")),
        (FORM | {"scope": "a  b"}, ("login", "refused", "invalid_scope")),
        ({"grant_type": "refresh_token"}, ("refresh", "refused", "invalid_request")),
        ({"grant_type": "client_credentials"}, ("client_credentials", "refused", "no_client")),
    ],
)
async def test_each_way_out_is_counted_once(client, events, form, event):
    await client.post("/token", data=form)
    assert events == [event]


async def test_the_forms_are_documented_with_examples_and_what_they_allow(client):
    document = (await client.get("/openapi.json")).json()
    needed = {"/token": ["grant_type"], "/revoke": ["token"], "/introspect": ["token"]}
    for path in ENDPOINTS:
        operation = document["paths"][path]["post"]
        form = operation["requestBody"]["content"][URLENCODED]
        assert form["schema"]["required"] == needed[path]
        assert form["example"].keys() <= form["schema"]["properties"].keys()
        assert {"client_id", "client_secret"} <= form["schema"]["properties"].keys()
        assert all(field["description"] for field in form["schema"]["properties"].values())
        assert form["schema"]["additionalProperties"]["type"] == "string"  # a list would be a parameter twice
    fields = document["paths"]["/token"]["post"]["requestBody"]["content"][URLENCODED]["schema"]["properties"]
    assert fields["grant_type"]["enum"] == list(GRANTS)
    assert {"username", "password", "refresh_token", "scope"} <= fields.keys()
    assert fields["username"]["maxLength"] == 1024
    fields = document["paths"]["/revoke"]["post"]["requestBody"]["content"][URLENCODED]["schema"]["properties"]
    assert (fields["token"]["minLength"], fields["token"]["maxLength"]) == (1, MAX_TOKEN_BYTES)


@pytest.mark.parametrize(
    "scope",
    ["", "llm", "llm:a/b usage:read", "!#[]~", "a  b", " a", "a ", 'a"b', "a\\b", "a\tb", "a\n", "\u00e9", "\x7f"],
)
async def test_the_documented_pattern_of_a_scope_is_what_is_accepted(client, scope):
    document = (await client.get("/openapi.json")).json()
    fields = document["paths"]["/token"]["post"]["requestBody"]["content"][URLENCODED]["schema"]["properties"]
    try:
        parse_scope(scope)
    except InvalidScopeString:
        accepted = False
    else:
        accepted = True
    # In ECMA 262, which JSON Schema means, "$" is the very end.
    assert bool(re.search(fields["scope"]["pattern"].replace("$", r"\Z"), scope)) == accepted


async def test_the_answers_are_documented(client):
    document = (await client.get("/openapi.json")).json()
    statuses = {path: set(document["paths"][path]["post"]["responses"]) for path in ENDPOINTS}
    assert statuses == {
        "/token": {"200", "400", "401", "408", "413", "429", "503"},
        "/revoke": {"200", "400", "401", "408", "413", "503"},
        "/introspect": {"200", "400", "401", "408", "413", "503"},
    }
    assert "content" not in document["paths"]["/revoke"]["post"]["responses"]["200"]
    schemas = document["components"]["schemas"]
    for name in ("TokenResponse", "AuthErrorBody", "Introspection", "Me"):
        assert schemas[name]["examples"][0].keys() == schemas[name]["properties"].keys()
