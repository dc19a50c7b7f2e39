"""How a credential comes in, what a route asks of it, and how a refusal looks."""

from typing import Annotated

import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import Depends, FastAPI, Request

from auth.audit import SYSTEM, Actor
from auth.database import Database, DatabaseUnavailable
from auth.dependencies import actor_of, authenticate_request, requires
from auth.errors import InsufficientScope, InvalidToken, TemporarilyUnavailable
from auth.keys import SigningKey
from auth.lookups import JUNK_PER_SECOND
from auth.principal import Principal
from auth.scopes import Scope
from auth.tokens import Tokens
from observability.context import open_request, request_context
from tests.auth.kit import (
    ISSUER,
    LEEWAY_SECONDS,
    TTL_SECONDS,
    USERNAME,
    by_hmac,
    forge,
    open_token,
)

BARE_CHALLENGE = 'Bearer realm="tollbook"'
INVALID = 'Bearer realm="tollbook", error="invalid_token", error_description="The access token is not valid."'
EXPIRED = 'Bearer realm="tollbook", error="invalid_token", error_description="The access token has expired."'


@pytest.fixture
def issue(tokens):
    def issue(*scopes, subject="id-1"):
        return tokens.issue(
            subject=subject, username=USERNAME, scopes=scopes or ["llm"], client_id="tollbook"
        ).access_token

    return issue


@pytest.fixture
def token(issue):
    return issue()


@pytest.fixture
async def api_key(auth, ada):
    return (await auth.api_keys.create(ada.id, "laptop", scopes=["llm"], by=SYSTEM))[1]


@pytest.fixture
def ask(client):
    async def ask(authorization, path="/llm"):
        return await client.get(path, headers=[("Authorization", authorization)])

    return ask


@pytest.fixture
def request_of(auth, clock):
    """A request as it comes in, before any dependency."""

    def request_of(*headers, address=("192.0.2.1", 4711), query=b""):
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/llm",
            "query_string": query,
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
            "client": address,
            "state": {"auth": auth},
        }
        open_request(scope, "request-1")
        return Request(scope)

    return request_of


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
async def test_a_bearer_token_is_accepted_and_the_principal_left_for_the_log_line(ask, token, states, scheme):
    answer = await ask(f"{scheme} {token}")
    assert (answer.status_code, answer.json()) == (200, USERNAME)
    assert states[-1]["principal"].subject == "id-1"


@pytest.mark.parametrize("header", ["X-API-Key", "x-api-key", "X-API-KEY"])
async def test_an_api_key_is_accepted_in_its_own_header(client, api_key, states, ada, header):
    answer = await client.get("/llm", headers={header: api_key})
    assert (answer.status_code, answer.json()) == (200, USERNAME)
    assert (states[-1]["principal"].subject, states[-1]["principal"].auth_method) == (ada.id, "api_key")


async def test_an_api_key_is_accepted_as_a_bearer_where_openai_clients_put_theirs(ask, api_key):
    assert (await ask(f"Bearer {api_key}")).status_code == 200


async def test_a_key_without_an_expiry_says_so(ask, api_key):
    answer = await ask(f"Bearer {api_key}", "/users/me")
    assert (answer.status_code, answer.json()["expires_at"]) == (200, None)


async def test_no_header_is_a_challenge_without_an_error(client, states, events):
    answer = await client.get("/llm")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == BARE_CHALLENGE
    assert "principal" not in states[-1]
    assert events == [("authenticate", "refused", "no_credentials")]


@pytest.mark.parametrize(
    "authorization", ["", " ", "Bearer", "Bearer ", "Bearer    ", "Basic YTpi", "Token x", "{token}"]
)
async def test_another_scheme_is_no_credentials(ask, token, authorization):
    answer = await ask(authorization.format(token=token))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == BARE_CHALLENGE


@pytest.mark.parametrize(
    "place",
    [
        {"params": {"access_token": "{}"}},
        {"params": {"token": "{}"}},
        {"cookies": {"access_token": "{}"}},
        {"headers": {"api-key": "{}"}},
        {"headers": {"Proxy-Authorization": "Bearer {}"}},
    ],
    ids=str,
)
async def test_a_token_anywhere_else_is_not_looked_at(client, token, place):
    filled = {kind: {name: value.format(token) for name, value in values.items()} for kind, values in place.items()}
    client.cookies.update(filled.pop("cookies", {}))
    answer = await client.get("/llm", **filled)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == BARE_CHALLENGE


@pytest.mark.parametrize("name", ["api_key", "key", "X-API-Key", "access_token"])
async def test_an_api_key_in_the_address_is_not_looked_at(client, api_key, name):
    answer = await client.get("/llm", params={name: api_key})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == BARE_CHALLENGE


async def test_a_token_is_not_an_api_key(client, token, events):
    answer = await client.get("/llm", headers={"X-API-Key": token})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == INVALID
    assert events == [("authenticate", "refused", "malformed")]


async def test_an_empty_api_key_is_no_credentials(client):
    answer = await client.get("/llm", headers={"X-API-Key": " "})
    assert answer.headers["www-authenticate"] == BARE_CHALLENGE


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer {token}")] * 2,
        [("Authorization", "Bearer {token}"), ("Authorization", "Basic YTpi")],
        [("X-API-Key", "{key}")] * 2,
        [("X-API-Key", "{key}"), ("x-api-key", "")],
        [("Authorization", "Bearer {token}"), ("X-API-Key", "{key}")],
        [("Authorization", "Bearer {key}"), ("X-API-Key", "{key}")],
        [("Authorization", ""), ("X-API-Key", "{key}")],
    ],
    ids=str,
)
async def test_two_credentials_are_refused_even_if_one_or_both_are_right(client, token, api_key, events, headers):
    filled = [(name, value.format(token=token, key=api_key)) for name, value in headers]
    answer = await client.get("/llm", headers=filled)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == INVALID
    assert events == [("authenticate", "refused", "malformed")]


@pytest.fixture
def bad_tokens(token, keys, key, clock, api_key):
    header, claims = open_token(token)
    stranger = SigningKey.generate()
    pem = key.secret.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    elsewhere = Tokens(keys, issuer=ISSUER, audience="x", ttl_seconds=60, leeway_seconds=0, clock=clock)
    return {
        "garbled": token[:-10] + "AAAAAAAAAA",
        "no jwt": "sk-1234567890",
        "two tokens": f"{token} {token}",
        "nul": "a\0b",
        "latin": "\xff.\xff.\xff",
        "too long": "a" * 9000,
        "wrong audience": elsewhere.issue(
            subject="id-1", username=USERNAME, scopes=["llm"], client_id="tollbook"
        ).access_token,
        "wrong algorithm": forge(header | {"alg": "HS256"}, claims, by_hmac(b"secret")),
        "none": forge(header | {"alg": "none"}, claims, lambda _: b"x"),
        "none, unsigned": forge(header | {"alg": "none"}, claims, lambda _: b""),
        "public key as secret": forge(header | {"alg": "HS256"}, claims, by_hmac(pem)),
        "foreign key": forge(header, claims, stranger.signer.sign),
        "foreign kid": forge(header | {"kid": stranger.kid}, claims, stranger.signer.sign),
        "key cut short": api_key[:-1],
        "key with another secret": api_key[:-43] + "A" * 43,
        "key of another id": "tbk_aaaaaaaaaaaaaaaa_" + api_key[-43:],
        "key in capitals": api_key.upper(),
        "refresh token": "tbr_" + api_key[-43:],
        "client secret": "tbs_" + api_key[-43:],
    }


BAD = [
    "garbled",
    "no jwt",
    "two tokens",
    "nul",
    "latin",
    "too long",
    "wrong audience",
    "wrong algorithm",
    "none",
    "none, unsigned",
    "public key as secret",
    "foreign key",
    "foreign kid",
    "key cut short",
    "key with another secret",
    "key of another id",
    "key in capitals",
    "refresh token",
    "client secret",
]


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_token_is_401_invalid_token_and_not_quoted(ask, bad_tokens, states, name):
    bad = bad_tokens[name]
    answer = await ask(f"Bearer {bad}".encode("latin-1"))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == INVALID
    assert answer.json() == {"error": "invalid_token", "error_description": "The access token is not valid."}
    assert answer.headers["cache-control"] == "no-store"
    assert bad not in answer.text
    assert "principal" not in states[-1]


async def test_an_expired_token_is_said_to_have_expired(ask, token, clock):
    clock.now += TTL_SECONDS + LEEWAY_SECONDS
    answer = await ask(f"Bearer {token}")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == EXPIRED


async def test_an_expired_api_key_is_said_to_have_expired_and_not_quoted(client, auth, ada, clock):
    made, key = await auth.api_keys.create(ada.id, "laptop", scopes=["llm"], by=SYSTEM)
    await auth.api_keys.rotate(made.id, overlap_seconds=0, by=SYSTEM)
    answer = await client.get("/llm", headers={"X-API-Key": key})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == EXPIRED
    assert key[-43:] not in f"{answer.text}{answer.headers}"


async def test_a_disabled_user_with_a_live_token_is_refused(ask, auth, ada, issue, users):
    token = issue(subject=ada.id)
    assert (await ask(f"Bearer {token}")).status_code == 200
    await users.set_disabled(ada.id, disabled=True, by=SYSTEM)
    await auth.revocations.refresh()
    answer = await ask(f"Bearer {token}")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == INVALID


async def test_an_api_key_that_cannot_be_checked_now_is_503_and_not_401(client, api_key, monkeypatch, events):
    def away(*_):
        raise DatabaseUnavailable("OSError")

    monkeypatch.setattr(Database, "transaction", away)
    answer = await client.get("/llm", headers={"X-API-Key": api_key})
    assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert "www-authenticate" not in answer.headers
    assert events == [("authenticate", "error", "database")]


async def test_a_missing_scope_is_403_and_named(ask, token, events, states):
    answer = await ask(f"Bearer {token}", "/admin")
    assert answer.status_code == 403
    assert answer.headers["www-authenticate"] == (
        'Bearer realm="tollbook", error="insufficient_scope", '
        'error_description="The access token does not have the scope admin.", scope="admin"'
    )
    assert answer.json()["error"] == "insufficient_scope"
    assert events == [("authenticate", "refused", "insufficient_scope")]
    assert states[-1]["principal"].subject == "id-1"  # known, and refused all the same


@pytest.mark.parametrize("scopes", [["admin"], ["users:admin"], ["team:admin"], ["usage:read"], ["llm:"], ["LLM"]])
async def test_no_other_scope_stands_for_llm(ask, issue, scopes):
    assert (await ask(f"Bearer {issue(*scopes)}")).status_code == 403


async def test_llm_does_not_stand_for_admin_and_admin_does_for_itself(ask, issue):
    assert (await ask(f"Bearer {issue('admin')}", "/admin")).status_code == 200
    assert (await ask(f"Bearer {issue('llm', 'users:admin', 'llm:admin')}", "/admin")).status_code == 403


async def test_who_may_call_one_model_is_let_in_where_models_are_called(ask, issue, states):
    assert (await ask(f"Bearer {issue('llm:small')}")).status_code == 200
    assert states[-1]["principal"].may_call("small")
    assert not states[-1]["principal"].may_call("large")


@pytest.mark.parametrize(
    ("held", "allowed"),
    [(["team:admin"], True), (["admin"], True), (["team:admin", "admin"], True), (["llm", "users:admin"], False)],
    ids=str,
)
async def test_one_of_several_scopes_is_enough(request_of, issue, held, allowed):
    dependency = requires(Scope.TEAM_ADMIN, Scope.ADMIN)
    request = request_of(("Authorization", f"Bearer {issue(*held)}"))
    principal = await authenticate_request(request)
    if allowed:
        assert await dependency(request, principal) is principal
    else:
        with pytest.raises(InsufficientScope) as caught:
            await dependency(request, principal)
        assert caught.value.scope == "team:admin"


async def test_the_caller_is_named_for_the_audit_log_and_in_the_log_line(request_of, token):
    request = request_of(("Authorization", f"Bearer {token}"))
    principal = await authenticate_request(request)
    assert actor_of(request, principal) == Actor("id-1", USERNAME, "192.0.2.1", "request-1")
    assert request_context(request.scope).fields == {"principal": USERNAME}
    assert actor_of(request_of(address=None), principal).address == ""


async def test_junk_is_counted_by_the_address_it_comes_from(request_of, api_key):
    for number in range(JUNK_PER_SECOND):
        with pytest.raises(InvalidToken):
            await authenticate_request(request_of(("X-API-Key", f"{api_key[:-43]}{number:043d}")))
    with pytest.raises(TemporarilyUnavailable):
        await authenticate_request(request_of(("X-API-Key", api_key)))
    assert await authenticate_request(request_of(("X-API-Key", api_key), address=("192.0.2.2", 4711)))


async def test_serving_does_not_ask_the_database(ask, token, api_key, monkeypatch):
    assert (await ask(f"Bearer {api_key}")).status_code == 200

    def never(*_):
        raise AssertionError("the database was asked")

    monkeypatch.setattr(Database, "transaction", never)
    assert (await ask(f"Bearer {token}")).status_code == 200
    assert (await ask(f"Bearer {api_key}")).status_code == 200


async def test_a_route_that_asks_twice_for_the_caller_gets_the_same(auth, token):
    """The scope of the one is not lost on the other."""
    app = FastAPI(telemetry={"tracing": False})
    needs = requires(Scope.LLM)

    @app.get("/twice")
    async def twice(one: Annotated[Principal, Depends(needs)], other: Annotated[Principal, Depends(needs)]) -> bool:
        return one is other

    async def with_state(scope, receive, send):
        scope["state"] = {"auth": auth}
        await app(scope, receive, send)

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=with_state), base_url="http://test") as client:
        assert (await client.get("/twice", headers={"Authorization": f"Bearer {token}"})).json() is True


async def test_openapi_has_the_flows_the_header_and_the_scope_of_each_route(client):
    document = (await client.get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    flows = schemes["Tollbook"]["flows"]
    assert flows.keys() == {"password", "clientCredentials"}
    for flow in flows.values():
        assert flow["tokenUrl"] == "token"
        assert flow["scopes"].keys() == {str(scope) for scope in Scope}
    assert flows["password"]["refreshUrl"] == "token"
    assert (schemes["API key"]["type"], schemes["API key"]["in"], schemes["API key"]["name"]) == (
        "apiKey",
        "header",
        "X-API-Key",
    )
    assert document["paths"]["/llm"]["get"]["security"] == [{"Tollbook": ["llm"]}, {"API key": ["llm"]}]
    assert document["paths"]["/users/me"]["get"]["security"] == [{"Tollbook": []}, {"API key": []}]
    assert "security" not in document["paths"]["/token"]["post"]
