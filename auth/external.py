"""Tokens of an outside identity provider, in place of ours or beside them."""

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from auth.errors import InvalidToken, TemporarilyUnavailable
from auth.jwks import JwkSet, KeysUnavailable
from auth.jwt import (
    BadSignatureError,
    ExpiredTokenError,
    MalformedTokenError,
    MissingClaimError,
    NotYetValidError,
    Parsed,
    TokenError,
    UnknownKeyError,
    WrongAlgorithmError,
    WrongAudienceError,
    WrongIssuerError,
    names,
    parse,
    string_claim,
    time_claim,
    verify_signature,
)
from auth.names import InvalidName, validate_name
from auth.periodic import Periodic
from auth.principal import OUTSIDE, OUTSIDE_PREFIX, Principal
from auth.scopes import InvalidScopeString, Scope, grantable, parse_scope

_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
# Given only by the operator's map: a provider that happens to have a role "admin" does not mean ours.
_BY_MAP_ONLY: Final = frozenset({Scope.ADMIN, Scope.USERS_ADMIN, Scope.TEAM_ADMIN, Scope.INTROSPECT})
# A `jti` may be anything. One that is not plain, or longer than our tables hold, is not used.
_PLAIN_ID: Final = re.compile(r"[\x21-\x7e]{1,64}")


class OutsideProvider:
    """Verifies the access tokens of one issuer, and says who they belong to.

    Args:
        issuer: `iss`.
        audience: what `aud` has to name.
        jwks_url: address of its keys; https, or http on this machine.
        jwks_file: file with its keys; one of the two.
        algorithms: that are accepted: RS or ES, with 256, 384 or 512.
        principal_claim: claim that names the principal. Where there is none of a name with dots, it is a path into
            objects: `realm_access.roles`.
        team_claim: claim that names the team.
        scope_claim: claim with scopes or roles: a string with spaces, or a list.
        scope_map: the scopes that a value of that claim stands for. Empty: values are scopes, and those that administer
            are given to nobody.
        leeway_seconds: clock skew allowed.
        clock: Unix time in seconds.

    Raises:
        ValueError: a setting cannot be used; the message says which.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        jwks_url: str | None = None,
        jwks_file: Path | None = None,
        algorithms: Iterable[str] = ("RS256", "ES256"),
        principal_claim: str = "sub",
        team_claim: str | None = None,
        scope_claim: str = "scope",
        scope_map: Mapping[str, str] | None = None,
        leeway_seconds: int = 5,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._algorithms = frozenset(algorithms)
        self.keys = JwkSet(url=jwks_url, file=jwks_file, algorithms=self._algorithms)
        self._refreshing = Periodic("outside_keys", self.keys.refresh, self.keys.interval_seconds)
        self._issuer = issuer
        self._audience = audience
        self._principal_claim = principal_claim
        self._team_claim = team_claim
        self._scope_claim = scope_claim
        self._scope_map = {value: _granted(value, scopes) for value, scopes in (scope_map or {}).items()}
        self._leeway_seconds = leeway_seconds
        self._clock = clock

    async def start(self) -> None:
        """Read the keys, and go on reading them in the background. A provider that is down keeps nobody waiting for
        more than a few seconds.
        """
        await self._refreshing.start()

    async def stop(self) -> None:
        """End what `start` began, and a look at the keys that a token has begun."""
        await self._refreshing.stop()
        await self.keys.close()

    def issued(self, token: str) -> bool:
        """Whether the token says that it is this provider's. Nothing of it is verified."""
        try:
            return parse(token).claims().get("iss") == self._issuer
        except TokenError:
            return False

    async def authenticate(self, token: str) -> Principal:
        """Who the token belongs to.

        Raises:
            InvalidToken: it is not accepted.
            TemporarilyUnavailable: no keys could be had yet.
        """
        try:
            parsed = parse(token)
            claims = parsed.claims()
            # Before the keys: what another issuer has signed is no reason to look for a key of this one.
            if string_claim(claims, "iss") != self._issuer:
                raise WrongIssuerError
            await self._verify(parsed)
            self._check(claims)
            return self._principal(token, claims)
        except TokenError as error:
            raise InvalidToken(reason=error.reason) from error
        except KeysUnavailable as error:
            raise TemporarilyUnavailable("The provider's keys cannot be had now.", reason="no_keys") from error

    async def _verify(self, parsed: Parsed) -> None:
        algorithm, kid, kind = (parsed.header.get(name) for name in ("alg", "kid", "typ"))
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise WrongAlgorithmError
        # RFC 7515 §4.1.9: a media type, in which case does not matter.
        if kind is not None and not (isinstance(kind, str) and kind.lower() in _TYPES):
            raise MalformedTokenError
        if not isinstance(kid, str | None):
            raise MalformedTokenError
        candidates = await self.keys.find(kid, algorithm)
        if not candidates:
            raise UnknownKeyError
        for candidate in candidates:
            try:
                return verify_signature(parsed, candidate.key, algorithm)
            except BadSignatureError:
                continue
        raise BadSignatureError

    def _check(self, claims: dict[str, Any]) -> None:
        now = self._clock()
        if not names(claims.get("aud"), self._audience):
            raise WrongAudienceError if "aud" in claims else MissingClaimError
        if now - self._leeway_seconds >= time_claim(claims, "exp"):
            raise ExpiredTokenError
        if "at_hash" in claims:  # what only an ID token has, and that is for its client and no credential
            raise MalformedTokenError
        begun = [time_claim(claims, name) for name in ("nbf", "iat") if name in claims]
        if any(moment > now + self._leeway_seconds for moment in begun):
            raise NotYetValidError

    def _principal(self, token: str, claims: dict[str, Any]) -> Principal:
        subject = string_claim(claims, "sub")
        _name(subject)  # as it is, not in another form: who it is, is the provider's to say
        team = self._team_claim and _at(claims, self._team_claim)
        return Principal(
            subject=OUTSIDE_PREFIX + subject,
            username=_name(OUTSIDE_PREFIX + _name(_at(claims, self._principal_claim))),
            scopes=self._scopes(_at(claims, self._scope_claim)),
            auth_method=OUTSIDE,
            expires_at=time_claim(claims, "exp"),
            issued_at=time_claim(claims, "iat") if "iat" in claims else 0.0,
            credential_id=_credential_id(token, claims.get("jti")),
            team=_name(team) if team else "",
        )

    def _scopes(self, value: object) -> frozenset[str]:
        """What the claim stands for here. Values that mean nothing to us are passed over."""
        values = value.split(" ") if isinstance(value, str) else value
        if not isinstance(values, list):
            return frozenset()
        found: set[str] = set()
        for each in values:
            if not isinstance(each, str):
                continue
            if self._scope_map:
                found |= self._scope_map.get(each, frozenset())
            elif each not in _BY_MAP_ONLY:
                found |= _ours(each)
        return frozenset(found)


def _granted(value: str, scopes: str) -> frozenset[str]:
    try:
        return grantable(parse_scope(scopes))
    except InvalidScopeString as error:
        raise ValueError(f"the scope map cannot be used: {value!r}: {error}") from error


def _ours(scope: str) -> frozenset[str]:
    try:
        return grantable([scope])
    except InvalidScopeString:
        return frozenset()


def _credential_id(token: str, jti: object) -> str:
    plain = isinstance(jti, str) and _PLAIN_ID.fullmatch(jti)
    return str(jti) if plain else hashlib.sha256(token.encode()).hexdigest()


def _at(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, else by its path; None where there is none."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _name(value: object) -> str:
    """A claim that has to be a name, by the rules for all names."""
    if value is None:
        raise MissingClaimError
    if not isinstance(value, str):
        raise MalformedTokenError
    try:
        return validate_name(value)
    except InvalidName as error:
        raise MalformedTokenError from error
