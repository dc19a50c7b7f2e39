"""What the routes of the admin API share: their fields, how lists are paged, what errors become."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, Final, Generic, Self, TypeVar

from fastapi import Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from auth.apikeys import InvalidKeyData, UnknownKey
from auth.clients import ClientIdTaken, InvalidClientData, UnknownClient
from auth.database import DatabaseUnavailable
from auth.errors import NO_STORE
from auth.keystore import KeyStoreError, KeyStoreReadOnly, UnknownKid
from auth.names import MAX_NAME_CHARACTERS, InvalidName, validate_name
from auth.passwords import MAX_PASSWORD_BYTES, InvalidPassword, PasswordsBusy
from auth.scopes import InvalidScopeString
from auth.scopes import Scope as AccessScope
from auth.sessions import UnknownSession
from auth.teams import TeamNameTaken, TeamNotEmpty, UnknownTeam
from auth.users import LastAdmin, UnknownUser, UserChanged, UsernameTaken
from observability.middleware import HTTP_CLIENT_CLOSED_REQUEST
from service.api.body import check, read_json
from service.errors import Conflict, NotFound, Unavailable, UnprocessableRequest
from service.openapi import errors

READ_ERRORS = errors(401, 403, 404, 422, 503)
WRITE_ERRORS = errors(400, 401, 403, 404, 408, 409, 413, 415, 422, 503)

ID_PATTERN: Final = r"^[A-Za-z0-9._-]{1,64}$"
PRINTABLE: Final = r"^[^\x00-\x1f\x7f]*$"
Limit = Annotated[int, Query(ge=1, le=200, description="Entries on a page.")]
Cursor = Annotated[
    str,
    Query(max_length=128, pattern=PRINTABLE, description="Go on from here: `next` of the page before."),
]
Id = Annotated[str, Path(pattern=ID_PATTERN)]
IdQuery = Annotated[str | None, Query(pattern=ID_PATTERN)]
# Of an outside provider's users it is what the provider says.
ActorQuery = Annotated[str | None, Query(max_length=160, pattern=PRINTABLE)]
IdField = Annotated[str, Field(pattern=ID_PATTERN, max_length=36)]

# The rule of auth/names.py as far as a pattern can say it, for the document.
_CONTROLS: Final = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
NAME_RULE: Final = Field(
    min_length=1,
    max_length=MAX_NAME_CHARACTERS,
    json_schema_extra={"pattern": rf"^[^\s{_CONTROLS}]([^{_CONTROLS}]*[^\s{_CONTROLS}])?$"},
)
Name = Annotated[str, AfterValidator(validate_name), NAME_RULE]
_SCOPE: Final = rf"^({'|'.join(AccessScope)}|llm:[!#-\[\]-~]{{1,128}})$"
# So many that a token which carries them all is still accepted.
ScopeList = Annotated[list[Annotated[str, Field(pattern=_SCOPE)]], Field(min_length=1, max_length=32)]
Password = Annotated[str, Field(max_length=MAX_PASSWORD_BYTES, json_schema_extra={"format": "password"})]

Item = TypeVar("Item")
Body = TypeVar("Body", bound=BaseModel)

_NOT_FOUND = (UnknownUser, UnknownTeam, UnknownClient, UnknownKey, UnknownSession, UnknownKid)
_CONFLICT = (
    ClientIdTaken,
    InvalidClientData,  # what a public client cannot have
    KeyStoreReadOnly,
    LastAdmin,
    TeamNameTaken,
    TeamNotEmpty,
    UserChanged,
    UsernameTaken,
)
_INVALID = (InvalidName, InvalidPassword, InvalidScopeString, InvalidKeyData)
_UNAVAILABLE = (DatabaseUnavailable, PasswordsBusy, KeyStoreError)


class Strict(BaseModel):
    """A body in which a field that is not known is an error: none can be set that is not meant to be."""

    model_config = ConfigDict(extra="forbid")


class Change(BaseModel):
    """A body of which every field may be left out, but not all of them."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1})

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("there is nothing to change")
        for name in self.model_fields_set - {"team_id"}:  # which may be none
            if getattr(self, name) is None:
                raise ValueError(f"{name} cannot be null")
        return self


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    data: list[Item]
    next: str | None  # give it as `after` (`before` for what is listed from the newest) for the next page


def page(found: Sequence[Any], limit: int, shape: Callable[[Any], Item], cursor: Callable[[Any], str]) -> Page[Item]:
    """A page, with where the next begins if this one is full."""
    return Page(
        data=[shape(each) for each in found],
        next=cursor(found[-1]) if len(found) == limit else None,
    )


class AdminRoute(APIRoute):
    """Says what the repositories raise in the words of the API, and has no answer stored."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Out here, because the answers to errors are made further out than the handler."""

        async def not_to_be_stored(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(NO_STORE)
            await send(message)

        await super().handle(scope, receive, not_to_be_stored)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps the handler that FastAPI makes."""
        handler = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handler(request)
            except _NOT_FOUND:
                raise not_found() from None
            except _CONFLICT as error:
                raise Conflict(_sentence(error)) from error
            except _INVALID as error:
                raise UnprocessableRequest(_sentence(error)) from error
            except _UNAVAILABLE as error:
                raise Unavailable("This cannot be done now.", headers={"Retry-After": "1"}) from error
            except RequestValidationError as error:
                first = error.errors()[0]
                name = str(first["loc"][-1])
                raise UnprocessableRequest(f"{name}: {first['msg']}", param=name) from None
            except ClientDisconnect:
                return Response(status_code=HTTP_CLIENT_CLOSED_REQUEST)

        return handled


def not_found() -> NotFound:
    """One answer for what is not there and for what the caller is not to know of."""
    return NotFound("There is nothing of this id, or you may not see it.")


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


async def read_body(request: Request, model: type[Body]) -> Body:
    """The body, once the caller is known.

    Raises:
        ServiceError: what is wrong with it.
    """
    found = await read_json(request)
    wanted = check(model, found, UnprocessableRequest)
    if issubclass(model, Change) and not wanted.model_fields_set:
        raise UnprocessableRequest("There is nothing to change.")
    return wanted
