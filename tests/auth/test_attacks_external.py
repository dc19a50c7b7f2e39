"""Forged tokens of an outside provider, put to the whole of auth as a request would: ours and theirs in one place.

Each must be refused for the reason given: for another it would not have been stopped by what is there to stop it.
"""

import base64
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwe
from joserfc.jwk import OctKey

from auth.errors import InvalidToken
from auth.external import OutsideProvider
from auth.service import AuthService
from tests.auth.kit import AUDIENCE, ISSUER, by_hmac, forge, open_token
from tests.support.oidc import OUR_AUDIENCE, PROVIDER, Provider, ProviderKey, new_key, public, signer

SECRET = b"a secret that somebody put into a set of public keys"
SHORT = rsa.generate_private_key(public_exponent=65537, key_size=1024)


@pytest.fixture(scope="session")
def rs_key():
    return new_key("RS256", kid="theirs-rsa")


@pytest.fixture(scope="session")
def es_key():
    return new_key("ES256", kid="theirs-ec")


@pytest.fixture(scope="session")
def evil_rsa():
    return new_key("RS256", kid="theirs-rsa")


@pytest.fixture(scope="session")
def evil_ec():
    return new_key("ES256", kid="theirs-ec")


@pytest.fixture
def provider(rs_key, es_key, clock) -> Provider:
    return Provider(es_key, rs_key, clock=clock)


def number(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()


@pytest.fixture
def both(auth: AuthService, provider, es_key, clock, tmp_path) -> AuthService:
    """Auth with a provider whose key set holds what it should not, too."""
    short = SHORT.public_key().public_numbers()
    strangers = [
        {"kty": "oct", "kid": "theirs-oct", "alg": "HS256", "k": base64.urlsafe_b64encode(SECRET).decode().rstrip("=")},
        {"kty": "RSA", "kid": "theirs-short", "n": number(short.n), "e": number(short.e)},
        public(es_key, kid="theirs-enc", use="enc"),
        public(es_key, kid="theirs-384", alg="ES384"),
    ]
    members = json.loads(provider.key_set())["keys"] + strangers
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": members}))
    auth.outside = OutsideProvider(
        issuer=PROVIDER, audience=OUR_AUDIENCE, jwks_file=file, leeway_seconds=5, clock=clock
    )
    return auth


@pytest.fixture
def world(both, provider, key, rs_key, es_key, evil_rsa, evil_ec) -> Any:
    ours = both.tokens.issue(
        subject="0190-ada", username="ada", scopes=["llm", "admin"], client_id="tollbook"
    ).access_token
    return SimpleNamespace(
        ours=ours,
        our_header=open_token(ours)[0],
        our_claims=open_token(ours)[1],
        our_sign=key.signer.sign,
        their_claims=provider.claims(),
        token=provider.token,
        rs=rs_key,
        es=es_key,
        evil_rsa=evil_rsa,
        evil_ec=evil_ec,
    )


async def refused(auth: AuthService, token: str) -> str:
    with pytest.raises(InvalidToken) as caught:
        await auth.authenticate(token)
    return caught.value.reason


async def test_what_is_attacked_here_is_accepted_unharmed(both, world):
    assert (await both.authenticate(world.token())).username == "oidc:f3a1"
    assert (await both.authenticate(world.token(world.es))).username == "oidc:f3a1"
    assert (await both.authenticate(world.ours)).username == "ada"
    header = {"alg": "RS256", "kid": "theirs-rsa", "typ": "JWT"}
    assert await both.authenticate(forge(header, world.their_claims, signer(world.rs)))
    header = {"alg": "ES256", "kid": "theirs-ec", "typ": "JWT"}
    assert await both.authenticate(forge(header, world.their_claims, signer(world.es)))
    assert await both.authenticate(forge(world.our_header, world.our_claims, world.our_sign))


def public_forms(key: ProviderKey) -> dict[str, bytes]:
    """What an attacker can make of a public key, to use as an HMAC secret."""
    found = key.get_op_key("verify")
    assert isinstance(found, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
    forms = {
        "PEM": found.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "DER": found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "JWK": json.dumps(public(key)).encode(),
        "JWK without spaces": json.dumps(public(key), separators=(",", ":")).encode(),
        "nothing": b"",
    }
    if isinstance(found, rsa.RSAPublicKey):
        forms["PKCS 1"] = found.public_bytes(Encoding.PEM, PublicFormat.PKCS1)
    return forms | {f"{name}, stripped": data.strip() for name, data in forms.items()}


async def test_a_public_key_is_no_secret(both, world):
    for key in (world.rs, world.es):
        for secret in public_forms(key).values():
            for kid in (key.kid, None):
                header = {"alg": "HS256", "kid": kid, "typ": "JWT"}
                assert await refused(both, forge(header, world.their_claims, by_hmac(secret))) == "wrong_algorithm"


Forge = Callable[[Any], str]


def theirs(
    sign: Callable[[Any], Callable[[bytes], bytes]], claims: dict[str, Any] | None = None, **header: Any
) -> Forge:
    """Claims of the provider under a header and a signature of one's own."""
    members = {"alg": "RS256", "kid": "theirs-rsa", "typ": "at+jwt", **header}
    members = {name: value for name, value in members.items() if value is not None}
    return lambda world: forge(members, {**world.their_claims, **(claims or {})}, sign(world))


def ours(sign: Callable[[Any], Callable[[bytes], bytes]], claims: dict[str, Any] | None = None, **header: Any) -> Forge:
    """Claims and header of a token of ours, changed, and a signature of one's own."""
    return lambda world: forge({**world.our_header, **header}, {**world.our_claims, **(claims or {})}, sign(world))


def by_evil_rsa(world: Any) -> Callable[[bytes], bytes]:
    return signer(world.evil_rsa)


def by_evil_ec(world: Any) -> Callable[[bytes], bytes]:
    return signer(world.evil_ec)


def by_their_rsa(world: Any) -> Callable[[bytes], bytes]:
    return signer(world.rs)


def by_their_ec(world: Any) -> Callable[[bytes], bytes]:
    return signer(world.es)


def by_us(world: Any) -> Callable[[bytes], bytes]:
    return world.our_sign  # type: ignore[no-any-return]


def by_nobody(_world: Any) -> Callable[[bytes], bytes]:
    return lambda _data: b"\x00"


def by_secret(_world: Any) -> Callable[[bytes], bytes]:
    return by_hmac(SECRET)


def by_short(_world: Any) -> Callable[[bytes], bytes]:
    made: Any = SimpleNamespace(get_op_key=lambda _use: SHORT)
    return signer(made)


def embedded(world: Any) -> dict[str, Any]:
    return public(world.evil_rsa)


CHANGED = {"scope": "llm account", "sub": "somebody-else"}
PATHS = [
    "../../etc/passwd",
    "/dev/null",
    "theirs-rsa' OR '1'='1",
    "theirs-rsa\x00",
    "theirs-rsa\r\nx: y",
    "",
    "*",
    "a" * 4000,
]

ATTACKS: dict[str, tuple[str, Forge]] = {
    # Algorithms
    "none": ("wrong_algorithm", theirs(by_nobody, alg="none")),
    "None": ("wrong_algorithm", theirs(by_nobody, alg="None")),
    "nOnE": ("wrong_algorithm", theirs(by_nobody, alg="nOnE")),
    "alg empty": ("wrong_algorithm", theirs(by_nobody, alg="")),
    "alg missing": ("wrong_algorithm", theirs(by_their_rsa, alg=None)),
    "alg a list": ("wrong_algorithm", theirs(by_their_rsa, alg=["RS256"])),
    "alg in lower case": ("wrong_algorithm", theirs(by_their_rsa, alg="rs256")),
    "alg not configured": ("wrong_algorithm", theirs(by_their_ec, alg="ES384", kid="theirs-384")),
    "EC key under RS256": ("unknown_key", theirs(by_their_ec, alg="RS256", kid="theirs-ec")),
    "RSA key under ES256": ("unknown_key", theirs(by_their_rsa, alg="ES256", kid="theirs-rsa")),
    # Keys that are none
    "a secret of the set": ("wrong_algorithm", theirs(by_secret, alg="HS256", kid="theirs-oct")),
    "a secret of the set as RS256": ("unknown_key", theirs(by_secret, kid="theirs-oct")),
    "a short key of the set": ("unknown_key", theirs(by_short, kid="theirs-short")),
    "a key for encryption": ("unknown_key", theirs(by_their_ec, alg="ES256", kid="theirs-enc")),
    "a key for another algorithm": ("unknown_key", theirs(by_their_ec, alg="ES256", kid="theirs-384")),
    # Keys of the attacker
    "their kid, another RSA key": ("bad_signature", theirs(by_evil_rsa)),
    "their kid, another EC key": ("bad_signature", theirs(by_evil_ec, alg="ES256", kid="theirs-ec")),
    "no kid, another key": ("bad_signature", theirs(by_evil_rsa, kid=None)),
    "a kid of their own": ("unknown_key", theirs(by_evil_rsa, kid="evil")),
    "jwk": ("malformed", lambda world: theirs(by_evil_rsa, jwk=embedded(world))(world)),
    "jwk without kid": ("malformed", lambda world: theirs(by_evil_rsa, kid=None, jwk=embedded(world))(world)),
    "jwk as kid": ("malformed", lambda world: theirs(by_evil_rsa, kid=embedded(world))(world)),
    "jku": ("malformed", theirs(by_evil_rsa, jku="https://evil.example/keys")),
    "x5u": ("malformed", theirs(by_evil_rsa, x5u="https://evil.example/cert")),
    "x5c": ("malformed", theirs(by_evil_rsa, x5c=["MIIB"])),
    "jwk beside a good signature": ("malformed", lambda world: theirs(by_their_rsa, jwk=embedded(world))(world)),
    "no signature": ("malformed", lambda world: world.token().rpartition(".")[0] + "."),
    "two parts": ("malformed", lambda world: world.token().rpartition(".")[0]),
    "signature of nothing": ("bad_signature", theirs(by_nobody)),
    "signature of zeros": ("bad_signature", theirs(lambda _: lambda _data: bytes(64), alg="ES256", kid="theirs-ec")),
    "other claims, old signature": ("bad_signature", lambda world: exchanged(world.token(), world.token(**CHANGED))),
    # Extensions and other forms
    "crit": ("malformed", theirs(by_their_rsa, crit=["exp"])),
    "crit of an unknown word": ("malformed", theirs(by_their_rsa, crit=["x"], x=1)),
    "b64": ("malformed", theirs(by_their_rsa, b64=False)),
    "zip": ("malformed", theirs(by_their_rsa, zip="DEF")),
    "encrypted": ("malformed", lambda world: encrypted(world.token())),
    "padded": ("malformed", lambda world: world.token() + "="),
    "blanks": ("malformed", lambda world: " " + world.token()),
    "too long": ("malformed", lambda world: world.token(padding="x" * 8192)),
    # Another type of token of theirs
    "an id token by its type": ("malformed", theirs(by_their_rsa, typ="id_token+jwt")),
    "a logout token": ("malformed", theirs(by_their_rsa, typ="logout+jwt")),
    "for another service": ("wrong_audience", lambda world: world.token(aud="another-api")),
    "for what our own tokens are for": ("wrong_audience", lambda world: world.token(aud=AUDIENCE)),
    "from another realm": ("unknown_key", lambda world: world.token(iss=PROVIDER.replace("acme", "evil"))),
    # Theirs for ours and ours for theirs
    "their key, our claims": ("unknown_key", ours(by_their_ec, kid="theirs-ec")),
    "their key, our claims and kid": ("bad_signature", ours(by_their_ec)),
    "their key, their header, our issuer": ("unknown_key", lambda world: world.token(world.es, **world.our_claims)),
    "our key, their claims": ("unknown_key", ours(by_us, {"iss": PROVIDER, "aud": OUR_AUDIENCE})),
    "our key, their claims and kid": (
        "bad_signature",
        ours(by_us, {"iss": PROVIDER, "aud": OUR_AUDIENCE}, kid="theirs-ec"),
    ),
    "our token, their issuer, our audience": ("unknown_key", ours(by_us, {"iss": PROVIDER})),
    "both audiences, our issuer": ("unknown_key", lambda world: world.token(iss=ISSUER, aud=[AUDIENCE, OUR_AUDIENCE])),
    "both issuers": ("unknown_key", lambda world: world.token(iss=[ISSUER, PROVIDER])),
    "two issuers, theirs last": ("unknown_key", lambda world: doubled(world, ISSUER, PROVIDER)),
    "two issuers, ours last": ("unknown_key", lambda world: doubled(world, PROVIDER, ISSUER)),
    **{f"kid {kid[:24]!r}": ("unknown_key", theirs(by_evil_rsa, kid=kid)) for kid in PATHS},
}


def exchanged(token: str, other: str) -> str:
    """One token with the claims of another."""
    header, _, signature = token.split(".")
    return ".".join([header, other.split(".")[1], signature])


def doubled(world: Any, first: str, second: str) -> str:
    rest = json.dumps({name: value for name, value in world.their_claims.items() if name != "iss"})[1:]
    claims = f'{{"iss": "{first}", "iss": "{second}", {rest}'.encode()
    return forge({"alg": "RS256", "kid": "theirs-rsa", "typ": "at+jwt"}, claims, signer(world.rs))


def encrypted(token: str) -> str:
    key = OctKey.import_key(SECRET[:32])
    return jwe.encrypt_compact({"alg": "dir", "enc": "A256GCM", "kid": "theirs-oct"}, token, key)


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_forged_token_is_refused(both, world, attack):
    reason, make = ATTACKS[attack]
    assert await refused(both, make(world)) == reason
    assert await refused(both, make(world)) == reason  # and is not kept as one that was accepted


async def test_a_provider_that_takes_our_kid_is_not_us(auth, world, key, clock, tmp_path):
    """Names of keys are each issuer's own business."""
    namesake = new_key("ES256", kid=key.kid)
    provider = Provider(namesake, clock=clock)
    file = tmp_path / "namesake.json"
    file.write_bytes(provider.key_set())
    auth.outside = OutsideProvider(issuer=PROVIDER, audience=OUR_AUDIENCE, jwks_file=file, clock=clock)
    assert await auth.authenticate(provider.token())
    assert await refused(auth, forge(world.our_header, world.our_claims, signer(namesake))) == "bad_signature"
    claims = world.our_claims | {"iss": PROVIDER, "aud": OUR_AUDIENCE}
    assert await refused(auth, forge(world.our_header, claims, world.our_sign)) == "bad_signature"


async def test_a_subject_of_theirs_is_never_a_user_of_ours(both, world, ada):
    token = world.token(sub=ada.id, preferred_username=ada.username, username=ada.username, client_id="tollbook")
    principal = await both.authenticate(token)
    assert principal.subject != ada.id
    assert principal.username != ada.username
    assert await both.users.get_by_id(principal.subject) is None
    assert await both.users.get(principal.username) is None
    both.revocations.disable_now(users=[ada.id])
    assert await both.authenticate(token)


async def test_claims_that_ours_would_have_give_nothing(both, world):
    ours = {"username": "root", "team": "research", "sid": "session", "client_id": "client"}
    principal = await both.authenticate(world.token(**ours, scope="admin users:admin team:admin introspect llm"))
    assert (principal.scopes, principal.team, principal.session_id, principal.client_id) == ({"llm"}, "", "", "")


async def test_a_token_that_was_accepted_is_not_past_its_end(both, world, clock):
    token = world.token()
    assert await both.authenticate(token)
    clock.now += 304
    assert await both.authenticate(token)
    clock.now += 1
    assert await refused(both, token) == "expired"


async def test_a_refusal_is_counted(both, world, events):
    await refused(both, world.token(world.evil_rsa))
    assert events[-1] == ("authenticate", "refused", "bad_signature")


async def test_where_no_provider_is_configured_its_tokens_are_refused(both, world):
    both.outside = None
    assert await refused(both, world.token()) == "unknown_key"
