"""`tollbook sessions`: who is logged in."""

from typing import Annotated

import typer

from auth.sessions import Session
from service.commands.directory import AsJson, Directory, all_pages, in_directory, show

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_sessions(
    user: Annotated[str | None, typer.Option(help="Only of this user.")] = None, as_json: AsJson = False
) -> None:
    """Show the sessions that are alive, the newest first."""

    async def work(directory: Directory) -> list[Session]:
        user_id = await directory.user_id(user)
        return await all_pages(directory.sessions.list, "before", lambda each: each.id, user_id=user_id)

    rows = [
        {
            "id": session.id,
            "username": session.username,
            "client_id": session.client_id,
            "scopes": session.scopes,
            "address": session.address,
            "created_at": session.created_at,
            "last_used_at": session.last_used_at,
            "expires_at": session.expires_at,
        }
        for session in in_directory(work)
    ]
    show(rows, as_json=as_json)


@app.command()
def revoke(session_id: Annotated[str, typer.Argument(help="Id of the session.")]) -> None:
    """End a session: its refresh token and its access tokens."""
    in_directory(lambda directory: directory.sessions.revoke(session_id, because="revoked", by=directory.by))
    typer.echo(f"Ended {session_id}.")


@app.command()
def end(username: Annotated[str, typer.Argument(help="Whose sessions.")]) -> None:
    """End all sessions of a user, and their access tokens. API keys go on."""

    async def work(directory: Directory) -> None:
        user = await directory.user(username)
        await directory.sessions.revoke_user(user.id, because="revoked", by=directory.by, team_id=user.team_id)

    in_directory(work)
    typer.echo(f"Ended all sessions of {username}.")
