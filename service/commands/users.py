"""`tollbook users`: the people who may call."""

from contextlib import closing
from typing import Annotated, Any

import typer

from auth.scopes import DEFAULT_SCOPES, format_scope
from auth.users import User
from service.bootstrap import make_passwords
from service.commands.directory import AsJson, Directory, all_pages, in_directory, show, show_one
from service.commands.keys import state_of

app = typer.Typer(no_args_is_help=True)

Username = Annotated[str, typer.Argument(help="Name of the user.")]
Password = Annotated[
    str | None, typer.Option(envvar="TOLLBOOK_NEW_PASSWORD", help="Asked for when left out.", show_envvar=True)
]
Scopes = Annotated[list[str] | None, typer.Option("--scope", help="May be given more than once.")]


def _ask_password(password: str | None) -> str:
    if password is not None:
        return password
    answer: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return answer


@app.command()
def add(
    username: Username,
    password: Password = None,
    scope: Scopes = None,
    team: Annotated[str | None, typer.Option(help="Name of the team.")] = None,
) -> None:
    """Add a user. Without --scope it may call models, read its own usage and manage its own account."""
    secret = _ask_password(password)

    async def work(directory: Directory) -> User:
        team_id = await directory.team_id(team)
        with closing(make_passwords(directory.settings)) as passwords:
            return await directory.users.add(
                username, secret, scope or DEFAULT_SCOPES, passwords=passwords, team_id=team_id, by=directory.by
            )

    user = in_directory(work)
    typer.echo(f"Added {user.username} with {format_scope(user.scopes)}.")


@app.command("list")
def list_users(
    team: Annotated[str | None, typer.Option(help="Only of this team.")] = None, as_json: AsJson = False
) -> None:
    """Show all users."""

    async def work(directory: Directory) -> tuple[list[User], dict[str | None, str]]:
        team_id = await directory.team_id(team)
        users = await all_pages(directory.users.list, "after", lambda each: each.username, team_id=team_id)
        return users, await directory.team_names()

    users, teams = in_directory(work)
    show((_row(user, teams.get(user.team_id)) for user in users), as_json=as_json)


@app.command("show")
def show_user(username: Username, as_json: AsJson = False) -> None:
    """Show one user, and how many keys and sessions of theirs are alive."""

    async def work(directory: Directory) -> dict[str, Any]:
        user = await directory.user(username)
        team = await directory.teams.get(user.team_id) if user.team_id else None
        keys = await all_pages(directory.api_keys.list, "after", lambda each: each.id, user_id=user.id)
        sessions = await all_pages(directory.sessions.list, "before", lambda each: each.id, user_id=user.id)
        alive = [key for key in keys if state_of(key) == "active"]
        return _row(user, team.name if team else None) | {"keys": len(alive), "sessions": len(sessions)}

    show_one(in_directory(work), as_json=as_json)


def _row(user: User, team: str | None) -> dict[str, Any]:
    return {
        "username": user.username,
        "scopes": user.scopes,
        "team": team,
        "state": "disabled" if user.disabled else "active",
        "created_at": user.created_at,
        "id": user.id,
    }


@app.command()
def disable(username: Username) -> None:
    """Refuse a user from now on, with live tokens and keys too, which takes a few seconds to reach every worker."""
    _set_disabled(username, disabled=True)
    typer.echo(f"Disabled {username}.")


@app.command()
def enable(username: Username) -> None:
    """Let a disabled user in again."""
    _set_disabled(username, disabled=False)
    typer.echo(f"Enabled {username}.")


def _set_disabled(username: str, *, disabled: bool) -> None:
    async def work(directory: Directory) -> None:
        user = await directory.user(username)
        await directory.users.set_disabled(user.id, disabled=disabled, by=directory.by)

    in_directory(work)


@app.command()
def passwd(username: Username, password: Password = None) -> None:
    """Set a new password. Sessions and tokens that began with the old one end."""
    secret = _ask_password(password)

    async def work(directory: Directory) -> None:
        user = await directory.user(username)
        with closing(make_passwords(directory.settings)) as passwords:
            await directory.users.set_password(user.id, secret, passwords=passwords, by=directory.by)

    in_directory(work)
    typer.echo(f"Changed the password of {username}.")


@app.command()
def scopes(username: Username, scope: Scopes = None) -> None:
    """Set the scopes of a user. Tokens that are out end; sessions and keys go on with what is left."""
    wanted = scope or []

    async def work(directory: Directory) -> User:
        user = await directory.user(username)
        return await directory.users.update(user.id, scopes=wanted, by=directory.by)

    typer.echo(f"{username} has {format_scope(in_directory(work).scopes)} now.")


@app.command()
def team(
    username: Username, name: Annotated[str | None, typer.Argument(help="Name of the team. Left out: none.")] = None
) -> None:
    """Put a user into a team, or take them out of it."""

    async def work(directory: Directory) -> None:
        user = await directory.user(username)
        await directory.users.update(user.id, team_id=await directory.team_id(name), by=directory.by)

    in_directory(work)
    typer.echo(f"{username} is in {'no team' if name is None else name} now.")
