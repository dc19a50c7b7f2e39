"""What must be there before the service can serve: state directory, signing key, schema, first admin, catalog."""

import asyncio
import os
import secrets
from dataclasses import dataclass
from typing import Final

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from auth.database import Database, DatabaseUnavailable
from auth.keyfiles import load_or_create
from auth.passwords import PasswordPolicy, Passwords
from auth.scopes import Scope
from auth.users import UsernameTaken, Users
from observability.logging import get_logger
from service.database import SchemaUnknown, is_current, make_engine, migrate
from service.llm.catalog import Catalog
from service.settings import Settings, SettingsError

log = get_logger("service.bootstrap")

_RETRY_SECONDS: Final = 2.0
DATABASE_ERRORS: Final = (SQLAlchemyError, OSError, DatabaseUnavailable, SchemaUnknown)


@dataclass(frozen=True, slots=True)
class FirstAdmin:
    """An admin that was made just now, with a password that is kept nowhere."""

    username: str
    password: str


def load_catalog(settings: Settings) -> Catalog:
    """The catalog file, or one upstream for every model name.

    Raises:
        CatalogError: the file is wrong, line by line.
        SettingsError: nothing says which upstream to call.
    """
    if settings.catalog is not None:
        return Catalog.from_file(settings.catalog, os.environ)
    if settings.openai_api_key is None and settings.openai_base_url is None:
        raise SettingsError(
            "No upstream: set TOLLBOOK_CATALOG to a catalog file, or OPENAI_API_KEY and/or OPENAI_BASE_URL; "
            "or use `tollbook run`, which brings a small model of its own."
        )
    return Catalog.for_openai(settings.openai_api_key, settings.openai_base_url)


def prepare_state_dir(settings: Settings) -> None:
    """Make the state directory and, where they are in files, the signing keys.

    Raises:
        SettingsError: the directory cannot be written.
        KeyFileError: a key is unreadable or open to others.
    """
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"TOLLBOOK_STATE_DIR: {settings.state_dir}: {error.strerror}") from None
    if not os.access(settings.state_dir, os.W_OK | os.X_OK):
        raise SettingsError(f"TOLLBOOK_STATE_DIR: {settings.state_dir} cannot be written")
    if settings.auth.auth_key_encryption_key is None:
        load_or_create(settings.key_dir, settings.auth.auth_signing_algorithm)


def make_passwords(settings: Settings) -> Passwords:
    """The password hasher with the parameters of the settings. Close it."""
    auth = settings.auth
    return Passwords(
        time_cost=auth.auth_argon2_time_cost,
        memory_cost_kib=auth.auth_argon2_memory_kib,
        parallelism=auth.auth_argon2_parallelism,
        threads=auth.auth_hash_threads,
        max_waiting=auth.auth_hash_max_waiting,
        policy=PasswordPolicy(auth.auth_password_min_length, auth.auth_password_min_score),
    )


async def ensure_ready(settings: Settings, *, generate_admin: bool) -> FirstAdmin | None:
    """Migrate the database and make the first admin if there is no user.

    Args:
        settings: of the service.
        generate_admin: make up a password when the settings give none; else no admin is made then.

    Returns:
        The admin, if one was made with a password that was made up here.

    Raises:
        DATABASE_ERRORS: the database cannot be reached.
        ValueError: the admin's name or password is not good enough.
    """
    engine = make_engine(settings.effective_database_url)
    passwords = make_passwords(settings)
    try:
        if settings.migrate_on_start:
            await migrate(engine)
        return await _first_admin(settings, engine, passwords, generate=generate_admin)
    finally:
        passwords.close()
        await engine.dispose()


async def _first_admin(
    settings: Settings, engine: AsyncEngine, passwords: Passwords, *, generate: bool
) -> FirstAdmin | None:
    users = Users(Database(engine))
    if await users.count() > 0:
        return None
    given = settings.admin_password
    if given is None and not generate:
        log.warning("no_users", hint="set TOLLBOOK_ADMIN_PASSWORD, or run: tollbook users add")
        return None
    password = given.get_secret_value() if given is not None else secrets.token_urlsafe(18)
    try:
        await users.add(settings.admin_username, password, list(Scope), passwords=passwords)
    except UsernameTaken:
        return None  # another process was a moment faster
    log.info("first_admin_made", username=settings.admin_username)
    return None if given is not None else FirstAdmin(settings.admin_username, password)


async def keep_trying(settings: Settings, engine: AsyncEngine) -> None:
    """Where the database was down at start: prepare it as soon as it is there. A worker serves meanwhile."""
    while True:
        try:
            current = await is_current(engine)
            if current and await Users(Database(engine)).count() > 0:
                return
            if current or settings.migrate_on_start:
                await ensure_ready(settings, generate_admin=False)
                if settings.migrate_on_start:
                    log.info("database_prepared")
                return
            log.warning("database_not_ready", error="schema not up to date")
        except SchemaUnknown as error:
            log.error("schema_unknown", error=str(error))  # noqa: TRY400 - the message says it all
            return
        except DATABASE_ERRORS as error:
            log.warning("database_not_ready", error=type(error).__name__)
        except ValueError as error:
            log.error("first_admin_refused", error=str(error))  # noqa: TRY400
            return
        await asyncio.sleep(_RETRY_SECONDS)
