"""The real service beside an identity provider: its tokens on our routes, its keys as they change, and its absence."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from tests.support.calls import body, chat, post
from tests.support.oidc import OUR_AUDIENCE, PROVIDER, Provider, new_key
from tests.support.service import RunningService
from tests.support.waiting import eventually

WORKERS = 2
ROLES = {"ai-user": "llm usage:read", "ai-small": "llm:ok", "ai-operator": "usage:read admin"}
OIDC = {
    "TOLLBOOK_OIDC_ISSUER": PROVIDER,
    "TOLLBOOK_OIDC_AUDIENCE": OUR_AUDIENCE,
    "TOLLBOOK_OIDC_PRINCIPAL_CLAIM": "preferred_username",
    "TOLLBOOK_OIDC_TEAM_CLAIM": "team",
    "TOLLBOOK_OIDC_SCOPE_CLAIM": "realm_access.roles",
    "TOLLBOOK_OIDC_SCOPE_MAP": json.dumps(ROLES),
}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider(new_key("RS256", kid="first")) as provider:
        yield provider


@pytest.fixture(scope="module")
def beside(service_options, provider, tmp_path_factory) -> Iterator[RunningService]:
    """A service that accepts the provider's tokens, too."""
    env = {**service_options["env"], **OIDC, "TOLLBOOK_OIDC_JWKS_URL": provider.jwks_url}
    options = {**service_options, "env": env, "workers": WORKERS}
    with RunningService(tmp_path_factory.mktemp("beside"), **options) as running:
        yield running


def token(provider: Provider, *roles: str, **changes: Any) -> str:
    """What the provider gives to Ada, as Keycloak writes it."""
    claims = {"preferred_username": "ada", "team": "research", "scope": "openid profile", "jti": None}
    return provider.token(**{**claims, "realm_access": {"roles": list(roles)}, **changes})


def me(service: RunningService, credential: str) -> httpx2.Response:
    return httpx2.get(f"{service.base_url}/users/me", headers={"Authorization": f"Bearer {credential}"}, timeout=30)


def test_the_keys_are_fetched_once_by_each_worker(beside, provider):
    eventually(lambda: len(provider.fetches) >= WORKERS, "the workers to fetch")  # of which one made it ready
    for _ in range(8):
        assert me(beside, token(provider, "ai-user")).status_code == 200
    assert len(provider.fetches) == WORKERS


def test_one_is_who_the_provider_says(beside, provider):
    answer = me(beside, token(provider, "ai-user", "unknown-here"))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["username"], found["id"], found["team"]) == ("oidc:ada", "oidc:f3a1", "research")
    assert found["scopes"] == ["llm", "usage:read"]
    assert me(beside, beside.token()).json()["username"] == "root-admin"


async def test_the_sdk_calls_a_model_with_it_and_the_books_say_who(beside, provider, marker):
    credential = token(provider, "ai-user")
    async with openai.AsyncOpenAI(base_url=f"{beside.base_url}/v1", api_key=credential, max_retries=0) as client:
        answer = await client.chat.completions.create(**body("ok", marker), extra_headers={"X-Request-ID": marker})
    assert answer.choices[0].message.content
    line = beside.wait_line(request_id=marker)
    assert (line["principal"], line["outcome"]) == ("oidc:ada", "ok")
    (call,) = eventually(lambda: calls(beside, beside.token(), marker), "the call in the ledger")
    assert (call["principal"], call["auth_method"]) == ("oidc:ada", "oidc")
    (own,) = calls(beside, credential, marker)
    assert own["call_id"] == call["call_id"]


def calls(service: RunningService, credential: str, marker: str) -> list[dict[str, Any]]:
    answer = httpx2.get(f"{service.base_url}/usage", headers={"Authorization": f"Bearer {credential}"})
    answer.raise_for_status()
    return [call for call in answer.json()["calls"] if call["request_id"] == marker]


def test_a_role_opens_what_the_map_says_and_no_more(beside, provider, marker):
    def status(credential: str, model: str) -> int:
        content = json.dumps(body(model, marker)).encode()
        return post(beside, marker, content, authorization=f"Bearer {credential}").status_code

    small, operator, stranger = token(provider, "ai-small"), token(provider, "ai-operator"), token(provider, "llm")
    assert (status(small, "ok"), status(small, "echo")) == (200, 404)
    assert (status(operator, "ok"), status(stranger, "ok")) == (403, 403)


def test_only_who_the_map_makes_an_admin_sees_the_calls_of_others(beside, provider, marker):
    assert chat(beside, "ok", marker).status_code == 200
    eventually(lambda: calls(beside, beside.token(), marker), "the call in the ledger")
    assert calls(beside, token(provider, "ai-user"), marker) == []
    assert calls(beside, token(provider, "admin", "ai-user", scope="admin"), marker) == []
    assert len(calls(beside, token(provider, "ai-operator"), marker)) == 1


@pytest.mark.parametrize(
    "changes",
    [{"aud": "another"}, {"iss": "https://evil.example"}, {"exp": 1}, {"exp": None}, {"sub": None}, {"nbf": 2**33}],
    ids=str,
)
def test_a_token_that_is_not_good_is_refused_as_ours_are(beside, provider, changes):
    answer = me(beside, token(provider, "ai-user", **changes))
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_a_token_of_another_key_is_refused_and_no_token_is_in_the_log(beside, provider):
    forged = token(provider, "ai-user", key=new_key("RS256", kid="first"))
    good = token(provider, "ai-user", jti="seen")
    assert (me(beside, forged).status_code, me(beside, good).status_code) == (401, 200)
    written = beside.stdout.read_text() + beside.stderr.read_text()
    for credential in (forged, good):
        for part in credential.split("."):
            assert part not in written


def test_a_storm_of_made_up_keys_is_no_load_for_the_provider(beside, provider):
    before, began = len(provider.fetches), time.monotonic()
    junk = [token(provider, "ai-user", header={"kid": f"junk-{number}"}) for number in range(100)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda each: me(beside, each), junk))
    assert {answer.status_code for answer in answers} == {401}
    # Each worker may look every ten seconds, and once in the background.
    allowed = WORKERS * (2 + int((time.monotonic() - began) / 10))
    assert len(provider.fetches) - before <= allowed


def test_a_key_that_is_new_is_known_within_seconds_on_every_worker(beside, provider):
    provider.keys = [new_key("RS256", kid="second")]

    def everywhere() -> bool:
        """Each request is over a connection of its own, which goes to whichever worker is free."""
        fresh = (token(provider, "ai-user", jti=f"fresh-{number}") for number in range(8))
        return all(me(beside, each).status_code == 200 for each in fresh)

    eventually(everywhere, "the new key to be accepted by all", timeout=60)


def test_a_provider_that_goes_down_stops_nobody(beside, provider):
    provider.stop()  # for the rest of this file
    for number in range(8):
        assert me(beside, token(provider, "ai-user", jti=f"down-{number}")).status_code == 200


def test_keys_that_come_late_are_503_until_then_and_stop_nobody_else(service_options, provider, tmp_path):
    file = tmp_path / "jwks.json"
    env = {**service_options["env"], **OIDC, "TOLLBOOK_OIDC_JWKS_FILE": str(file)}
    with RunningService(tmp_path / "late", **{**service_options, "env": env, "workers": 1}) as late:
        credential = token(provider, "ai-user")
        answer = me(late, credential)
        assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
        assert answer.headers["retry-after"]
        on_v1 = httpx2.get(f"{late.base_url}/v1/models", headers={"Authorization": f"Bearer {credential}"})
        assert (on_v1.status_code, on_v1.json()["error"]["type"]) == (503, "server_error")
        assert me(late, late.token()).status_code == 200
        file.write_bytes(provider.key_set())
        eventually(lambda: me(late, credential).status_code == 200, "the keys to be read", timeout=60)
        assert len(late.log_lines(event="key_set_unreadable")) == 1
