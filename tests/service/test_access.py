"""What a credential gives access to, through the whole service: models by scope, API keys, and the end of access."""

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.support.calls import body
from tests.support.service import ADMIN, PASSWORD, RunningService
from tests.support.waiting import eventually

SECONDS_TO_TAKE_EFFECT = 5


@pytest.fixture
def admin(service: RunningService) -> Iterator[httpx2.Client]:
    with service.client() as client:
        yield client


def make_user(admin: httpx2.Client, name: str, *scopes: str) -> dict[str, Any]:
    answer = admin.post("/admin/users", json={"username": name, "password": PASSWORD, "scopes": list(scopes)})
    assert answer.status_code == 201, answer.text
    user: dict[str, Any] = answer.json()
    return user


def make_key(admin: httpx2.Client, user: dict[str, Any], **wish: Any) -> dict[str, Any]:
    answer = admin.post("/admin/keys", json={"user_id": user["id"], "name": "k", **wish})
    assert answer.status_code == 201, answer.text
    key: dict[str, Any] = answer.json()
    return key


def log_in(service: RunningService, name: str) -> dict[str, Any]:
    form = {"grant_type": "password", "username": name, "password": PASSWORD}
    answer = httpx2.post(f"{service.base_url}/token", data=form)
    assert answer.status_code == 200, answer.text
    tokens: dict[str, Any] = answer.json()
    return tokens


def statuses(service: RunningService, credential: str, times: int = 12) -> set[int]:
    """What several connections, which different workers take, are told."""
    headers = {"Authorization": f"Bearer {credential}"}
    return {httpx2.get(f"{service.base_url}/users/me", headers=headers).status_code for _ in range(times)}


def test_an_api_key_is_the_key_of_an_openai_client(service, admin, marker):
    key = make_key(admin, make_user(admin, marker, "llm", "usage:read"))
    with OpenAI(base_url=f"{service.base_url}/v1", api_key=key["key"], max_retries=0) as client:
        assert client.chat.completions.create(**body("ok", marker)).choices
    line = service.wait_line(principal=marker, outcome="ok")
    assert line["model"] == "ok"
    (record,) = eventually(lambda: service.usage(principal=marker)["calls"], "the ledger")
    assert record["auth_method"] == "api_key"


def test_a_credential_for_one_model_sees_and_calls_that_model_only(service, admin, marker):
    key = make_key(admin, make_user(admin, marker, "llm"), models=["ok", "echo"])
    with OpenAI(base_url=f"{service.base_url}/v1", api_key=key["key"], max_retries=0) as client:
        assert {model.id for model in client.models.list()} == {"ok", "echo"}
        assert client.chat.completions.create(**body("ok", marker)).choices
        with pytest.raises(openai.NotFoundError, match="you may not use it"):
            client.chat.completions.create(**body("tools", marker))
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("tools")
    # The default of /generate is the first that this key may call.
    answer = httpx2.post(f"{service.base_url}/generate", json={"question": marker}, headers={"X-API-Key": key["key"]})
    assert answer.json()["model"] in {"ok", "echo"}

    def outcomes() -> list[str]:
        return sorted(call["outcome"] for call in service.usage(principal=marker)["calls"])

    eventually(lambda: outcomes() == ["ok", "ok", "rejected_auth"], "three calls in the ledger")


def test_without_any_model_scope_no_model_is_called(service, admin, marker):
    key = make_key(admin, make_user(admin, marker, "usage:read"))
    headers = {"Authorization": f"Bearer {key['key']}"}
    answer = httpx2.post(f"{service.base_url}/v1/chat/completions", json=body("ok", marker), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")


@pytest.mark.parametrize("way", ["disable", "password", "end sessions", "revoke key", "scopes"])
def test_access_ends_on_every_worker_within_seconds(service, admin, marker, way):
    user = make_user(admin, marker, "llm", "account")
    token, key = log_in(service, marker)["access_token"], make_key(admin, user)
    assert statuses(service, token) == statuses(service, key["key"]) == {200}
    path = f"/admin/users/{user['id']}"
    if way == "disable":
        done = admin.patch(path, json={"disabled": True})
    elif way == "password":
        done = admin.put(f"{path}/password", json={"password": "wonderful lemon tree"})
    elif way == "scopes":
        done = admin.patch(path, json={"scopes": ["llm"]})
    elif way == "revoke key":
        done = admin.delete(f"/admin/keys/{key['id']}")
    else:
        (session,) = admin.get("/admin/sessions", params={"user_id": user["id"]}).json()["data"]
        done = admin.delete(f"/admin/sessions/{session['id']}")
    assert done.is_success, done.text
    expected = {"disable": (401, 401), "revoke key": (200, 401)}.get(way, (401, 200))
    ended = [credential for credential, status in zip((token, key["key"]), expected, strict=True) if status == 401]
    eventually(lambda: [statuses(service, each) for each in ended] == [{401}] * len(ended), way, SECONDS_TO_TAKE_EFFECT)
    assert tuple(max(statuses(service, credential)) for credential in (token, key["key"])) == expected


def test_a_new_login_after_a_new_password_is_good_on_every_worker(service, admin, marker):
    """The revocation concerns what was issued before it, and not what is issued in the same second."""
    user = make_user(admin, marker, "llm")
    log_in(service, marker)
    assert admin.put(f"/admin/users/{user['id']}/password", json={"password": PASSWORD}).is_success
    token = log_in(service, marker)["access_token"]
    assert statuses(service, token) == {200}
    eventually(lambda: service.metric("tollbook_auth_events_total", event="login") > 0, "the events")
    assert statuses(service, token, 30) == {200}


def test_a_rotated_key_goes_on_for_the_overlap_and_no_longer(service, admin, marker):
    key = make_key(admin, make_user(admin, marker, "llm"))
    assert statuses(service, key["key"]) == {200}
    new = admin.post(f"/admin/keys/{key['id']}/rotate", json={"overlap_seconds": 3}).json()
    assert statuses(service, new["key"]) == {200}
    assert 200 in statuses(service, key["key"], 1)
    eventually(lambda: statuses(service, key["key"]) == {401}, "the end of the overlap", 3 + SECONDS_TO_TAKE_EFFECT)
    assert statuses(service, new["key"]) == {200}


def test_two_credentials_in_one_request_are_refused(service):
    headers = {"Authorization": f"Bearer {service.token()}", "X-API-Key": "tbk_x"}
    answer = httpx2.get(f"{service.base_url}/users/me", headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_token")


def test_the_command_line_and_the_service_agree(service, marker):
    service.tollbook("users", "add", marker, "--password", PASSWORD, "--scope", "llm:ok")
    key = service.tollbook("keys", "add", marker, "laptop").splitlines()[-1]
    assert statuses(service, key) == {200}
    service.tollbook("users", "disable", marker)
    eventually(lambda: statuses(service, key) == {401}, "the end", SECONDS_TO_TAKE_EFFECT)
    assert ADMIN not in service.tollbook("keys", "list", "--user", marker)
    audit = service.tollbook("audit-log", "--json")
    assert [word for word in ("user.create", "key.create", "user.disable") if word not in audit] == []
