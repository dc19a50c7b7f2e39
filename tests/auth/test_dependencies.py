import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from auth.keys import SigningKey
from auth.tokens import Tokens
from tests.auth.kit import (
    ISSUER,
    LEEWAY_SECONDS,
    TTL_SECONDS,
    USERNAME,
    by_hmac,
    by_key,
    forge,
    open_token,
)

BARE_CHALLENGE = 'Bearer realm="tollbook"'
INVALID = 'Bearer realm="tollbook", error="invalid_token", error_description="The access token is not valid."'
EXPIRED = 'Bearer realm="tollbook", error="invalid_token", error_description="The access token has expired."'


@pytest.fixture
def token(tokens):
    return tokens.issue("id-1", USERNAME, ["llm"]).access_token


@pytest.fixture
def ask(client):
    async def ask(authorization, path="/llm"):
        return await client.get(path, headers=[("Authorization", authorization)])

    return ask


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
async def test_a_bearer_token_is_accepted_and_the_principal_left_for_the_log_line(ask, token, states, scheme):
    answer = await ask(f"{scheme} {token}")
    assert (answer.status_code, answer.json()) == (200, USERNAME)
    assert states[-1]["principal"].subject == "id-1"


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
        {"headers": {"X-API-Key": "{}"}},
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


async def test_two_headers_are_refused_even_if_one_is_right(client, token):
    headers = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]
    answer = await client.get("/llm", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == INVALID


@pytest.fixture
def bad_tokens(token, tokens, key, clock):
    header, claims = open_token(token)
    stranger = SigningKey.generate()
    pem = key.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    elsewhere = Tokens(key, issuer=ISSUER, audience="x", ttl_seconds=60, leeway_seconds=0, clock=clock)
    return {
        "garbled": token[:-10] + "AAAAAAAAAA",
        "no jwt": "sk-1234567890",
        "two tokens": f"{token} {token}",
        "nul": "a\0b",
        "latin": "\xff.\xff.\xff",
        "too long": "a" * 9000,
        "wrong audience": elsewhere.issue("id-1", USERNAME, ["llm"]).access_token,
        "wrong algorithm": forge(header | {"alg": "HS256"}, claims, by_hmac(b"secret")),
        "none": forge(header | {"alg": "none"}, claims, lambda _: b"x"),
        "none, unsigned": forge(header | {"alg": "none"}, claims, lambda _: b""),
        "public key as secret": forge(header | {"alg": "HS256"}, claims, by_hmac(pem)),
        "foreign key": forge(header, claims, by_key(stranger)),
        "foreign kid": forge(header | {"kid": stranger.kid}, claims, by_key(stranger)),
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


async def test_a_disabled_user_with_a_live_token_is_refused(ask, auth, ada, tokens, users):
    token = tokens.issue(ada.id, USERNAME, ["llm"]).access_token
    assert (await ask(f"Bearer {token}")).status_code == 200
    await users.set_disabled(USERNAME, disabled=True)
    await auth.disabled.refresh()
    answer = await ask(f"Bearer {token}")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == INVALID


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


async def test_admin_does_not_stand_for_llm(ask, tokens):
    token = tokens.issue("id-1", USERNAME, ["admin"]).access_token
    assert (await ask(f"Bearer {token}", "/admin")).status_code == 200
    assert (await ask(f"Bearer {token}", "/llm")).status_code == 403


async def test_serving_does_not_ask_the_database(ask, token, users, monkeypatch):
    def never(*_):
        raise AssertionError("the database was asked")

    monkeypatch.setattr(type(users), "_transaction", never)
    assert (await ask(f"Bearer {token}")).status_code == 200


async def test_openapi_has_the_password_flow_and_the_scope_of_each_route(client):
    document = (await client.get("/openapi.json")).json()
    flow = document["components"]["securitySchemes"]["Tollbook"]["flows"]["password"]
    assert flow["tokenUrl"] == "token"
    assert flow["scopes"].keys() == {"llm", "usage:read", "admin"}
    assert document["paths"]["/llm"]["get"]["security"] == [{"Tollbook": ["llm"]}]
    assert document["paths"]["/users/me"]["get"]["security"] == [{"Tollbook": []}]
    assert "security" not in document["paths"]["/token"]["post"]
