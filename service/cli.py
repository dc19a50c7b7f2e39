"""`tollbook`: the command line. Each command is short; what it does is in service/commands/."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from dotenv import load_dotenv

from service.commands import clients, keys, sessions, signing_keys, teams, users
from service.commands import doctor as doctor_command
from service.commands import serve as serve_command
from service.commands.audit_log import print_audit_log
from service.commands.config import print_config
from service.commands.directory import AsJson, encodable
from service.commands.environment import settings_or_exit
from service.commands.run import run as run_service

app = typer.Typer(no_args_is_help=True, add_completion=False, help="An LLM service where every call is on the books.")
app.add_typer(users.app, name="users", help="The people who may call.")
app.add_typer(teams.app, name="teams", help="Who belongs together.")
app.add_typer(clients.app, name="clients", help="Programs that get tokens of their own.")
app.add_typer(keys.app, name="keys", help="API keys.")
app.add_typer(sessions.app, name="sessions", help="Who is logged in.")
app.add_typer(signing_keys.app, name="signing-keys", help="What access tokens are signed with.")


@app.command()
def run() -> None:
    """Run everything on this machine: a small model if no upstream is set, the database, the service."""
    raise typer.Exit(asyncio.run(run_service(settings_or_exit())))


@app.command()
def serve() -> None:
    """Run the service for production: Gunicorn with Uvicorn workers, from the settings."""
    serve_command.serve(settings_or_exit())


@app.command()
def migrate() -> None:
    """Bring the database schema up to date and make the first admin if one is set and there is no user."""
    serve_command.prepare(settings_or_exit(), must_reach_database=True)


@app.command()
def config() -> None:
    """Print the settings in force, with secrets masked."""
    print_config(settings_or_exit())


@app.command()
def doctor() -> None:
    """Check database, key, catalog and each upstream, and say what to do."""
    raise typer.Exit(asyncio.run(doctor_command.examine(settings_or_exit())))


@app.command()
def audit_log(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many records.")] = 50,
    actor: Annotated[
        str | None, typer.Option(help="Only by this one: id of a user or client, cli or system.", callback=encodable)
    ] = None,
    target: Annotated[str | None, typer.Option(help="Only about what has this id.", callback=encodable)] = None,
    before: Annotated[
        str | None, typer.Option(help="Only those older than the record of this id.", callback=encodable)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed what, the newest first."""
    print_audit_log(limit=limit, actor=actor, target=target, before=before, as_json=as_json)


@app.command()
def chat(
    prompt: Annotated[str | None, typer.Argument(help="What to ask. Left out: read from standard input.")] = None,
    url: Annotated[str, typer.Option(envvar="TOLLBOOK_URL", help="Address of the service.")] = "http://127.0.0.1:8000",
    username: Annotated[str, typer.Option(envvar="TOLLBOOK_USERNAME", help="Who you are.")] = "admin",
    password: Annotated[
        str | None, typer.Option(envvar="TOLLBOOK_PASSWORD", help="Asked for when left out.", show_envvar=True)
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model of /v1/models. Default: the first.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 300,
) -> None:
    """Log in, ask a model, show the answer as it comes, then what it took."""
    # The openai package takes a second to import, and of all commands only this one needs it.
    from service.commands import chat as chat_command  # noqa: PLC0415

    question = prompt if prompt is not None else sys.stdin.read()
    secret = password or typer.prompt("Password", hide_input=True, err=True)
    wanted = chat_command.Question(question, model, max_tokens)
    raise typer.Exit(asyncio.run(chat_command.chat(url, username, secret, wanted)))


def main() -> None:
    """Entry point. A `.env` file also holds OTEL_* variables, which only the environment can carry."""
    os.umask(0o077)  # what the service writes is nobody else's business
    load_dotenv(Path(".env"), override=False)
    app()


if __name__ == "__main__":
    main()
