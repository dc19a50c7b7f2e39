"""/admin/audit: who did what to whom, from where, with what result."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel

from auth.audit import read_records
from auth.authority import Level
from service.api.admin.caller import Admin, may
from service.api.admin.common import READ_ERRORS, ActorQuery, AdminRoute, Cursor, IdQuery, Limit, Page, page

router = APIRouter(prefix="/admin/audit", tags=["admin"], route_class=AdminRoute)


class AuditObject(BaseModel):
    """One record."""

    id: str
    at: datetime
    actor: str
    actor_name: str
    action: str
    target_kind: str
    target: str
    target_name: str
    team_id: str | None
    result: str
    address: str
    request_id: str
    details: dict[str, Any]


@router.get("", responses=READ_ERRORS)
async def list_records(
    admin: Annotated[Admin, may(Level.TEAM)],
    before: Cursor = "",
    limit: Limit = 50,
    actor: ActorQuery = None,
    target: IdQuery = None,
    team_id: IdQuery = None,
) -> Page[AuditObject]:
    """Records, the newest first: all, or those about the caller's team."""
    only = admin.authority.only_team
    if only and team_id not in {None, only}:
        return Page(data=[], next=None)
    async with admin.auth.database.transaction() as connection:
        found = await read_records(
            connection, team_id=only or team_id, actor=actor, target=target, limit=limit, before=before or None
        )
    return page(found, limit, lambda row: AuditObject.model_validate(dict(row)), lambda row: str(row["id"]))
