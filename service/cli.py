"""`tollbook`: the command line. Each command is short; what it does is in service/commands/."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from dotenv import load_dotenv
from rich.console import Console

from service.commands import doctor as doctor_command
from service.commands import serve as serve_command
from service.commands import users as users_commands
from service.commands.config import print_config
from service.commands.run import run as run_service
from service.settings import Settings, SettingsError, load_settings, unknown_variables

app = typer.Typer(no_args_is_help=True, add_completion=False, help="An LLM service where every call is on the books.")
app.add_typer(users_commands.app, name="users", help="Who may call.")


def settings_or_exit() -> Settings:
    """The settings, or a list of what is wrong with them and exit status 2."""
    console = Console(stderr=True)
    for name, guess in unknown_variables(os.environ).items():
        hint = f" Did you mean {guess}?" if guess else ""
        console.print(f"Warning: {name} is not a setting.{hint}", style="yellow", highlight=False)
    try:
        return load_settings()
    except SettingsError as error:
        console.print("Tollbook does not start with these settings:", style="bold red")
        console.print(str(error), highlight=False, markup=False)
        raise typer.Exit(2) from None


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
    load_dotenv(Path(".env"), override=False)
    app()


if __name__ == "__main__":
    main()
