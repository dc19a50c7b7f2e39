"""What a route asks for: `CurrentPrincipal`, or `Depends(requires(Scope.LLM))`."""

from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Annotated, Final

from fastapi import Depends, Request, Security
from fastapi.openapi.models import OAuthFlowClientCredentials, OAuthFlowPassword, OAuthFlows
from fastapi.security import APIKeyHeader, OAuth2

from auth.apikeys import PREFIX
from auth.audit import Actor
from auth.errors import InsufficientScope, InvalidToken, NoCredentials
from auth.principal import Principal
from auth.scopes import DESCRIPTIONS, Scope
from auth.service import AuthService
from observability.context import note, request_id_of, timed

API_KEY_HEADER = "X-API-Key"
_MAX_ADDRESS: Final = 64
_SCOPES = {str(scope): description for scope, description in DESCRIPTIONS.items()}
# Here for OpenAPI, which gets the Authorize button from them. The headers are read by `authenticate_request`.
_oauth2 = OAuth2(
    flows=OAuthFlows(
        password=OAuthFlowPassword(tokenUrl="token", refreshUrl="token", scopes=_SCOPES),
        clientCredentials=OAuthFlowClientCredentials(tokenUrl="token", scopes=_SCOPES),
    ),
    scheme_name="Tollbook",
    description="An access token from `/token`. A user may leave the client fields empty.",
    auto_error=False,
)
_api_key = APIKeyHeader(
    name=API_KEY_HEADER, scheme_name="API key", description="An API key; as a bearer it works too.", auto_error=False
)


def auth_of(request: Request) -> AuthService:
    """The auth of this application, from the lifespan state."""
    auth: AuthService = request.state.auth
    return auth


def address_of(request: Request) -> str:
    """The IP address that a request comes from; empty where that is not known. A proxy may have said anything."""
    host = request.client.host if request.client else ""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    return host[:_MAX_ADDRESS]


def actor_of(request: Request, principal: Principal) -> Actor:
    """The caller as the audit log names them."""
    return Actor(principal.subject, principal.username, address_of(request), request_id_of(request.scope))


async def authenticate_request(request: Request) -> Principal:
    """Who is calling, by the headers alone: a token in the query string or the body is not looked at (RFC 6750 §2.2 and
    §2.3 are optional, and RFC 9700 §4.3.2 advises against them). Also left in `request.state.principal`, and its name
    in the log line.

    Raises:
        NoCredentials: no header, or another scheme than Bearer.
        InvalidToken: the credential is not accepted, or there are two.
        TemporarilyUnavailable: it cannot be checked now.
    """
    auth = auth_of(request)
    bearers, keys = request.headers.getlist("authorization"), request.headers.getlist(API_KEY_HEADER)
    if len(bearers) + len(keys) > 1:  # which of them a proxy before us believed is anyone's guess
        raise auth.refusal(InvalidToken(reason="malformed"))
    if keys:
        scheme, credential = "bearer", keys[0].strip(" ")
        if credential and not credential.startswith(PREFIX):  # a token has one place
            raise auth.refusal(InvalidToken(reason="malformed"))
    else:
        scheme, _, credential = bearers[0].partition(" ") if bearers else ("", "", "")
        credential = credential.strip(" ")
    if scheme.lower() != "bearer" or not credential:
        raise auth.refusal(NoCredentials())
    principal = await auth.authenticate(credential, address_of(request))
    request.state.principal = principal
    note(request.scope, principal=principal.username)
    return principal


async def current_principal(
    request: Request,
    _token: Annotated[str | None, Depends(_oauth2)],
    _key: Annotated[str | None, Depends(_api_key)],
) -> Principal:
    """`authenticate_request` as a dependency."""
    with timed(request.scope, "auth"):
        return await authenticate_request(request)


CurrentPrincipal = Annotated[Principal, Depends(current_principal)]


def requires(*scopes: Scope) -> Callable[..., Awaitable[Principal]]:
    """A dependency that gives the principal if the credential carries one of the scopes. `Scope.LLM` is also carried by
    who may call one model only: the route asks for the model.

    Its result raises InsufficientScope (403) besides what `authenticate_request` raises.
    """

    async def principal_with_scope(
        request: Request,
        principal: Annotated[Principal, Security(current_principal, scopes=[str(scopes[0])])],
    ) -> Principal:
        allowed = any(principal.has(scope) for scope in scopes) or (Scope.LLM in scopes and principal.calls_models)
        if not allowed:
            raise auth_of(request).refusal(InsufficientScope(scopes[0]))
        return principal

    return principal_with_scope
