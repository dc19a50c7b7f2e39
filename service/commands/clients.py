"""`tollbook clients`: the programs that get tokens of their own."""

from typing import Annotated, Final

import typer

from auth.audit import SYSTEM
from auth.clients import CLIENT_CREDENTIALS, PASSWORD, REFRESH_TOKEN, Client, InvalidClientData
from service.commands.directory import AsJson, Directory, all_pages, in_directory, show, show_secret

app = typer.Typer(no_args_is_help=True)

ClientId = Annotated[str, typer.Argument(help="Id of the client.")]
_ACTORS: Final = ("cli", SYSTEM.id)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What it is, for people.")],
    scope: Annotated[list[str], typer.Option(help="The most its tokens can carry. May be given more than once.")],
    grant: Annotated[
        list[str] | None,
        typer.Option(
            help="How it gets tokens. May be given more than once. "
            "Default: client_credentials; with --public: password and refresh_token."
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="It cannot keep a secret, so it has none.")] = False,
    client_id: Annotated[str | None, typer.Option("--id", help="Made up when left out.")] = None,
    team: Annotated[str | None, typer.Option(help="Name of the team it belongs to.")] = None,
) -> None:
    """Register a client, and show its secret once."""
    grants = grant or ([PASSWORD, REFRESH_TOKEN] if public else [CLIENT_CREDENTIALS])

    async def work(directory: Directory) -> tuple[Client, str | None]:
        _check_is_no_actor(client_id)
        return await directory.clients.add(
            name,
            grants=grants,
            scopes=scope,
            confidential=not public,
            team_id=await directory.team_id(team),
            client_id=client_id,
            by=directory.by,
        )

    client, secret = in_directory(work)
    typer.echo(f"Added {client.name} with the client id {client.id}.")
    if secret is not None:
        show_secret("Its secret", secret)


@app.command("list")
def list_clients(
    team: Annotated[str | None, typer.Option(help="Only of this team.")] = None, as_json: AsJson = False
) -> None:
    """Show all clients."""

    async def work(directory: Directory) -> tuple[list[Client], dict[str | None, str]]:
        team_id = await directory.team_id(team)
        clients = await all_pages(directory.clients.list, "after", lambda each: each.id, team_id=team_id)
        return clients, await directory.team_names()

    clients, teams = in_directory(work)
    rows = [
        {
            "client_id": client.id,
            "name": client.name,
            "kind": "public" if client.public else "confidential",
            "grants": client.grants,
            "scopes": client.scopes,
            "team": teams.get(client.team_id),
            "state": "disabled" if client.disabled else "active",
            "created_at": client.created_at,
        }
        for client in clients
    ]
    show(rows, as_json=as_json)


@app.command()
def disable(client_id: ClientId) -> None:
    """Refuse a client and its tokens."""
    in_directory(lambda directory: directory.clients.update(client_id, disabled=True, by=directory.by))
    typer.echo(f"Disabled {client_id}.")


@app.command()
def enable(client_id: ClientId) -> None:
    """Let a disabled client in again."""
    in_directory(lambda directory: directory.clients.update(client_id, disabled=False, by=directory.by))
    typer.echo(f"Enabled {client_id}.")


@app.command()
def secret(client_id: ClientId) -> None:
    """Give a client a new secret. The old one stops at once."""
    show_secret("Its secret", in_directory(lambda directory: directory.clients.new_secret(client_id, by=directory.by)))


@app.command()
def remove(client_id: ClientId) -> None:
    """Remove a client, and end the sessions that began with it."""
    in_directory(lambda directory: directory.clients.delete(client_id, by=directory.by))
    typer.echo(f"Removed {client_id}.")


def _check_is_no_actor(client_id: str | None) -> None:
    """In the audit log a client has its id where these stand."""
    if client_id in _ACTORS:
        raise InvalidClientData(f"a client id is none of: {' '.join(_ACTORS)}")
