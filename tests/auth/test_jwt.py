"""The strict reader that our own tokens and those of an outside provider go through."""

import ast
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jose import jwk
from jose.utils import base64url_decode

from auth import jwt
from auth.jwt import (
    MAX_TOKEN_BYTES,
    BadSignatureError,
    MalformedTokenError,
    MissingClaimError,
    TokenError,
    WrongAlgorithmError,
    names,
    parse,
    string_claim,
    time_claim,
    verify_signature,
)
from auth.keys import SigningKey
from tests.auth.kit import by_hmac, forge

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
HEADER = {"alg": "ES256", "kid": "k"}
CLAIMS = {"sub": "id-1", "n": {"a": [1, 2]}}


def signed(header=HEADER, claims=CLAIMS):
    return forge(header, claims, by_hmac(b"whoever"))


def refuses(token):
    with pytest.raises(MalformedTokenError):
        parse(token).claims()


def test_header_and_claims_are_read():
    parsed = parse(signed())
    assert (parsed.header, parsed.claims()) == (HEADER, CLAIMS)


@pytest.mark.parametrize(
    "text", ["", ".", "..", "...", "a.b", "a.b.c.d", "a.b.c", "é.é.é", "\ud800.a.a", "\0", "a b.c.d", " ", "null"]
)
def test_what_is_not_three_segments_of_base64url_is_refused(text):
    refuses(text)


def test_a_jwe_and_the_json_serialization_are_refused():
    head, payload, signature = signed().split(".")
    refuses(f"{head}.{payload}.{payload}.{payload}.{signature}")
    refuses(f'{{"payload":"{payload}","signatures":[{{"protected":"{head}","signature":"{signature}"}}]}}')


def test_there_is_one_spelling_only():
    """Spare bits of the last character, padding and line ends are what a lenient decoder overlooks."""
    for segment in range(3):
        parts = signed().split(".")
        last = parts[segment]
        spellings = [last[:-1] + c for c in ALPHABET] + [last + c for c in ("=", "==", "A", "\n", " ", "+")]
        for other in (spelling for spelling in spellings if spelling != last):
            token = ".".join([*parts[:segment], other, *parts[segment + 1 :]])
            try:
                parsed = parse(token)
            except MalformedTokenError:
                continue
            # Another value, not the same in another spelling.
            assert base64url_decode(other.encode()) != base64url_decode(last.encode())
            assert parsed.token == token


def test_a_token_over_8_kib_is_refused_and_one_of_8_kib_is_not():
    at_most = next(n for n in range(MAX_TOKEN_BYTES, 0, -1) if len(signed(claims={"n": "x" * n})) <= MAX_TOKEN_BYTES)
    assert len(parse(signed(claims={"n": "x" * at_most})).token) > MAX_TOKEN_BYTES - 2
    refuses(signed(claims={"n": "x" * (at_most + 2)}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"7",
        b"{",
        b"{}{}",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"[" * 5000,
        b'{"a":' * 900,
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": ' + b"9" * 5000 + b"}",
        "{}".encode("utf-16"),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_header_or_claims_that_are_no_json_object_are_refused(content):
    refuses(signed(header=content))
    refuses(signed(claims=content))


@pytest.mark.parametrize(
    "content",
    [
        b'{"alg": "none", "alg": "ES256"}',
        b'{"alg": "ES256", "alg": "ES256"}',
        rb'{"alg": "ES256", "\u0061lg": "none"}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": [{"b": 1, "c": 0, "b": 2}]}',
    ],
)
def test_a_name_that_stands_twice_is_refused_in_header_and_claims_and_inside_them(content):
    refuses(signed(header=content))
    refuses(signed(claims=content))


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "crit", "b64", "zip"])
@pytest.mark.parametrize("value", [None, [], "x"])
def test_header_members_that_bring_a_key_or_change_the_rules_are_refused(name, value):
    refuses(signed(HEADER | {name: value}))
    assert parse(signed(claims={name: value})).claims() == {name: value}


@settings(max_examples=500, deadline=None)
@given(text=st.text() | st.from_regex(r"[A-Za-z0-9_\-]{1,20}\.[A-Za-z0-9_\-]{1,20}\.[A-Za-z0-9_\-]{1,20}"))
def test_any_text_is_read_or_refused(text):
    with suppress(MalformedTokenError):
        parse(text).claims()


@settings(max_examples=500, deadline=None)
@given(header=st.binary(max_size=60), claims=st.binary(max_size=60))
def test_any_bytes_in_header_and_claims_are_read_or_refused(header, claims):
    with suppress(MalformedTokenError):
        parse(signed(header, claims)).claims()


# signatures


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "HS256"])
def test_a_signature_is_by_that_key_or_refused(algorithm):
    key, other = SigningKey.generate(algorithm), SigningKey.generate(algorithm)
    parsed = parse(forge({"alg": algorithm}, CLAIMS, key.signer.sign))
    verify_signature(parsed, key.verifier, algorithm)
    with pytest.raises(BadSignatureError):
        verify_signature(parsed, other.verifier, algorithm)


def test_the_algorithm_is_the_callers_to_say_and_not_the_tokens():
    key = SigningKey.generate()
    parsed = parse(forge({"alg": "ES256"}, CLAIMS, key.signer.sign))
    for algorithm in ("RS256", "HS256", "none", "es256"):
        with pytest.raises(WrongAlgorithmError):
            verify_signature(parsed, key.verifier, algorithm)


def test_a_key_of_another_kind_than_the_algorithm_verifies_nothing():
    rsa, ec = SigningKey.generate("RS256"), SigningKey.generate()
    with pytest.raises(BadSignatureError):
        verify_signature(parse(forge({"alg": "RS256"}, CLAIMS, rsa.signer.sign)), ec.verifier, "RS256")


def test_a_key_of_somebody_else_will_do():
    """As an outside provider's key set has it."""
    key = SigningKey.generate("RS256")
    theirs = jwk.construct(key.jwk() or {})
    verify_signature(parse(forge({"alg": "RS256"}, {}, key.signer.sign)), theirs, "RS256")


# claims


def test_an_audience_is_one_or_in_a_list_and_compared_whole():
    assert names("a", "a")
    assert names(["b", "a"], "a")
    for aud in ("ab", "A", ["ab"], [["a"]], [], {"a": 1}, None, 7, True):
        assert not names(aud, "a")


def test_claims_that_are_missing_or_of_another_type_are_told_apart():
    assert string_claim({"s": ""}, "s") == ""
    assert time_claim({"t": 1.5}, "t") == 1.5
    for read in (string_claim, time_claim):
        with pytest.raises(MissingClaimError):
            read({}, "s")
    values: list[Any] = [None, 7, ["x"], {}, True]
    for value in values:
        with pytest.raises(MalformedTokenError):
            string_claim({"s": value}, "s")
    for moment in (None, "1", True, False, -1, float("nan"), float("inf"), 10**400, 253_402_300_800, [1]):
        with pytest.raises(MalformedTokenError):
            time_claim({"t": moment}, "t")


def test_reasons_are_a_closed_set_of_words_and_say_nothing_of_the_token():
    assert {error.reason for error in TokenError.__subclasses__()} == {
        "malformed",
        "wrong_algorithm",
        "unknown_key",
        "bad_signature",
        "missing_claim",
        "wrong_issuer",
        "wrong_audience",
        "not_yet_valid",
        "expired",
    }
    with pytest.raises(TokenError) as caught:
        parse("secret")
    assert str(caught.value) == ""


@pytest.mark.parametrize("module", ["jwt", "keys", "keystore", "rotation", "tokens", "passwords"])
def test_the_pure_modules_do_not_know_the_web_framework(module):
    path = Path(jwt.__file__).with_name(f"{module}.py")
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imported = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert imported
    assert not {name for name in imported if name.startswith(("fastapi", "starlette"))}
