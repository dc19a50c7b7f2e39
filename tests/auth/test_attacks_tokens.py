"""Forged access tokens. Each must be refused for the reason given: for another it would not have been stopped by what
is there to stop it.

The ring holds what an attacker could confuse: the ES256 key that signs, an RS256 key that signed before it and is
accepted still, a key that is published and has yet to sign, and an HS256 secret, which is of no use as configured.
"""

import json
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jose.backends import ECKey
from jose.backends.cryptography_backend import CryptographyRSAKey

from auth.errors import InvalidToken
from auth.jwt import TokenError
from auth.keys import KeyRing, RingKey, SigningKey
from auth.rotation import Keys
from auth.tokens import Tokens
from tests.auth.kit import AUDIENCE, ISSUER, LEEWAY_SECONDS, TTL_SECONDS, Clock, by_hmac, forge, open_token

SWITCHED_AGO = 100  # seconds since ES256 took over from RS256
NONE = ["none", "None", "NONE", "nOnE", "nonE"]


@pytest.fixture(scope="session")
def ring_keys(key):
    """Every key there is, and one of an attacker's for each algorithm."""
    return SimpleNamespace(
        es=key,
        rs=SigningKey.generate("RS256"),
        hs=SigningKey.generate("HS256"),
        next=SigningKey.generate(),
        evil_es=SigningKey.generate(),
        evil_rs=SigningKey.generate("RS256"),
    )


@dataclass
class World:
    """One worker, and what an attacker can know and do."""

    keys: Keys
    tokens: Tokens
    clock: Clock
    ring_keys: SimpleNamespace

    def set_ring(self, *keys, algorithm="ES256"):
        self.keys.ring = KeyRing(keys, algorithm=algorithm, ttl_seconds=TTL_SECONDS, leeway_seconds=LEEWAY_SECONDS)

    def token(self):
        return self.tokens.issue(subject="id-1", username="ada", scopes=["llm"], client_id="app").access_token

    def header(self, key=None, **members):
        key = key or self.ring_keys.es
        return {"alg": key.algorithm, "typ": "at+jwt", "kid": key.kid, **members}

    def claims(self, **claims):
        return {**open_token(self.token())[1], **claims}

    def signed(self, key=None, /, claims=None, **header):
        """By a key of ours, with another header or other claims: what only its owner should be able to make."""
        key = key or self.ring_keys.es
        return forge(self.header(key, **header), claims or self.claims(), key.signer.sign)

    def reason(self, token):
        """Why it is refused; empty if it is accepted."""
        try:
            self.tokens.verify(token)
        except TokenError as error:
            return error.reason
        return ""


@pytest.fixture
def world(keys, tokens, clock, ring_keys):
    world = World(keys, tokens, clock, ring_keys)
    world.set_ring(
        RingKey(ring_keys.rs, 0),
        RingKey(ring_keys.es, clock() - SWITCHED_AGO),
        RingKey(ring_keys.hs, clock() - 1),  # the newest: were it of use, it would sign
        RingKey(ring_keys.next, clock() + 600),
    )
    return world


def test_what_is_attacked_here_is_accepted_unharmed(world):
    for key in (world.ring_keys.es, world.ring_keys.rs):
        assert world.reason(world.signed(key)) == ""
    assert world.reason(world.token()) == ""


# confusion of algorithms


def public_forms(key):
    """Every form of a public key that somebody might take for a secret."""
    public, jwk = key.secret.public_key(), key.jwk()
    wrapped, bare = PublicFormat.SubjectPublicKeyInfo, PublicFormat.PKCS1
    kinds = [(Encoding.PEM, wrapped), (Encoding.DER, wrapped)]
    if key.algorithm == "RS256":
        kinds += [(Encoding.PEM, bare), (Encoding.DER, bare)]
    else:
        kinds += [(Encoding.X962, PublicFormat.UncompressedPoint), (Encoding.X962, PublicFormat.CompressedPoint)]
    forms = [public.public_bytes(encoding, form) for encoding, form in kinds]
    texts = [json.dumps(jwk), json.dumps(jwk, separators=(",", ":"), sort_keys=True), json.dumps({"keys": [jwk]})]
    return [*forms, forms[0].strip(), *(text.encode() for text in texts), key.kid.encode(), b""]


@pytest.mark.parametrize("victim", ["es", "rs"])
def test_a_public_key_is_no_secret(world, victim):
    key = getattr(world.ring_keys, victim)
    forms = public_forms(key)
    assert len(forms) == 10
    for secret in forms:
        for algorithm in ("HS256", "HS384", "HS512"):
            forged = forge(world.header(key, alg=algorithm), world.claims(), by_hmac(secret))
            assert world.reason(forged) == "wrong_algorithm"
        assert world.reason(forge(world.header(key), world.claims(), by_hmac(secret))) == "bad_signature"
        assert world.reason(forge(world.header(world.ring_keys.hs), world.claims(), by_hmac(secret))) == "unknown_key"


@pytest.mark.parametrize("alg", ["RS256", "HS256", "ES384", "PS256", "es256", "ES256 ", "", None, 7, ["ES256"], {}])
def test_a_key_is_for_its_own_algorithm_only_however_good_the_signature(world, alg):
    assert world.reason(world.signed(alg=alg)) == "wrong_algorithm"


@pytest.mark.parametrize("alg", ["RS384", "RS512"])
def test_a_key_with_a_stronger_hash_is_not_the_configured_one_either(world, alg):
    rs = world.ring_keys.rs
    forged = forge(world.header(rs, alg=alg), world.claims(), CryptographyRSAKey(rs.secret, alg).sign)
    assert world.reason(forged) == "wrong_algorithm"


@pytest.mark.parametrize(("name", "signer"), [("es", "rs"), ("rs", "es"), ("es", "evil_rs"), ("rs", "evil_es")])
def test_the_kid_of_one_key_and_the_signature_of_another_do_not_go_together(world, name, signer):
    named, by = getattr(world.ring_keys, name), getattr(world.ring_keys, signer)
    for alg, reason in ((by.algorithm, "wrong_algorithm"), (named.algorithm, "bad_signature")):
        assert world.reason(forge(world.header(named, alg=alg), world.claims(), by.signer.sign)) == reason


@pytest.mark.parametrize("alg", NONE)
def test_none_is_no_algorithm_with_or_without_a_signature(world, alg):
    genuine = world.token()
    header, claims = world.header(alg=alg), world.claims(sub="somebody else")
    unsigned = forge(header, claims, lambda _: b"")
    assert world.reason(unsigned) == "malformed"
    assert world.reason(unsigned.removesuffix(".")) == "malformed"
    assert world.reason(f"{unsigned}{genuine.split('.')[2]}") == "wrong_algorithm"
    for kid, reason in ((None, "unknown_key"), ("", "unknown_key"), (world.ring_keys.es.kid, "wrong_algorithm")):
        assert world.reason(forge({**header, "kid": kid}, claims, lambda _: b"x")) == reason


def test_alg_and_kid_are_looked_at_before_any_cryptography(world, monkeypatch):
    def never(*_):
        raise AssertionError("the signature was checked")

    wrong_alg, wrong_kid = world.signed(alg="HS256"), world.signed(kid="x")
    monkeypatch.setattr(ECKey, "verify", never)
    assert world.reason(wrong_alg) == "wrong_algorithm"
    assert world.reason(wrong_kid) == "unknown_key"


# keys that come with the token


def embedded(evil):
    """Each way of RFC 7515 §4.1 to say, in the token, which key is to verify it."""
    address, thumbprints = "https://evil.test/keys", ({"x5t": "x"}, {"x5t#S256": "x"})
    members = ({"jwk": evil.jwk()}, {"jku": address}, {"x5u": address}, {"x5c": ["MIIB"]}, *thumbprints)
    return [*members, {name: value for each in members for name, value in each.items()}]


@pytest.mark.parametrize("victim", ["es", "rs"])
def test_a_key_in_the_header_is_refused_whoever_signed(world, victim):
    ours, evil = getattr(world.ring_keys, victim), getattr(world.ring_keys, f"evil_{victim}")
    for members, key in product(embedded(evil), (ours, evil)):
        for kid in (ours.kid, evil.kid):
            forged = forge(world.header(key, kid=kid, **members), world.claims(), key.signer.sign)
            assert world.reason(forged) == "malformed"


def test_a_foreign_key_is_refused_under_its_own_name_and_under_ours(world):
    evil = world.ring_keys.evil_es
    assert world.reason(forge(world.header(evil), world.claims(), evil.signer.sign)) == "unknown_key"
    assert world.reason(forge(world.header(), world.claims(), evil.signer.sign)) == "bad_signature"


KIDS = [
    "",
    "../../../../dev/null",
    "/dev/null",
    "signing-key.pem",
    "file:///etc/hostname",
    "' OR 1=1 --",
    "x' UNION SELECT 'c2VjcmV0' --",
    '"; DROP TABLE signing_keys; --',
    "$(id)",
    "x\0",
    "x\r\nX-Evil: 1",
    "\ud800",
    "é",
    "k" * 4000,
    0,
    1,
    1.5,
    True,
    ["a"],
    {"kid": "a"},
    None,
]


@pytest.mark.parametrize("kid", KIDS, ids=lambda kid: repr(kid)[:30])
def test_a_kid_is_looked_up_in_memory_and_nowhere_else(world, kid):
    assert world.reason(world.signed(kid=kid)) == "unknown_key"


def test_a_kid_is_compared_whole_and_as_it_is(world):
    kid = world.ring_keys.es.kid
    swapped = kid.swapcase()
    for other in (kid + " ", " " + kid, kid[:-1], kid + "A", kid + "\0", swapped, [kid], {kid: 1}):
        assert world.reason(world.signed(kid=other)) == "unknown_key"
    header = world.header()
    del header["kid"]
    assert world.reason(forge(header, world.claims(), world.ring_keys.es.signer.sign)) == "unknown_key"


# rules that the token would like to change


@pytest.mark.parametrize(
    "members",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": None},
        {"crit": ["b64"], "b64": False},
        {"b64": False},
        {"zip": "DEF"},
        {"typ": "JWT"},
        {"typ": "AT+JWT"},
        {"typ": "rt+jwt"},
        {"typ": "logout+jwt"},
        {"typ": None},
        {"typ": ["at+jwt"]},
    ],
    ids=str,
)
def test_a_header_that_is_not_of_an_access_token_is_refused(world, members):
    assert world.reason(world.signed(**members)) == "malformed"


@pytest.mark.parametrize(("name", "evil"), [("alg", "none"), ("kid", "evil"), ("typ", "JWT"), ("x", 1)])
def test_a_header_member_that_stands_twice_is_refused(world, name, evil):
    header = world.header(x=0)
    for first, second in ((evil, header[name]), (header[name], evil), (header[name], header[name])):
        rest = {member: value for member, value in header.items() if member != name}
        twice = f'{{"{name}": {json.dumps(first)}, {json.dumps(rest)[1:-1]}, "{name}": {json.dumps(second)}}}'
        assert world.reason(forge(twice.encode(), world.claims(), world.ring_keys.es.signer.sign)) == "malformed"


@pytest.mark.parametrize(
    ("name", "evil"),
    [("sub", "root"), ("scope", "admin"), ("exp", 4e9), ("aud", "x"), ("iss", "x"), ("username", "root"), ("jti", "x")],
)
def test_a_claim_that_stands_twice_is_refused(world, name, evil):
    claims = world.claims()
    spellings = (f'"{name}"', f'"\\u{ord(name[0]):04x}{name[1:]}"')  # the same name, written in another way
    for spelling in spellings:
        body = f"{{{spelling}: {json.dumps(evil)}, {json.dumps(claims)[1:]}"
        assert world.reason(forge(world.header(), body.encode(), world.ring_keys.es.signer.sign)) == "malformed"


# time


@pytest.mark.parametrize(
    ("past_leeway", "reason"), [(-1, ""), (-0.001, ""), (0, "expired"), (0.001, "expired"), (1, "expired")]
)
def test_at_the_edge_of_the_leeway(world, past_leeway, reason):
    exp = world.clock() - LEEWAY_SECONDS - past_leeway
    assert world.reason(world.signed(claims=world.claims(exp=exp))) == reason


@pytest.mark.parametrize("exp", ["4000000000", True, None, [4e9], -1, 1e999, float("nan"), 10**400, 253_402_300_800])
def test_a_token_that_would_never_expire_is_refused(world, exp):
    assert world.reason(world.signed(claims=world.claims(exp=exp))) == "malformed"


# another place


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "https://evil.test"}, "wrong_issuer"),
        ({"iss": f"{ISSUER}/"}, "wrong_issuer"),
        ({"iss": f"{ISSUER}.evil.test"}, "wrong_issuer"),
        ({"iss": ISSUER.upper()}, "wrong_issuer"),
        ({"iss": [ISSUER]}, "malformed"),
        ({"aud": "another"}, "wrong_audience"),
        ({"aud": ["another", f"{AUDIENCE}2"]}, "wrong_audience"),
        ({"aud": AUDIENCE[:-1]}, "wrong_audience"),
        ({"aud": f"{AUDIENCE} another"}, "wrong_audience"),
        ({"aud": {AUDIENCE: True}}, "wrong_audience"),
        ({"aud": [[AUDIENCE]]}, "wrong_audience"),
        ({"aud": None}, "wrong_audience"),
    ],
    ids=str,
)
def test_a_token_for_another_audience_or_by_another_issuer_is_refused(world, claims, reason):
    """As of a second service with the same keys."""
    assert world.reason(world.signed(claims=world.claims(**claims))) == reason


# keys over time


def test_a_key_that_has_yet_to_sign_is_accepted_because_it_is_published(world):
    assert world.reason(world.signed(world.ring_keys.next)) == ""


def test_a_retired_key_is_refused_whatever_expiry_its_token_claims(world):
    rs = world.ring_keys.rs
    forged = world.signed(rs, claims=world.claims(exp=world.clock() + 10 * TTL_SECONDS))
    world.clock.now += TTL_SECONDS + LEEWAY_SECONDS - SWITCHED_AGO - 1
    assert world.reason(forged) == ""
    world.clock.now += 1
    assert world.reason(forged) == "unknown_key"


@pytest.mark.parametrize("victim", ["es", "rs", "next"])
def test_a_revoked_key_is_refused_at_once(world, victim):
    revoked = getattr(world.ring_keys, victim)
    token = world.signed(revoked)
    assert world.reason(token) == ""
    world.set_ring(*(each for each in world.keys.ring.keys if each.key is not revoked))
    assert world.reason(token) == "unknown_key"


def test_a_secret_is_of_use_only_where_it_is_configured(world):
    hs = world.ring_keys.hs
    assert world.reason(world.signed(hs)) == "unknown_key"
    assert open_token(world.token())[0]["alg"] == "ES256"
    world.set_ring(RingKey(world.ring_keys.es, 0), RingKey(hs, 1), algorithm="HS256")
    assert world.reason(world.signed(hs)) == ""
    assert open_token(world.token())[0]["alg"] == "HS256"
    assert [each["kid"] for each in world.keys.ring.jwks(1)["keys"]] == [world.ring_keys.es.kid]


async def test_a_token_that_was_accepted_before_dies_with_its_key(auth, world):
    """Whoever revokes it, and wherever: a worker learns of it by its next reading."""
    token, revoked = world.token(), world.ring_keys.es
    assert (await auth.authenticate(token)).username == "ada"
    world.set_ring(*(each for each in world.keys.ring.keys if each.key is not revoked))
    with pytest.raises(InvalidToken) as caught:
        await auth.authenticate(token)
    assert caught.value.reason == "unknown_key"


# signatures


def test_signatures_that_are_none_are_refused(world):
    header, claims = world.header(), world.claims()
    genuine = world.ring_keys.es.signer.sign
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
    signatures = [
        b"\0" * 64,  # r and s are zero: any signature, to a verifier that forgets to look
        order.to_bytes(32, "big") * 2,
        b"\xff" * 64,
        genuine(b"something else"),
        b"\0",
    ]
    made = genuine(_signing_input(header, claims))
    der = encode_dss_signature(*(int.from_bytes(half, "big") for half in (made[:32], made[32:])))
    for signature in (*signatures, der, made[:-1], made + b"\0", b"\0" + made):
        assert world.reason(forge(header, claims, _giving(signature))) == "bad_signature"
    assert world.reason(forge(header, claims, _giving(made))) == ""


def _signing_input(header, claims):
    return forge(header, claims, _giving(b"")).removesuffix(".").encode()


def _giving(signature):
    return lambda _: signature


def test_header_claims_and_signature_of_two_tokens_do_not_mix(world):
    first, second = world.token().split("."), world.signed(claims=world.claims(sub="root")).split(".")
    for segments in ([first[0], second[1], first[2]], [first[0], first[1], second[2]]):
        assert world.reason(".".join(segments)) == "bad_signature"
    other = world.signed(world.ring_keys.next).split(".")
    assert world.reason(".".join([other[0], first[1], first[2]])) == "bad_signature"


def test_a_token_in_a_token_and_other_forms_of_a_jws_are_refused(world):
    token = world.token()
    head, payload, signature = token.split(".")
    nested = forge(world.header(), token.encode(), world.ring_keys.es.signer.sign)
    flat = json.dumps({"payload": payload, "protected": head, "signature": signature})
    for forged in (nested, flat, f"{head}.{payload}.{payload}.{payload}.{signature}", f"{token}.", f"Bearer {token}"):
        assert world.reason(forged) == "malformed"
