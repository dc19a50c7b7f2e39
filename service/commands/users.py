"""`tollbook users`: who may call."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from auth.passwords import Passwords
from auth.scopes import Scope
from auth.users import UnknownUser, Users, UsersUnavailable
from service.bootstrap import make_passwords
from service.commands.environment import settings_or_exit
from service.database import make_engine

app = typer.Typer(no_args_is_help=True)

Result = TypeVar("Result")
Username = Annotated[str, typer.Argument(help="Name of the user.")]
Password = Annotated[
    str | None, typer.Option(envvar="TOLLBOOK_NEW_PASSWORD", help="Asked for when left out.", show_envvar=True)
]


def _with_users(work: Callable[[Users, Passwords], Awaitable[Result]]) -> Result:
    settings = settings_or_exit()

    async def inside() -> Result:
        engine = make_engine(settings.effective_database_url)
        passwords = make_passwords(settings)
        try:
            return await work(Users(engine), passwords)
        finally:
            passwords.close()
            await engine.dispose()

    try:
        return asyncio.run(inside())
    except UsersUnavailable as error:
        message = f"The database cannot be used ({error}). Is it up, and was `tollbook migrate` run?"
    except UnknownUser:
        message = "There is no such user."
    except ValueError as error:
        message = str(error)
    Console(stderr=True).print(f"Error: {message}", style="red", highlight=False, markup=False)
    raise typer.Exit(1)


def _ask_password(password: str | None) -> str:
    if password is not None:
        return password
    answer: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return answer


@app.command()
def add(
    username: Username,
    password: Password = None,
    scope: Annotated[list[Scope] | None, typer.Option(help="May be given more than once.")] = None,
) -> None:
    """Add a user. Without --scope it may call models and read its own usage."""
    secret = _ask_password(password)
    scopes = scope or [Scope.LLM, Scope.USAGE_READ]
    user = _with_users(lambda users, passwords: users.add(username, secret, scopes, passwords=passwords))
    typer.echo(f"Added {user.username} with {' '.join(sorted(user.scopes))}.")


@app.command("list")
def list_users() -> None:
    """Show all users."""
    table = Table("username", "scopes", "state", "since", box=None, pad_edge=False)
    for user in _with_users(lambda users, _: users.list()):
        state = "disabled" if user.disabled else "active"
        table.add_row(user.username, " ".join(sorted(user.scopes)), state, f"{user.created_at:%Y-%m-%d %H:%M}")
    Console(soft_wrap=True).print(table, markup=False)


@app.command()
def disable(username: Username) -> None:
    """Refuse a user from now on, with live tokens too, which takes a few seconds to reach every worker."""
    _with_users(lambda users, _: users.set_disabled(username, disabled=True))
    typer.echo(f"Disabled {username}.")


@app.command()
def enable(username: Username) -> None:
    """Let a disabled user in again."""
    _with_users(lambda users, _: users.set_disabled(username, disabled=False))
    typer.echo(f"Enabled {username}.")


@app.command()
def passwd(username: Username, password: Password = None) -> None:
    """Set a new password."""
    secret = _ask_password(password)
    _with_users(lambda users, passwords: users.set_password(username, secret, passwords=passwords))
    typer.echo(f"Changed the password of {username}.")
