"""Access tokens: JWTs in the shape of RFC 9068, signed and verified by python-jose."""

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from jose import jws

from auth.jwt import (
    ExpiredTokenError,
    MalformedTokenError,
    MissingClaimError,
    UnknownKeyError,
    WrongAudienceError,
    WrongIssuerError,
    names,
    parse,
    string_claim,
    time_claim,
    verify_signature,
)
from auth.keys import KeyRing
from auth.scopes import InvalidScopeString, format_scope, parse_scope
from observability.ids import time_ordered_id

TOKEN_TYPE: Final = "at+jwt"  # noqa: S105  # RFC 9068 §2.1, not a secret
_MEMBERS: Final = frozenset({"typ", "alg", "kid"})  # of the header of a token of ours


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
    issued_at: float  # Unix time, seconds; to the millisecond, from `jti`
    expires_at: float  # Unix time, seconds
    jti: str
    client_id: str
    session_id: str = ""
    team: str = ""


class HasRing(Protocol):
    """Whatever knows the keys of now."""

    ring: KeyRing


class Tokens:
    """Issues and verifies access tokens.

    Args:
        keys: sign, and are accepted. Asked each time: they rotate.
        issuer: `iss`.
        audience: `aud`.
        ttl_seconds: life of a token.
        leeway_seconds: how long past `exp` a token is still accepted, for clocks that differ.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        keys: HasRing,
        *,
        issuer: str,
        audience: str,
        ttl_seconds: int,
        leeway_seconds: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self.issuer = issuer
        self.audience = audience
        self._ttl_seconds = ttl_seconds
        self._leeway_seconds = leeway_seconds
        self._clock = clock

    def issue(
        self,
        *,
        subject: str,
        username: str,
        scopes: Iterable[str],
        client_id: str,
        session_id: str = "",
        team: str = "",
        now: float | None = None,
    ) -> IssuedToken:
        """Sign a new token.

        Args:
            subject: id of the user or client.
            username: what the books call them.
            scopes: what it can be used for.
            client_id: the client that asked for it.
            session_id: of the login; empty where there is none.
            team: id of the team; empty outside of one.
            now: when it is issued, Unix time in seconds; the clock's when left out.

        Raises:
            NoSigningKey: no key could be read yet.
        """
        now = self._clock() if now is None else now
        key = self._keys.ring.signer(now)
        jti = time_ordered_id(now)
        scope = format_scope(scopes)
        claims = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": subject,
            "client_id": client_id,
            "username": username,
            "scope": scope,
            "iat": int(now),
            "exp": int(now) + self._ttl_seconds,
            "jti": jti,
        }
        optional = {"sid": session_id, "team": team}
        claims |= {name: value for name, value in optional.items() if value}
        headers = {"typ": TOKEN_TYPE, "kid": key.kid}
        token = jws.sign(claims, key.signer, headers=headers, algorithm=key.algorithm)
        return IssuedToken(token, self._ttl_seconds, scope, jti)

    def check_can_issue(self) -> None:
        """Raises NoSigningKey when `issue` would."""
        self._keys.ring.signer(self._clock())

    def verify(self, token: str) -> Claims:
        """Check form, header, signature and claims, in this order.

        Raises:
            TokenError: the first thing found wrong.
        """
        parsed = parse(token)
        if parsed.header.get("typ") != TOKEN_TYPE or parsed.header.keys() - _MEMBERS:
            raise MalformedTokenError
        kid = parsed.header.get("kid")
        key = self._keys.ring.verifier(kid, self._clock()) if isinstance(kid, str) else None
        if key is None:
            raise UnknownKeyError
        verify_signature(parsed, key.verifier, key.algorithm)
        return self._check(parsed.claims())

    def expired(self, expires_at: float) -> bool:
        """Whether a token with this `exp` is past it, the leeway included; the same answer that `verify` gives."""
        return self._clock() - self._leeway_seconds >= expires_at

    def _check(self, claims: dict[str, Any]) -> Claims:
        if string_claim(claims, "iss") != self.issuer:
            raise WrongIssuerError
        if not names(claims.get("aud"), self.audience):
            raise WrongAudienceError if "aud" in claims else MissingClaimError
        expires_at = time_claim(claims, "exp")
        if self.expired(expires_at):
            raise ExpiredTokenError
        time_claim(claims, "iat")
        try:
            scopes = parse_scope(string_claim(claims, "scope"))
        except InvalidScopeString as error:
            raise MalformedTokenError from error
        jti = string_claim(claims, "jti")
        return Claims(
            subject=string_claim(claims, "sub"),
            username=string_claim(claims, "username"),
            scopes=scopes,
            issued_at=_issued_at(jti),
            expires_at=expires_at,
            jti=jti,
            client_id=string_claim(claims, "client_id"),
            session_id=string_claim(claims, "sid") if "sid" in claims else "",
            team=string_claim(claims, "team") if "team" in claims else "",
        )


def _issued_at(jti: str) -> float:
    """The time in a UUID of version 7 (RFC 9562 §5.7). `iat` has whole seconds, and a revocation compares instants."""
    try:
        value = uuid.UUID(jti)
    except ValueError:
        value = None
    if value is None or value.version != 7:  # noqa: PLR2004  # the version of the RFC
        raise MalformedTokenError
    return (value.int >> 80) / 1000
