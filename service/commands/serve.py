"""`tollbook serve`: prepare what must be there, then become Gunicorn."""

import asyncio
import fcntl
import os
import sys
from contextlib import suppress
from typing import Never

import typer
from rich.console import Console

from auth.keyfiles import KeyFileError
from observability.logging import configure_logging, get_logger
from service.authorization import check_settings
from service.bootstrap import DATABASE_ERRORS, ensure_ready, load_catalog, prepare_state_dir
from service.llm.catalog import CatalogError
from service.settings import Settings, SettingsError

log = get_logger("service.serve")

_AMBIENT = frozenset({"OPENAI_CUSTOM_HEADERS", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"})


def _fail(error: object) -> Never:
    Console(stderr=True).print(f"Error: {error}", style="red", highlight=False, markup=False)
    raise typer.Exit(2)


def prepare(settings: Settings, *, must_reach_database: bool) -> None:
    """State directory, key, schema and first admin. Exits with a clear message when one cannot be had."""
    configure_logging(settings.observability.log_format, settings.observability.log_level)
    try:
        prepare_state_dir(settings)
        asyncio.run(ensure_ready(settings, generate_admin=False))
    except (SettingsError, KeyFileError) as error:
        _fail(error)
    except DATABASE_ERRORS as error:
        if must_reach_database:
            _fail(f"The database cannot be used: {error}")
        # Whoever has a token is served without it, and the workers go on trying.
        log.warning("database_not_ready", error=type(error).__name__)
    except ValueError as error:
        _fail(f"TOLLBOOK_ADMIN_USERNAME or TOLLBOOK_ADMIN_PASSWORD: {error}")


def _lock_state_dir(settings: Settings) -> None:
    """Two services in one state directory would count into the same files.

    The lock lives as long as the descriptor, which Gunicorn and its workers inherit.
    """
    descriptor = os.open(settings.state_dir / "service.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _fail(f"TOLLBOOK_STATE_DIR: another service runs in {settings.state_dir.absolute()}")
    os.set_inheritable(descriptor, True)


def serve(settings: Settings) -> Never:
    """Become Gunicorn. Returns only by an exit with a message."""
    try:
        load_catalog(settings)
        check_settings(settings)
    except (CatalogError, SettingsError) as error:
        _fail(error)
    prepare(settings, must_reach_database=False)
    _lock_state_dir(settings)
    with suppress(FileNotFoundError):
        settings.drain_file.unlink()
    command = [sys.executable, "-m", "gunicorn", "-c", "python:service.gunicorn_conf"]
    os.execve(sys.executable, command, _environment(settings))  # noqa: S606


def _environment(settings: Settings) -> dict[str, str]:
    """Ours, less what the openai package would send to every upstream of a catalog, whoever it is meant for."""
    unwanted = _AMBIENT if settings.catalog is not None else frozenset()
    return {name: value for name, value in os.environ.items() if name not in unwanted}
