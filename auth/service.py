"""All of auth in one object, for the lifespan state: `request.state.auth`."""

from collections import OrderedDict
from dataclasses import dataclass, field

from auth.errors import BearerError, InvalidToken
from auth.login import Login, RecordEvent
from auth.passwords import Passwords
from auth.principal import Principal
from auth.revocation import DisabledUsers
from auth.tokens import TokenError, Tokens
from auth.users import Users

MAX_CACHED_TOKENS = 4096
ACCESS_TOKEN = "access_token"  # noqa: S105  # an auth_method, not a secret


@dataclass(slots=True)
class AuthService:
    """The parts, and who a token belongs to."""

    login: Login
    tokens: Tokens
    users: Users
    passwords: Passwords
    disabled: DisabledUsers
    record_event: RecordEvent
    # Verified tokens, the least recently used first. Only accepted tokens get in, so junk cannot push them out.
    _verified: OrderedDict[str, Principal] = field(default_factory=OrderedDict, init=False, repr=False)

    def authenticate(self, token: str) -> Principal:
        """Who an access token belongs to. The signature is checked once a token; expiry and disabling every time.

        Raises:
            InvalidToken: it is not accepted.
        """
        principal = self._verified.get(token)
        if principal is None:
            principal = self._verify(token)
            self._verified[token] = principal
            if len(self._verified) > MAX_CACHED_TOKENS:
                self._verified.popitem(last=False)
        elif self.tokens.expired(principal.expires_at):
            del self._verified[token]
            raise self.refusal(InvalidToken(reason="expired"))
        else:
            self._verified.move_to_end(token)
        if self.disabled.contains(principal.subject):
            raise self.refusal(InvalidToken(reason="disabled"))
        return principal

    def refusal(self, error: BearerError) -> BearerError:
        """Count a refusal; returns it, to be raised."""
        self.record_event("authenticate", "refused", error.reason)
        return error

    def _verify(self, token: str) -> Principal:
        try:
            claims = self.tokens.verify(token)
        except TokenError as error:
            raise self.refusal(InvalidToken(reason=error.reason)) from error
        return Principal(claims.subject, claims.username, claims.scopes, ACCESS_TOKEN, claims.expires_at)
