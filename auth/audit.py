"""The audit log: who did what to which user, key, client or setting, from where, with what result.

Records are only ever added; triggers in the database refuse anything else. A record is written in the transaction of
the change it tells of (`Database.transaction`), and as a log line once that is committed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.tables import audit_log
from observability.ids import time_ordered_id

log = structlog.get_logger("auth.audit")

Result = Literal["ok", "refused"]


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does it, and from where."""

    id: str  # id of a user or client, "cli" or "system"
    name: str
    address: str = ""
    request_id: str = ""

    def did(
        self,
        action: str,
        target_kind: str,
        target: str,
        *,
        target_name: str = "",
        team_id: str | None = None,
        result: Result = "ok",
        **details: Any,
    ) -> "AuditRecord":
        """A record of something this actor does now.

        Args:
            action: a constant word of the form `user.create`.
            target_kind: `user`, `team`, `client`, `key`, `session`, `signing_key` or `setting`.
            target: its id.
            target_name: what people call it.
            team_id: the team it belongs to, whose admin may read the record.
            result: `ok` or `refused`.
            details: what else matters. Never a secret; values are what JSON can hold.
        """
        return AuditRecord(self, action, target_kind, target, target_name, team_id, result, details)


SYSTEM: Final = Actor("system", "system")


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One entry."""

    actor: Actor
    action: str
    target_kind: str
    target: str
    target_name: str
    team_id: str | None
    result: Result
    details: Mapping[str, Any]
    id: str = field(default_factory=time_ordered_id)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


async def write_record(connection: AsyncConnection, record: AuditRecord) -> None:
    """Add a record, inside a transaction of the caller's."""
    actor = record.actor
    row = {
        "id": record.id,
        "at": record.at,
        "actor": actor.id,
        "actor_name": actor.name,
        "action": record.action,
        "target_kind": record.target_kind,
        "target": record.target,
        "target_name": record.target_name,
        "team_id": record.team_id,
        "result": record.result,
        "address": actor.address,
        "request_id": actor.request_id,
        "details": dict(record.details),
    }
    await connection.execute(audit_log.insert().values(row))


def log_record(record: AuditRecord) -> None:
    """The log line of a record that is committed."""
    log.info(
        "audit",
        audit_id=record.id,
        actor=record.actor.id,
        action=record.action,
        target_kind=record.target_kind,
        target=record.target,
        result=record.result,
        client_ip=record.actor.address,
        request_id=record.actor.request_id,
    )


async def read_records(
    connection: AsyncConnection,
    *,
    team_id: str | None = None,
    actor: str | None = None,
    target: str | None = None,
    limit: int = 100,
    before: str | None = None,
) -> Sequence[sa.RowMapping]:
    """Records, the newest first.

    Args:
        connection: to read with.
        team_id: only those about this team.
        actor: only those of this actor's id.
        target: only those about this id.
        limit: at most so many.
        before: only those older than the record of this id.
    """
    wanted = audit_log.select().order_by(audit_log.c.id.desc()).limit(limit)
    for column, value in ((audit_log.c.team_id, team_id), (audit_log.c.actor, actor), (audit_log.c.target, target)):
        if value is not None:
            wanted = wanted.where(column == value)
    if before is not None:
        wanted = wanted.where(audit_log.c.id < before)
    return (await connection.execute(wanted)).mappings().all()
