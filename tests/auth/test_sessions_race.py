"""Many at once with the same refresh token: through connections of their own, and from two processes.

Each race is made sure of: somebody holds the lock that all need until all wait for it.
"""

import asyncio
import multiprocessing
import os
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from structlog.testing import capture_logs

from auth.audit import SYSTEM
from auth.database import Database
from auth.errors import InvalidGrant
from auth.secret_tokens import hash_secret
from auth.sessions import Sessions
from auth.tables import audit_log, refresh_tokens, revocations, sessions, users
from auth.users import Users
from service.database import _set_pragmas
from tests.auth.kit import Clock

AT_ONCE = 20
CLIENT = "client-1"
OVERLAP = 10
GIVE_UP_SECONDS = 60  # a slow machine is not a fault
SPENT = "tbr_spent"  # of a session that `began` makes ready


def connect_many(url):
    """An engine with a connection for each, and one for who holds the lock."""
    engine = create_async_engine(url, pool_size=AT_ONCE + 1)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _set_pragmas)
    return engine


def make_sessions(engine, clock) -> Sessions:
    database = Database(engine, timeout_seconds=GIVE_UP_SECONDS)
    return Sessions(database, refresh_ttl_seconds=1000, session_ttl_seconds=5000, overlap_seconds=OVERLAP, clock=clock)


@pytest.fixture
def url(engine: AsyncEngine) -> str:
    """Each database in turn, empty."""
    return engine.url.render_as_string(hide_password=False)


@pytest.fixture
async def many(url):
    engine = connect_many(url)
    yield engine
    await engine.dispose()


@pytest.fixture
def repository(many, clock) -> Sessions:
    return make_sessions(many, clock)


@pytest.fixture
async def user(many, users, passwords):
    return await users.add("grace", "correct horse battery staple", ["llm"], passwords=passwords)


@pytest.fixture
def database(engine: AsyncEngine) -> Database:
    """For the fixtures of conftest.py."""
    return Database(engine)


@pytest.fixture
async def began(repository, user):
    """A session: its id and its refresh token."""
    return await repository.open(user.id, CLIENT, ["llm"], "")


@asynccontextmanager
async def held(engine, statement, waiting):
    """A transaction that has made a change, and is committed when so many others wait for it."""
    async with engine.connect() as holder:
        if engine.dialect.name == "sqlite":
            await holder.exec_driver_sql("BEGIN IMMEDIATE")
        await holder.execute(statement)
        yield holder
        async with asyncio.timeout(GIVE_UP_SECONDS):
            await all_wait(engine, holder, waiting)
        await holder.commit()


async def all_wait(engine, holder, waiting):
    if engine.dialect.name == "sqlite":
        # SQLite does not say who waits; those who have a connection have nothing else to do.
        while engine.pool.checkedout() < waiting + 1:
            await asyncio.sleep(0.01)
        return
    blocked = sa.text("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted")
    while await holder.scalar(blocked) < waiting:
        await asyncio.sleep(0.01)


def touch(table, condition):
    """A change that changes nothing, for its lock."""
    column = next(iter(table.c))
    return table.update().where(condition).values({column: column})


async def rows(engine, *columns):
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(sa.select(*columns))]


async def unspent(engine):
    return [each for each, spent_at in await rows(engine, refresh_tokens.c.token_hash, refresh_tokens.c.spent_at)
            if spent_at is None]  # fmt: skip


def refresh_all(repository, token, count=AT_ONCE):
    attempts = [repository.refresh(token, client_id=CLIENT) for _ in range(count)]
    return asyncio.gather(*attempts, return_exceptions=True)


def outcomes(results):
    return Counter(each.reason if isinstance(each, InvalidGrant) else each.refresh_token for each in results)


async def test_twenty_at_once_get_the_same_successor(many, repository, began):
    session_id, token = began
    async with held(many, touch(refresh_tokens, refresh_tokens.c.token_hash == hash_secret(token)), AT_ONCE):
        racing = asyncio.ensure_future(refresh_all(repository, token))
    found = outcomes(await racing)
    (successor,) = found
    assert found[successor] == AT_ONCE
    assert await unspent(many) == [hash_secret(successor)]
    assert len(await rows(many, refresh_tokens.c.token_hash)) == 2
    assert await rows(many, sessions.c.id, sessions.c.revoked_at) == [(session_id, None)]
    assert (await repository.refresh(successor, client_id=CLIENT)).session.id == session_id


async def test_twenty_at_once_after_the_overlap_end_the_session_once(many, repository, began, clock):
    session_id, token = began
    _, successor = await repository.refresh(token, client_id=CLIENT)
    clock.now += OVERLAP + 1
    with capture_logs() as logs:
        async with held(many, touch(sessions, sessions.c.id == session_id), AT_ONCE):
            racing = asyncio.ensure_future(refresh_all(repository, token))
        found = outcomes(await racing)
    # On SQLite one comes after the other, and who comes later finds it revoked.
    assert found.keys() <= {"reuse", "revoked"}
    assert found["reuse"] == (AT_ONCE if many.dialect.name == "postgresql" else 1)
    assert await rows(many, sessions.c.revoked_because) == [("reuse",)]
    assert await rows(many, revocations.c.kind, revocations.c.value) == [("session", session_id)]
    killed = await rows(many, audit_log.c.action, audit_log.c.target, audit_log.c.actor)
    assert killed.count(("session.revoke", session_id, "system")) == 1
    assert [line["event"] for line in logs].count("audit") == 1
    assert outcomes(await refresh_all(repository, successor, 1)) == {"revoked": 1}


async def test_of_the_token_and_its_successor_at_once_the_session_ends_or_lives_with_one_token(
    many, repository, began, clock
):
    """The thief has the one, the owner the other. Whoever is first, no two tokens live."""
    _, token = began
    _, successor = await repository.refresh(token, client_id=CLIENT)
    attempts = [repository.refresh(each, client_id=CLIENT) for each in (token, successor) * (AT_ONCE // 2)]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    assert len(await unspent(many)) == 1
    given = {each for each in outcomes(results) if each.startswith("tbr_")}
    assert len(given - {successor}) <= 1
    ((because,),) = await rows(many, sessions.c.revoked_because)
    assert because == ("reuse" if "reuse" in outcomes(results) else None)


async def test_a_session_that_is_being_ended_gives_nothing_more(many, repository, began, user):
    """PostgreSQL shows a statement what was committed when it began: the end is not there yet."""
    session_id, token = began
    ending = sessions.update().where(sessions.c.user_id == user.id)
    async with held(many, ending.values(revoked_at=user.created_at, revoked_because="logout"), 1):
        racing = asyncio.ensure_future(refresh_all(repository, token, 1))
    assert outcomes(await racing) == {"revoked": 1}
    assert await unspent(many) == [hash_secret(token)]
    assert await rows(many, sessions.c.id, sessions.c.revoked_because) == [(session_id, "logout")]


async def test_a_user_who_is_being_changed_is_waited_for(many, repository, began, user):
    _, token = began
    async with held(many, users.update().where(users.c.id == user.id).values(scopes="usage:read"), 1):
        racing = asyncio.ensure_future(refresh_all(repository, token, 1))
    (refreshed,) = await racing
    assert refreshed.session.user_scopes == {"usage:read"}


@pytest.mark.parametrize(
    ("change", "reason"), [({"disabled": True}, "disabled"), ({"password_hash": "another"}, "changed")]
)
async def test_a_user_who_is_being_changed_begins_no_session(many, repository, user, change, reason):
    """The password was verified against what is no more when the session begins."""
    async with held(many, users.update().where(users.c.id == user.id).values(change), 1):
        opening = repository.open(user.id, CLIENT, ["llm"], "", seen=user)
        racing = asyncio.ensure_future(asyncio.gather(opening, return_exceptions=True))
    (error,) = await racing
    assert isinstance(error, InvalidGrant)
    assert error.reason == reason
    assert await rows(many, sessions.c.id) == []


async def test_disabling_and_refreshing_at_once_do_not_wait_for_each_other(many, repository, user, clock):
    """They lock the user and the session in the same order. Afterwards nothing is alive, whoever was first."""
    members = Users(Database(many, timeout_seconds=GIVE_UP_SECONDS))
    for _ in range(5):
        opened = [await repository.open(user.id, CLIENT, ["llm"], "") for _ in range(4)]
        attempts = [repository.refresh(token, client_id=CLIENT) for _, token in opened for _ in range(3)]
        attempts.insert(6, members.set_disabled(user.id, disabled=True, by=SYSTEM))
        results = await asyncio.gather(*attempts, return_exceptions=True)
        refused = {getattr(each, "reason", each) for each in results if isinstance(each, Exception)}
        assert refused <= {"revoked", "disabled"}
        assert await repository.list(user_id=user.id) == ()
        await members.set_disabled(user.id, disabled=False, by=SYSTEM)


async def test_many_who_end_a_session_at_once_are_one_record(many, repository, began):
    session_id, _ = began
    async with held(many, touch(sessions, sessions.c.id == session_id), 5):
        attempts = [repository.revoke(session_id, because="logout", by=SYSTEM) for _ in range(5)]
        racing = asyncio.ensure_future(asyncio.gather(*attempts, return_exceptions=True))
    assert sorted(type(each).__name__ for each in await racing) == ["NoneType", *["UnknownSession"] * 4]
    killed = await rows(many, audit_log.c.action, audit_log.c.target)
    assert killed.count(("session.revoke", session_id)) == 1


# Two processes, each with half of the requests


def _in_a_process(url, token, now, ready, go, answers):
    clock = Clock()
    clock.now = now

    async def work():
        engine = connect_many(url)
        count = AT_ONCE // 2
        connections = [await engine.connect() for _ in range(count)]  # made before the race, not in it
        for connection in connections:
            await connection.close()
        ready.release()
        await asyncio.to_thread(go.wait, GIVE_UP_SECONDS)
        results = await refresh_all(make_sessions(engine, clock), token, count)
        await engine.dispose()
        return outcomes(results)

    answers.put((os.getpid(), asyncio.run(work())))


@pytest.mark.parametrize("reused", [False, True])
async def test_twenty_from_two_processes(many, url, repository, began, clock, reused):
    session_id, token = began
    if reused:
        await repository.refresh(token, client_id=CLIENT)
        clock.now += OVERLAP + 1
    context = multiprocessing.get_context("spawn")
    ready, go, answers = context.Semaphore(0), context.Event(), context.Queue()
    arguments = (url, token, clock.now, ready, go, answers)
    processes = [context.Process(target=_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    try:
        for _ in processes:
            assert await asyncio.to_thread(ready.acquire, timeout=GIVE_UP_SECONDS)
        go.set()
        found = [await asyncio.to_thread(answers.get, timeout=GIVE_UP_SECONDS) for _ in processes]
    finally:
        for process in processes:
            await asyncio.to_thread(process.join, GIVE_UP_SECONDS)
            process.close()
        answers.close()
        await asyncio.to_thread(answers.join_thread)
    assert len({pid for pid, _ in found} - {os.getpid()}) == 2
    total: Counter[str] = sum((answer for _, answer in found), Counter())
    assert total.total() == AT_ONCE
    ((because,),) = await rows(many, sessions.c.revoked_because)
    records = await rows(many, audit_log.c.action, audit_log.c.target)
    told = await rows(many, revocations.c.kind, revocations.c.value)
    if reused:
        assert total.keys() <= {"reuse", "revoked"}
        assert total["reuse"] >= 1
        assert (because, told) == ("reuse", [("session", session_id)])
        assert records.count(("session.revoke", session_id)) == 1
    else:
        (successor,) = total
        assert await unspent(many) == [hash_secret(successor)]
        assert (because, told) == (None, [])
