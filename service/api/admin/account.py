"""/users/me/...: what users do to their own account. Only with a token from a login: a key cannot make keys."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from auth.apikeys import ApiKey, UnknownKey
from auth.authority import own_scopes
from auth.dependencies import actor_of, address_of, auth_of, requires
from auth.errors import InsufficientScope, InvalidGrant, InvalidToken
from auth.principal import ACCESS_TOKEN, Principal
from auth.router import AuthErrorBody
from auth.scopes import Scope
from auth.sessions import Session, UnknownSession
from auth.users import User
from service.api.admin.caller import Caller, have_body
from service.api.admin.common import AdminRoute, Cursor, Id, Limit, Page, Password, Strict, page, read_body
from service.api.admin.keys import (
    ROTATION,
    WISH,
    KeyObject,
    KeyWish,
    NewKeyObject,
    Rotation,
    covers,
    expiry,
    fields,
    wanted_scopes,
)
from service.api.admin.keys import shape as key_shape
from service.api.admin.sessions import SessionObject
from service.api.admin.sessions import shape as session_shape
from service.errors import Forbidden
from service.openapi import json_body

router = APIRouter(prefix="/users/me", tags=["account"], route_class=AdminRoute)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": AuthErrorBody} for status in statuses}


_READ_ERRORS = _errors(401, 403, 404, 422, 503)
_WRITE_ERRORS = _errors(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503)
_NARROW = "A key has at most the scopes of the token that makes it, and of its user."


class PasswordChange(Strict):
    """The password that the user has, and the one they want."""

    current_password: Password
    new_password: Password


_CHANGE = {
    "change": {"value": {"current_password": "correct horse battery staple", "new_password": "staple battery horse 42"}}
}


@dataclass(frozen=True, slots=True)
class Account(Caller):
    """A caller who is a user and has logged in."""

    user: User

    @property
    def held(self) -> frozenset[str]:
        """The scopes that they can pass on to a key."""
        return own_scopes(self.principal, self.user)

    async def key(self, key_id: str) -> ApiKey:
        """A key of theirs.

        Raises:
            UnknownKey, NotFound: it is not.
        """
        key = await self.auth.api_keys.get(key_id)
        if key is None:
            raise UnknownKey("there is no such key")
        if key.user_id != self.user.id:
            await self.refuse("authority", key.id, key.name, key.team_id, hidden=True)
        return key

    async def session(self, session_id: str) -> Session:
        """A session of theirs.

        Raises:
            UnknownSession, NotFound: it is not.
        """
        session = await self.auth.sessions.get(session_id)
        if session is None:
            raise UnknownSession("there is no such session")
        if session.user_id != self.user.id:
            await self.refuse("authority", session.id, session.username, session.team_id, hidden=True)
        return session


def _own(action: str = "") -> Any:
    """A dependency that gives the caller, if they have logged in and may manage their account."""

    async def account(request: Request, principal: Annotated[Principal, Depends(requires(Scope.ACCOUNT))]) -> Account:
        if principal.auth_method != ACCESS_TOKEN:
            raise Forbidden("Log in as a user: an API key, a client or an outside provider's token cannot do this.")
        auth = auth_of(request)
        await have_body(request, principal)
        user = await auth.users.get_by_id(principal.subject)
        if user is None or user.disabled:
            raise auth.refusal(InvalidToken(reason="disabled"))
        if Scope.ACCOUNT not in user.scopes:
            raise auth.refusal(InsufficientScope(Scope.ACCOUNT))
        return Account(auth, principal, actor_of(request, principal), action, action.partition(".")[0], user)

    return Depends(account)


@router.put("/password", status_code=204, openapi_extra=json_body(PasswordChange, _CHANGE), responses=_WRITE_ERRORS)
async def change_password(request: Request, account: Annotated[Account, _own("user.password")]) -> None:
    """Change one's password. All sessions and access tokens end, the one in use too: log in anew. API keys go on."""
    wanted = await read_body(request, PasswordChange)
    auth, user = account.auth, account.user
    try:
        user = await auth.login.with_password(user.username, wanted.current_password, address_of(request))
    except InvalidGrant:
        await account.refuse(
            "credential", user.id, user.username, user.team_id, message="The current password is wrong."
        )
    await auth.users.set_password(user.id, wanted.new_password, passwords=auth.passwords, seen=user, by=account.by)
    auth.revocations.apply_now("user", user.id)


@router.get("/keys", responses=_READ_ERRORS)
async def list_own_keys(account: Annotated[Account, _own()], after: Cursor = "", limit: Limit = 50) -> Page[KeyObject]:
    """One's API keys, revoked ones too."""
    found = await account.auth.api_keys.list(user_id=account.user.id, after=after, limit=limit)
    return page(found, limit, key_shape, lambda key: key.id)


@router.post("/keys", status_code=201, openapi_extra=json_body(KeyWish, WISH), responses=_WRITE_ERRORS)
async def add_own_key(request: Request, account: Annotated[Account, _own("key.create")]) -> NewKeyObject:
    """Make an API key with at most the scopes of the token in use. It is in this answer only."""
    wanted = await read_body(request, KeyWish)
    scopes = wanted_scopes(wanted, account.held)
    if not covers(account.held, scopes):
        await account.refuse("scopes", name=wanted.name, team_id=account.user.team_id, message=_NARROW)
    key, secret = await account.auth.api_keys.create(
        account.user.id, wanted.name, scopes=scopes, expires_at=expiry(wanted), by=account.by
    )
    return NewKeyObject.model_validate(fields(key) | {"key": secret})


@router.post(
    "/keys/{key_id}/rotate", status_code=201, openapi_extra=json_body(Rotation, ROTATION), responses=_WRITE_ERRORS
)
async def rotate_own_key(request: Request, account: Annotated[Account, _own("key.rotate")], key_id: Id) -> NewKeyObject:
    """Make a key that takes another's place, with a token that has all its scopes. It is in this answer only."""
    wanted = await read_body(request, Rotation)
    old = await account.key(key_id)
    if not covers(account.held, old.scopes):
        await account.refuse("scopes", old.id, old.name, old.team_id, message=_NARROW)
    key, secret = await account.auth.api_keys.rotate(old.id, overlap_seconds=wanted.overlap_seconds, by=account.by)
    account.auth.revocations.apply_now("key", old.id)
    return NewKeyObject.model_validate(fields(key) | {"key": secret})


@router.delete("/keys/{key_id}", status_code=204, responses=_WRITE_ERRORS)
async def revoke_own_key(account: Annotated[Account, _own("key.revoke")], key_id: Id) -> None:
    """Never accept a key again."""
    key = await account.key(key_id)
    await account.auth.api_keys.revoke(key.id, by=account.by)
    account.auth.revocations.apply_now("key", key.id)


@router.get("/sessions", responses=_READ_ERRORS)
async def list_own_sessions(
    account: Annotated[Account, _own()], before: Cursor = "", limit: Limit = 50
) -> Page[SessionObject]:
    """One's living sessions, the newest first."""
    found = await account.auth.sessions.list(user_id=account.user.id, before=before or None, limit=limit)
    return page(found, limit, session_shape, lambda session: session.id)


@router.delete("/sessions", status_code=204, responses=_WRITE_ERRORS)
async def end_own_sessions(account: Annotated[Account, _own("session.revoke")]) -> None:
    """Log out everywhere: all sessions and access tokens end, the one in use too."""
    user = account.user
    await account.auth.sessions.revoke_user(user.id, because="logout", by=account.by, team_id=user.team_id)
    account.auth.revocations.apply_now("user", user.id)


@router.delete("/sessions/{session_id}", status_code=204, responses=_WRITE_ERRORS)
async def end_own_session(account: Annotated[Account, _own("session.revoke")], session_id: Id) -> None:
    """End a session: its refresh token and its access tokens."""
    session = await account.session(session_id)
    await account.auth.sessions.revoke(session.id, because="logout", by=account.by)
    account.auth.revocations.apply_now("session", session.id)
