"""Reading the ledger: the calls of a principal, and their sums by day and model."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, RowMapping, Select, String, func, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from observability.columns import Money
from observability.ledger.table import ledger

_QUERY_SECONDS: Final = 10.0


class _UtcDay(FunctionElement[str]):
    """The UTC day of an instant, as text YYYY-MM-DD, which both databases can group by."""

    type = String()
    inherit_cache = True


@compiles(_UtcDay, "sqlite")
def _utc_day_sqlite(element: _UtcDay, compiler: SQLCompiler, **keywords: Any) -> str:
    return f"date({compiler.process(element.clauses, **keywords)})"


@compiles(_UtcDay, "postgresql")
def _utc_day_postgresql(element: _UtcDay, compiler: SQLCompiler, **keywords: Any) -> str:
    return f"to_char({compiler.process(element.clauses, **keywords)} AT TIME ZONE 'UTC', 'YYYY-MM-DD')"


@dataclass(frozen=True, slots=True)
class Range:
    """Which calls: of whom, and begun when."""

    principal: str | None = None  # None: everyone's
    since: datetime | None = None  # inclusive
    until: datetime | None = None  # exclusive

    def conditions(self) -> list[ColumnElement[bool]]:
        """As SQL."""
        found: list[ColumnElement[bool]] = []
        if self.principal is not None:
            found.append(ledger.c.principal == self.principal)
        if self.since is not None:
            found.append(ledger.c.started_at >= self.since)
        if self.until is not None:
            found.append(ledger.c.started_at < self.until)
        return found


class LedgerReader:
    """Queries over the ledger. Each raises TimeoutError when the database does not answer in time."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def calls(self, which: Range, *, limit: int, before: str | None) -> Sequence[RowMapping]:
        """The newest calls first. `before`: only those older than this call id, which is time-ordered."""
        query = select(ledger).where(*which.conditions()).order_by(ledger.c.call_id.desc()).limit(limit)
        if before is not None:
            query = query.where(ledger.c.call_id < before)
        return await self._rows(query)

    async def sums(self, which: Range) -> Sequence[RowMapping]:
        """Sums by day, principal and model, the newest day first."""
        day = _UtcDay(ledger.c.started_at)
        keys = (day.label("day"), ledger.c.principal, ledger.c.model)
        query = (
            select(
                *keys,
                func.count().label("calls"),
                func.count().filter(ledger.c.outcome == "ok").label("ok"),
                *(
                    func.sum(ledger.c[name]).cast(ledger.c[name].type).label(name)
                    for name in ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")
                ),
                func.sum(ledger.c.cost_usd, type_=Money).label("cost_usd"),
            )
            .where(*which.conditions())
            .group_by(day, ledger.c.principal, ledger.c.model)
            .order_by(day.desc(), ledger.c.principal, ledger.c.model)
        )
        return await self._rows(query)

    async def _rows(self, query: Select[Any]) -> Sequence[RowMapping]:
        async with asyncio.timeout(_QUERY_SECONDS), self._engine.connect() as connection:
            rows: Sequence[RowMapping] = (await connection.execute(query)).mappings().all()
            return rows
