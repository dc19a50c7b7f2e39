"""`POST /token` and `GET /users/me`."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from auth.dependencies import CurrentPrincipal, auth_of
from auth.errors import NO_STORE, InvalidRequest, OAuthError, UnsupportedGrantType
from auth.form import CONTENT_TYPE, MAX_VALUE_BYTES, read_form
from auth.scopes import DESCRIPTIONS, format_scope

router = APIRouter(tags=["auth"])

_TOKEN_PARAMETERS = frozenset({"grant_type", "username", "password", "scope", "client_id", "client_secret"})


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
                }
            ]
        }
    )

    access_token: str
    token_type: str = "Bearer"  # noqa: S105  # a type, not a secret
    expires_in: Annotated[int, Field(description="Life of the token, in seconds.")]
    scope: Annotated[str, Field(description="What was granted; it may be less than what was asked for.")]


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
    """The caller, as the access token says it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55",
                    "username": "ada",
                    "scopes": ["llm", "usage:read"],
                    "expires_at": "2026-01-01T12:00:00Z",
                }
            ]
        }
    )

    id: str
    username: str
    scopes: list[str]
    expires_at: Annotated[datetime, Field(description="When the access token expires.")]


def _string(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": MAX_VALUE_BYTES, "description": description, **more}


_TOKEN_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            CONTENT_TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["grant_type", "username", "password"],
                    "properties": {
                        "grant_type": _string("The grant.", enum=["password"]),
                        "username": _string("The user's name."),
                        "password": _string("The user's password.", format="password"),
                        "scope": _string(
                            "Scopes with a space between them; all of the user's when left out. "
                            + " ".join(f"`{scope}`: {text}" for scope, text in DESCRIPTIONS.items())
                        ),
                    },
                },
                "example": {
                    "grant_type": "password",
                    "username": "ada",
                    "password": "correct horse battery staple",
                    "scope": "llm usage:read",
                },
            }
        },
    }
}


@router.post(
    "/token",
    summary="Log in",
    openapi_extra=_TOKEN_FORM,
    responses={
        400: {"model": AuthErrorBody, "description": "Refused; `error` says why (RFC 6749 §5.2)."},
        503: {"model": AuthErrorBody, "description": "Too many logins at once, or no database; see `Retry-After`."},
    },
)
async def token(request: Request, response: Response) -> TokenResponse:
    """Trade a username and a password for an access token: the password grant of RFC 6749 §4.3, for this service's own
    clients. There are no other clients yet, so `client_id`, `client_secret` and HTTP Basic are not looked at.
    """
    auth = auth_of(request)
    try:
        form = await _password_grant(request)
    except OAuthError as error:
        auth.record_event("login", "refused", error.reason)
        raise
    issued = await auth.login.with_password(form["username"], form["password"], form.get("scope", ""))
    response.headers.update(NO_STORE)
    return TokenResponse(access_token=issued.access_token, expires_in=issued.expires_in, scope=issued.scope)


async def _password_grant(request: Request) -> dict[str, str]:
    """The form of a password grant.

    Raises:
        InvalidRequest, UnsupportedGrantType: it is none.
    """
    if _TOKEN_PARAMETERS & request.query_params.keys():  # URLs end up in logs and histories: RFC 6749 §2.3.1
        raise InvalidRequest("Send the parameters in the body, never in the query string.")
    form = await read_form(request)
    if "grant_type" not in form:
        raise InvalidRequest("The parameter grant_type is missing.")
    if form["grant_type"] != "password":
        raise UnsupportedGrantType("The only grant type is password.")
    for name in ("username", "password"):
        if name not in form:
            raise InvalidRequest(f"The parameter {name} is missing.")
    return form


@router.get(
    "/users/me",
    summary="Who am I",
    responses={
        401: {"model": AuthErrorBody, "description": "No access token, or one that is not accepted (RFC 6750)."}
    },
)
async def me(principal: CurrentPrincipal) -> Me:
    """The caller, as the access token says it."""
    return Me(
        id=principal.subject,
        username=principal.username,
        scopes=format_scope(principal.scopes).split(),
        expires_at=datetime.fromtimestamp(principal.expires_at, UTC),
    )
