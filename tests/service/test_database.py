"""The schema: what the migrations make is what the code says, on both databases, whoever comes first."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from auth.tables import metadata as auth_metadata
from observability.ledger.table import metadata as ledger_metadata
from service import database
from service.database import is_current, make_engine, migrate

_SPAWN = multiprocessing.get_context("spawn")


async def _drop_everything(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("DROP SCHEMA public CASCADE"))
        await connection.execute(text("CREATE SCHEMA public"))


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'tollbook.db'}"
    found: str = request.getfixturevalue("postgres_url")
    engine = make_engine(found)
    await _drop_everything(engine)
    await engine.dispose()
    return found


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(url)
    yield engine
    await engine.dispose()


async def run(engine: AsyncEngine, work: Callable[[Connection], Any]) -> Any:
    async with engine.begin() as connection:
        return await connection.run_sync(work)


def alembic(name: str, revision: str) -> Callable[[Connection], None]:
    """An Alembic command, run as `migrate` runs it."""

    def work(connection: Connection) -> None:
        config = database._config()
        config.attributes["connection"] = connection
        getattr(command, name)(config, revision)

    return work


def differences(connection: Connection) -> list[Any]:
    """What would have to change for the schema to be the one of the code."""
    both = MetaData()
    for metadata in (auth_metadata, ledger_metadata):
        for table in metadata.tables.values():
            table.to_metadata(both)
    options = {"compare_type": True, "compare_server_default": True}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), both))


async def test_the_migrations_make_exactly_the_tables_of_the_code(engine):
    await migrate(engine)
    assert await run(engine, differences) == []


async def test_a_difference_would_be_seen(engine):
    """Or the test above would say nothing."""
    await migrate(engine)
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE ledger ADD COLUMN extra TEXT"))
        await connection.execute(text("DROP INDEX ix_ledger_started_at"))
    found = str(await run(engine, differences))
    assert "extra" in found
    assert "ix_ledger_started_at" in found


async def test_whether_the_schema_is_current(engine):
    assert not await is_current(engine)
    await migrate(engine)
    assert await is_current(engine)


async def test_a_schema_of_another_version_is_not_current(engine):
    await migrate(engine)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    assert not await is_current(engine)


async def test_migrating_again_changes_nothing_and_keeps_what_is_there(engine):
    await migrate(engine)
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO users (id, username, password_hash, scopes, created_at, updated_at) "
                 "VALUES ('1', 'ada', 'x', 'llm', '2026-03-01 12:00:00', '2026-03-01 12:00:00')")
        )  # fmt: skip
    await migrate(engine)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT username FROM users"))).scalars().all() == ["ada"]


async def test_down_and_up_again(engine):
    await migrate(engine)
    await run(engine, alembic("downgrade", "base"))
    tables = await run(engine, lambda connection: inspect(connection).get_table_names())
    assert tables == ["alembic_version"]
    assert not await is_current(engine)
    await migrate(engine)
    assert await run(engine, differences) == []


async def test_a_migration_that_fails_half_way_leaves_nothing(engine, monkeypatch):
    def broken(config: Any, revision: str) -> None:
        connection = config.attributes["connection"]
        connection.exec_driver_sql("CREATE TABLE half (id INTEGER)")
        raise RuntimeError(revision)

    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", broken)
        with pytest.raises(RuntimeError, match="head"):
            await migrate(engine)
    assert await run(engine, lambda connection: inspect(connection).get_table_names()) == []
    await migrate(engine)
    assert await is_current(engine)


def _migrate_in_a_process(url: str, barrier: Any) -> None:
    async def work() -> None:
        engine = make_engine(url)
        barrier.wait(60)
        await migrate(engine)
        assert await is_current(engine)
        await engine.dispose()

    asyncio.run(work())


async def test_services_that_start_at_once_migrate_one_after_the_other(url, engine):
    """Processes, because the lock is for processes."""
    barrier = _SPAWN.Barrier(4)
    processes = [_SPAWN.Process(target=_migrate_in_a_process, args=(url, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join, 90)
    assert [process.exitcode for process in processes] == [0] * 4
    assert await run(engine, differences) == []


async def test_tasks_that_migrate_at_once_do_not_disturb_each_other(url):
    engines = [make_engine(url) for _ in range(5)]
    try:
        await asyncio.gather(*(migrate(engine) for engine in engines))
        assert await is_current(engines[0])
    finally:
        for engine in engines:
            await engine.dispose()


async def test_sqlite_is_set_up_so_that_readers_and_the_writer_do_not_block_each_other(tmp_path):
    engine = make_engine(f"sqlite+aiosqlite:///{tmp_path / 'tollbook.db'}")
    async with engine.connect() as connection:
        found = {
            name: (await connection.execute(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    await engine.dispose()
    assert found == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 10000}


async def test_a_connection_that_the_server_dropped_is_noticed_before_it_is_used(postgres_url):
    engine = make_engine(postgres_url)
    other = make_engine(postgres_url)
    try:
        async with engine.connect() as connection:
            pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        async with other.connect() as connection:
            await connection.execute(text(f"SELECT pg_terminate_backend({pid})"))
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar() == 1
    finally:
        await engine.dispose()
        await other.dispose()
