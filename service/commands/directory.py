"""What the commands about users, teams, clients, keys and sessions share: the database, who acts, and clear errors."""

import asyncio
import json
import os
import pwd
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from auth.apikeys import ApiKeys, InvalidKeyData
from auth.audit import Actor
from auth.clients import ClientIdTaken, Clients, InvalidClientData
from auth.database import Database, DatabaseUnavailable
from auth.keystore import KeyStoreError
from auth.names import InvalidName
from auth.passwords import InvalidPassword
from auth.scopes import InvalidScopeString
from auth.sessions import Sessions
from auth.teams import Team, TeamNameTaken, TeamNotEmpty, Teams, UnknownTeam
from auth.users import LastAdmin, UnknownUser, User, UserChanged, UsernameTaken, Users
from observability.logging import configure_logging, printable
from service.authorization import make_sessions
from service.commands.environment import settings_or_exit
from service.database import make_engine
from service.settings import Settings

Result = TypeVar("Result")
PAGE: Final = 200
_NO_LIMIT: Final = 1_000_000  # characters
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]

# With the LookupErrors for what is unknown: their messages are sentences of ours, without a word of what was given.
_REFUSALS: Final = (
    ClientIdTaken,
    InvalidClientData,
    InvalidKeyData,
    InvalidName,
    InvalidPassword,
    InvalidScopeString,
    KeyStoreError,
    LastAdmin,
    TeamNameTaken,
    TeamNotEmpty,
    UserChanged,
    UsernameTaken,
)


@dataclass(frozen=True, slots=True)
class Directory:
    """The repositories, as whoever runs the command."""

    settings: Settings
    database: Database
    users: Users
    teams: Teams
    clients: Clients
    api_keys: ApiKeys
    sessions: Sessions
    by: Actor

    async def user(self, username: str) -> User:
        """The user of a name.

        Raises:
            UnknownUser: there is none.
        """
        found = await self.users.get(username)
        if found is None:
            raise UnknownUser("there is no such user")
        return found

    async def team(self, name: str) -> Team:
        """The team of a name.

        Raises:
            UnknownTeam: there is none.
        """
        found = await self.teams.by_name(name)
        if found is None:
            raise UnknownTeam("there is no such team")
        return found

    async def team_id(self, name: str | None) -> str | None:
        """The id of a team, if one is named."""
        return None if name is None else (await self.team(name)).id

    async def user_id(self, username: str | None) -> str | None:
        """The id of a user, if one is named."""
        return None if username is None else (await self.user(username)).id

    async def team_names(self) -> dict[str | None, str]:
        """The name of each team by its id."""
        return {each.id: each.name for each in await all_pages(self.teams.list, "after", lambda each: each.name)}


def in_directory(work: Callable[[Directory], Awaitable[Result]]) -> Result:
    """Do some work on the repositories. What cannot be done ends the command with one line that says why."""
    settings = settings_or_exit()
    # The record of a change is in the database. Its log line belongs into the log of a service, not into this output.
    configure_logging("pretty", "warning")

    async def inside() -> Result:
        engine = make_engine(settings.effective_database_url)
        database = Database(engine)
        try:
            return await work(
                Directory(
                    settings=settings,
                    database=database,
                    users=Users(database),
                    teams=Teams(database),
                    clients=Clients(database),
                    api_keys=ApiKeys(database),
                    sessions=make_sessions(settings, database),
                    by=Actor("cli", _who()),
                )
            )
        finally:
            await engine.dispose()

    try:
        return asyncio.run(inside())
    except (KeyError, IndexError):  # LookupErrors too, but bugs
        raise
    except DatabaseUnavailable as error:
        message = f"The database cannot be used ({error}). Is it up, and was `tollbook migrate` run?"
    except (*_REFUSALS, LookupError) as error:
        text = str(error)
        message = f"{text[:1].upper()}{text[1:].removesuffix('.')}."
    say_error(message)
    raise typer.Exit(1)


def say_error(message: str) -> None:
    """One line on standard error."""
    Console(stderr=True, emoji=False).print(
        f"Error: {printable(message)}", style="red", highlight=False, markup=False, soft_wrap=True
    )


def encodable(value: str | None) -> str | None:
    """Refuse an argument whose bytes are no text: no database can be asked for it.

    Raises:
        typer.BadParameter: it is such a one.
    """
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("it is not text in UTF-8") from None
    return value


async def all_pages(
    read: Callable[..., Awaitable[Sequence[Result]]],
    cursor: str,
    key: Callable[[Result], str],
    *,
    limit: int | None = None,
    **which: Any,
) -> list[Result]:
    """What a repository lists, page by page.

    Args:
        read: its method.
        cursor: name of the parameter that goes on from an element.
        key: the value of that parameter.
        limit: at most so many; None: everything.
        which: other parameters.
    """
    found: list[Result] = []
    while limit is None or len(found) < limit:
        size = PAGE if limit is None else min(PAGE, limit - len(found))
        page = await read(**which, limit=size, **({cursor: key(found[-1])} if found else {}))
        found += page
        if len(page) < size:
            break
    return found


def show(rows: Iterable[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print rows as a table, or as JSON lines."""
    listed = list(rows)
    if as_json:
        _print_json(listed)
        return
    if not listed:
        typer.echo("None.")
        return
    table = Table(*(name.replace("_", " ") for name in listed[0]), box=None, pad_edge=False)
    for row in listed:
        table.add_row(*(_cell(value) for value in row.values()))
    _print_table(table)


def show_one(row: Mapping[str, Any], *, as_json: bool) -> None:
    """Print one row, a field a line, or as a JSON line."""
    if as_json:
        _print_json([row])
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in row.items():
        table.add_row(name.replace("_", " "), _cell(value))
    _print_table(table)


def show_secret(what: str, secret: str) -> None:
    """A secret that is kept nowhere, alone on the last line, so that a script can take it from there."""
    typer.echo(f"{what}, shown once:")
    typer.echo(secret)


def _print_json(rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        typer.echo(json.dumps(dict(row), default=_plain))


def _print_table(table: Table) -> None:
    # As wide as it is: a terminal wraps a long line, and what Rich folds into a column could not be copied.
    Console(highlight=False, width=_NO_LIMIT).print(table, soft_wrap=True)


def _plain(value: Any) -> Any:
    """What JSON has no word for: instants, and sets of scopes or grants."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Collection):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} in a row")


def _cell(value: Any) -> Text:
    """As it is: in a string Rich would read markup and the names of emoji."""
    if isinstance(value, datetime):
        return Text(f"{value:%Y-%m-%d %H:%M:%S}")
    if isinstance(value, frozenset):
        return Text(printable(" ".join(sorted(value))))
    return Text("" if value is None else printable(str(value)))


def _who() -> str:
    """The user whose process this is, and not whom the environment says it is."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container it may have no name
        return f"uid {os.getuid()}"
