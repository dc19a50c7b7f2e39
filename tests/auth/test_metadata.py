import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from auth.clients import GRANTS
from auth.keys import KeyRing, RingKey, SigningKey
from tests.auth.kit import AUDIENCE, ISSUER, LEEWAY_SECONDS, TTL_SECONDS, USERNAME
from tests.auth.oauth_kit import FORM, granted

METADATA, JWKS = "/.well-known/oauth-authorization-server", "/.well-known/jwks.json"
PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}


def ring(*keys, algorithm="ES256"):
    return KeyRing(
        [RingKey(key, activates_at) for key, activates_at in keys],
        algorithm=algorithm,
        ttl_seconds=TTL_SECONDS,
        leeway_seconds=LEEWAY_SECONDS,
    )


async def test_the_metadata_says_what_there_is(client):
    answer = await client.get(METADATA)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert answer.json() == {
        "issuer": ISSUER,
        "token_endpoint": f"{ISSUER}/token",
        "revocation_endpoint": f"{ISSUER}/revoke",
        "introspection_endpoint": f"{ISSUER}/introspect",
        "jwks_uri": f"{ISSUER}{JWKS}",
        "grant_types_supported": ["password", "refresh_token", "client_credentials"],
        "response_types_supported": [],
        "scopes_supported": ["llm", "usage:read", "account", "team:admin", "users:admin", "introspect", "admin"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
        "revocation_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
        "introspection_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "service_documentation": f"{ISSUER}/docs",
    }


@pytest.mark.parametrize(
    ("issuer", "base"),
    [
        ("https://llm.example.com/", "https://llm.example.com"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://example.com/llm", "https://example.com/llm"),
        ("tollbook", "http://test"),
        ("urn:tollbook", "http://test"),
        ("httpsomething", "http://test"),
    ],
)
async def test_endpoints_are_under_the_issuer_when_it_is_an_address(client, tokens, issuer, base):
    tokens.issuer = issuer
    found = (await client.get(METADATA)).json()
    assert found["issuer"] == issuer  # as in the tokens, to the letter
    assert found["token_endpoint"] == f"{base}/token"
    assert found["jwks_uri"] == f"{base}{JWKS}"


async def test_every_endpoint_in_the_metadata_is_there_and_every_grant_is_known(client, tokens, ada):
    tokens.issuer = "tollbook"
    found = (await client.get(METADATA)).json()
    for name in ("token_endpoint", "revocation_endpoint", "introspection_endpoint"):
        assert (await client.post(found[name])).json()["error"] == "invalid_request"
    assert (await client.get(found["jwks_uri"])).status_code == 200
    assert found["grant_types_supported"] == list(GRANTS)
    for grant in found["grant_types_supported"]:
        assert (await client.post(found["token_endpoint"], data={"grant_type": grant})).json()["error"] != (
            "unsupported_grant_type"
        )


async def test_another_library_verifies_our_tokens_with_the_published_keys(client, ada):
    token = granted(await client.post("/token", data=FORM))["access_token"]
    answer = await client.get(JWKS)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "public, max-age=300"
    verified = jwt.decode(token, KeySet.import_key_set(answer.json()), algorithms=["ES256"])
    assert verified.header["typ"] == "at+jwt"
    assert (verified.claims["iss"], verified.claims["aud"]) == (ISSUER, AUDIENCE)
    assert verified.claims["username"] == USERNAME


async def test_keys_are_published_without_their_private_half_and_before_they_sign(client, keys, key):
    upcoming = SigningKey.generate("RS256")
    keys.ring = ring((key, 0), (upcoming, 4_000_000_000))
    published = (await client.get(JWKS)).json()["keys"]
    assert {each["kid"] for each in published} == {key.kid, upcoming.kid}
    for each in published:
        assert each["use"] == "sig"
        assert not each.keys() & PRIVATE_MEMBERS


async def test_a_shared_secret_is_never_published(client, keys):
    keys.ring = ring((SigningKey.generate("HS256"), 0), algorithm="HS256")
    assert (await client.get(JWKS)).json() == {"keys": []}
