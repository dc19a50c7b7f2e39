"""Credentials that are not good, over the real server: at /token, and on a call to a model."""

import base64
import json
import time
from typing import Any

import httpx2
import openai
import pytest
from jose import jwt
from openai import AsyncOpenAI

from auth.keys import SigningKey
from tests.support.calls import body, post
from tests.support.service import ADMIN, PASSWORD, RunningService
from tests.support.waiting import eventually


def log_in(service: RunningService, **form: str) -> httpx2.Response:
    return httpx2.post(f"{service.base_url}/token", data={"grant_type": "password", **form})


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"username": ADMIN, "password": "wrong"}, "invalid_grant"),
        ({"username": "nobody-of-this-name", "password": PASSWORD}, "invalid_grant"),
        ({"username": ADMIN}, "invalid_request"),
        ({}, "invalid_request"),
        ({"username": ADMIN, "password": PASSWORD, "grant_type": "device_code"}, "unsupported_grant_type"),
        ({"username": ADMIN, "password": PASSWORD, "scope": "no-such-scope"}, "invalid_scope"),
    ],
    ids=["wrong password", "unknown user", "no password", "nothing", "another grant", "unknown scope"],
)
def test_a_login_that_is_refused_says_why_as_rfc_6749_has_it(service, form, error):
    answer = log_in(service, **form)
    assert (answer.status_code, answer.json()["error"]) == (400, error)
    assert answer.headers["cache-control"] == "no-store"
    assert PASSWORD not in answer.text


def test_an_unknown_user_and_a_wrong_password_look_the_same(service):
    wrong = log_in(service, username=ADMIN, password="wrong")
    unknown = log_in(service, username="nobody-of-this-name", password="wrong")
    assert wrong.json() == unknown.json()


def forged(service: RunningService, **changes: Any) -> str:
    """A token that differs from a good one in some claims, signed with the service's own key."""
    good = service.token()
    key = (service.state_dir / "keys" / "signing-key.pem").read_text()
    claims = {**jwt.get_unverified_claims(good), **changes}
    return jwt.encode(claims, key, algorithm="ES256", headers=jwt.get_unverified_header(good))


def unsigned(service: RunningService, alg: str) -> str:
    """A good token's claims under an algorithm that needs no key of the service's."""
    header, claims, _ = service.token().split(".")
    new = {**json.loads(base64.urlsafe_b64decode(header + "==")), "alg": alg}
    encoded = base64.urlsafe_b64encode(json.dumps(new).encode()).decode().rstrip("=")
    return f"{encoded}.{claims}.AAAA" if alg != "none" else f"{encoded}.{claims}."


def foreign(service: RunningService) -> str:
    good = service.token()
    pem = SigningKey.generate().to_bytes().decode()
    header = jwt.get_unverified_header(good)
    return jwt.encode(jwt.get_unverified_claims(good), pem, algorithm="ES256", headers=header)


TOKENS = {
    "garbled": lambda service: "garbled",
    "cut short": lambda service: service.token()[:-5],
    "changed": lambda service: service.token().replace(".", ".e", 1),
    "expired": lambda service: forged(service, exp=int(time.time()) - 600),
    "for another audience": lambda service: forged(service, aud="another"),
    "of another issuer": lambda service: forged(service, iss="another"),
    "without an end": lambda service: forged(service, exp=None),
    "alg none": lambda service: unsigned(service, "none"),
    "alg HS256": lambda service: unsigned(service, "HS256"),
    "foreign key": foreign,
    "very long": lambda service: "a." * 10_000,
}


def test_the_forger_can_make_a_token_that_is_good(service, marker):
    """Else the cases below might be refused for a reason that is not theirs."""
    token = forged(service)
    answer = post(service, marker, json.dumps(body("ok", marker)).encode(), authorization=f"Bearer {token}")
    assert answer.status_code == 200


@pytest.mark.parametrize("make", TOKENS.values(), ids=TOKENS.keys())
async def test_a_bad_token_is_an_authentication_error_for_the_sdk(service, upstream, make, marker):
    token = make(service)
    async with AsyncOpenAI(base_url=f"{service.base_url}/v1", api_key=token, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(**body("ok", marker))
    assert 'error="invalid_token"' in caught.value.response.headers["www-authenticate"]
    assert token not in caught.value.response.text
    assert upstream.requests(marker) == []
    assert token not in service.stdout.read_text()


def test_no_token_at_all_is_asked_for_one(service, marker):
    answer = post(service, marker, json.dumps(body("ok", marker)).encode(), authorization=None)
    assert answer.status_code == 401
    # RFC 6750 §3.1: a request without credentials is not told of an error.
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "invalid_token" not in answer.headers["www-authenticate"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate", "/stream"])
def test_a_missing_scope_is_named(service, upstream, path, marker):
    token = service.token("usage:read")
    content = json.dumps(body("ok", marker) | {"question": marker}).encode()
    answer = post(service, marker, content, path, authorization=f"Bearer {token}")
    assert answer.status_code == 403
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    assert 'scope="llm"' in answer.headers["www-authenticate"]
    assert upstream.requests(marker) == []


async def test_a_missing_scope_is_a_permission_error_for_the_sdk(service, marker):
    token = service.token("usage:read")
    async with AsyncOpenAI(base_url=f"{service.base_url}/v1", api_key=token, max_retries=0) as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(**body("ok", marker))


def test_a_disabled_users_live_token_is_refused(service, marker):
    name = f"user-{marker}"
    service.tollbook("users", "add", name, TOLLBOOK_NEW_PASSWORD=PASSWORD)
    token = log_in(service, username=name, password=PASSWORD).json()["access_token"]

    def status() -> int:
        content = json.dumps(body("ok", marker)).encode()
        return post(service, marker, content, authorization=f"Bearer {token}").status_code

    assert status() == 200
    service.tollbook("users", "disable", name)
    # Each worker learns of it on its own, so one refusal is not enough.
    eventually(lambda: {status() for _ in range(10)} == {401}, "the token to be refused by every worker", 15)
    assert log_in(service, username=name, password=PASSWORD).json()["error"] == "invalid_grant"
