"""No secret is in anything that the service writes or answers: every output is searched for every secret there was."""

import base64
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.calls import body
from tests.support.otlp import OtlpReceiver
from tests.support.service import ADMIN, RunningService
from tests.support.waiting import eventually

CANARY = "canary-7d1f"
PASSWORD = f"{CANARY} of the admin"
ENCRYPTION_KEY = base64.b64encode(b"canary-key-of-thirty-two-bytes!!").decode()
SECRETS = {"TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY": ENCRYPTION_KEY, "TOLLBOOK_ADMIN_PASSWORD": PASSWORD}
SHOWN_ONCE = ("key", "client_secret", "access_token", "refresh_token")


class Spy:
    """Does all that has to do with secrets, right and wrong, and keeps the secrets and the answers apart."""

    def __init__(self, service: RunningService) -> None:
        self.secrets = {PASSWORD, ENCRYPTION_KEY, CANARY}
        self.answers: list[str] = []
        self._base_url = service.base_url

    def send(self, method: str, path: str, *, shows: bool = False, **request: Any) -> Any:
        """One request. `shows`: the answer is meant to hold what is shown once; it is a secret from then on."""
        answer = httpx2.request(method, self._base_url + path, timeout=30, **request)
        content = answer.json() if answer.content and "json" in answer.headers.get("content-type", "") else {}
        if shows:
            assert answer.is_success, answer.text
            self.secrets |= {content[name] for name in SHOWN_ONCE if content.get(name)}
        else:
            self.answers.append(answer.text + str(answer.headers))
        return content

    def login(self, username: str, password: str) -> Any:
        form = {"grant_type": "password", "username": username, "password": password}
        return self.send("POST", "/token", data=form, shows=True)


@pytest.fixture(scope="module")
def spied(
    service_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningService, Spy]]:
    options = {**service_options, "env": {**service_options["env"], **SECRETS}}
    with RunningService(tmp_path_factory.mktemp("canary"), **options) as service:
        spy = Spy(service)
        commit_every_indiscretion(service, spy)
        yield service, spy


def commit_every_indiscretion(service: RunningService, spy: Spy) -> None:
    tokens = spy.login(ADMIN, PASSWORD)
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    password = f"{CANARY} wonderful lemon tree"
    # Passwords: set, wrong, weak, in the wrong field, in the address.
    user = {"username": "ada", "password": password}
    spy.send("POST", "/admin/users", json=user, headers=bearer)
    spy.send("POST", "/admin/users", json={**user, "username": "eve", "password": f"{CANARY}"}, headers=bearer)
    spy.send("POST", "/admin/users", json={**user, "passwort": CANARY}, headers=bearer)
    spy.send("POST", "/token", data={"grant_type": "password", "username": CANARY, "password": CANARY})
    spy.send("POST", f"/token?password={CANARY}", data={"grant_type": "password"})
    spy.send("GET", f"/v1/models?access_token={CANARY}")
    ada = spy.login("ada", password)
    # Refresh tokens: used, reused, foreign.
    refresh = {"grant_type": "refresh_token", "refresh_token": ada["refresh_token"]}
    spy.send("POST", "/token", data=refresh, shows=True)
    spy.send("POST", "/token", data={**refresh, "refresh_token": f"tbr_{CANARY}"})
    # Clients and keys: made, wrong, replaced, revoked.
    client = {"name": "robot", "grants": ["client_credentials"], "scopes": ["llm"]}
    robot = spy.send("POST", "/admin/clients", json=client, headers=bearer, shows=True)
    spy.send("POST", "/token", data={"grant_type": "client_credentials"}, auth=(robot["client_id"], CANARY))
    credentials = (robot["client_id"], robot["client_secret"])
    spy.send("POST", "/token", data={"grant_type": "client_credentials"}, auth=credentials, shows=True)
    spy.send("POST", f"/admin/clients/{robot['client_id']}/secret", headers=bearer, shows=True)
    key = spy.send("POST", "/users/me/keys", json={"name": "k"}, headers=bearer, shows=True)
    with_key = {"X-API-Key": key["key"]}
    spy.send("POST", "/v1/chat/completions", json=body("ok", CANARY), headers=with_key)
    spy.send("POST", "/v1/chat/completions", json=body("error-500", CANARY), headers=with_key)
    spy.send("POST", "/v1/chat/completions", content=f'{{"model": "{CANARY}"', headers=with_key)
    spy.send("POST", f"/users/me/keys/{key['id']}/rotate", json={}, headers=bearer, shows=True)
    spy.send("GET", "/v1/models", headers={"X-API-Key": f"{key['key'][:-8]}{CANARY[-8:]}"})
    spy.send("GET", "/v1/models", headers={"Authorization": f"Bearer {tokens['access_token'][:-4]}AAAA"})
    spy.send("GET", "/v1/models", headers={**bearer, "X-API-Key": key["key"]})
    spy.send("POST", "/introspect", data={"token": tokens["access_token"]}, auth=credentials)
    spy.send("POST", "/revoke", data={"token": tokens["refresh_token"]})
    # What lists say of all that.
    admin = {"Authorization": f"Bearer {spy.login(ADMIN, PASSWORD)['access_token']}"}
    for what in ("users", "clients", "keys", "sessions", "audit", "signing-keys"):
        spy.send("GET", f"/admin/{what}", headers=admin)
    for path in ("/usage", "/metrics", "/users/me/keys", "/openapi.json", "/.well-known/jwks.json"):
        spy.send("GET", path, headers=admin)


def hidden(spy: Spy) -> set[str]:
    """The secrets, with the halves of the composed ones; the canary stands for all that was wrong."""
    return spy.secrets | {secret.rpartition("_")[2] for secret in spy.secrets if secret.startswith(("tbk_", "tbs_"))}


def found_in(text: str, spy: Spy) -> list[str]:
    return [secret for secret in hidden(spy) if secret in text]


def test_there_were_secrets_to_find(spied):
    _, spy = spied
    kinds = {secret[:4] for secret in spy.secrets}
    assert {"tbr_", "tbs_", "tbk_", "eyJh"} <= kinds
    assert len(spy.secrets) > 12


def test_no_secret_is_in_the_log(spied):
    service, spy = spied
    service.wait_line(route="/.well-known/jwks.json")
    for path in (service.stdout, service.stderr):
        assert found_in(path.read_text(), spy) == []


def test_no_secret_is_in_an_answer_but_where_it_is_shown_once(spied):
    _, spy = spied
    # A model answers with what it was asked, and an unknown user's name is not repeated.
    answers = [answer for answer in spy.answers if "chat.completion" not in answer]
    assert [found for answer in answers for found in found_in(answer, spy)] == []


def test_no_secret_is_in_a_span(spied, otlp: OtlpReceiver):
    service, spy = spied
    last = service.wait_line(route="/.well-known/jwks.json")
    otlp.wait_for(lambda span: span.trace_id == last["trace_id"])
    assert found_in(json.dumps([repr(span) for span in otlp.spans()]), spy) == []


def test_no_secret_is_in_the_metrics(spied):
    service, spy = spied
    assert found_in(httpx2.get(f"{service.base_url}/metrics").text, spy) == []


def test_no_secret_is_in_the_database_in_a_form_that_can_be_used(spied):
    service, spy = spied
    database = service.state_dir / "tollbook.db"

    def dump() -> str:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return "\n".join(connection.iterdump())

    text = eventually(lambda: dump() if "robot" in dump() else "", "the database")
    assert found_in(text, spy) == []
    assert "PRIVATE KEY" not in text
    raw = b"".join(path.read_bytes() for path in service.state_dir.glob("tollbook.db*"))
    assert [secret for secret in hidden(spy) if secret.encode() in raw] == []
    assert b"PRIVATE KEY" not in raw
