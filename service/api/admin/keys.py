"""/admin/keys: everyone's API keys."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from auth.apikeys import ApiKey, UnknownKey
from auth.authority import Level
from auth.scopes import Scope, format_scope, is_model_scope, model_scope, narrow
from service.api.admin.caller import Admin, may
from service.api.admin.common import (
    READ_ERRORS,
    WRITE_ERRORS,
    AdminRoute,
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
from service.api.admin.users import managed_user
from service.openapi import json_body

router = APIRouter(prefix="/admin/keys", tags=["admin"], route_class=AdminRoute)

_MAX_DAYS: Final = 3660
_MAX_OVERLAP_SECONDS: Final = 30 * 86400


class KeyObject(BaseModel):
    """An API key, without what makes it work."""

    id: str
    name: str
    user_id: str
    username: str
    team_id: str | None
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class NewKeyObject(KeyObject):
    """A key that was made just now, with the key itself, which is shown here and never again."""

    key: str


class KeyWish(Strict):
    """A key to be made."""

    name: Name
    scopes: ScopeList | None = Field(None, description="Left out: calling models and reading usage, as far as held.")
    models: list[Name] | None = Field(
        None, min_length=1, max_length=32, description="Models it may call, in place of the scope `llm`."
    )
    expires_in_days: float | None = Field(None, gt=0, le=_MAX_DAYS, strict=True, description="null: never.")


class NewKey(KeyWish):
    """A key to be made for a user."""

    user_id: IdField


class Rotation(Strict):
    """How a key is to be replaced."""

    overlap_seconds: float = Field(
        0, ge=0, le=_MAX_OVERLAP_SECONDS, strict=True, description="How long the old one still works."
    )


WISH = {"laptop": {"value": {"name": "laptop", "models": ["smollm2-135m-instruct"], "expires_in_days": 90}}}
ROTATION = {"a day": {"value": {"overlap_seconds": 86400}}}
_NEW = {"for somebody": {"value": {"user_id": "6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55", "name": "ci", "scopes": ["llm"]}}}


def shape(key: ApiKey) -> KeyObject:
    """A key as it may be seen."""
    return KeyObject.model_validate(fields(key))


def fields(key: ApiKey) -> dict[str, object]:
    """Its fields."""
    return {
        "id": key.id,
        "name": key.name,
        "user_id": key.user_id,
        "username": key.username,
        "team_id": key.team_id,
        "scopes": format_scope(key.scopes).split(),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
        "revoked_at": key.revoked_at,
    }


def wanted_scopes(wish: KeyWish, held: frozenset[str]) -> frozenset[str]:
    """The scopes of a key to be made. With neither scopes nor models said: all but those for managing."""
    if wish.scopes is None and wish.models is None:
        return frozenset(each for each in held if each in {Scope.LLM, Scope.USAGE_READ} or is_model_scope(each))
    scopes = frozenset(wish.scopes or ())
    if wish.models is None:
        return scopes
    return scopes - {Scope.LLM} | {model_scope(model) for model in wish.models}


def covers(held: frozenset[str], scopes: frozenset[str]) -> bool:
    """Whether who holds the former may have a key with the latter."""
    return bool(scopes) and scopes <= narrow(scopes, held)


def expiry(wish: KeyWish) -> datetime | None:
    """When a key to be made expires."""
    return None if wish.expires_in_days is None else datetime.now(UTC) + timedelta(days=wish.expires_in_days)


async def _existing(admin: Admin, key_id: str) -> ApiKey:
    key = await admin.auth.api_keys.get(key_id)
    if key is None:
        raise UnknownKey("there is no such key")
    return key


async def _managed(admin: Admin, key_id: str) -> ApiKey:
    """The key, if the caller may change it."""
    key = await _existing(admin, key_id)
    await admin.must_manage(key.user_id, key.user_scopes, key.team_id, target=key.id, name=key.name)
    return key


async def _not_own(admin: Admin, user_id: str, target: str, name: str, team_id: str | None) -> None:
    """Here a caller's own key could make them another, and a narrow token a wide one."""
    if admin.is_self(user_id):
        await admin.refuse("self", target, name, team_id, message="For your own keys there is /users/me/keys.")


@router.get("", responses=READ_ERRORS)
async def list_keys(
    admin: Annotated[Admin, may(Level.TEAM)],
    after: Cursor = "",
    limit: Limit = 50,
    user_id: IdQuery = None,
    team_id: IdQuery = None,
) -> Page[KeyObject]:
    """API keys by id, revoked ones too: all, or those of the caller's team."""
    only = admin.authority.only_team
    if only and team_id not in {None, only}:
        return Page(data=[], next=None)
    found = await admin.auth.api_keys.list(user_id=user_id, team_id=only or team_id, after=after, limit=limit)
    return page(found, limit, shape, lambda key: key.id)


@router.post("", status_code=201, openapi_extra=json_body(NewKey, _NEW), responses=WRITE_ERRORS)
async def add_key(request: Request, admin: Annotated[Admin, may(Level.TEAM, "key.create")]) -> NewKeyObject:
    """Make a key for a user, with scopes that both they and the caller have. It is in this answer only."""
    wanted = await read_body(request, NewKey)
    user = await managed_user(admin, wanted.user_id)
    await _not_own(admin, user.id, "", wanted.name, user.team_id)
    scopes = wanted_scopes(wanted, user.scopes)
    if not (covers(user.scopes, scopes) and admin.authority.may_grant(scopes)):
        await admin.refuse("scopes", name=wanted.name, team_id=user.team_id)
    key, secret = await admin.auth.api_keys.create(
        user.id, wanted.name, scopes=scopes, expires_at=expiry(wanted), by=admin.by
    )
    return NewKeyObject.model_validate(fields(key) | {"key": secret})


@router.get("/{key_id}", responses=READ_ERRORS)
async def get_key(admin: Annotated[Admin, may(Level.TEAM)], key_id: Id) -> KeyObject:
    """One API key."""
    key = await _existing(admin, key_id)
    if not admin.authority.sees(key.team_id):
        raise UnknownKey("there is no such key")
    return shape(key)


@router.post("/{key_id}/rotate", status_code=201, openapi_extra=json_body(Rotation, ROTATION), responses=WRITE_ERRORS)
async def rotate_key(
    request: Request, admin: Annotated[Admin, may(Level.TEAM, "key.rotate")], key_id: Id
) -> NewKeyObject:
    """Make a key that takes another's place. It is in this answer only."""
    wanted = await read_body(request, Rotation)
    old = await _managed(admin, key_id)
    await _not_own(admin, old.user_id, old.id, old.name, old.team_id)
    if not admin.authority.may_grant(old.scopes):
        await admin.refuse("scopes", old.id, old.name, old.team_id)
    key, secret = await admin.auth.api_keys.rotate(key_id, overlap_seconds=wanted.overlap_seconds, by=admin.by)
    admin.auth.revocations.apply_now("key", key_id)
    return NewKeyObject.model_validate(fields(key) | {"key": secret})


@router.delete("/{key_id}", status_code=204, responses=WRITE_ERRORS)
async def revoke_key(admin: Annotated[Admin, may(Level.TEAM, "key.revoke")], key_id: Id) -> None:
    """Never accept a key again."""
    await _managed(admin, key_id)
    await admin.auth.api_keys.revoke(key_id, by=admin.by)
    admin.auth.revocations.apply_now("key", key_id)
