"""The endpoints of the authorization server, and `GET /users/me`."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from auth.audit import Actor
from auth.client_auth import client_of
from auth.clients import DEFAULT_CLIENT, GRANTS
from auth.dependencies import CurrentPrincipal, address_of, auth_of
from auth.errors import NO_STORE, InvalidClient, InvalidRequest
from auth.form import CONTENT_TYPE, MAX_PARAMETERS, MAX_VALUE_BYTES, read_form
from auth.grants import EVENTS, counted, grant, grant_type_of, required
from auth.introspection import introspect as introspect_token
from auth.introspection import revoke as revoke_token
from auth.jwt import MAX_TOKEN_BYTES
from auth.principal import CLIENT_PREFIX
from auth.scopes import DESCRIPTIONS, format_scope
from auth.service import AuthService
from observability.context import request_id_of

router = APIRouter(tags=["auth"])


class TokenResponse(BaseModel):
    """RFC 6749 §5.1."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "access_token": "eyJhbGciOiJFUzI1NiIs...",
                    "token_type": "Bearer",
                    "expires_in": 3600,
                    "scope": "llm usage:read",
                    "refresh_token": "tbr_5x0c...",
                }
            ]
        }
    )

    access_token: str
    token_type: str = "Bearer"  # noqa: S105  # a type, not a secret
    expires_in: Annotated[int, Field(description="Life of the token, in seconds.")]
    scope: Annotated[str, Field(description="What was granted; it may be less than what was asked for.")]
    refresh_token: Annotated[str | None, Field(description="Gets the next token, once; null for a machine.")] = None


class Introspection(BaseModel):
    """RFC 7662 §2.2. Of a token that is not active nothing else is said."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "active": True,
                    "scope": "llm usage:read",
                    "client_id": "tollbook",
                    "username": "ada",
                    "token_type": "Bearer",
                    "exp": 1795600800,
                    "iat": 1795597200,
                    "sub": "6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55",
                    "aud": "tollbook",
                    "iss": "https://llm.example.com",
                    "jti": "019ab2c4-7d1e-7c3a-9f55-2b8e61d0c4aa",
                }
            ]
        }
    )

    active: Annotated[bool, Field(description="Whether it is alive, and the client's to ask about.")]
    scope: str | None = None
    client_id: str | None = None
    username: Annotated[str | None, Field(description="As the books have it.")] = None
    token_type: Annotated[str | None, Field(description="Of access tokens only, as `iat`, `aud` and `jti` are.")] = None
    exp: Annotated[int | None, Field(description="Unix time, in seconds.")] = None
    iat: Annotated[int | None, Field(description="Unix time, in seconds.")] = None
    sub: str | None = None
    aud: str | None = None
    iss: str | None = None
    jti: str | None = None


class AuthErrorBody(BaseModel):
    """RFC 6749 §5.2."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"error": "invalid_grant", "error_description": "The username or the password is wrong."}]
        }
    )

    error: Annotated[str, Field(description="A code for the machine.")]
    error_description: Annotated[str, Field(description="A sentence for the human.")]


class Me(BaseModel):
    """The caller, as the credential says it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55",
                    "username": "ada",
                    "scopes": ["llm", "usage:read"],
                    "team": "0d9f3c1e-8a44-4f0c-9c36-52b1f7a1de02",
                    "expires_at": "2026-01-01T12:00:00Z",
                }
            ]
        }
    )

    id: str
    username: str
    scopes: list[str]
    team: Annotated[str | None, Field(description="Id of the team; null outside of one.")]
    expires_at: Annotated[datetime | None, Field(description="When the credential expires; null: never.")]


def _string(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": MAX_VALUE_BYTES, "description": description} | more


_CLIENT_FIELDS = {
    "client_id": _string("The client. Left out: Tollbook's own, for the grants of users."),
    "client_secret": _string("The client's secret, unless it comes by HTTP Basic.", format="password"),
}


def _form(fields: dict[str, Any], needed: list[str], example: dict[str, str]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": needed,
        "properties": fields | _CLIENT_FIELDS,
        "additionalProperties": {"type": "string", "maxLength": MAX_VALUE_BYTES},  # passed over
        "maxProperties": MAX_PARAMETERS,
    }
    return {"requestBody": {"required": True, "content": {CONTENT_TYPE: {"schema": schema, "example": example}}}}


_TOKEN_FORM = _form(
    {
        "grant_type": _string("The grant.", enum=list(GRANTS)),
        "username": _string("The user's name, for the password grant."),
        "password": _string("The user's password, for the password grant.", format="password"),
        "refresh_token": _string("For the grant of that name."),
        "scope": _string(
            "Scopes with a space between them; all there is when left out. "
            + " ".join(f"`{scope}`: {text}" for scope, text in DESCRIPTIONS.items()),
            pattern=r"^([!#-\[\]-~]+( [!#-\[\]-~]+)*)?$",  # RFC 6749 §3.3
        ),
    },
    ["grant_type"],
    {
        "grant_type": "password",
        "username": "ada",
        "password": "correct horse battery staple",
        "scope": "llm usage:read",
    },
)
_ABOUT_TOKEN_FORM = _form(
    {
        "token": _string("An access token or a refresh token.", minLength=1, maxLength=MAX_TOKEN_BYTES),
        "token_type_hint": _string("`access_token` or `refresh_token`; not needed."),
    },
    ["token"],
    {"token": "tbr_5x0c...", "client_id": "tollbook"},
)
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": AuthErrorBody, "description": "Refused; `error` says why (RFC 6749 §5.2)."},
    401: {"model": AuthErrorBody, "description": "The client is not who it says."},
    408: {"model": AuthErrorBody, "description": "The form did not arrive in time."},
    413: {"model": AuthErrorBody, "description": "The form is far too large."},
    503: {"model": AuthErrorBody, "description": "Too much at once, or no database; see `Retry-After`."},
}


@router.post(
    "/token",
    summary="Get a token",
    openapi_extra=_TOKEN_FORM,
    response_model_exclude_none=True,
    responses=_REFUSALS | {429: {"model": AuthErrorBody, "description": "Too many failed logins; see `Retry-After`."}},
)
async def token(request: Request, response: Response) -> TokenResponse:
    """Trade a user's name and password (RFC 6749 §4.3), a refresh token (§6) or a client's own credentials (§4.4) for
    an access token. The password grant is for this service's own clients.
    """
    auth = auth_of(request)
    with counted(auth, "login"):  # until it is known what is wanted
        form = await _read(request)
        grant_type = grant_type_of(form)
    began = auth.clock()
    async with _looking_up(auth, EVENTS[grant_type]):
        default = auth.default_client and grant_type in DEFAULT_CLIENT.grants
        client = await client_of(request, form, auth.clients, default=default)
    granted = await grant(auth, grant_type, client, form, address_of(request), began)
    response.headers.update(NO_STORE)
    issued = granted.token
    return TokenResponse(
        access_token=issued.access_token,
        expires_in=issued.expires_in,
        scope=issued.scope,
        refresh_token=granted.refresh_token,
    )


@router.post(
    "/revoke", summary="End a token", openapi_extra=_ABOUT_TOKEN_FORM, responses=_REFUSALS, response_class=Response
)
async def revoke(request: Request) -> Response:
    """End an access token, or with a refresh token its whole session (RFC 7009). An unknown token is no error."""
    auth = auth_of(request)
    with counted(auth, "revoke"):
        form = await _read(request)
    async with _looking_up(auth, "revoke"):
        client = await client_of(request, form, auth.clients, default=auth.default_client)
    # In the audit log a client goes by its id: anyone may have given it the name of someone else.
    by = Actor(client.id, CLIENT_PREFIX + client.id, address_of(request), request_id_of(request.scope))
    async with _looking_up(auth, "revoke", client.id):
        alive = await revoke_token(auth, required(form, "token"), client, by)
    auth.record_event("revoke", "ok", "none" if alive else "unknown_token")
    return Response(headers=NO_STORE)


@router.post(
    "/introspect",
    summary="Ask about a token",
    openapi_extra=_ABOUT_TOKEN_FORM,
    response_model=Introspection,
    response_model_exclude_none=True,
    responses=_REFUSALS,
)
async def introspect(request: Request, response: Response) -> dict[str, Any]:
    """Whether a token is alive, and what it says (RFC 7662). For registered clients with a secret: about their own
    tokens, with the scope `introspect` about all.
    """
    auth = auth_of(request)
    with counted(auth, "introspect"):
        form = await _read(request)
    async with _looking_up(auth, "introspect"):
        client = await client_of(request, form, auth.clients, default=False)
        if client.public:
            raise InvalidClient(reason="no_secret")
    async with _looking_up(auth, "introspect", client.id):
        answer = await introspect_token(auth, required(form, "token"), client)
    auth.record_event("introspect", "ok", "none")
    response.headers.update(NO_STORE)
    return answer


@asynccontextmanager
async def _looking_up(auth: AuthService, event: str, client_id: str = "") -> AsyncIterator[None]:
    """For what asks the database on the word of whoever asks."""
    with counted(auth, event, client_id):
        async with auth.place():
            yield


async def _read(request: Request) -> dict[str, str]:
    # In a URL they would end up in logs and histories: RFC 6749 §2.3.1.
    if request.url.query:
        raise InvalidRequest("Send the parameters in the body, never in the query string.")
    return await read_form(request)


@router.get(
    "/users/me",
    summary="Who am I",
    responses={
        401: {"model": AuthErrorBody, "description": "No credential, or one that is not accepted (RFC 6750)."},
        503: {"model": AuthErrorBody, "description": "An API key that cannot be checked now; see `Retry-After`."},
    },
)
async def me(principal: CurrentPrincipal) -> Me:
    """The caller, as the credential says it."""
    return Me(
        id=principal.subject,
        username=principal.username,
        scopes=format_scope(principal.scopes).split(),
        team=principal.team or None,
        expires_at=None if math.isinf(principal.expires_at) else datetime.fromtimestamp(principal.expires_at, UTC),
    )
