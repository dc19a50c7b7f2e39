"""GET /usage: the ledger, as far as the caller may see it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, PlainSerializer
from sqlalchemy import ColumnElement, RowMapping
from sqlalchemy.exc import SQLAlchemyError

from auth.authority import authority_of
from auth.database import DatabaseUnavailable
from auth.dependencies import auth_of, requires
from auth.errors import InsufficientScope, InvalidToken
from auth.principal import Principal
from auth.scopes import Scope
from auth.teams import Teams
from observability.ledger.query import LedgerReader, Range
from observability.ledger.table import ledger
from service.errors import Unavailable
from service.openapi import errors

router = APIRouter(tags=["usage"])

UsageReader = Annotated[Principal, Depends(requires(Scope.USAGE_READ))]


def _utc(value: datetime) -> datetime:
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the calendar") from None


def _not_a_number(value: object) -> object:
    """Seconds since 1970 are no date-time of RFC 3339, though pydantic takes them for one."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value):
        raise ValueError("is not a date and time, such as 2026-01-31T12:00:00Z")
    return value


Dollars = Annotated[Decimal, PlainSerializer(lambda value: f"{value:f}", return_type=str)]
Instant = Annotated[datetime, BeforeValidator(_not_a_number), AfterValidator(_utc)]


class CallRecord(BaseModel):
    """One call: a row of the ledger. A null is "not known", which is not zero."""

    call_id: str
    started_at: datetime
    ended_at: datetime
    principal: str
    auth_method: str
    model: str
    upstream: str
    upstream_model: str
    operation: str
    stream: bool
    outcome: str
    http_status: int
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    reasoning_tokens: int | None
    usage_source: str
    cost_usd: Dollars | None
    price_version: str
    ttft_ms: float | None
    duration_ms: float
    attempts: int
    trace_id: str
    request_id: str


class DaySum(BaseModel):
    """Calls of one principal to one model on one day (UTC)."""

    day: date
    principal: str
    model: str
    calls: int
    ok: int
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    reasoning_tokens: int | None
    cost_usd: Dollars | None


class UsageReport(BaseModel):
    """Sums over the whole range, and one page of its calls, the newest first."""

    sums: list[DaySum]
    calls: list[CallRecord]
    next_before: str | None  # give it as `before` for the next page


@dataclass(frozen=True, slots=True)
class _TeamRange(Range):
    """Calls of the members and clients of one team."""

    team_id: str = ""

    def conditions(self) -> list[ColumnElement[bool]]:
        return [*Range.conditions(self), ledger.c.principal.in_(Teams.names_in_books(self.team_id))]


@router.get("/usage", responses=errors(401, 403, 422, 503))
async def get_usage(
    request: Request,
    caller: UsageReader,
    since: Annotated[Instant | None, Query(description="Begun at or after; UTC unless it says otherwise.")] = None,
    until: Annotated[Instant | None, Query(description="Begun before.")] = None,
    principal: Annotated[
        str | None,
        Query(
            max_length=128,
            pattern=r"^[^\x00-\x1f\x7f]*$",
            description="Another's calls: needs `admin`, or `team:admin` in their team.",
        ),
    ] = None,
    limit: Annotated[int, Query(ge=0, le=1000, description="Calls on a page.")] = 100,
    before: Annotated[str | None, Query(pattern="^[0-9a-f-]{36}$", description="Page on from this call.")] = None,
) -> UsageReport:
    """One's own calls and sums; with the scope `admin` everyone's, with `team:admin` those of the team.

    A call is here within a second of its end.
    """
    reader: LedgerReader = request.state.ledger
    try:
        which = await _visible(request, caller, principal, since, until)
        sums = await reader.sums(which)
        calls = await reader.calls(which, limit=limit, before=before) if limit else []
    except (SQLAlchemyError, OSError, DatabaseUnavailable):
        raise Unavailable("The ledger cannot be read now.", headers={"Retry-After": "5"}) from None
    return _report(sums, calls, limit)


async def _visible(
    request: Request, caller: Principal, principal: str | None, since: datetime | None, until: datetime | None
) -> Range:
    """The range that was asked for, if it is the caller's to see.

    Raises:
        InsufficientScope: it is another's, whether there is one of that name or not.
    """
    if caller.has(Scope.ADMIN):
        return Range(principal, since, until)
    if principal != caller.username and caller.has(Scope.TEAM_ADMIN):
        team_id = await _team_of(request, caller)
        if team_id is not None and principal is None:
            return _TeamRange(None, since, until, team_id)
        if team_id is not None and principal and await auth_of(request).teams.has(team_id, principal):
            return Range(principal, since, until)
    if principal not in {None, caller.username}:
        raise InsufficientScope(Scope.ADMIN)
    return Range(caller.username, since, until)


async def _team_of(request: Request, caller: Principal) -> str | None:
    """The team whose usage the caller may read now."""
    auth = auth_of(request)
    try:
        return (await authority_of(caller, auth.users, auth.clients, auth.teams)).own_team
    except InvalidToken as error:
        raise auth.refusal(error) from None


def _report(sums: Sequence[RowMapping], calls: Sequence[RowMapping], limit: int) -> UsageReport:
    rows: list[dict[str, Any]] = [dict(row) for row in calls]
    return UsageReport(
        sums=[DaySum.model_validate(dict(row)) for row in sums],
        calls=[CallRecord.model_validate(row) for row in rows],
        next_before=rows[-1]["call_id"] if rows and len(rows) == limit else None,
    )
