import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from observability.ledger.table import metadata

Connect = Callable[..., AsyncEngine]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes engines and disposes of them."""
    engines: list[AsyncEngine] = []

    def connect(url: str, **options: Any) -> AsyncEngine:
        engines.append(create_async_engine(url, **options))
        return engines[-1]

    yield connect
    for engine in engines:
        await engine.dispose()
    # After a connection that failed, aiosqlite's thread still has a word for the loop, which must be there to hear it.
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join)


@pytest.fixture
async def sqlite(tmp_path: Path, connect: Connect) -> AsyncEngine:
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    return engine


@pytest.fixture
async def postgres(postgres_url: str, connect: Connect) -> AsyncEngine:
    """Its sessions are in a time zone far from UTC, as a server's may be."""
    engine = connect(postgres_url, connect_args={"server_settings": {"timezone": "Asia/Tokyo"}})
    async with engine.begin() as connection:
        await connection.run_sync(metadata.drop_all)
        await connection.run_sync(metadata.create_all)
    return engine


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> AsyncEngine:
    """Each database in turn."""
    engine: AsyncEngine = request.getfixturevalue(request.param)
    return engine
