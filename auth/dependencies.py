"""What a route asks for: `CurrentPrincipal`, or `Depends(requires(Scope.LLM))`."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import OAuth2PasswordBearer

from auth.errors import InsufficientScope, InvalidToken, NoCredentials
from auth.principal import Principal
from auth.scopes import DESCRIPTIONS, Scope
from auth.service import AuthService
from observability.context import note, timed

# Here for OpenAPI, which gets the Authorize button from it. The header is read by `authenticate_request`.
_scheme = OAuth2PasswordBearer(
    tokenUrl="token",
    scheme_name="Tollbook",
    description="An access token from `/token`. Leave the client fields empty.",
    scopes={str(scope): description for scope, description in DESCRIPTIONS.items()},
    auto_error=False,
)


def auth_of(request: Request) -> AuthService:
    """The auth of this application, from the lifespan state."""
    auth: AuthService = request.state.auth
    return auth


def authenticate_request(request: Request) -> Principal:
    """Who is calling, by the Authorization header alone: a token in the query string or the body is not looked at
    (RFC 6750 §2.2 and §2.3 are optional, and RFC 9700 §4.3.2 advises against them). Also left in
    `request.state.principal`, and its name in the log line.

    Raises:
        NoCredentials: no header, or another scheme than Bearer.
        InvalidToken: the token is not accepted.
    """
    auth = auth_of(request)
    headers = request.headers.getlist("authorization")
    if len(headers) > 1:  # which of them a proxy before us believed is anyone's guess
        raise auth.refusal(InvalidToken(reason="malformed"))
    scheme, _, token = headers[0].partition(" ") if headers else ("", "", "")
    token = token.strip(" ")
    if scheme.lower() != "bearer" or not token:
        raise auth.refusal(NoCredentials())
    principal = auth.authenticate(token)
    request.state.principal = principal
    note(request.scope, principal=principal.username)
    return principal


async def current_principal(request: Request, _: Annotated[str | None, Depends(_scheme)]) -> Principal:
    """`authenticate_request` as a dependency."""
    with timed(request.scope, "auth"):
        return authenticate_request(request)


CurrentPrincipal = Annotated[Principal, Depends(current_principal)]


def requires(scope: Scope) -> Callable[..., Awaitable[Principal]]:
    """A dependency that gives the principal if the token carries the scope.

    Its result raises InsufficientScope (403) besides what `authenticate_request` raises.
    """

    async def principal_with_scope(
        request: Request, principal: Annotated[Principal, Security(current_principal, scopes=[str(scope)])]
    ) -> Principal:
        if not principal.has(scope):
            raise auth_of(request).refusal(InsufficientScope(scope))
        return principal

    return principal_with_scope
