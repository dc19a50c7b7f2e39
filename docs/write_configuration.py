"""Writes docs/configuration.md from the settings and the example catalog: `make docs`."""
# ruff: noqa: INP001 - a script beside the page it writes, in no package

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from service.settings import GROUPS, Settings, variable_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
EXAMPLE_CATALOG = ROOT / "tollbook.example.yaml"

_BEGINNING = """\
<!-- Written by `make docs` from service/settings.py. Change that file, not this one. -->
# Configuration

Settings are environment variables. A file `.env` in the working directory is read too; the environment wins over it. An
empty variable is one that is not set. Durations are in seconds, sizes in bytes, unless the name says otherwise.

- `tollbook config` prints the settings in force, with secrets masked.
- A bad value stops a command before it has done anything, with a line for each variable that is wrong.
- A variable that begins with `TOLLBOOK_` and is no setting is warned of at start, with the name it may stand for.
"""

_END = """\
## OpenTelemetry

Spans are exported by OTLP over HTTP (protobuf) when `OTEL_EXPORTER_OTLP_ENDPOINT` or
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set, and not when `OTEL_TRACES_EXPORTER` is `none`. The service name is
`OTEL_SERVICE_NAME`, else `tollbook`. The OpenTelemetry SDK reads its other variables itself: `OTEL_TRACES_SAMPLER`,
`OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_*` and the rest. See [telemetry.md](telemetry.md).

## Clients on the command line

These are not settings of the service; a command reads them in place of an option.

| variable | command | option |
|---|---|---|
| `TOLLBOOK_URL` | `tollbook chat` | `--url` |
| `TOLLBOOK_USERNAME` | `tollbook chat` | `--username` |
| `TOLLBOOK_PASSWORD` | `tollbook chat` | `--password` |
| `TOLLBOOK_NEW_PASSWORD` | `tollbook users add`, `tollbook users passwd` | `--password` |

## The catalog

`TOLLBOOK_CATALOG` names a YAML file: which models clients may ask for, which upstream answers for each, and what it
costs. It is read once, at start. A mistake is reported with file, line and field. Keys are never in it. Without a
catalog every model name is passed on to `OPENAI_BASE_URL` (default: OpenAI), and no cost is known.

This is [tollbook.example.yaml](../tollbook.example.yaml):

```yaml
{catalog}```
"""


def render() -> str:
    """The page."""
    groups: list[type[BaseSettings]] = [Settings, *GROUPS.values()]
    tables = ["\n".join(_section(group)) for group in groups]
    end = _END.format(catalog=EXAMPLE_CATALOG.read_text(encoding="utf-8"))
    return "\n".join([_BEGINNING, *tables, end])


def _section(group: type[BaseSettings]) -> Iterator[str]:
    title = (group.__doc__ or group.__name__).partition(".")[0]
    yield f"## {title}\n"
    yield "| variable | what it is | values | default |"
    yield "|---|---|---|---|"
    for name, field in group.model_fields.items():
        if name not in GROUPS:
            cells = (f"`{variable_of(group, name)}`", field.description or "", _values(field), _default(field))
            yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
    yield ""


def _values(field: FieldInfo) -> str:
    kind: Any = field.annotation
    if get_origin(kind) in {Union, types.UnionType}:  # X | None: what it is when it is set
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is list:
        return "list, with commas"
    words = {bool: "`true`, `false`", Path: "path", SecretStr: "secret", str: "text", int: "whole number"}
    return ", ".join(part for part in (words.get(kind, "number"), _bounds(field)) if part)


def _bounds(field: FieldInfo) -> str:
    found = {
        word: getattr(limit, name)
        for name, word in {"gt": "over", "ge": "at least", "le": "at most"}.items()
        for limit in field.metadata
        if getattr(limit, name, None) is not None
    }
    if {"at least", "at most"} <= found.keys():
        return f"{found['at least']} to {found['at most']}"
    return ", ".join(f"{word} {limit}" for word, limit in found.items())


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, list):
        value = ",".join(value)
    if value is None or value == "":
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
