"""Is it the user? In order: throttle -> find -> verify -> rehash -> count."""

from collections.abc import Callable
from dataclasses import replace

import structlog

from auth.database import DatabaseUnavailable
from auth.errors import InvalidGrant, OAuthError, TemporarilyUnavailable
from auth.passwords import Passwords, PasswordsBusy
from auth.throttle import LoginThrottle
from auth.users import User, Users

log = structlog.get_logger("auth.login")

RecordEvent = Callable[[str, str, str], None]
"""Counts one event: `event`, `result` (ok, refused, error) and `reason`, each from a closed set."""
_TOO_MANY = "Too many logins at once."


class Login:
    """Finds the user of a username and a password, and counts each way out."""

    def __init__(self, users: Users, passwords: Passwords, throttle: LoginThrottle, record_event: RecordEvent) -> None:
        self._users = users
        self._passwords = passwords
        self._throttle = throttle
        self._record_event = record_event
        self._at_work = 0

    async def with_password(self, username: str, password: str, address: str) -> User:
        """Who it is, as they were when the password was verified but for a new hash of it.

        Args:
            username: as typed; any string.
            password: as typed; any string.
            address: where it comes from; empty where there is none.

        Raises:
            InvalidGrant: no such user, wrong password, or disabled; the three cannot be told apart.
            SlowDown: too many failures before; nothing was looked at.
            TemporarilyUnavailable: too many at once, or the database does not answer.
        """
        try:
            user = await self._attempt(username, password, address)
        except DatabaseUnavailable as error:
            refusal = TemporarilyUnavailable("The user database does not answer.", reason="database")
            raise self._counted(refusal) from error
        except OAuthError as error:
            raise self._counted(error) from error.__cause__
        self._record_event("login", "ok", "none")
        log.info("login", subject=user.id)
        return user

    def _counted(self, error: OAuthError) -> OAuthError:
        result = "error" if isinstance(error, TemporarilyUnavailable) else "refused"
        self._record_event("login", result, error.reason)
        # Never the name as typed: people type passwords into the wrong field.
        log.warning("login_failed", reason=error.reason, subject=getattr(error, "subject", None))
        return error

    async def _attempt(self, username: str, password: str, address: str) -> User:
        # There will be no place to hash for more; told now, they cost the streams of this worker the least.
        if self._at_work >= self._passwords.capacity:
            raise TemporarilyUnavailable(_TOO_MANY, reason="busy")
        self._at_work += 1
        try:
            async with self._throttle.attempt(username, address) as attempt:
                found = await self._users.get(username)
                try:
                    user = await self._verify(found, password)
                except InvalidGrant:
                    await attempt.failed()
                    raise
                await attempt.succeeded()
            return await self._rehash(user, password)
        finally:
            self._at_work -= 1

    async def _verify(self, user: User | None, password: str) -> User:
        try:
            matches = await self._passwords.verify(password, user.password_hash if user else None)
        except PasswordsBusy as error:
            raise TemporarilyUnavailable(_TOO_MANY, reason="busy") from error
        if user is None:
            raise InvalidGrant(reason="unknown_user")
        if not matches:
            raise InvalidGrant(reason="wrong_password", subject=user.id)
        if user.disabled:
            raise InvalidGrant(reason="disabled", subject=user.id)
        return user

    async def _rehash(self, user: User, password: str) -> User:
        """Bring the stored hash up to today's parameters, now that the password is at hand; no login fails by it."""
        if not self._passwords.needs_update(user.password_hash):
            return user
        try:
            new = await self._passwords.hash(password)
            if await self._users.set_password_hash(user.id, new, replacing=user.password_hash):
                return replace(user, password_hash=new)
            current = await self._users.get_by_id(user.id)
        except (PasswordsBusy, DatabaseUnavailable) as error:
            log.warning("rehash_failed", subject=user.id, reason=type(error).__name__)
            return user
        # Another login of theirs was faster. A new password would have been a change of the user; a new hash is none.
        return current if current is not None and current.updated_at == user.updated_at else user
