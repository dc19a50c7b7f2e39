"""GET /usage: the ledger, as far as the caller may see it."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AfterValidator, BaseModel, PlainSerializer
from sqlalchemy import RowMapping
from sqlalchemy.exc import SQLAlchemyError

from auth.dependencies import requires
from auth.errors import InsufficientScope
from auth.principal import Principal
from auth.scopes import Scope
from observability.ledger.query import LedgerReader, Range
from service.errors import Unavailable
from service.openapi import errors

router = APIRouter(tags=["usage"])

UsageReader = Annotated[Principal, Depends(requires(Scope.USAGE_READ))]


def _utc(value: datetime) -> datetime:
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the calendar") from None


Dollars = Annotated[Decimal, PlainSerializer(lambda value: f"{value:f}", return_type=str)]
Instant = Annotated[datetime, AfterValidator(_utc)]


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


@router.get("/usage", responses=errors(401, 403, 422, 503))
async def get_usage(
    request: Request,
    caller: UsageReader,
    since: Annotated[Instant | None, Query(description="Begun at or after; UTC unless it says otherwise.")] = None,
    until: Annotated[Instant | None, Query(description="Begun before.")] = None,
    principal: Annotated[
        str | None, Query(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$", description="Another's calls: needs `admin`.")
    ] = None,
    limit: Annotated[int, Query(ge=0, le=1000, description="Calls on a page.")] = 100,
    before: Annotated[str | None, Query(pattern="^[0-9a-f-]{36}$", description="Page on from this call.")] = None,
) -> UsageReport:
    """One's own calls and sums; with the scope `admin`, everyone's. A call is here within a second of its end."""
    is_admin = caller.has(Scope.ADMIN)
    if principal not in {None, caller.username} and not is_admin:
        raise InsufficientScope(Scope.ADMIN)
    whose = principal if principal is not None or is_admin else caller.username
    which = Range(principal=whose, since=since, until=until)
    reader: LedgerReader = request.state.ledger
    try:
        sums = await reader.sums(which)
        calls = await reader.calls(which, limit=limit, before=before) if limit else []
    except (SQLAlchemyError, OSError):
        raise Unavailable("The ledger cannot be read now.", headers={"Retry-After": "5"}) from None
    return _report(sums, calls, limit)


def _report(sums: Sequence[RowMapping], calls: Sequence[RowMapping], limit: int) -> UsageReport:
    rows: list[dict[str, Any]] = [dict(row) for row in calls]
    return UsageReport(
        sums=[DaySum.model_validate(dict(row)) for row in sums],
        calls=[CallRecord.model_validate(row) for row in rows],
        next_before=rows[-1]["call_id"] if rows and len(rows) == limit else None,
    )
