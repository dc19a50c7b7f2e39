import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.admin.kit import emptied
from tests.service.cli_kit import Cli, command_line


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The command line on SQLite."""
    with command_line(tmp_path, f"sqlite+aiosqlite:///{tmp_path / 'state' / 'tollbook.db'}") as cli:
        yield cli


@pytest.fixture
def cli_on_postgres(tmp_path: Path, postgres_url: str) -> Iterator[Cli]:
    with command_line(tmp_path, asyncio.run(emptied(postgres_url))) as cli:
        yield cli


@pytest.fixture(params=["cli", "cli_on_postgres"])
def cli_on_each(request: pytest.FixtureRequest) -> Cli:
    """The command line on each database in turn."""
    cli: Cli = request.getfixturevalue(request.param)
    return cli
