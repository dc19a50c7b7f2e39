"""`tollbook teams`: who belongs together. A member with the scope team:admin manages the others."""

from typing import Annotated

import typer

from service.commands.directory import AsJson, Directory, all_pages, in_directory, show

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the team.")]


@app.command()
def add(name: Name) -> None:
    """Make a team."""
    team = in_directory(lambda directory: directory.teams.add(name, by=directory.by))
    typer.echo(f"Added {team.name}.")


@app.command("list")
def list_teams(as_json: AsJson = False) -> None:
    """Show all teams."""
    teams = in_directory(lambda directory: all_pages(directory.teams.list, "after", lambda each: each.name))
    show(({"name": team.name, "created_at": team.created_at, "id": team.id} for team in teams), as_json=as_json)


@app.command()
def rename(name: Name, new_name: Annotated[str, typer.Argument(help="The name it is to have.")]) -> None:
    """Give a team another name."""

    async def work(directory: Directory) -> str:
        team = await directory.team(name)
        return (await directory.teams.rename(team.id, new_name, by=directory.by)).name

    typer.echo(f"The team is {in_directory(work)} now.")


@app.command()
def remove(name: Name) -> None:
    """Remove a team that nobody is in."""

    async def work(directory: Directory) -> None:
        await directory.teams.delete((await directory.team(name)).id, by=directory.by)

    in_directory(work)
    typer.echo(f"Removed {name}.")
