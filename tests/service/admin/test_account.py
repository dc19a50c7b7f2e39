"""What users do to their own account: password, keys, sessions; and that it ends what it says, at once."""

import pytest

from auth.audit import SYSTEM
from tests.service.admin.kit import PASSWORD, PLAIN, World, ids

NEW_PASSWORD = "zebra crossing 4711"


@pytest.fixture
async def ada(world):
    return await world.user("ada")


async def login(world: World, name: str = "ada", password: str = PASSWORD) -> tuple[dict[str, str], str]:
    """The header and the refresh token of a login."""
    answer = await world.log_in(name, password)
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}, answer.json()["refresh_token"]


async def refresh(world: World, token: str) -> int:
    form = {"grant_type": "refresh_token", "refresh_token": token}
    return (await world.served.client.post("/token", data=form)).status_code


async def alive(world: World, headers: dict[str, str]) -> bool:
    status = (await world.ask("GET", "/users/me", headers)).status_code
    assert status in {200, 401}
    return status == 200


# Password


async def test_a_new_password_ends_all_that_began_with_the_old_one_but_no_keys(world, ada):
    first, first_refresh = await login(world)
    second, second_refresh = await login(world)
    _, key = await world.key(ada)
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert await alive(world, key)
    answer = await world.ask("PUT", "/users/me/password", second, body)
    assert (answer.status_code, answer.text) == (204, "")
    assert not await alive(world, first)
    assert not await alive(world, second)  # the one in use too: whoever changes a password logs in anew
    assert await refresh(world, first_refresh) == await refresh(world, second_refresh) == 400
    assert await alive(world, key)
    assert (await world.log_in("ada", PASSWORD)).status_code == 400
    assert await alive(world, (await login(world, password=NEW_PASSWORD))[0])


async def test_the_old_password_is_asked_for(world, ada):
    headers, token = await login(world)
    for wrong in ("", "wrong", NEW_PASSWORD, PASSWORD + " ", "x" * 1000, "nul \0", "\ud800"):
        body = {"current_password": wrong, "new_password": NEW_PASSWORD}
        if wrong == "x" * 1000:  # too many wrong ones delay it as they delay a login
            break
        answer = await world.ask("PUT", "/users/me/password", headers, body)
        assert answer.status_code in {403, 429}, answer.text
        if answer.status_code == 403:
            assert answer.json()["error_description"] == "The current password is wrong."
            record = (await world.records(1))[0]
            assert (record["action"], record["result"], record["target"]) == ("user.password", "refused", ada.id)
        assert await world.auth.users.get_by_id(ada.id) == ada
    assert await alive(world, headers)
    assert await refresh(world, token) == 200


async def test_guessing_the_old_password_is_delayed_as_a_login_is(world, ada):
    headers, _ = await login(world)
    body = {"current_password": "wrong", "new_password": NEW_PASSWORD}
    statuses = [(await world.ask("PUT", "/users/me/password", headers, body)).status_code for _ in range(8)]
    assert statuses[0] == 403
    assert statuses[-1] == 429
    answer = await world.ask("PUT", "/users/me/password", headers, body | {"current_password": PASSWORD})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"] == "slow_down"
    assert await world.auth.users.get_by_id(ada.id) == ada


async def test_a_new_password_that_is_easy_to_guess_leaves_everything_as_it_is(world, ada):
    headers, token = await login(world)
    body = {"current_password": PASSWORD, "new_password": "password1234"}
    answer = await world.ask("PUT", "/users/me/password", headers, body)
    assert answer.status_code == 422
    assert "password1234" not in answer.text
    assert await world.auth.users.get_by_id(ada.id) == ada
    assert await alive(world, headers)
    assert await refresh(world, token) == 200


# Keys


async def test_a_key_is_shown_once_and_works_until_it_is_revoked(world, ada):
    headers, _ = await login(world)
    made = (await world.ask("POST", "/users/me/keys", headers, {"name": "laptop", "expires_in_days": 1})).json()
    assert made["scopes"] == ["llm", "usage:read"]  # not those for managing one's account
    key = {"X-API-Key": made["key"]}
    assert await alive(world, key)
    listed = await world.ask("GET", "/users/me/keys", headers)
    assert ids(listed) == [made["id"]]
    assert made["key"] not in listed.text
    assert made["key"] not in str(await world.records())
    assert listed.json()["data"][0] | {"key": made["key"]} == made | {"last_used_at": None}
    assert (await world.ask("DELETE", f"/users/me/keys/{made['id']}", headers)).status_code == 204
    assert not await alive(world, key)
    assert (await world.ask("DELETE", f"/users/me/keys/{made['id']}", headers)).status_code == 404


async def test_a_key_that_is_rotated_works_for_as_long_as_it_is_said(world, ada):
    headers, _ = await login(world)
    for overlap, both in ((3600, True), (0, False)):
        old = (await world.ask("POST", "/users/me/keys", headers, {"name": "laptop", "models": ["small"]})).json()
        assert await alive(world, {"X-API-Key": old["key"]})
        path = f"/users/me/keys/{old['id']}/rotate"
        new = (await world.ask("POST", path, headers, {"overlap_seconds": overlap})).json()
        assert (new["name"], new["scopes"]) == ("laptop", ["llm:small"])
        assert new["id"] != old["id"]
        assert await alive(world, {"X-API-Key": old["key"]}) is both
        assert await alive(world, {"X-API-Key": new["key"]})


@pytest.mark.parametrize(
    ("wish", "scopes"),
    [
        ({"scopes": ["usage:read"]}, ["usage:read"]),
        ({"models": ["small", "org/large"]}, ["llm:org/large", "llm:small"]),
        ({"models": ["with space"]}, ["llm:with%20space"]),
        ({"scopes": ["llm", "usage:read"], "models": ["small"]}, ["llm:small", "usage:read"]),  # the narrower one
        ({"scopes": ["account"]}, ["account"]),
        ({"scopes": None, "models": None, "expires_in_days": None}, ["llm", "usage:read"]),
    ],
)
async def test_what_a_key_is_for(world, ada, wish, scopes):
    headers, _ = await login(world)
    made = await world.ask("POST", "/users/me/keys", headers, {"name": "k"} | wish)
    assert (made.status_code, made.json()["scopes"]) == (201, scopes)


# Sessions


async def test_one_sees_one_s_sessions_and_ends_one(world, ada):
    first, first_refresh = await login(world)
    second, second_refresh = await login(world)
    listed = (await world.ask("GET", "/users/me/sessions", first)).json()["data"]
    assert [session["address"] for session in listed] == ["127.0.0.1"] * 2
    assert set(listed[0]) == {
        "id", "user_id", "username", "team_id", "client_id", "scopes", "address", "created_at", "last_used_at",
        "expires_at",
    }  # fmt: skip
    newest = listed[0]["id"]
    assert (await world.ask("DELETE", f"/users/me/sessions/{newest}", first)).status_code == 204
    assert await alive(world, first)
    assert not await alive(world, second)
    assert await refresh(world, second_refresh) == 400
    assert await refresh(world, first_refresh) == 200
    assert newest not in ids(await world.ask("GET", "/users/me/sessions", first))


async def test_logging_out_everywhere_ends_everything_but_keys(world, ada):
    logins = [await login(world) for _ in range(3)]
    _, key = await world.key(ada)
    other = await world.caller("bob")
    assert (await world.ask("DELETE", "/users/me/sessions", logins[0][0])).status_code == 204
    for headers, token in logins:
        assert not await alive(world, headers)
        assert await refresh(world, token) == 400
    assert await alive(world, key)
    assert await alive(world, other)


# What a manager does ends at once in the worker that does it; the others read of it


@pytest.fixture
async def root(world):
    return await world.caller("root", "admin", *PLAIN)


@pytest.mark.parametrize(
    ("method", "path", "body", "token_lives", "refresh_lives", "key_lives"),
    [
        ("PATCH", "/admin/users/{user}", {"disabled": True}, False, False, False),
        ("PATCH", "/admin/users/{user}", {"scopes": ["llm"]}, False, True, True),
        ("PUT", "/admin/users/{user}/password", {"password": NEW_PASSWORD}, False, False, True),
        ("DELETE", "/admin/users/{user}/sessions", ..., False, False, True),
        ("DELETE", "/admin/sessions/{session}", ..., False, False, True),
        ("DELETE", "/admin/keys/{key}", ..., True, True, False),
    ],
)
async def test_what_a_manager_does_ends_what_it_says(
    world, ada, root, method, path, body, token_lives, refresh_lives, key_lives
):
    headers, token = await login(world)
    key, key_headers = await world.key(ada, "llm")
    assert await alive(world, key_headers)
    (session_id,) = ids(await world.ask("GET", "/admin/sessions", root, params={"user_id": ada.id}))
    answer = await world.ask(method, path.format(user=ada.id, session=session_id, key=key.id), root, body)
    assert answer.status_code in {200, 204}, answer.text
    assert await alive(world, headers) is token_lives
    assert await refresh(world, token) == (200 if refresh_lives else 400)
    assert await alive(world, key_headers) is key_lives
    assert await alive(world, root)


async def test_a_key_of_a_user_who_lost_a_scope_loses_it_at_once(world, ada, root):
    _, headers = await world.key(ada, "llm", "usage:read")
    assert (await world.ask("GET", "/usage", headers)).status_code == 200
    await world.ask("PATCH", f"/admin/users/{ada.id}", root, {"scopes": ["llm"]})
    assert (await world.ask("GET", "/usage", headers)).status_code == 403


async def test_an_enabled_user_logs_in_again(world, ada, root):
    for disabled in (True, False):
        await world.ask("PATCH", f"/admin/users/{ada.id}", root, {"disabled": disabled})
        assert (await world.log_in("ada")).status_code == (400 if disabled else 200)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/admin/clients/{}", {"disabled": True}),
        ("PATCH", "/admin/clients/{}", {"scopes": ["usage:read"]}),
        ("POST", "/admin/clients/{}/secret", ...),
        ("DELETE", "/admin/clients/{}", ...),
    ],
)
async def test_a_client_s_tokens_end_with_what_it_is_given_or_loses(world, root, method, path, body):
    new = {"name": "nightly", "grants": ["client_credentials"], "scopes": ["llm"]}
    client = (await world.ask("POST", "/admin/clients", root, new)).json()
    auth = (client["client_id"], client["client_secret"])
    form = {"grant_type": "client_credentials"}
    granted = await world.served.client.post("/token", data=form, auth=auth)
    assert granted.status_code == 200, granted.text
    headers = {"Authorization": f"Bearer {granted.json()['access_token']}"}
    assert await alive(world, headers)
    answer = await world.ask(method, path.format(client["client_id"]), root, body)
    assert answer.status_code in {200, 204}, answer.text
    assert not await alive(world, headers)
    again = await world.served.client.post("/token", data=form, auth=auth)
    assert again.status_code == (200 if body == {"scopes": ["usage:read"]} else 401)
    if method == "POST":
        renewed = (client["client_id"], answer.json()["client_secret"])
        assert (await world.served.client.post("/token", data=form, auth=renewed)).status_code == 200


async def test_a_secret_is_in_the_answer_to_its_making_only(world, root):
    new = {"name": "nightly", "grants": ["client_credentials"], "scopes": ["llm"]}
    client = (await world.ask("POST", "/admin/clients", root, new)).json()
    path = f"/admin/clients/{client['client_id']}"
    second = (await world.ask("POST", f"{path}/secret", root)).json()["client_secret"]
    told = [
        (await world.ask("GET", path, root)).text,
        (await world.ask("GET", "/admin/clients", root)).text,
        (await world.ask("PATCH", path, root, {"name": "renamed"})).text,
        (await world.ask("GET", "/admin/audit", root)).text,
        world.served.logged.text,
    ]
    assert not any(secret in text for text in told for secret in (client["client_secret"], second))
    public = {"name": "cli", "grants": ["password", "refresh_token"], "scopes": ["llm"], "public": True}
    made = (await world.ask("POST", "/admin/clients", root, public)).json()
    assert (made["public"], made["client_secret"]) == (True, None)
    assert (await world.ask("POST", f"/admin/clients/{made['client_id']}/secret", root)).status_code == 409
    wrong = public | {"grants": ["client_credentials"]}
    assert (await world.ask("POST", "/admin/clients", root, wrong)).status_code == 409


async def test_a_signing_key_that_is_revoked_takes_its_tokens_with_it(world, root):
    ada = await world.caller("ada")
    (key,) = (await world.ask("GET", "/admin/signing-keys", root)).json()["data"]
    assert (key["state"], key["algorithm"]) == ("signs", "ES256")
    made = (await world.ask("POST", "/admin/signing-keys", root, {})).json()["data"]
    assert [each["state"] for each in made] == ["signs", "published"]
    assert await alive(world, ada)
    user = await world.auth.users.get("root")
    assert user is not None
    _, by_key = await world.key(user)
    assert (await world.ask("DELETE", f"/admin/signing-keys/{key['kid']}", root)).status_code == 204
    assert not await alive(world, ada)
    assert not await alive(world, root)
    assert (await world.ask("DELETE", f"/admin/signing-keys/{key['kid']}", by_key)).status_code == 404
    assert await alive(world, world.token(user))


# Conflicts


async def test_names_are_taken_once_and_a_team_with_members_stays(world, ada, root):
    for path, body in (
        ("/admin/users", {"username": "ada", "password": NEW_PASSWORD}),
        ("/admin/teams", {"name": "research"}),
    ):
        answer = await world.ask("POST", path, root, body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    answer = await world.ask("PATCH", f"/admin/teams/{world.other_team.id}", root, {"name": "research"})
    assert answer.status_code == 409
    await world.auth.users.update(ada.id, team_id=world.team.id, by=SYSTEM)
    assert (await world.ask("DELETE", f"/admin/teams/{world.team.id}", root)).status_code == 409
    moved = await world.ask("PATCH", f"/admin/users/{ada.id}", root, {"team_id": None})
    assert moved.json()["team_id"] is None
    assert (await world.ask("DELETE", f"/admin/teams/{world.team.id}", root)).status_code == 204


async def test_a_team_that_is_not_there_takes_nobody(world, ada, root):
    missing = "6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55"
    for method, path, body in (
        ("POST", "/admin/users", {"username": "newcomer", "password": NEW_PASSWORD, "team_id": missing}),
        ("PATCH", f"/admin/users/{ada.id}", {"team_id": missing}),
        ("POST", "/admin/clients", {"name": "c", "grants": ["password"], "scopes": ["llm"], "team_id": missing}),
    ):
        assert (await world.ask(method, path, root, body)).status_code == 404
    assert await world.auth.users.get_by_id(ada.id) == ada
    assert await world.auth.clients.list() == ()
