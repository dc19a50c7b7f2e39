"""Builds the authorization server of one worker from the settings, and keeps it up to date while it lives."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from auth.apikeys import ApiKeys
from auth.clients import Clients
from auth.database import Database, DatabaseUnavailable
from auth.external import OutsideProvider
from auth.keyfiles import FileKeyStore
from auth.keystore import DatabaseKeyStore, KeyStore
from auth.login import Login, RecordEvent
from auth.periodic import Periodic
from auth.revocation import Revocations
from auth.rotation import Keys
from auth.service import AuthService
from auth.sessions import Sessions
from auth.teams import Teams
from auth.throttle import DatabaseThrottle, ThrottlePolicy
from auth.tokens import Tokens
from auth.users import Users
from service.bootstrap import make_passwords
from service.settings import AuthSettings, OidcSettings, Settings, SettingsError

_KEYS_SECONDS: Final = 2.0  # between two looks at the signing keys
_LAST_USED_SECONDS: Final = 30.0
_PRUNE_SECONDS: Final = 600.0


def make_key_store(settings: Settings, database: Database) -> KeyStore:
    """Where the signing keys are: in the database when there is a key to encrypt them with, else in files."""
    secret = settings.auth.auth_key_encryption_key
    return (
        FileKeyStore(settings.key_dir, database)
        if secret is None
        else DatabaseKeyStore(database, secret.get_secret_value())
    )


def make_keys(settings: Settings, database: Database) -> Keys:
    """The signing keys, not yet read."""
    auth = settings.auth
    return Keys(
        make_key_store(settings, database),
        algorithm=auth.auth_signing_algorithm,
        ttl_seconds=auth.auth_token_ttl_seconds,
        leeway_seconds=auth.auth_leeway_seconds,
        publish_seconds=auth.auth_key_publish_seconds,
        rotation_days=auth.auth_key_rotation_days,
    )


def make_sessions(settings: Settings, database: Database) -> Sessions:
    """The sessions."""
    auth = settings.auth
    return Sessions(
        database,
        refresh_ttl_seconds=auth.auth_refresh_ttl_seconds,
        session_ttl_seconds=auth.auth_session_ttl_seconds,
        overlap_seconds=auth.auth_refresh_overlap_seconds,
    )


def _throttle(auth: AuthSettings, database: Database) -> DatabaseThrottle:
    policy = ThrottlePolicy(
        free_failures=auth.auth_login_free_failures,
        address_failures=auth.auth_login_address_failures,
        account_failures=auth.auth_login_account_failures,
        max_delay_seconds=auth.auth_login_max_delay_seconds,
    )
    return DatabaseThrottle(database, policy)


def make_outside(oidc: OidcSettings, leeway_seconds: int) -> OutsideProvider | None:
    """The outside provider, if one is configured. Raises ValueError for a setting that cannot be used."""
    if oidc.oidc_issuer is None or oidc.oidc_audience is None:
        return None
    return OutsideProvider(
        issuer=oidc.oidc_issuer,
        audience=oidc.oidc_audience,
        jwks_url=oidc.oidc_jwks_url,
        jwks_file=oidc.oidc_jwks_file,
        algorithms=oidc.oidc_algorithms,
        principal_claim=oidc.oidc_principal_claim,
        team_claim=oidc.oidc_team_claim,
        scope_claim=oidc.oidc_scope_claim,
        scope_map=oidc.oidc_scope_map,
        leeway_seconds=leeway_seconds,
    )


def check_settings(settings: Settings) -> None:
    """Refuse what could only fail in a worker, before there is one.

    Raises:
        SettingsError: naming the setting.
    """
    try:
        make_outside(settings.oidc, settings.auth.auth_leeway_seconds)
    except ValueError as error:
        raise SettingsError(f"TOLLBOOK_OIDC_*: {error}") from None


@asynccontextmanager
async def authorization(
    settings: Settings, engine: AsyncEngine, record_event: RecordEvent
) -> AsyncIterator[AuthService]:
    """The authorization server, with its background work running."""
    auth, database = settings.auth, Database(engine)
    async with AsyncExitStack() as stack:
        users, passwords = Users(database), make_passwords(settings)
        stack.callback(passwords.close)
        throttle, keys, sessions = (
            _throttle(auth, database),
            make_keys(settings, database),
            make_sessions(settings, database),
        )
        service = AuthService(
            database=database,
            users=users,
            teams=Teams(database),
            clients=Clients(database),
            sessions=sessions,
            api_keys=ApiKeys(database),
            passwords=passwords,
            login=Login(users, passwords, throttle, record_event),
            keys=keys,
            tokens=Tokens(
                keys,
                issuer=auth.auth_issuer,
                audience=auth.auth_audience,
                ttl_seconds=auth.auth_token_ttl_seconds,
                leeway_seconds=auth.auth_leeway_seconds,
            ),
            revocations=Revocations(database),
            outside=make_outside(settings.oidc, auth.auth_leeway_seconds),
            record_event=record_event,
            default_client=auth.auth_default_client,
        )
        known = [
            Periodic("revocations", service.revocations.refresh, auth.auth_revocation_interval_seconds),
            Periodic("signing_keys", keys.keep_up, _KEYS_SECONDS),
        ]
        upkeep = [
            Periodic("last_used", service.flush_last_used, _LAST_USED_SECONDS),
            Periodic("prune_sessions", sessions.prune, _PRUNE_SECONDS),
            Periodic("prune_revocations", service.revocations.prune, _PRUNE_SECONDS),
            Periodic("prune_logins", throttle.prune, _PRUNE_SECONDS),
        ]
        stack.push_async_callback(_flush, service)
        for work in (*known, *upkeep):
            stack.push_async_callback(work.stop)
        if service.outside is not None:
            stack.push_async_callback(service.outside.stop)
            await service.outside.start()
        # At once for all: a database that does not answer is waited for once.
        await asyncio.gather(*(work.start() for work in known), *(work.start(at_once=False) for work in upkeep))
        yield service


async def _flush(service: AuthService) -> None:
    with suppress(DatabaseUnavailable):
        await service.flush_last_used()
