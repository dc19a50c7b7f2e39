"""What must be there before the service can serve, and what it does when the database is not."""

import asyncio
import gc
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text
from structlog.testing import capture_logs

from auth.audit import SYSTEM
from auth.database import Database
from auth.passwords import Passwords
from auth.scopes import Scope
from auth.users import User, Users
from observability.metrics import Metrics
from observability.tracing import Tracing
from service import bootstrap, health
from service.bootstrap import (
    DATABASE_ERRORS,
    FirstAdmin,
    ensure_ready,
    keep_trying,
    load_catalog,
    make_passwords,
    prepare_state_dir,
)
from service.database import is_current, make_engine, migrate
from service.settings import AuthSettings, Settings, SettingsError
from service.worker_state import worker_state
from tests.support.waiting import eventually

PASSWORD = "correct horse battery staple"
Make = Callable[..., Settings]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*os.environ]:
        if name.startswith(("TOLLBOOK_", "OPENAI_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Settings with cheap password hashes and a state directory of their own."""

    def make(**fields: Any) -> Settings:
        auth = AuthSettings(auth_argon2_memory_kib=8192)
        return Settings(**{"state_dir": tmp_path, "auth": auth, "openai_base_url": "http://127.0.0.1:9/v1", **fields})

    return make


@asynccontextmanager
async def using(settings: Settings) -> AsyncIterator[tuple[Users, Passwords]]:
    engine, passwords = make_engine(settings.effective_database_url), make_passwords(settings)
    yield Users(Database(engine)), passwords
    passwords.close()
    await engine.dispose()


async def everyone(settings: Settings) -> tuple[User, ...]:
    async with using(settings) as (users, _):
        return await users.list()


async def lets_in(settings: Settings, username: str, password: str) -> bool:
    async with using(settings) as (users, passwords):
        user = await users.get(username)
        return user is not None and await passwords.verify(password, user.password_hash)


async def until(probe: Callable[[], object], what: str) -> None:
    """As `eventually`, with the loop running on."""
    await asyncio.to_thread(eventually, probe, what)


# Catalog and state directory


def test_without_any_upstream_it_says_what_to_set(make):
    with pytest.raises(SettingsError, match=r"TOLLBOOK_CATALOG.*OPENAI_API_KEY"):
        load_catalog(make(openai_base_url=None))


def test_openais_variables_name_one_upstream_for_every_model(make):
    catalog = load_catalog(make(openai_api_key="sk-1"))
    model = catalog.resolve("any-model")
    assert catalog.passthrough
    assert model is not None
    assert model.upstream.base_url == "http://127.0.0.1:9/v1"


def test_a_catalog_file_goes_before_openais_variables(make, tmp_path):
    path = tmp_path / "tollbook.yaml"
    path.write_text("models:\n  - name: m\n    upstream:\n      base_url: http://127.0.0.1:8/v1\n")
    assert [model.name for model in load_catalog(make(catalog=path)).models] == ["m"]


def test_the_state_directory_and_the_key_are_made_for_us_alone_and_kept(make, tmp_path):
    settings = make(state_dir=tmp_path / "a" / "b")
    prepare_state_dir(settings)
    files = {path: path.read_bytes() for path in settings.key_dir.iterdir()}
    assert stat.S_IMODE(settings.state_dir.stat().st_mode) == 0o700
    assert len(files) == 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    prepare_state_dir(settings)
    assert {path: path.read_bytes() for path in settings.key_dir.iterdir()} == files


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_state_directory_that_cannot_be_made_is_told_by_the_name_of_its_setting(make, tmp_path, inside):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"^TOLLBOOK_STATE_DIR: .*file"):
        prepare_state_dir(make(state_dir=tmp_path / "file" / inside))


def test_a_state_directory_that_cannot_be_written_is_told_by_the_name_of_its_setting(make, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(SettingsError, match=r"^TOLLBOOK_STATE_DIR: .* cannot be written"):
        prepare_state_dir(make())


# The first admin


async def test_the_first_admin_has_the_given_name_and_password_and_every_scope(make):
    settings = make(admin_username="root-admin", admin_password=PASSWORD)
    assert await ensure_ready(settings, generate_admin=True) is None  # whoever set it knows it
    (admin,) = await everyone(settings)
    assert (admin.username, admin.scopes, admin.disabled) == ("root-admin", frozenset(Scope), False)
    assert await lets_in(settings, "root-admin", PASSWORD)


async def test_without_a_password_one_is_made_up_and_told_once(make):
    first, second = make(), make(state_dir=make().state_dir / "other")
    second.state_dir.mkdir()
    told = [await ensure_ready(settings, generate_admin=True) for settings in (first, second)]
    assert all(isinstance(admin, FirstAdmin) and admin.username == "admin" for admin in told)
    passwords = [admin.password for admin in told if admin]
    assert passwords[0] != passwords[1]
    assert min(map(len, passwords)) >= 20
    assert await lets_in(first, "admin", passwords[0])
    assert await ensure_ready(first, generate_admin=True) is None


async def test_where_nobody_would_be_told_no_password_is_made_up(make):
    settings = make()
    with capture_logs() as logs:
        assert await ensure_ready(settings, generate_admin=False) is None
    assert await everyone(settings) == ()
    assert [entry["event"] for entry in logs] == ["no_users"]


async def test_the_admin_is_made_once_and_its_password_is_not_set_back(make):
    await ensure_ready(make(admin_password=PASSWORD), generate_admin=False)
    await ensure_ready(make(admin_password="another good password"), generate_admin=False)
    assert len(await everyone(make())) == 1
    assert await lets_in(make(), "admin", PASSWORD)


async def test_where_there_is_any_user_no_admin_is_made(make):
    settings = make(admin_password=PASSWORD)
    engine = make_engine(settings.effective_database_url)
    await migrate(engine)
    await engine.dispose()
    async with using(settings) as (users, passwords):
        ada = await users.add("ada", "another good password", ["llm"], passwords=passwords)
        await users.set_disabled(ada.id, disabled=True, by=SYSTEM)  # a user all the same
    await ensure_ready(settings, generate_admin=True)
    assert [user.username for user in await everyone(settings)] == ["ada"]


@pytest.mark.parametrize("given", [None, PASSWORD])
async def test_several_that_start_at_once_make_one_admin(make, given):
    settings = make(admin_password=given)
    engine = make_engine(settings.effective_database_url)
    await migrate(engine)
    await engine.dispose()
    told = await asyncio.gather(*(ensure_ready(settings, generate_admin=True) for _ in range(4)))
    assert len(await everyone(settings)) == 1
    passwords = [PASSWORD] if given else [admin.password for admin in told if admin]
    (password,) = passwords  # of those made up, only the one that counts is told
    assert await lets_in(settings, "admin", password)


@pytest.mark.parametrize("given", [None, PASSWORD])
async def test_the_password_is_in_no_log_and_not_in_the_database(make, given, tmp_path):
    settings = make(admin_password=given)
    with capture_logs() as logs:
        admin = await ensure_ready(settings, generate_admin=True)
    password = given or (admin.password if admin else "")
    assert [entry["event"] for entry in logs] == ["audit", "first_admin_made"]
    assert password
    assert password not in str(logs)
    (user,) = await everyone(settings)
    assert user.password_hash.startswith("$argon2id$")
    assert not any(password.encode() in path.read_bytes() for path in tmp_path.glob("tollbook.db*"))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"admin_password": "short"}, "at least 12"),
        ({"admin_username": " x", "admin_password": PASSWORD}, "white space"),
    ],
)
async def test_an_admin_that_is_not_good_enough_is_refused_without_repeating_the_password(make, fields, why):
    with pytest.raises(ValueError, match=why) as caught:
        await ensure_ready(make(**fields), generate_admin=False)
    assert fields["admin_password"] not in str(caught.value)
    assert await everyone(make()) == ()


# When the database is not there


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bootstrap, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(health, "_CHECK_SECONDS", 0.05)
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.fixture
def away(make: Make, tmp_path: Path) -> Settings:
    """The database is on a volume that is not mounted yet."""
    return make(database_url=f"sqlite+aiosqlite:///{tmp_path / 'volume' / 'tollbook.db'}", admin_password=PASSWORD)


def mount(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()


async def test_a_database_that_is_down_is_one_of_the_named_errors(make, away):
    with pytest.raises(DATABASE_ERRORS):
        await ensure_ready(away, generate_admin=False)
    with pytest.raises(DATABASE_ERRORS):
        await ensure_ready(make(database_url="postgresql+asyncpg://x@127.0.0.1:9/x"), generate_admin=False)


async def test_a_database_that_comes_up_late_is_prepared_then(away, hurried, tmp_path):
    engine = make_engine(away.effective_database_url)
    with capture_logs() as logs:
        trying = asyncio.create_task(keep_trying(away, engine))
        await until(lambda: len(logs) >= 2, "two tries in vain")
        assert {entry["event"] for entry in logs} == {"database_not_ready"}
        mount(tmp_path)
        async with asyncio.timeout(30):
            await trying
    assert await is_current(engine)
    await engine.dispose()
    assert await lets_in(away, "admin", PASSWORD)
    assert [entry["event"] for entry in logs if entry["event"] != "database_not_ready"] == [
        "audit",
        "first_admin_made",
        "database_prepared",
    ]
    assert PASSWORD not in str(logs)


async def test_a_worker_serves_while_the_database_is_away_and_is_whole_when_it_is_back(away, hurried, tmp_path):
    metrics = Metrics(CollectorRegistry(), model_limit=10, principal_limit=10)
    prepare_state_dir(away)
    with capture_logs() as logs:
        async with worker_state(away, metrics, Tracing(enabled=False, version="1")) as state:
            await until(lambda: not state["health"].database_ok, "the database to be missed")
            assert state["llm"].catalog.resolve("any") is not None
            mount(tmp_path)
            await until(lambda: state["health"].database_ok, "the database to be found")
            await until(lambda: "database_prepared" in {entry["event"] for entry in logs}, "it to be prepared")
    assert await lets_in(away, "admin", PASSWORD)


async def test_an_admin_that_is_not_good_enough_does_not_make_it_try_for_ever(make, hurried):
    settings = make(admin_password="short")
    engine = make_engine(settings.effective_database_url)
    with capture_logs() as logs:
        async with asyncio.timeout(30):
            await keep_trying(settings, engine)
    await engine.dispose()
    assert [entry["event"] for entry in logs] == ["first_admin_refused"]


async def test_where_others_migrate_it_waits_for_them_and_does_not_say_that_it_was_done(make, hurried):
    settings = make(migrate_on_start=False, admin_password=PASSWORD)
    engine = make_engine(settings.effective_database_url)
    await migrate(engine)
    async with engine.begin() as connection:
        current = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one()
        await connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    with capture_logs() as logs:
        trying = asyncio.create_task(keep_trying(settings, engine))
        await until(lambda: len(logs) >= 3, "some tries")
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = :current"), {"current": current})
        async with asyncio.timeout(30):
            await trying
    await engine.dispose()
    assert "database_prepared" not in {entry["event"] for entry in logs}


async def test_a_schema_of_a_newer_version_is_told_and_does_not_end_in_an_exception_nobody_sees(make, hurried):
    """After a roll-back of a release the database is ahead of the code."""
    settings = make()
    engine = make_engine(settings.effective_database_url)
    await migrate(engine)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with capture_logs() as logs:
        trying = asyncio.create_task(keep_trying(settings, engine))
        await until(lambda: logs or trying.done(), "a word about it")
        trying.cancel()
        (end,) = await asyncio.gather(trying, return_exceptions=True)
        assert end is None or isinstance(end, asyncio.CancelledError)
    await engine.dispose()
    assert logs
