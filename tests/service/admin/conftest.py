from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.service.admin.kit import World, emptied, making_world


@pytest.fixture
async def sqlite_world(tmp_path: Path) -> AsyncIterator[World]:
    async with making_world(tmp_path) as world:
        yield world


@pytest.fixture
async def postgres_world(tmp_path: Path, postgres_url: str) -> AsyncIterator[World]:
    async with making_world(tmp_path, database_url=await emptied(postgres_url)) as world:
        yield world


@pytest.fixture(params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest) -> World:
    """On each database in turn."""
    world: World = request.getfixturevalue(f"{request.param}_world")
    return world
