"""The settings of a command, or an exit that says what is wrong with them."""

import os

import typer
from rich.console import Console

from service.settings import Settings, SettingsError, load_settings, unknown_variables


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
