"""`tollbook audit-log`: who did what to whom."""

from typing import Any

from auth.audit import read_records
from service.commands.directory import Directory, all_pages, in_directory, show


def print_audit_log(*, limit: int, actor: str | None, target: str | None, before: str | None, as_json: bool) -> None:
    """Print records, the newest first."""

    async def work(directory: Directory) -> list[Any]:
        async def read(*, limit: int, before: str | None = before) -> Any:
            async with directory.database.transaction() as connection:
                return await read_records(connection, actor=actor, target=target, limit=limit, before=before)

        return await all_pages(read, "before", lambda record: str(record["id"]), limit=limit)

    records = in_directory(work)
    if as_json:
        show(records, as_json=True)
        return
    rows = [
        {
            "at": record["at"],
            "actor": record["actor_name"],
            "action": record["action"],
            "target": record["target_name"] or record["target"],
            "result": record["result"],
            "address": record["address"],
            "details": " ".join(f"{name}={value}" for name, value in record["details"].items()),
            "id": record["id"],
        }
        for record in records
    ]
    show(rows, as_json=False)
