import ast
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jose import jwt
from jose.backends import ECKey

import auth.passwords
import auth.tokens
from auth.keys import SigningKey
from auth.tokens import MAX_TOKEN_BYTES, TokenError, Tokens
from tests.auth.kit import (
    AUDIENCE,
    ISSUER,
    LEEWAY_SECONDS,
    TTL_SECONDS,
    by_hmac,
    by_key,
    forge,
    open_token,
)

SCOPES = frozenset({"llm", "usage:read"})


@pytest.fixture
def token(tokens):
    return tokens.issue("id-1", "ada", SCOPES).access_token


@pytest.fixture
def refused(tokens):
    """The reason a token is refused for."""

    def refused(token):
        with pytest.raises(TokenError) as caught:
            tokens.verify(token)
        return caught.value.reason

    return refused


def changed(old, changes):
    return {name: value for name, value in (old | changes).items() if value is not None}


@pytest.fixture
def resigned(token, key):
    """The token with other header fields or claims, under a valid signature. A field set to None is left out."""

    def resigned(claims=None, /, **header):
        old_header, old_claims = open_token(token)
        return forge(changed(old_header, header), changed(old_claims, claims or {}), by_key(key))

    return resigned


def test_what_is_issued_is_verified(tokens, clock):
    issued = tokens.issue("id-1", "ada \U0001f600", SCOPES)
    assert issued.expires_in == TTL_SECONDS
    assert issued.scope == "llm usage:read"
    claims = tokens.verify(issued.access_token)
    assert (claims.subject, claims.username, claims.scopes) == ("id-1", "ada \U0001f600", SCOPES)
    assert (claims.issued_at, claims.expires_at, claims.jti) == (clock.now, clock.now + TTL_SECONDS, issued.jti)


def test_the_token_says_what_rfc_9068_asks_for(token, key):
    header, claims = open_token(token)
    assert header == {"alg": "ES256", "typ": "at+jwt", "kid": key.kid}
    assert claims.keys() == {"iss", "aud", "sub", "username", "scope", "iat", "exp", "jti"}
    assert (claims["iss"], claims["aud"], claims["sub"]) == (ISSUER, AUDIENCE, "id-1")


def test_two_tokens_have_two_ids(tokens):
    first, second = (tokens.issue("id-1", "ada", SCOPES) for _ in range(2))
    assert first.jti != second.jti


def test_another_implementation_of_the_same_key_verifies_it(tokens, key, clock):
    clock.now = 4_000_000_000.0  # python-jose's own check of `exp` has the real clock
    token = tokens.issue("id-1", "ada", SCOPES).access_token
    claims = jwt.decode(token, ECKey(key.public, "ES256").to_dict(), ["ES256"], audience=AUDIENCE, issuer=ISSUER)
    assert claims["sub"] == "id-1"


def test_it_is_accepted_up_to_the_end_of_the_leeway_and_no_second_longer(tokens, token, clock, refused):
    clock.now += TTL_SECONDS + LEEWAY_SECONDS - 1
    claims = tokens.verify(token)
    assert not tokens.expired(claims.expires_at)
    clock.now += 1
    assert refused(token) == "expired"
    assert tokens.expired(claims.expires_at)


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", "HS256", "ES384", "RS256", None, 7, ["ES256"]])
def test_only_the_configured_algorithm_is_accepted(resigned, refused, alg):
    assert refused(resigned(alg=alg)) == "wrong_algorithm"


def test_none_without_a_signature_is_refused(token, refused):
    header, claims = open_token(token)
    unsigned = forge(header | {"alg": "none"}, claims, lambda _: b"")
    assert refused(unsigned) == "malformed"
    assert refused(forge(header | {"alg": "none"}, claims, lambda _: b"x")) == "wrong_algorithm"


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER, Encoding.X962])
def test_the_public_key_is_not_a_hmac_secret(token, key, refused, encoding):
    form = PublicFormat.UncompressedPoint if encoding is Encoding.X962 else PublicFormat.SubjectPublicKeyInfo
    secret = key.public.public_bytes(encoding, form)
    header, claims = open_token(token)
    assert refused(forge(header | {"alg": "HS256"}, claims, by_hmac(secret))) == "wrong_algorithm"
    assert refused(forge(header, claims, by_hmac(secret))) == "bad_signature"


def test_a_foreign_key_is_refused_under_its_own_name_and_under_ours(token, key, refused):
    stranger = SigningKey.generate()
    header, claims = open_token(token)
    assert refused(forge(header | {"kid": stranger.kid}, claims, by_key(stranger))) == "unknown_key"
    assert refused(forge(header, claims, by_key(stranger))) == "bad_signature"


def test_a_key_in_the_header_is_not_used(token, refused):
    stranger = SigningKey.generate()
    header, claims = open_token(token)
    jwk = ECKey(stranger.public, "ES256").to_dict()
    embedded = header | {"jwk": jwk, "jku": "https://evil.test/jwks", "x5u": "https://evil.test/x"}
    assert refused(forge(embedded, claims, by_key(stranger))) == "bad_signature"


@pytest.mark.parametrize("kid", [None, "", "../../../dev/null", "' OR 1=1 --", "x\0", 7, ["a"], {"a": 1}])
def test_a_kid_that_names_no_key_is_refused(resigned, refused, kid):
    assert refused(resigned(kid=kid)) == "unknown_key"


@pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"crit": []}, {"typ": "JWT"}, {"typ": None}], ids=str)
def test_a_header_that_is_not_of_an_access_token_is_refused(resigned, refused, header):
    assert refused(resigned(**header)) == "malformed"


def test_alg_and_kid_are_looked_at_before_any_cryptography(token, key, refused, monkeypatch):
    def never(*_):
        raise AssertionError("the signature was checked")

    monkeypatch.setattr(ECKey, "verify", never)
    header, claims = open_token(token)
    assert refused(forge(header | {"alg": "HS256"}, claims, by_key(key))) == "wrong_algorithm"
    assert refused(forge(header | {"kid": "x"}, claims, by_key(key))) == "unknown_key"


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "username", "scope", "iat", "exp", "jti"])
def test_every_claim_is_required(resigned, refused, claim):
    assert refused(resigned({claim: None})) == "missing_claim"


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "https://evil.test"}, "wrong_issuer"),
        ({"iss": ISSUER + "/"}, "wrong_issuer"),
        ({"iss": [ISSUER]}, "malformed"),
        ({"aud": "another"}, "wrong_audience"),
        ({"aud": AUDIENCE + "x"}, "wrong_audience"),
        ({"aud": ["another"]}, "wrong_audience"),
        ({"aud": []}, "wrong_audience"),
        ({"aud": {AUDIENCE: 1}}, "wrong_audience"),
        ({"aud": 7}, "wrong_audience"),
        ({"sub": 7}, "malformed"),
        ({"sub": ["id-1"]}, "malformed"),
        ({"username": {}}, "malformed"),
        ({"scope": ["llm"]}, "malformed"),
        ({"scope": "llm  admin"}, "malformed"),
        ({"jti": 1}, "malformed"),
        ({"iat": "1"}, "malformed"),
        ({"exp": "4000000000"}, "malformed"),
        ({"exp": True}, "malformed"),
        ({"exp": -1}, "malformed"),
        ({"exp": float("nan")}, "malformed"),
        ({"exp": float("inf")}, "malformed"),
        ({"exp": 10**400}, "malformed"),
        ({"exp": 0}, "expired"),
    ],
    ids=str,
)
def test_wrong_claims_under_a_valid_signature_are_refused(resigned, refused, claims, reason):
    assert refused(resigned(claims)) == reason


def test_one_of_several_audiences_will_do(tokens, resigned):
    assert tokens.verify(resigned({"aud": ["another", AUDIENCE]}))


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b'"x"', b"7", b"{", b"\xff\xfe", b"[" * 5000, b'{"a":' * 900, "{}".encode("utf-16")],
)
def test_a_header_or_body_that_is_no_json_object_is_malformed(token, key, refused, content):
    header, claims = open_token(token)
    assert refused(forge(content, claims, by_key(key))) == "malformed"
    assert refused(forge(header, content, by_key(key))) == "malformed"


@pytest.mark.parametrize(
    "text", ["", ".", "..", "...", "a.b", "a.b.c.d", "a.b.c", "é.é.é", "\ud800.a.a", "\0", "a b.c.d", " ", "null"]
)
def test_garbage_is_malformed(refused, text):
    assert refused(text) == "malformed"


def test_a_token_over_8_kib_is_refused_even_if_it_is_right(tokens, token, resigned, refused):
    padding = MAX_TOKEN_BYTES - len(token)
    fits, over = (resigned({"note": "x" * size}) for size in (int(padding * 0.7), padding))
    assert len(fits) < MAX_TOKEN_BYTES < len(over)
    assert tokens.verify(fits)
    assert refused(over) == "malformed"


MUTABLE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400, deadline=None)


@MUTABLE
@given(data=st.data())
def test_any_change_of_any_character_is_refused(tokens, token, data):
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(max_codepoint=0xFF).filter(lambda c: c != token[at]))
    before, after = token[:at], token[at + 1 :]
    for mutant in (before + other + after, before + other + token[at:], before + after):
        with pytest.raises(TokenError):
            tokens.verify(mutant)


def test_the_last_character_has_no_second_spelling(tokens, token):
    """Its spare bits and the padding are what a lenient base64 decoder overlooks."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for segment in range(3):
        parts = token.split(".")
        for other in [parts[segment][:-1] + c for c in alphabet] + [parts[segment] + c for c in ("=", "==", "A", "\n")]:
            if other != parts[segment]:
                with pytest.raises(TokenError):
                    tokens.verify(".".join([*parts[:segment], other, *parts[segment + 1 :]]))


@MUTABLE
@given(text=st.text() | st.from_regex(r"[A-Za-z0-9_\-]{1,20}\.[A-Za-z0-9_\-]{1,20}\.[A-Za-z0-9_\-]{1,20}"))
def test_no_text_is_a_token_or_anything_but_a_token_error(tokens, text):
    with pytest.raises(TokenError):
        tokens.verify(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@MUTABLE
@given(name=st.sampled_from(["alg", "typ", "kid", "crit", "x"]), value=json_values)
def test_any_value_in_a_header_gives_claims_or_a_token_error(tokens, token, key, name, value):
    header, claims = open_token(token)
    try:
        tokens.verify(forge(header | {name: value}, claims, by_key(key)))
    except TokenError:
        pass
    else:
        assert name == "x" or header[name] == value


@MUTABLE
@given(name=st.sampled_from(["iss", "aud", "sub", "username", "scope", "iat", "exp", "jti"]), value=json_values)
def test_any_value_in_a_claim_gives_claims_or_a_token_error(tokens, token, key, name, value):
    header, claims = open_token(token)
    try:
        verified = tokens.verify(forge(header, claims | {name: value}, by_key(key)))
    except TokenError:
        return
    assert isinstance(verified.subject, str)
    assert isinstance(verified.expires_at, int)


def test_tokens_of_a_service_with_another_audience_or_issuer_are_refused(key, clock, tokens, refused):
    for issuer, audience, reason in [(ISSUER, "x", "wrong_audience"), ("x", AUDIENCE, "wrong_issuer")]:
        other = Tokens(key, issuer=issuer, audience=audience, ttl_seconds=60, leeway_seconds=0, clock=clock)
        assert refused(other.issue("id-1", "ada", SCOPES).access_token) == reason


def test_reasons_are_a_closed_set_of_words():
    words = [error.reason for error in TokenError.__subclasses__()]
    assert sorted(words) == sorted(
        {
            "malformed",
            "expired",
            "wrong_audience",
            "wrong_issuer",
            "wrong_algorithm",
            "unknown_key",
            "bad_signature",
            "missing_claim",
        }
    )


def test_an_error_does_not_quote_the_token(tokens, token):
    with pytest.raises(TokenError) as caught:
        tokens.verify(token + "x")
    assert str(caught.value) == ""


@pytest.mark.parametrize("module", [auth.tokens, auth.passwords])
def test_the_pure_modules_do_not_know_the_web_framework(module):
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name and name.startswith(("fastapi", "starlette"))}


def test_the_forge_makes_what_the_service_makes(tokens, token, key):
    """Otherwise the tests above would be refused for the wrong reason."""
    assert tokens.verify(forge(*open_token(token), by_key(key)))
