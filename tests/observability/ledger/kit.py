"""What the tests of the ledger share."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from observability.ledger.table import ledger


class Gauges:
    """What the clerk told last."""

    def __init__(self) -> None:
        self.pending = -1
        self.lag_seconds = -1.0
        self.rounds = 0

    def __call__(self, *, pending: int, lag_seconds: float) -> None:
        self.pending, self.lag_seconds = pending, lag_seconds
        self.rounds += 1


async def rows(engine: AsyncEngine) -> list[dict[str, Any]]:
    """The whole ledger, by call id."""
    async with engine.connect() as connection:
        found = await connection.execute(select(ledger).order_by(ledger.c.call_id))
        return [dict(row) for row in found.mappings()]


async def ids(engine: AsyncEngine) -> list[str]:
    """The call ids in the ledger, in order."""
    return [row["call_id"] for row in await rows(engine)]
