"""Commands about users, teams, clients, keys and sessions, run in this process on a database of the test's own."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from auth.database import Database
from auth.sessions import Sessions
from service.cli import app
from service.database import make_engine
from tests.service.test_http import process_restored

PASSWORD = "correct horse battery staple"
CONTROLS = "\x1b[31m\x07\r\x7f\x9b2K\u2028"
ANY_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
T = TypeVar("T")


@dataclass(frozen=True)
class Cli:
    """Runs `tollbook`. The settings are those of a machine that has just been set up."""

    state_dir: Path
    database_url: str

    def __call__(self, *args: str, env: Mapping[str, str] | None = None, stdin: str | None = None) -> Result:
        settings = {
            "TOLLBOOK_STATE_DIR": str(self.state_dir),
            "TOLLBOOK_DATABASE_URL": self.database_url,
            "TOLLBOOK_AUTH_ARGON2_MEMORY_KIB": "8192",
            "COLUMNS": "40",  # a narrow terminal must not cut what people copy
        }
        return CliRunner().invoke(app, args, env=settings | dict(env or {}), input=stdin)

    def out(self, *args: str, **options: Any) -> str:
        """What a command that has to succeed prints."""
        result = self(*args, **options)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return result.stdout

    def last(self, *args: str) -> str:
        """The last line, as `tail -1` gives it: a secret."""
        return self.out(*args).splitlines()[-1]

    def json(self, *args: str) -> list[Any]:
        """What a list command says in JSON lines."""
        return [json.loads(line) for line in self.out(*args, "--json").splitlines()]

    def table(self, *args: str) -> list[list[str]]:
        """The cells of what a list command shows, with the header first."""
        return [re.split(r" {2,}", line.strip()) for line in self.out(*args).splitlines()]

    def refused(self, *args: str, **options: Any) -> str:
        """The one line that says why a command that has to fail did."""
        result = self(*args, **options)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ")
        return line.removeprefix("Error: ")

    def add_user(self, name: str, *options: str) -> None:
        self.out("users", "add", name, *options, "--password", PASSWORD)

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """Ask, or change, the database itself."""

        async def run(database: Database) -> list[Any]:
            async with database.transaction() as connection:
                found = await connection.execute(text(statement), values)
                return list(found.all()) if found.returns_rows else []

        return self.on_database(run)

    def on_database(self, work: Callable[[Database], Awaitable[T]]) -> T:
        """Do what the service would."""

        async def run() -> T:
            engine = make_engine(self.database_url)
            try:
                return await work(Database(engine))
            finally:
                await engine.dispose()

        return asyncio.run(run())

    def login(self, name: str, address: str = "192.0.2.7") -> tuple[str, str]:
        """A session, as a login begins one: its id, and its refresh token."""
        ((user_id, scopes),) = self.sql("SELECT id, scopes FROM users WHERE username = :name", name=name)
        return self.on_database(lambda database: sessions(database).open(user_id, "tollbook", scopes.split(), address))

    def audit(self) -> list[tuple[str, str]]:
        """Action and target's name of every record, the oldest first."""
        return [(row[0], row[1]) for row in self.sql("SELECT action, target_name FROM audit_log ORDER BY id")]


def sessions(database: Database) -> Sessions:
    return Sessions(database, refresh_ttl_seconds=1000, session_ttl_seconds=5000, overlap_seconds=0)


@contextmanager
def command_line(directory: Path, database_url: str) -> Iterator[Cli]:
    """The command line, in a working directory of its own and with the schema in place."""
    with pytest.MonkeyPatch.context() as patch, process_restored():
        patch.chdir(directory)
        cli = Cli(directory / "state", database_url)
        assert cli("migrate").exit_code == 0
        yield cli
