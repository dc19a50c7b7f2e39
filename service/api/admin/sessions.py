"""/admin/sessions: who is logged in."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel

from auth.authority import Level
from auth.scopes import format_scope
from auth.sessions import Session, UnknownSession
from service.api.admin.caller import Admin, may
from service.api.admin.common import (
    READ_ERRORS,
    WRITE_ERRORS,
    AdminRoute,
    Cursor,
    Id,
    IdQuery,
    Limit,
    Page,
    page,
)

router = APIRouter(prefix="/admin/sessions", tags=["admin"], route_class=AdminRoute)


class SessionObject(BaseModel):
    """A session that is alive."""

    id: str
    user_id: str
    username: str
    team_id: str | None
    client_id: str
    scopes: list[str]
    address: str
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime


def shape(session: Session) -> SessionObject:
    """A session as it may be seen."""
    return SessionObject(
        id=session.id,
        user_id=session.user_id,
        username=session.username,
        team_id=session.team_id,
        client_id=session.client_id,
        scopes=format_scope(session.scopes).split(),
        address=session.address,
        created_at=session.created_at,
        last_used_at=session.last_used_at,
        expires_at=session.expires_at,
    )


async def _existing(admin: Admin, session_id: str) -> Session:
    session = await admin.auth.sessions.get(session_id)
    if session is None:
        raise UnknownSession("there is no such session")
    return session


@router.get("", responses=READ_ERRORS)
async def list_sessions(
    admin: Annotated[Admin, may(Level.TEAM)],
    before: Cursor = "",
    limit: Limit = 50,
    user_id: IdQuery = None,
    team_id: IdQuery = None,
) -> Page[SessionObject]:
    """Living sessions, the newest first: all, or those of the caller's team."""
    only = admin.authority.only_team
    if only and team_id not in {None, only}:
        return Page(data=[], next=None)
    found = await admin.auth.sessions.list(user_id=user_id, team_id=only or team_id, before=before or None, limit=limit)
    return page(found, limit, shape, lambda session: session.id)


@router.get("/{session_id}", responses=READ_ERRORS)
async def get_session(admin: Annotated[Admin, may(Level.TEAM)], session_id: Id) -> SessionObject:
    """One living session."""
    session = await _existing(admin, session_id)
    if not admin.authority.sees(session.team_id):
        raise UnknownSession("there is no such session")
    return shape(session)


@router.delete("/{session_id}", status_code=204, responses=WRITE_ERRORS)
async def end_session(admin: Annotated[Admin, may(Level.TEAM, "session.revoke")], session_id: Id) -> None:
    """End a session: its refresh token and its access tokens."""
    session = await _existing(admin, session_id)
    await admin.must_manage(
        session.user_id, session.user_scopes, session.team_id, target=session.id, name=session.username
    )
    await admin.auth.sessions.revoke(session_id, because="revoked", by=admin.by)
    admin.auth.revocations.apply_now("session", session_id)
