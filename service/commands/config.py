"""`tollbook config`: the settings in force."""

import re

import typer
from pydantic import SecretStr
from sqlalchemy import make_url

from service.settings import GROUPS, Settings, variable_of

_USER_INFO = re.compile(r"//\S*@")  # of a URL


def print_config(settings: Settings) -> None:
    """Every setting with its value, secrets masked, and whether it was set."""
    groups = [settings, *(getattr(settings, name) for name in GROUPS)]
    for group in groups:
        for field in type(group).model_fields:
            if field not in GROUPS:
                value = getattr(group, field)
                given = "set    " if field in group.model_fields_set else "default"
                # Plain lines, not a table: one would be cut to the width of a terminal, in a pipe too.
                typer.echo(f"{variable_of(type(group), field):40} {given}  {_shown(field, value, settings)}".rstrip())


def _shown(field: str, value: object, settings: Settings) -> str:
    if field == "database_url":
        url = make_url(settings.effective_database_url)
        masked = {name: "********" if "pass" in name.lower() else value for name, value in url.query.items()}
        return url.set(query=masked).render_as_string(hide_password=True)
    if isinstance(value, SecretStr):
        return "********"
    if isinstance(value, list):
        return ",".join(value)
    return "" if value is None else _USER_INFO.sub("//********@", str(value))
