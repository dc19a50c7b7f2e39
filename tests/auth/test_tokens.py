"""Access tokens: what is in them, what is required of them, and that others can verify them."""

import uuid
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jose import jwt as jose_jwt
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import KeySet

from auth.jwt import MAX_TOKEN_BYTES, TokenError
from auth.keys import KeyRing, NoSigningKey, RingKey, SigningKey
from auth.tokens import Tokens
from tests.auth.kit import AUDIENCE, ISSUER, LEEWAY_SECONDS, TTL_SECONDS, forge, open_token

SCOPES = frozenset({"llm", "usage:read"})
REQUIRED = ["iss", "aud", "sub", "client_id", "username", "scope", "iat", "exp", "jti"]


def ring_of(*keys, algorithm="ES256"):
    return KeyRing(
        [RingKey(key, at) for at, key in enumerate(keys)],
        algorithm=algorithm,
        ttl_seconds=TTL_SECONDS,
        leeway_seconds=LEEWAY_SECONDS,
    )


def issue(tokens, **options):
    options = {"subject": "id-1", "username": "ada", "scopes": SCOPES, "client_id": "app", **options}
    return tokens.issue(**options)


@pytest.fixture
def token(tokens):
    return issue(tokens).access_token


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
    """The token with other header members or claims, under a valid signature. What is set to None is left out."""

    def resigned(claims=None, /, **header):
        old_header, old_claims = open_token(token)
        return forge(changed(old_header, header), changed(old_claims, claims or {}), key.signer.sign)

    return resigned


def test_what_is_issued_is_verified(tokens, clock):
    clock.now += 0.123
    issued = issue(tokens, username="ada \U0001f600", session_id="session-1", team="team-1")
    assert (issued.expires_in, issued.scope) == (TTL_SECONDS, "llm usage:read")
    claims = tokens.verify(issued.access_token)
    assert (claims.subject, claims.username, claims.scopes) == ("id-1", "ada \U0001f600", SCOPES)
    assert (claims.client_id, claims.session_id, claims.team) == ("app", "session-1", "team-1")
    assert (claims.expires_at, claims.jti) == (int(clock.now) + TTL_SECONDS, issued.jti)


def test_the_time_of_issue_is_known_to_the_millisecond(tokens, clock):
    """A revocation compares instants, and `iat` has whole seconds."""
    clock.now += 0.123
    first = tokens.verify(issue(tokens).access_token).issued_at
    clock.now += 0.002
    second = tokens.verify(issue(tokens).access_token).issued_at
    assert clock.now - 0.0011 < second <= clock.now
    assert first < second


def test_the_token_says_what_rfc_9068_asks_for(token, key, clock):
    header, claims = open_token(token)
    assert header == {"alg": "ES256", "typ": "at+jwt", "kid": key.kid}
    assert claims.keys() == set(REQUIRED)
    assert (claims["iss"], claims["aud"], claims["sub"], claims["client_id"]) == (ISSUER, AUDIENCE, "id-1", "app")
    assert (claims["iat"], claims["exp"]) == (clock.now, clock.now + TTL_SECONDS)
    assert uuid.UUID(claims["jti"]).version == 7


def test_session_and_team_are_in_it_where_there_are_any(tokens):
    _, claims = open_token(issue(tokens, session_id="session-1", team="team-1").access_token)
    assert (claims["sid"], claims["team"]) == ("session-1", "team-1")
    claims = tokens.verify(issue(tokens).access_token)
    assert (claims.session_id, claims.team) == ("", "")


def test_two_tokens_have_two_ids(tokens):
    assert issue(tokens).jti != issue(tokens).jti


# others verify our tokens


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
def test_joserfc_verifies_our_tokens_with_our_jwk_set(keys, tokens, clock, algorithm):
    others, mine = SigningKey.generate("ES256"), SigningKey.generate(algorithm)
    keys.ring = ring_of(others, mine, algorithm=algorithm)
    key_set = KeySet.import_key_set(keys.ring.jwks(clock()))
    verified = joserfc_jwt.decode(issue(tokens).access_token, key_set, algorithms=[algorithm])
    assert verified.header == {"alg": algorithm, "typ": "at+jwt", "kid": mine.kid}
    rules = {"iss": ISSUER, "aud": AUDIENCE, "sub": "id-1", "client_id": "app"}
    options: Any = {name: {"essential": True, "value": value} for name, value in rules.items()}
    joserfc_jwt.JWTClaimsRegistry(now=lambda: int(clock()), **options).validate(verified.claims)


def test_python_jose_verifies_them_by_its_own_reading(tokens, key, clock):
    clock.now = 4_000_000_000.0  # its check of `exp` has the real clock
    token = issue(tokens).access_token
    claims = jose_jwt.decode(token, key.jwk() or {}, ["ES256"], audience=AUDIENCE, issuer=ISSUER)
    assert claims["sub"] == "id-1"


def test_hs256_signs_and_verifies_where_it_is_configured(keys, tokens):
    keys.ring = ring_of(SigningKey.generate("HS256"), algorithm="HS256")
    token = issue(tokens).access_token
    assert open_token(token)[0]["alg"] == "HS256"
    assert tokens.verify(token)


# keys that change


def test_a_change_of_the_ring_is_seen_at_the_next_call(keys, tokens, token, key, refused):
    other = SigningKey.generate("RS256")
    keys.ring = ring_of(key, other)
    later = issue(tokens).access_token
    assert open_token(later)[0] == {"alg": "RS256", "typ": "at+jwt", "kid": other.kid}
    keys.ring = ring_of(other)
    assert tokens.verify(later)
    assert refused(token) == "unknown_key"


def test_without_a_key_nothing_is_signed_and_nothing_accepted(keys, tokens, token, refused):
    tokens.check_can_issue()
    keys.ring = ring_of()
    with pytest.raises(NoSigningKey):
        issue(tokens)
    with pytest.raises(NoSigningKey):
        tokens.check_can_issue()
    assert refused(token) == "unknown_key"


# what is required


def test_it_is_accepted_up_to_the_end_of_the_leeway_and_no_second_longer(tokens, token, clock, refused):
    clock.now += TTL_SECONDS + LEEWAY_SECONDS - 1
    claims = tokens.verify(token)
    assert not tokens.expired(claims.expires_at)
    clock.now += 1
    assert refused(token) == "expired"
    assert tokens.expired(claims.expires_at)


@pytest.mark.parametrize("claim", REQUIRED)
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
        ({"client_id": 7}, "malformed"),
        ({"username": {}}, "malformed"),
        ({"sid": 7}, "malformed"),
        ({"team": ["team-1"]}, "malformed"),
        ({"scope": ["llm"]}, "malformed"),
        ({"scope": "llm  admin"}, "malformed"),
        ({"jti": 1}, "malformed"),
        ({"jti": "1"}, "malformed"),
        ({"jti": str(uuid.UUID(int=0))}, "malformed"),
        ({"jti": "6f1e9a3e-1d1b-4a55-8f4e-0d4f5a3b2c1d"}, "malformed"),  # of version 4
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


def test_a_token_over_8_kib_is_refused_even_if_it_is_right(tokens, token, resigned, refused):
    padding = MAX_TOKEN_BYTES - len(token)
    fits, over = (resigned({"note": "x" * size}) for size in (int(padding * 0.7), padding))
    assert len(fits) < MAX_TOKEN_BYTES < len(over)
    assert tokens.verify(fits)
    assert refused(over) == "malformed"


# whatever there is


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
        tokens.verify(forge(header | {name: value}, claims, key.signer.sign))
    except TokenError:
        pass
    else:
        assert name == "x" or header[name] == value


@MUTABLE
@given(name=st.sampled_from([*REQUIRED, "sid", "team"]), value=json_values)
def test_any_value_in_a_claim_gives_claims_or_a_token_error(tokens, token, key, name, value):
    header, claims = open_token(token)
    with suppress(TokenError):
        verified = tokens.verify(forge(header, claims | {name: value}, key.signer.sign))
        texts = (verified.subject, verified.username, verified.client_id, verified.session_id, verified.team)
        assert all(isinstance(text, str) for text in texts)
        assert isinstance(verified.expires_at, int | float)


def test_an_error_does_not_quote_the_token(tokens, token):
    with pytest.raises(TokenError) as caught:
        tokens.verify(token + "x")
    assert str(caught.value) == ""


def test_the_forge_makes_what_the_service_makes(tokens, token, key):
    """Otherwise the tests above would be refused for the wrong reason."""
    assert tokens.verify(forge(*open_token(token), key.signer.sign))


def test_tokens_of_a_service_with_another_audience_or_issuer_are_refused(keys, clock, refused):
    for issuer, audience, reason in [(ISSUER, "x", "wrong_audience"), ("x", AUDIENCE, "wrong_issuer")]:
        other = Tokens(keys, issuer=issuer, audience=audience, ttl_seconds=60, leeway_seconds=0, clock=clock)
        assert refused(issue(other).access_token) == reason
