"""The keys that sign access tokens, and which of them sign and are accepted at a time. No input or output here.

A key is for one algorithm only, so that no token can choose another one for it.
"""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from jose.backends.base import Key
from jose.backends.cryptography_backend import CryptographyECKey, CryptographyHMACKey, CryptographyRSAKey
from jose.exceptions import JWKError

Algorithm = Literal["ES256", "RS256", "HS256"]  # RFC 7518 §3.1
Secret = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | bytes
_RSA_BITS: Final = 2048  # the least of RFC 7518 §3.3
_HMAC_BYTES: Final = 32  # the least of RFC 7518 §3.2


class UnusableKey(ValueError):  # noqa: N818  # says what is wrong with the key
    """Not a key that can sign; the message goes on after the name of where it is."""


class NoSigningKey(Exception):  # noqa: N818  # a state, not a fault
    """No key has begun to sign, or none could be read yet."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key for one algorithm. `kid` follows from the key, so the same key has the same name everywhere."""

    algorithm: Algorithm
    kid: str
    secret: Secret = field(repr=False, compare=False)
    signer: Key = field(repr=False, compare=False)
    verifier: Key = field(repr=False, compare=False)

    @classmethod
    def of(cls, secret: Secret) -> Self:
        """The signing key of a private or secret key.

        Raises:
            UnusableKey: RSA under 2048 bits, a secret under 32 bytes or in PEM.
        """
        if isinstance(secret, bytes):
            if len(secret) < _HMAC_BYTES:
                raise UnusableKey(f"holds a secret of under {_HMAC_BYTES} bytes")
            try:
                key = CryptographyHMACKey(secret, "HS256")
            except JWKError as error:
                # A PEM text: perhaps of a public key, which everybody knows.
                raise UnusableKey("holds a key in PEM format; random bytes are expected") from error
            # Not the thumbprint of RFC 7638, which would be a hash of the secret alone (§7 there).
            return cls("HS256", _base64url(hmac.digest(secret, b"kid", "sha256")), secret, key, key)
        public = secret.public_key()
        kid = thumbprint(public)
        if isinstance(secret, rsa.RSAPrivateKey):
            if secret.key_size < _RSA_BITS:
                raise UnusableKey(f"holds an RSA key of under {_RSA_BITS} bits")
            return cls("RS256", kid, secret, CryptographyRSAKey(secret, "RS256"), CryptographyRSAKey(public, "RS256"))
        return cls("ES256", kid, secret, CryptographyECKey(secret, "ES256"), CryptographyECKey(public, "ES256"))

    @classmethod
    def generate(cls, algorithm: Algorithm = "ES256") -> Self:
        """A new key."""
        if algorithm == "HS256":
            return cls.of(secrets.token_bytes(_HMAC_BYTES))
        if algorithm == "RS256":
            return cls.of(rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS))
        return cls.of(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """The key of an unencrypted PEM text.

        Raises:
            UnusableKey: there is none in it that can sign.
        """
        try:
            private = load_pem_private_key(pem, password=None)
        except TypeError as error:
            raise UnusableKey("is encrypted; an unencrypted PEM file is expected") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UnusableKey("holds no private key in PEM format") from error
        if isinstance(private, rsa.RSAPrivateKey):
            return cls.of(private)
        if isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP256R1):
            return cls.of(private)
        raise UnusableKey("holds a key of another kind; an EC key on the curve P-256 or an RSA key is needed")

    def to_bytes(self) -> bytes:
        """What is stored: PKCS #8 in PEM, unencrypted; of HS256 the secret itself."""
        if isinstance(self.secret, bytes):
            return self.secret
        return self.secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @classmethod
    def from_bytes(cls, data: bytes, algorithm: str) -> Self:
        """The inverse of `to_bytes`.

        Raises:
            UnusableKey: it is not.
        """
        return cls.of(data) if algorithm == "HS256" else cls.from_pem(data)

    def jwk(self) -> dict[str, str] | None:
        """The public key as a JWK (RFC 7517 §4); None where there is none."""
        if isinstance(self.secret, bytes):
            return None
        return {**_members(self.secret.public_key()), "kid": self.kid, "use": "sig", "alg": self.algorithm}


@dataclass(frozen=True, slots=True)
class RingKey:
    """A key, and from when on it signs."""

    key: SigningKey
    activates_at: float  # Unix time, seconds, from when on it signs; 0: since ever
    created_at: float = 0.0  # Unix time, seconds


class KeyRing:
    """What the keys and the clock say: who signs, who is accepted.

    Args:
        keys: in any order.
        algorithm: the configured one. HS256 keys are of no use under any other.
        ttl_seconds: life of a token.
        leeway_seconds: how long past it a token is accepted.
    """

    def __init__(
        self, keys: Iterable[RingKey] = (), *, algorithm: Algorithm, ttl_seconds: int, leeway_seconds: int
    ) -> None:
        usable = (each for each in keys if each.key.algorithm != "HS256" or algorithm == "HS256")
        by_kid: dict[str, RingKey] = {}
        for each in sorted(usable, key=lambda each: (each.activates_at, each.key.kid)):
            by_kid.setdefault(each.key.kid, each)  # one that is there twice signs from the earlier time on
        self.keys = tuple(by_kid.values())
        self._accepted_until: dict[str, float] = {}
        self._by_kid: dict[str, SigningKey] = {}
        last = float("inf")
        for each in reversed(self.keys):
            self._accepted_until[each.key.kid] = last
            self._by_kid[each.key.kid] = each.key
            last = each.activates_at + ttl_seconds + leeway_seconds

    def signer(self, now: float) -> SigningKey:
        """The newest key that has begun to sign.

        Raises:
            NoSigningKey: there is none.
        """
        for each in reversed(self.keys):
            if each.activates_at <= now:
                return each.key
        raise NoSigningKey

    def verifier(self, kid: str, now: float) -> SigningKey | None:
        """The key of this name if it is accepted: it may have yet to begin, and is until the last token that it can
        have signed has expired.
        """
        return self._by_kid[kid] if now < self._accepted_until.get(kid, 0.0) else None

    def accepted(self, now: float) -> list[RingKey]:
        """All that are accepted, the oldest first."""
        return [each for each in self.keys if now < self._accepted_until[each.key.kid]]

    def jwks(self, now: float) -> dict[str, Any]:
        """Their public keys as a JWK set (RFC 7517 §5)."""
        found = (each.key.jwk() for each in self.accepted(now))
        return {"keys": [members for members in found if members is not None]}


def thumbprint(public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> str:
    """The RFC 7638 thumbprint of a public key: base64url of the SHA-256 of its JWK, 43 characters."""
    # The required members in lexicographic order, without white space: RFC 7638 §3.
    members = json.dumps(_members(public), separators=(",", ":"), sort_keys=True)
    return _base64url(hashlib.sha256(members.encode()).digest())


def _members(public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> dict[str, str]:
    """The required members of a JWK: RFC 7518 §6.2 and §6.3."""
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return {"kty": "RSA", "n": _base64url_int(numbers.n), "e": _base64url_int(numbers.e)}
    point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)  # 0x04, x, y
    return {"kty": "EC", "crv": "P-256", "x": _base64url(point[1:33]), "y": _base64url(point[33:65])}


def _base64url_int(number: int) -> str:
    return _base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
