"""/admin/clients. Their ids are made up here: one that looked like a user's id could pass for them (RFC 9700 §4.15)."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from auth.authority import Level
from auth.clients import GRANTS, Client, UnknownClient
from auth.scopes import format_scope
from auth.teams import UnknownTeam
from service.api.admin.caller import Admin, may
from service.api.admin.common import (
    READ_ERRORS,
    WRITE_ERRORS,
    AdminRoute,
    Change,
    Cursor,
    Id,
    IdField,
    IdQuery,
    Limit,
    Name,
    Page,
    ScopeList,
    Strict,
    page,
    read_body,
)
from service.openapi import json_body

router = APIRouter(prefix="/admin/clients", tags=["admin"], route_class=AdminRoute)

GrantList = Annotated[
    list[Annotated[str, Field(pattern=f"^({'|'.join(GRANTS)})$")]], Field(min_length=1, max_length=len(GRANTS))
]


class ClientObject(BaseModel):
    """A client."""

    client_id: str
    name: str
    public: bool
    grants: list[str]
    scopes: list[str]
    team_id: str | None
    disabled: bool
    created_at: datetime
    updated_at: datetime


class NewClientObject(ClientObject):
    """A client that was made just now, with its secret, which is shown here and never again; null for a public one."""

    client_secret: str | None


class ClientSecret(BaseModel):
    """A new secret, shown here and never again."""

    client_secret: str


class NewClient(Strict):
    """A client to be made."""

    name: Name
    grants: GrantList
    scopes: ScopeList = Field(description="The most that a token for it can carry.")
    public: bool = Field(False, strict=True, description="It cannot keep a secret, so it gets none.")
    team_id: IdField | None = None


class ClientChange(Change):
    """What is to be changed; what is left out stays."""

    name: Name | None = None
    grants: GrantList | None = None
    scopes: ScopeList | None = None
    disabled: bool | None = Field(None, strict=True)


_NEW = {"machine": {"value": {"name": "nightly report", "grants": ["client_credentials"], "scopes": ["usage:read"]}}}
_CHANGE = {"disable": {"value": {"disabled": True}}}


def _fields(client: Client) -> dict[str, object]:
    return {
        "client_id": client.id,
        "name": client.name,
        "public": client.public,
        "grants": sorted(client.grants),
        "scopes": format_scope(client.scopes or ()).split(),
        "team_id": client.team_id,
        "disabled": client.disabled,
        "created_at": client.created_at,
        "updated_at": client.updated_at,
    }


def _shape(client: Client) -> ClientObject:
    return ClientObject.model_validate(_fields(client))


async def _existing(admin: Admin, client_id: str) -> Client:
    client = await admin.auth.clients.get(client_id)
    if client is None:
        raise UnknownClient("there is no client of this id")
    return client


async def _managed(admin: Admin, client_id: str) -> Client:
    """The client, if the caller may change it."""
    client = await _existing(admin, client_id)
    if not admin.authority.may_manage_client(client):
        await admin.refuse("authority", client.id, client.name, client.team_id)
    return client


@router.get("", responses=READ_ERRORS)
async def list_clients(
    admin: Annotated[Admin, may(Level.DIRECTORY)], after: Cursor = "", limit: Limit = 50, team_id: IdQuery = None
) -> Page[ClientObject]:
    """Clients by id."""
    found = await admin.auth.clients.list(after=after, limit=limit, team_id=team_id)
    return page(found, limit, _shape, lambda client: client.id)


@router.post("", status_code=201, openapi_extra=json_body(NewClient, _NEW), responses=WRITE_ERRORS)
async def add_client(
    request: Request, admin: Annotated[Admin, may(Level.DIRECTORY, "client.create")]
) -> NewClientObject:
    """Register a client. Its secret is in this answer only."""
    wanted = await read_body(request, NewClient)
    if not admin.authority.may_grant(wanted.scopes):
        await admin.refuse("scopes", name=wanted.name, team_id=wanted.team_id)
    if wanted.team_id is not None and await admin.auth.teams.get(wanted.team_id) is None:
        raise UnknownTeam("there is no such team")
    client, secret = await admin.auth.clients.add(
        wanted.name,
        grants=wanted.grants,
        scopes=wanted.scopes,
        confidential=not wanted.public,
        team_id=wanted.team_id,
        by=admin.by,
    )
    return NewClientObject.model_validate(_fields(client) | {"client_secret": secret})


@router.get("/{client_id}", responses=READ_ERRORS)
async def get_client(admin: Annotated[Admin, may(Level.DIRECTORY)], client_id: Id) -> ClientObject:
    """One client."""
    return _shape(await _existing(admin, client_id))


@router.patch("/{client_id}", openapi_extra=json_body(ClientChange, _CHANGE), responses=WRITE_ERRORS)
async def change_client(
    request: Request, admin: Annotated[Admin, may(Level.DIRECTORY, "client.update")], client_id: Id
) -> ClientObject:
    """Change a client, disable or enable it, all at once. Its access tokens end."""
    wanted = await read_body(request, ClientChange)
    client = await _managed(admin, client_id)
    if wanted.scopes is not None and not admin.authority.may_grant((client.scopes or frozenset()) ^ set(wanted.scopes)):
        await admin.refuse("scopes", client.id, client.name, client.team_id)
    changed = await admin.auth.clients.update(
        client_id,
        name=wanted.name,
        grants=wanted.grants,
        scopes=wanted.scopes,
        disabled=wanted.disabled,
        by=admin.by,
    )
    admin.auth.revocations.apply_now("client", client_id)
    return _shape(changed)


@router.post("/{client_id}/secret", responses=WRITE_ERRORS)
async def new_secret(admin: Annotated[Admin, may(Level.DIRECTORY, "client.secret")], client_id: Id) -> ClientSecret:
    """Give a client a new secret. The old one, and the tokens got with it, end at once."""
    client = await _managed(admin, client_id)
    if not admin.authority.may_grant(client.scopes or ()):  # who has its secret can be it
        await admin.refuse("scopes", client.id, client.name, client.team_id)
    secret = await admin.auth.clients.new_secret(client_id, by=admin.by)
    admin.auth.revocations.apply_now("client", client_id)
    return ClientSecret(client_secret=secret)


@router.delete("/{client_id}", status_code=204, responses=WRITE_ERRORS)
async def remove_client(admin: Annotated[Admin, may(Level.DIRECTORY, "client.delete")], client_id: Id) -> None:
    """Remove a client, and end the sessions that began with it."""
    await _managed(admin, client_id)
    await admin.auth.clients.delete(client_id, by=admin.by)
    admin.auth.revocations.apply_now("client", client_id)
