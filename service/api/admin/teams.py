"""/admin/teams."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel

from auth.authority import Level
from auth.teams import Team, UnknownTeam
from service.api.admin.caller import Admin, may
from service.api.admin.common import (
    READ_ERRORS,
    WRITE_ERRORS,
    AdminRoute,
    Cursor,
    Id,
    Limit,
    Name,
    Page,
    Strict,
    page,
    read_body,
)
from service.openapi import json_body

router = APIRouter(prefix="/admin/teams", tags=["admin"], route_class=AdminRoute)


class TeamObject(BaseModel):
    """A team."""

    id: str
    name: str
    created_at: datetime


class TeamName(Strict):
    """What a team is to be called."""

    name: Name


_NAME = {"team": {"value": {"name": "research"}}}


def _shape(team: Team) -> TeamObject:
    return TeamObject(id=team.id, name=team.name, created_at=team.created_at)


@router.get("", responses=READ_ERRORS)
async def list_teams(
    admin: Annotated[Admin, may(Level.TEAM)], after: Cursor = "", limit: Limit = 50
) -> Page[TeamObject]:
    """Teams by name: all, or the caller's own."""
    only = admin.authority.only_team
    if only:
        team = await admin.auth.teams.get(only)
        return Page(data=[_shape(team)] if team is not None and team.name > after else [], next=None)
    teams = await admin.auth.teams.list(after=after, limit=limit)
    return page(teams, limit, _shape, lambda team: team.name)


@router.post("", status_code=201, openapi_extra=json_body(TeamName, _NAME), responses=WRITE_ERRORS)
async def add_team(request: Request, admin: Annotated[Admin, may(Level.DIRECTORY, "team.create")]) -> TeamObject:
    """Make a team."""
    wanted = await read_body(request, TeamName)
    return _shape(await admin.auth.teams.add(wanted.name, by=admin.by))


@router.get("/{team_id}", responses=READ_ERRORS)
async def get_team(admin: Annotated[Admin, may(Level.TEAM)], team_id: Id) -> TeamObject:
    """One team."""
    team = await admin.auth.teams.get(team_id)
    if team is None or not admin.authority.sees(team.id):
        raise UnknownTeam("there is no such team")
    return _shape(team)


@router.patch("/{team_id}", openapi_extra=json_body(TeamName, _NAME), responses=WRITE_ERRORS)
async def rename_team(
    request: Request, admin: Annotated[Admin, may(Level.DIRECTORY, "team.update")], team_id: Id
) -> TeamObject:
    """Give a team another name."""
    wanted = await read_body(request, TeamName)
    return _shape(await admin.auth.teams.rename(team_id, wanted.name, by=admin.by))


@router.delete("/{team_id}", status_code=204, responses=WRITE_ERRORS)
async def remove_team(admin: Annotated[Admin, may(Level.DIRECTORY, "team.delete")], team_id: Id) -> None:
    """Remove a team that nobody is in."""
    await admin.auth.teams.delete(team_id, by=admin.by)
