"""Reading JWTs strictly, for our own tokens and for those of an outside provider.

python-jose checks signatures well, and is lenient in all else: it verifies by the algorithm the token names, overlooks
characters outside base64url, lets the spare bits of the last character and the padding vary, keeps the last of two
members of one name, and raises RecursionError or UnicodeEncodeError on hostile headers. So here the form and the header
are checked before it sees a token, and it is given one key for one algorithm.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Never

from jose import jws
from jose.backends.base import Key
from jose.exceptions import JOSEError
from jose.utils import base64url_decode, base64url_encode

MAX_TOKEN_BYTES: Final = 8 * 1024
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# A key that comes with the token proves nothing (RFC 8725 §3.10). A critical extension must be understood or refused,
# and none is understood here (RFC 7515 §4.1.11).
_REFUSED_MEMBERS = frozenset({"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip"})
_END_OF_TIME: Final = 253_402_300_800  # the year 10000, where `datetime` ends


class TokenError(Exception):
    """A token that is not accepted. `reason` is a word of a closed set, for counters and logs; not for the caller.

    TokenError
    ├── MalformedTokenError     not a JWT in form: too long, not canonical base64url, a name twice, `crit`, other `typ`
    ├── WrongAlgorithmError     `alg` is not that of the key (`none` and HS256 among them)
    ├── UnknownKeyError         `kid` names no key that is accepted
    ├── BadSignatureError       the signature is not by that key
    ├── MissingClaimError       a required claim is not there
    ├── WrongIssuerError        `iss`
    ├── WrongAudienceError      `aud`
    ├── NotYetValidError        `nbf` or `iat`
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


class NotYetValidError(TokenError):
    reason = "not_yet_valid"


class ExpiredTokenError(TokenError):
    reason = "expired"


@dataclass(frozen=True, slots=True)
class Parsed:
    """A token in the right form. Nothing of it is verified yet."""

    token: str
    header: dict[str, Any]
    payload: bytes

    def claims(self) -> dict[str, Any]:
        """The claims.

        Raises:
            MalformedTokenError: not a JSON object, or a name is in it twice.
        """
        return _read_object(self.payload)


def parse(token: str) -> Parsed:
    """Check the form of a compact JWS (RFC 7515 §7.1) and read its header.

    Raises:
        MalformedTokenError: it has another form, or its header a member that is refused.
    """
    if len(token) > MAX_TOKEN_BYTES or not _COMPACT.fullmatch(token):
        raise MalformedTokenError
    head, payload, signature = token.split(".")
    _decode(signature)
    header = _read_object(_decode(head))
    if header.keys() & _REFUSED_MEMBERS:
        raise MalformedTokenError
    return Parsed(token, header, _decode(payload))


def verify_signature(parsed: Parsed, key: Key, algorithm: str) -> None:
    """Check the signature with one key for one algorithm.

    Raises:
        WrongAlgorithmError: the token names another.
        BadSignatureError: it is not by that key.
    """
    if parsed.header.get("alg") != algorithm:
        raise WrongAlgorithmError
    try:
        jws.verify(parsed.token, key, [algorithm])
    except JOSEError as error:
        raise BadSignatureError from error


def names(aud: object, audience: str) -> bool:
    """Whether `aud`, a string or a list of strings (RFC 7519 §4.1.3), names the audience."""
    return aud == audience or (isinstance(aud, list) and audience in aud)


def string_claim(claims: dict[str, Any], name: str) -> str:
    """A claim that has to be a string.

    Raises:
        MissingClaimError, MalformedTokenError: it is not there, or something else.
    """
    if name not in claims:
        raise MissingClaimError
    value = claims[name]
    if not isinstance(value, str):
        raise MalformedTokenError
    return value


def time_claim(claims: dict[str, Any], name: str) -> float:
    """A claim that has to be a NumericDate (RFC 7519 §2): Unix time, seconds.

    Raises:
        MissingClaimError, MalformedTokenError: it is not there, or something else.
    """
    if name not in claims:
        raise MissingClaimError
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _END_OF_TIME:
        raise MalformedTokenError
    return value


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
        value = json.loads(data.decode(), object_pairs_hook=_each_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise MalformedTokenError from error
    if not isinstance(value, dict):
        raise MalformedTokenError
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a name that stands twice another reader might believe the other (RFC 7519 §4 lets us refuse it)."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _no_number(name: str) -> Never:
    """Python reads NaN and Infinity, which are no JSON: RFC 8259 §6."""
    raise ValueError(name)
