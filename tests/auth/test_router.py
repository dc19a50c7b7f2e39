import asyncio
import base64
from datetime import UTC, datetime

import pytest

from auth.passwords import Passwords, PasswordsBusy
from auth.users import Users, UsersUnavailable
from tests.auth.kit import PASSWORD, TTL_SECONDS, USERNAME

FORM = {"grant_type": "password", "username": USERNAME, "password": PASSWORD}
URLENCODED = "application/x-www-form-urlencoded"


def check_no_store(answer):
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["pragma"] == "no-cache"


def check_refused(answer, error, status=400):
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error", "error_description"}
    assert answer.json()["error"] == error
    check_no_store(answer)


@pytest.fixture(autouse=True)
def _ada(ada):
    """There is a user."""


async def test_logging_in_and_asking_who_one_is(client, ada, clock):
    answer = await client.post("/token", data=FORM)
    assert answer.status_code == 200
    check_no_store(answer)
    body = answer.json()
    assert body.keys() == {"access_token", "token_type", "expires_in", "scope"}
    assert (body["token_type"], body["expires_in"], body["scope"]) == ("Bearer", TTL_SECONDS, "llm usage:read")
    me = await client.get("/users/me", headers={"Authorization": f"Bearer {body['access_token']}"})
    assert me.status_code == 200
    assert me.json() == {
        "id": ada.id,
        "username": USERNAME,
        "scopes": ["llm", "usage:read"],
        "expires_at": datetime.fromtimestamp(clock.now + TTL_SECONDS, UTC).isoformat().replace("+00:00", "Z"),
    }


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


async def test_a_disabled_user_gets_the_answer_of_a_wrong_password(client, users):
    usual = await client.post("/token", data=FORM | {"password": "usual wrong password"})
    await users.set_disabled(USERNAME, disabled=True)
    answer = await client.post("/token", data=FORM)
    assert (answer.status_code, answer.content, answer.headers) == (400, usual.content, usual.headers)


async def test_four_byte_characters_log_in(client, users, passwords):
    name, password = "\U0001f600 ada", "\U0001f40e\U0001f50b\U0001f4ce" * 4
    await users.add(name, password, ["llm"], passwords=passwords)
    answer = await client.post("/token", data=FORM | {"username": name, "password": password})
    assert answer.status_code == 200
    token = answer.json()["access_token"]
    assert (await client.get("/users/me", headers={"Authorization": f"Bearer {token}"})).json()["username"] == name


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
async def test_what_is_not_a_form_is_refused_saying_what_to_send(client, content):
    answer = await client.post("/token", **content)
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


@pytest.mark.parametrize("grant", ["refresh_token", "authorization_code", "Password", "password ", "<script>", "\0"])
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


@pytest.mark.parametrize("name", [*FORM, "scope", "client_secret"])
async def test_credentials_in_the_query_string_are_refused_even_if_right(client, name):
    answer = await client.post("/token", params={name: FORM.get(name, "llm")}, data=FORM)
    check_refused(answer, "invalid_request")
    assert PASSWORD not in answer.text


async def test_a_query_string_alone_does_not_log_in(client):
    check_refused(await client.post("/token", params=FORM), "invalid_request")


async def test_what_swagger_and_oauth_libraries_send_besides_is_passed_over(client):
    basic = base64.b64encode(b"some-client:").decode()
    answer = await client.post(
        "/token",
        data=FORM | {"scope": "", "client_id": "", "client_secret": "", "audience": "x"},
        headers={"Authorization": f"Basic {basic}"},
    )
    assert answer.status_code == 200
    assert (await client.post("/token", data=FORM | {"client_id": "some-client"})).status_code == 200


@pytest.mark.parametrize(
    ("owner", "method", "failure"),
    [(Passwords, "verify", PasswordsBusy()), (Users, "get", UsersUnavailable("OperationalError"))],
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
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert sum(answer.status_code == 200 for answer in answers) >= 18  # two at work and sixteen waiting


async def test_a_get_is_not_a_login(client):
    assert (await client.get("/token", params=FORM)).status_code == 405


@pytest.mark.parametrize(
    ("form", "event"),
    [
        (FORM, ("login", "ok", "none")),
        (FORM | {"password": "wrong password"}, ("login", "refused", "wrong_password")),
        (FORM | {"grant_type": "x"}, ("login", "refused", "unsupported_grant_type")),
        (FORM | {"username": ""}, ("login", "refused", "invalid_request")),
    ],
)
async def test_each_way_out_is_counted_once(client, events, form, event):
    await client.post("/token", data=form)
    assert events == [event]


async def test_the_form_is_documented_with_an_example(client):
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/token"]["post"]
    form = operation["requestBody"]["content"][URLENCODED]
    assert form["schema"]["required"] == ["grant_type", "username", "password"]
    assert form["example"].keys() <= form["schema"]["properties"].keys()
    assert operation["responses"].keys() == {"200", "400", "503"}
    schemas = document["components"]["schemas"]
    for name in ("TokenResponse", "AuthErrorBody", "Me"):
        assert schemas[name]["examples"][0].keys() == schemas[name]["properties"].keys()
