"""The errors of this room, in the shapes of RFC 6749 and RFC 6750. What they say and how it is rendered are apart:
other routes render a `BearerError` in a shape of their own.

AuthError
├── OAuthError                     /token, /revoke, /introspect: RFC 6749 §5.2
│   ├── InvalidRequest             400 invalid_request
│   ├── InvalidClient              401 invalid_client
│   ├── InvalidGrant               400 invalid_grant
│   ├── UnauthorizedClient         400 unauthorized_client
│   ├── UnsupportedGrantType       400 unsupported_grant_type
│   ├── UnsupportedTokenType       400 unsupported_token_type
│   ├── InvalidScope               400 invalid_scope
│   ├── SlowDown                   429 slow_down, with Retry-After
│   └── TemporarilyUnavailable     503 temporarily_unavailable, with Retry-After
└── BearerError                    every route that needs a principal, RFC 6750 §3
    ├── NoCredentials              401, no error code: §3.1
    ├── InvalidToken               401 invalid_token
    └── InsufficientScope          403 insufficient_scope, with the scope that is missing

Descriptions are constants of ours: nothing a client sent is ever in one, so none can carry a token, a password or a
line break. They keep to the characters RFC 6749 §5.2 allows, which makes them safe inside a quoted-string too.
"""

from typing import ClassVar

from starlette.responses import JSONResponse

from auth.scopes import Scope

REALM = "tollbook"
# RFC 6749 §5.1 asks for both on answers with a token; an error about one is nobody's to keep either.
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
RETRY_AFTER_SECONDS = 1


class AuthError(Exception):
    """What a client is told: an HTTP status, a code for the machine, a sentence for the human, and headers.

    `reason` is a word of a closed set, finer than the code, for counters and logs.
    """

    status: ClassVar[int]

    def __init__(self, description: str, *, reason: str) -> None:
        super().__init__(description)
        self.description = description
        self.reason = reason

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the error whatever shape its body takes."""
        return {}


class OAuthError(AuthError):
    """An endpoint of the authorization server refuses. `error` is the code of RFC 6749 §5.2."""

    status = 400
    error: ClassVar[str]

    def __init__(self, description: str, *, reason: str = "") -> None:
        super().__init__(description, reason=reason or self.error)


class InvalidRequest(OAuthError):  # noqa: N818  # these are named by their codes in the RFC
    error = "invalid_request"


class InvalidClient(OAuthError):  # noqa: N818
    """The client did not prove who it is. One message for all the ways to fail, as of `InvalidGrant`."""

    status = 401
    error = "invalid_client"

    def __init__(self, *, reason: str) -> None:
        super().__init__("The client is unknown, or its secret is wrong.", reason=reason)

    @property
    def headers(self) -> dict[str, str]:
        """The challenge that RFC 6749 §5.2 asks for."""
        return {"WWW-Authenticate": f'Basic realm="{REALM}"'}


class InvalidGrant(OAuthError):  # noqa: N818
    """One message for all the ways to fail, so that it tells nobody which names exist."""

    error = "invalid_grant"

    def __init__(
        self, description: str = "The username or the password is wrong.", *, reason: str, subject: str | None = None
    ) -> None:
        super().__init__(description, reason=reason)
        self.subject = subject  # whose it would have been; for the log only


class UnauthorizedClient(OAuthError):  # noqa: N818
    """The client may not use this grant."""

    error = "unauthorized_client"


class UnsupportedGrantType(OAuthError):  # noqa: N818
    error = "unsupported_grant_type"


class UnsupportedTokenType(OAuthError):  # noqa: N818
    """RFC 7009 §2.2.1."""

    error = "unsupported_token_type"


class InvalidScope(OAuthError):  # noqa: N818
    error = "invalid_scope"


class SlowDown(OAuthError):  # noqa: N818
    """Too many failed logins. The code is that of RFC 8628 §3.5; RFC 6749 has none for it.

    Args:
        retry_after_seconds: until an attempt is looked at again.
    """

    status = 429
    error = "slow_down"

    def __init__(self, *, retry_after_seconds: int, reason: str = "throttled") -> None:
        super().__init__("Too many failed logins. Wait before the next.", reason=reason)
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_seconds)}


class TemporarilyUnavailable(OAuthError):  # noqa: N818
    """Not the client's fault; the same request may succeed in a moment."""

    status = 503
    error = "temporarily_unavailable"

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_AFTER_SECONDS)}


class BearerError(AuthError):
    """A route that needs a principal refuses. `error` is the code of RFC 6750 §3.1, None where it wants none sent."""

    status = 401
    error: ClassVar[str | None] = None
    scope: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """WWW-Authenticate, RFC 6750 §3."""
        attributes = {"realm": REALM}
        if self.error is not None:
            attributes |= {"error": self.error, "error_description": self.description}
        if self.scope is not None:
            attributes["scope"] = self.scope
        challenge = ", ".join(f'{name}="{value}"' for name, value in attributes.items())
        return {"WWW-Authenticate": f"Bearer {challenge}"}


class NoCredentials(BearerError):  # noqa: N818
    def __init__(self) -> None:
        super().__init__("Send an access token as a bearer in the Authorization header.", reason="no_credentials")


class InvalidToken(BearerError):  # noqa: N818
    error = "invalid_token"

    def __init__(self, *, reason: str) -> None:
        expired = reason == "expired"
        super().__init__(f"The access token {'has expired' if expired else 'is not valid'}.", reason=reason)


class InsufficientScope(BearerError):  # noqa: N818
    status = 403
    error = "insufficient_scope"

    def __init__(self, scope: Scope) -> None:
        super().__init__(f"The access token does not have the scope {scope}.", reason="insufficient_scope")
        self.scope = scope


def oauth_error_response(error: OAuthError) -> JSONResponse:
    """The body of RFC 6749 §5.2."""
    return _render(error, error.error)


def bearer_error_response(error: BearerError) -> JSONResponse:
    """The same body for the routes that need a principal.

    RFC 6750 §3.1 wants no code in the header when nothing was sent; the body has one all the same, for who reads it.
    """
    return _render(error, error.error or "unauthorized")


def _render(error: AuthError, code: str) -> JSONResponse:
    body = {"error": code, "error_description": error.description}
    return JSONResponse(body, status_code=error.status, headers=NO_STORE | error.headers)
