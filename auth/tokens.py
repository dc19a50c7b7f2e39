"""Access tokens: JWTs in the shape of RFC 9068, signed and verified by python-jose.

python-jose checks signatures well, and is lenient in all else: it verifies by the algorithm the token names, takes a
claim that is not there for one that is right, overlooks characters outside base64url, lets the spare bits of the last
character and the padding vary, and raises RecursionError or UnicodeEncodeError on hostile headers. So here the form and
the header are checked before it sees a token, it is given one key for one algorithm, and the claims are checked after.
"""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from jose import jws
from jose.backends import ECKey
from jose.backends.base import Key
from jose.exceptions import JOSEError
from jose.utils import base64url_decode, base64url_encode

from auth.keys import ALGORITHM, SigningKey
from auth.scopes import InvalidScopeString, format_scope, parse_scope

MAX_TOKEN_BYTES = 8 * 1024
TOKEN_TYPE = "at+jwt"  # noqa: S105  # RFC 9068 §2.1, not a secret
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_END_OF_TIME = 253_402_300_800  # the year 10000, where `datetime` ends


class TokenError(Exception):
    """A token that is not accepted. `reason` is a word of a closed set, for counters and logs; not for the caller.

    TokenError
    ├── MalformedTokenError     not a JWT of ours in form: too long, not canonical base64url, `crit`, other `typ`
    ├── WrongAlgorithmError     `alg` is not the configured one (`none` and HS256 among them)
    ├── UnknownKeyError         `kid` names no key of ours
    ├── BadSignatureError       the signature is not by that key
    ├── MissingClaimError       a required claim is not there
    ├── WrongIssuerError        `iss`
    ├── WrongAudienceError      `aud`
    └── ExpiredTokenError       `exp`
    """

    reason: ClassVar[str] = "malformed"


class MalformedTokenError(TokenError):
    reason = "malformed"


class WrongAlgorithmError(TokenError):
    reason = "wrong_algorithm"


class UnknownKeyError(TokenError):
    reason = "unknown_key"


class BadSignatureError(TokenError):
    reason = "bad_signature"


class MissingClaimError(TokenError):
    reason = "missing_claim"


class WrongIssuerError(TokenError):
    reason = "wrong_issuer"


class WrongAudienceError(TokenError):
    reason = "wrong_audience"


class ExpiredTokenError(TokenError):
    reason = "expired"


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A new access token and what the token response says of it (RFC 6749 §5.1)."""

    access_token: str
    expires_in: int  # seconds
    scope: str
    jti: str


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says."""

    subject: str
    username: str
    scopes: frozenset[str]
    issued_at: int  # Unix time, seconds
    expires_at: int  # Unix time, seconds
    jti: str


class Tokens:
    """Issues and verifies access tokens with one key.

    Args:
        key: signs, and is the only one accepted.
        issuer: `iss`.
        audience: `aud`.
        ttl_seconds: life of a token.
        leeway_seconds: how long past `exp` a token is still accepted, for clocks that differ.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        key: SigningKey,
        *,
        issuer: str,
        audience: str,
        ttl_seconds: int,
        leeway_seconds: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kid = key.kid
        self._signer = ECKey(key.private, ALGORITHM)
        self._verifiers: dict[str, Key] = {key.kid: ECKey(key.public, ALGORITHM)}
        self._issuer = issuer
        self._audience = audience
        self._ttl_seconds = ttl_seconds
        self._leeway_seconds = leeway_seconds
        self._clock = clock

    def issue(self, subject: str, username: str, scopes: Iterable[str]) -> IssuedToken:
        """Sign a new token."""
        now = int(self._clock())
        jti = uuid.uuid4().hex
        scope = format_scope(scopes)
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": subject,
            "username": username,
            "scope": scope,
            "iat": now,
            "exp": now + self._ttl_seconds,
            "jti": jti,
        }
        token = jws.sign(claims, self._signer, headers={"typ": TOKEN_TYPE, "kid": self._kid}, algorithm=ALGORITHM)
        return IssuedToken(token, self._ttl_seconds, scope, jti)

    def verify(self, token: str) -> Claims:
        """Check form, header, signature and claims, in this order.

        Raises:
            TokenError: the first thing found wrong.
        """
        if len(token) > MAX_TOKEN_BYTES or not _COMPACT.fullmatch(token):
            raise MalformedTokenError
        header, payload, signature = token.split(".")
        key = self._key_of(_read_object(_decode(header)))
        _decode(signature)
        try:
            jws.verify(token, key, [ALGORITHM])
        except JOSEError as error:
            raise BadSignatureError from error
        return self._check(_read_object(_decode(payload)))

    def expired(self, expires_at: float) -> bool:
        """Whether a token with this `exp` is past it, the leeway included; the same answer that `verify` gives."""
        return self._clock() - self._leeway_seconds >= expires_at

    def _key_of(self, header: dict[str, Any]) -> Key:
        if header.get("alg") != ALGORITHM:
            raise WrongAlgorithmError
        # A critical extension must be understood or refused (RFC 7515 §4.1.11), and none is understood here.
        if header.get("typ") != TOKEN_TYPE or "crit" in header:
            raise MalformedTokenError
        kid = header.get("kid")
        if not isinstance(kid, str) or kid not in self._verifiers:
            raise UnknownKeyError
        return self._verifiers[kid]

    def _check(self, claims: dict[str, Any]) -> Claims:
        if _string(claims, "iss") != self._issuer:
            raise WrongIssuerError
        if not _names(claims.get("aud"), self._audience):
            raise WrongAudienceError if "aud" in claims else MissingClaimError
        expires_at = _time(claims, "exp")
        if self.expired(expires_at):
            raise ExpiredTokenError
        try:
            scopes = parse_scope(_string(claims, "scope"))
        except InvalidScopeString as error:
            raise MalformedTokenError from error
        return Claims(
            subject=_string(claims, "sub"),
            username=_string(claims, "username"),
            scopes=scopes,
            issued_at=_time(claims, "iat"),
            expires_at=expires_at,
            jti=_string(claims, "jti"),
        )


def _decode(segment: str) -> bytes:
    """Base64url without padding, in its one canonical spelling."""
    try:
        data = base64url_decode(segment.encode())
    except ValueError as error:
        raise MalformedTokenError from error
    if base64url_encode(data) != segment.encode():
        raise MalformedTokenError
    return data


def _read_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise MalformedTokenError from error
    if not isinstance(value, dict):
        raise MalformedTokenError
    return value


def _names(aud: object, audience: str) -> bool:
    """`aud` is a string or a list of strings (RFC 7519 §4.1.3)."""
    return aud == audience or (isinstance(aud, list) and audience in aud)


def _string(claims: dict[str, Any], name: str) -> str:
    if name not in claims:
        raise MissingClaimError
    value = claims[name]
    if not isinstance(value, str):
        raise MalformedTokenError
    return value


def _time(claims: dict[str, Any], name: str) -> int:
    if name not in claims:
        raise MissingClaimError
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _END_OF_TIME:
        raise MalformedTokenError
    return int(value)
