"""The database: its engine, and one Alembic tree (service/migrations) for the tables of all rooms."""

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

_MIGRATIONS = Path(__file__).parent / "migrations"

# Two services that start at once migrate one after the other: a number that PostgreSQL's advisory locks know us by.
_MIGRATION_LOCK = 0x7011_B00C


class SchemaUnknown(Exception):  # noqa: N818 - a state, not a fault
    """The schema is none that this version knows. It may serve all the same: a release was rolled back."""


def make_engine(url: str) -> AsyncEngine:
    """An engine for the URL of a setting. Make it after fork; dispose of it at the end."""
    if make_url(url).get_backend_name() == "sqlite":
        engine = create_async_engine(url, connect_args={"timeout": 10})
        event.listen(engine.sync_engine, "connect", _set_pragmas)
        return engine
    # Small, because a request does not use it: it serves logins, /usage and the ledger's writer.
    return create_async_engine(url, pool_size=5, max_overflow=5, pool_pre_ping=True, connect_args={"timeout": 10})


def _set_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # NORMAL loses nothing at a crash of the process.
    for pragma in ("busy_timeout=10000", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    # WAL: readers and the one writer do not wait for each other. Kept in the file, and refused without waiting while
    # another connection is setting it.
    with suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode=WAL")
    cursor.close()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


async def migrate(engine: AsyncEngine) -> None:
    """Bring the schema up to date. Safe to run from several processes at once.

    Raises:
        SQLAlchemyError, OSError: the database cannot be reached, or refuses.
        SchemaUnknown: a newer version has migrated it.
    """
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade)
    except CommandError as error:
        raise SchemaUnknown(f"the database was migrated by a newer version of Tollbook ({error})") from error


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
    else:
        # The driver would begin a transaction only at the first change, after the version was read.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def is_current(engine: AsyncEngine) -> bool:
    """Whether the schema is the one this version needs."""
    async with engine.connect() as connection:
        found = await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_heads())
    return set(found) == set(ScriptDirectory.from_config(_config()).get_heads())
