"""The password grant, in order: throttle -> verify -> rehash -> scopes -> count."""

from collections.abc import Callable

import structlog

from auth.errors import InvalidGrant, InvalidScope, OAuthError, TemporarilyUnavailable
from auth.passwords import Passwords, PasswordsBusy
from auth.scopes import InvalidScopeString, parse_scope
from auth.tokens import IssuedToken, Tokens
from auth.users import User, Users, UsersUnavailable

log = structlog.get_logger("auth.login")

RecordEvent = Callable[[str, str, str], None]
"""Counts one event: `event`, `result` (ok, refused, error) and `reason`, each from a closed set."""


class Login:
    """Turns a username and a password into an access token, and counts each way out."""

    def __init__(self, users: Users, passwords: Passwords, tokens: Tokens, record_event: RecordEvent) -> None:
        self._users = users
        self._passwords = passwords
        self._tokens = tokens
        self._record_event = record_event

    async def with_password(self, username: str, password: str, scope: str = "") -> IssuedToken:
        """Log a user in.

        Args:
            username: as typed; any string.
            password: as typed; any string.
            scope: the scope string asked for (RFC 6749 §3.3). Empty: all the user has. Else what both have.

        Raises:
            InvalidGrant: no such user, wrong password, or disabled; the three cannot be told apart.
            InvalidScope: not a scope string, or nothing of it is the user's.
            TemporarilyUnavailable: the hashing queue is full, or the database does not answer.
        """
        found: User | None = None
        try:
            # A throttle belongs here, first: it has to be cheaper than the hashing it protects.
            found = await self._find(username)
            user = await self._verify(found, password)
            await self._rehash(user, password)
            token = self._tokens.issue(user.id, user.username, _granted(scope, user))
        except OAuthError as error:
            result = "error" if isinstance(error, TemporarilyUnavailable) else "refused"
            self._record_event("login", result, error.reason)
            # Never the name as typed: people type passwords into the wrong field.
            log.warning("login_failed", reason=error.reason, subject=found and found.id)
            raise
        self._record_event("login", "ok", "none")
        log.info("login", subject=user.id, jti=token.jti, scope=token.scope)
        return token

    async def _find(self, username: str) -> User | None:
        try:
            return await self._users.get(username)
        except UsersUnavailable as error:
            raise TemporarilyUnavailable("The user database does not answer.", reason="database") from error

    async def _verify(self, user: User | None, password: str) -> User:
        try:
            matches = await self._passwords.verify(password, user.password_hash if user else None)
        except PasswordsBusy as error:
            raise TemporarilyUnavailable("Too many logins at once.", reason="busy") from error
        if user is None:
            raise InvalidGrant(reason="unknown_user")
        if not matches:
            raise InvalidGrant(reason="wrong_password")
        if user.disabled:
            raise InvalidGrant(reason="disabled")
        return user

    async def _rehash(self, user: User, password: str) -> None:
        """Bring the stored hash up to today's parameters, now that the password is at hand; no login fails by it."""
        if not self._passwords.needs_update(user.password_hash):
            return
        try:
            new = await self._passwords.hash(password)
            await self._users.set_password_hash(user.id, new, replacing=user.password_hash)
        except (PasswordsBusy, UsersUnavailable) as error:
            log.warning("rehash_failed", subject=user.id, reason=type(error).__name__)


def _granted(scope: str, user: User) -> frozenset[str]:
    try:
        asked = parse_scope(scope)
    except InvalidScopeString as error:
        raise InvalidScope("The scope is not a list of scope tokens with one space between them.") from error
    granted = asked & user.scopes if asked else user.scopes
    if not granted:
        raise InvalidScope("Nothing of the scope that was asked for can be granted.")
    return granted
