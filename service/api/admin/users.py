"""/admin/users."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, Field

from auth.authority import Level
from auth.scopes import DEFAULT_SCOPES, format_scope
from auth.users import KEEP, LastAdmin, UnknownUser, User, validate_username
from service.api.admin.caller import Admin, may
from service.api.admin.common import (
    NAME_RULE,
    READ_ERRORS,
    WRITE_ERRORS,
    AdminRoute,
    Change,
    Cursor,
    Id,
    IdField,
    IdQuery,
    Limit,
    Page,
    Password,
    ScopeList,
    Strict,
    page,
    read_body,
)
from service.openapi import json_body

router = APIRouter(prefix="/admin/users", tags=["admin"], route_class=AdminRoute)


class UserObject(BaseModel):
    """A user."""

    id: str
    username: str
    scopes: list[str]
    team_id: str | None
    disabled: bool
    created_at: datetime
    updated_at: datetime


class NewUser(Strict):
    """A user to be made."""

    username: Annotated[str, AfterValidator(validate_username), NAME_RULE]
    password: Password
    scopes: ScopeList = Field([str(scope) for scope in DEFAULT_SCOPES])
    team_id: IdField | None = Field(None, description="A team's admin: their own team, which it is when left out.")


class UserChange(Change):
    """What is to be changed; what is left out stays."""

    scopes: ScopeList | None = None
    team_id: IdField | None = Field(None, description="null: no team.")
    disabled: bool | None = Field(None, strict=True, description="True ends their sessions for good.")


class NewPassword(Strict):
    """A password to be set."""

    password: Password


_NEW = {"member": {"value": {"username": "ada", "password": "correct horse battery staple", "scopes": ["llm"]}}}
_CHANGE = {"scopes": {"value": {"scopes": ["llm", "usage:read", "account"]}}, "disable": {"value": {"disabled": True}}}
_PASSWORD = {"new": {"value": {"password": "correct horse battery staple"}}}


def shape(user: User) -> UserObject:
    """A user without what is nobody's to see."""
    return UserObject(
        id=user.id,
        username=user.username,
        scopes=format_scope(user.scopes).split(),
        team_id=user.team_id,
        disabled=user.disabled,
        created_at=user.created_at,
        updated_at=user.updated_at,
    )


async def existing_user(admin: Admin, user_id: str) -> User:
    """The user of this id.

    Raises:
        UnknownUser: there is none.
    """
    user = await admin.auth.users.get_by_id(user_id)
    if user is None:
        raise UnknownUser("there is no such user")
    return user


async def managed_user(admin: Admin, user_id: str) -> User:
    """The user, if the caller may change them.

    Raises:
        UnknownUser, NotFound, Forbidden: they may not.
    """
    user = await existing_user(admin, user_id)
    await admin.must_manage(user.id, user.scopes, user.team_id, target=user.id, name=user.username)
    return user


@router.get("", responses=READ_ERRORS)
async def list_users(
    admin: Annotated[Admin, may(Level.TEAM)], after: Cursor = "", limit: Limit = 50, team_id: IdQuery = None
) -> Page[UserObject]:
    """Users by name: all, or those of the caller's team."""
    only = admin.authority.only_team
    if only and team_id not in {None, only}:
        return Page(data=[], next=None)
    found = await admin.auth.users.list(after=after, limit=limit, team_id=only or team_id)
    return page(found, limit, shape, lambda user: user.username)


@router.post("", status_code=201, openapi_extra=json_body(NewUser, _NEW), responses=WRITE_ERRORS)
async def add_user(request: Request, admin: Annotated[Admin, may(Level.TEAM, "user.create")]) -> UserObject:
    """Make a user. A team's admin makes members of their own team."""
    wanted = await read_body(request, NewUser)
    only = admin.authority.only_team
    if only and wanted.team_id not in {None, only}:
        await admin.refuse("team", name=wanted.username, team_id=only)
    if not admin.authority.may_grant(wanted.scopes):
        await admin.refuse("scopes", name=wanted.username, team_id=only)
    user = await admin.auth.users.add(
        wanted.username,
        wanted.password,
        wanted.scopes,
        passwords=admin.auth.passwords,
        team_id=only or wanted.team_id,
        by=admin.by,
    )
    return shape(user)


@router.get("/{user_id}", responses=READ_ERRORS)
async def get_user(admin: Annotated[Admin, may(Level.TEAM)], user_id: Id) -> UserObject:
    """One user."""
    user = await existing_user(admin, user_id)
    if not admin.authority.sees(user.team_id):
        raise UnknownUser("there is no such user")
    return shape(user)


@router.patch("/{user_id}", openapi_extra=json_body(UserChange, _CHANGE), responses=WRITE_ERRORS)
async def change_user(
    request: Request, admin: Annotated[Admin, may(Level.TEAM, "user.update")], user_id: Id
) -> UserObject:
    """Change scopes or team, disable or enable a user, all at once. Their access tokens end."""
    wanted = await read_body(request, UserChange)
    user = await managed_user(admin, user_id)
    reason = _refusal(admin, user, wanted)
    if reason is not None:
        await admin.refuse(reason, user.id, user.username, user.team_id)
    try:
        changed = await admin.auth.users.update(
            user.id,
            scopes=wanted.scopes,
            team_id=wanted.team_id if "team_id" in wanted.model_fields_set else KEEP,
            disabled=wanted.disabled,
            seen=user,
            by=admin.by,
        )
    except LastAdmin:
        await admin.note_refusal("last_admin", user.id, user.username, user.team_id)
        raise
    admin.auth.revocations.apply_now("user", user.id)
    return shape(changed)


def _refusal(admin: Admin, user: User, wanted: UserChange) -> str | None:
    authority = admin.authority
    if admin.is_self(user.id) and authority.level < Level.SERVICE:
        return "self"  # nobody changes what they themselves may do
    if "team_id" in wanted.model_fields_set and authority.only_team:
        return "team"
    if wanted.scopes is not None and not authority.may_grant(user.scopes ^ set(wanted.scopes)):
        return "scopes"
    return None


@router.put(
    "/{user_id}/password", status_code=204, openapi_extra=json_body(NewPassword, _PASSWORD), responses=WRITE_ERRORS
)
async def set_password(
    request: Request, admin: Annotated[Admin, may(Level.TEAM, "user.password")], user_id: Id
) -> None:
    """Give a user a new password. Their sessions and access tokens end."""
    wanted = await read_body(request, NewPassword)
    user = await managed_user(admin, user_id)
    if admin.is_self(user.id):  # there the old one is asked for
        message = "For your own password there is PUT /users/me/password."
        await admin.refuse("self", user.id, user.username, user.team_id, message=message)
    # As they were when it was decided: the user may become an admin while the password is hashed.
    await admin.auth.users.set_password(
        user.id, wanted.password, passwords=admin.auth.passwords, seen=user, by=admin.by
    )
    admin.auth.revocations.apply_now("user", user.id)


@router.delete("/{user_id}/sessions", status_code=204, responses=WRITE_ERRORS)
async def end_sessions(admin: Annotated[Admin, may(Level.TEAM, "session.revoke", "user")], user_id: Id) -> None:
    """Log a user out everywhere: all their sessions and access tokens end."""
    user = await managed_user(admin, user_id)
    await admin.auth.sessions.revoke_user(user.id, because="revoked", by=admin.by, team_id=user.team_id)
    admin.auth.revocations.apply_now("user", user.id)
