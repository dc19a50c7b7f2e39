"""`tollbook config`: the settings in force."""

import re

from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url

from service.settings import GROUPS, Settings, variable_of

_USER_INFO = re.compile(r"//[^/@]*@")  # of a URL


def print_config(settings: Settings) -> None:
    """Every setting with its value, secrets masked, and whether it was set."""
    table = Table("setting", "value", "", box=None, pad_edge=False)
    groups = [settings, *(getattr(settings, name) for name in GROUPS)]
    for group in groups:
        for field in type(group).model_fields:
            if field not in GROUPS:
                value = getattr(group, field)
                given = "set" if field in group.model_fields_set else "default"
                table.add_row(variable_of(type(group), field), _shown(field, value, settings), given)
    Console(soft_wrap=True).print(table, markup=False)


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
