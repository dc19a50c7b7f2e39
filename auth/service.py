"""All of auth in one object, for the lifespan state: `request.state.auth`."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from auth.apikeys import PREFIX, ApiKey, ApiKeys, WrongKey
from auth.audit import Actor
from auth.clients import Clients
from auth.database import Database, DatabaseUnavailable
from auth.errors import AuthError, InvalidToken, TemporarilyUnavailable
from auth.external import OutsideProvider
from auth.jwt import TokenError
from auth.keys import KeyRing
from auth.login import Login, RecordEvent
from auth.lookups import Lookups
from auth.passwords import Passwords
from auth.principal import ACCESS_TOKEN, API_KEY, CLIENT_PREFIX, CLIENT_TOKEN, OUTSIDE, Principal
from auth.revocation import Revocations, write_revocation
from auth.rotation import Keys
from auth.secret_tokens import hash_secret
from auth.sessions import Sessions
from auth.teams import Teams
from auth.tokens import Claims, Tokens
from auth.users import Users

MAX_CACHED: Final = 4096
_AT_ONCE: Final = 4  # looked up for whoever asks; the other connections of the pool are not for them
_PATIENCE_SECONDS: Final = 5.0
_LEEWAY: Final = timedelta(seconds=120)  # the most that a setting can make it
_OURS: Final = frozenset({ACCESS_TOKEN, CLIENT_TOKEN})
Refusal = TypeVar("Refusal", bound=AuthError)


def principal_of(claims: Claims) -> Principal:
    """Who one of our access tokens belongs to."""
    return Principal(
        subject=claims.subject,
        username=claims.username,
        scopes=claims.scopes,
        auth_method=CLIENT_TOKEN if claims.username.startswith(CLIENT_PREFIX) else ACCESS_TOKEN,
        expires_at=claims.expires_at,
        issued_at=claims.issued_at,
        credential_id=claims.jti,
        client_id=claims.client_id,
        session_id=claims.session_id,
        team=claims.team,
    )


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A credential that was verified."""

    principal: Principal
    learned: int  # what the revocations had learned before it was


@dataclass(slots=True)
class AuthService:
    """The parts, and who a credential belongs to."""

    database: Database
    users: Users
    teams: Teams
    clients: Clients
    sessions: Sessions
    api_keys: ApiKeys
    passwords: Passwords
    login: Login
    keys: Keys
    tokens: Tokens
    revocations: Revocations
    outside: OutsideProvider | None
    record_event: RecordEvent
    default_client: bool = True
    clock: Callable[[], float] = time.time
    # The least recently used first. Only what is accepted gets in, so junk cannot push it out.
    _accepted: OrderedDict[str, _Accepted] = field(default_factory=OrderedDict, init=False, repr=False)
    _ring: KeyRing | None = field(default=None, init=False, repr=False)  # of the tokens among them
    _outside_keys: object = field(default=None, init=False, repr=False)  # of the outside tokens among them
    _lookups: Lookups = field(init=False, repr=False)
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE), init=False, repr=False)
    _used: dict[str, datetime] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self._lookups = Lookups(self.api_keys.verify, self.clock)

    async def authenticate(self, credential: str, address: str = "") -> Principal:
        """Who an access token or an API key belongs to. It is verified once; expiry and revocation are asked always.

        Args:
            credential: as it came.
            address: from where.

        Raises:
            InvalidToken: it is not accepted.
            TemporarilyUnavailable: it was not seen before, and what verifies it is away, or has too much to do.
        """
        try:
            return await self._authenticate(credential, address)
        except WrongKey as error:
            raise self.refusal(InvalidToken(reason=error.reason)) from error
        except TokenError as error:
            raise self.refusal(InvalidToken(reason=error.reason)) from error
        except DatabaseUnavailable as error:
            unavailable = TemporarilyUnavailable("The key cannot be checked now.", reason="database")
            raise self.refusal(unavailable) from error
        except (InvalidToken, TemporarilyUnavailable) as error:
            raise self.refusal(error) from error.__cause__

    def forget_accepted(self) -> None:
        """Verify our access tokens anew: the signing keys are others."""
        self._forget(*_OURS)

    def _forget(self, *methods: str) -> None:
        kept = ((name, each) for name, each in self._accepted.items() if each.principal.auth_method not in methods)
        self._accepted = OrderedDict(kept)

    def refusal(self, error: Refusal) -> Refusal:
        """Count a refusal; returns it, to be raised."""
        result = "error" if isinstance(error, TemporarilyUnavailable) else "refused"
        self.record_event("authenticate", result, error.reason)
        return error

    async def revoke_token(self, principal: Principal, *, by: Actor) -> None:
        """Refuse one access token from now on."""
        audit = by.did("token.revoke", "token", principal.credential_id, target_name=principal.username)
        async with self.database.transaction(audit) as connection:
            until = datetime.fromtimestamp(principal.expires_at, UTC) + _LEEWAY
            await write_revocation(connection, "token", principal.credential_id, until)
        self.revocations.apply_now("token", principal.credential_id)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """For looking something up for whoever asks: what strangers make up must not take every connection there is.

        Raises:
            TemporarilyUnavailable: there was none to be had in time.
        """
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._places.acquire()
        except TimeoutError as error:
            raise TemporarilyUnavailable("Too much at once.", reason="busy") from error
        try:
            yield
        finally:
            self._places.release()

    async def flush_last_used(self) -> None:
        """Write down when API keys were last used. What cannot be written now is tried again."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self.api_keys.touch(used)
        except BaseException:
            self._used = used | self._used
            raise

    async def _authenticate(self, credential: str, address: str) -> Principal:
        if self._ring is not self.keys.ring:
            self.forget_accepted()
            self._ring = self.keys.ring
        if self.outside is not None and self._outside_keys is not self.outside.keys.known:
            self._forget(OUTSIDE)
            self._outside_keys = self.outside.keys.known
        # An API key does not stand in memory as it is.
        name = hash_secret(credential) if credential.startswith(PREFIX) else credential
        found = self._accepted.get(name)
        if found is not None and self._outdated(found):
            del self._accepted[name]
            found = None
        if found is None:
            found = await self._verify(credential, address)
        elif self._expired(found.principal):
            del self._accepted[name]
            raise InvalidToken(reason="expired")
        principal = found.principal
        reason = self.revocations.refuses(principal)
        if reason is not None:
            raise InvalidToken(reason=reason)
        self._accepted[name] = found
        self._accepted.move_to_end(name)
        if len(self._accepted) > MAX_CACHED:
            self._accepted.popitem(last=False)
        if principal.auth_method == API_KEY:
            self._used[principal.credential_id] = datetime.fromtimestamp(self.clock(), UTC)
        return principal

    async def _verify(self, credential: str, address: str) -> _Accepted:
        learned = self.revocations.learned
        if credential.startswith(PREFIX):
            principal = _holder_of(await self._lookups.find(credential, learned, address), self.clock())
        elif self.outside is not None and self.outside.issued(credential):
            principal = await self.outside.authenticate(credential)
        elif not self.keys.ring.keys:  # begun without its database: whether a token is good is not known
            raise TemporarilyUnavailable("The token cannot be checked now.", reason="no_keys")
        else:
            principal = principal_of(self.tokens.verify(credential))
        return _Accepted(principal, learned)

    def _outdated(self, found: _Accepted) -> bool:
        is_key = found.principal.auth_method == API_KEY
        return is_key and self.revocations.changed(found.principal, since=found.learned)

    def _expired(self, principal: Principal) -> bool:
        if principal.auth_method == API_KEY:
            return principal.expires_at <= self.clock()
        return self.tokens.expired(principal.expires_at)


def _holder_of(key: ApiKey, read_at: float) -> Principal:
    return Principal(
        subject=key.user_id,
        username=key.username,
        scopes=key.effective_scopes,
        auth_method=API_KEY,
        expires_at=float("inf") if key.expires_at is None else key.expires_at.timestamp(),
        issued_at=read_at,
        credential_id=key.id,
        team=key.team_id or "",
    )
