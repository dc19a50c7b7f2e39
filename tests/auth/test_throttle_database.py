import asyncio
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from auth import throttle as module
from auth.database import Database, DatabaseUnavailable
from auth.errors import SlowDown
from auth.tables import login_failures
from auth.throttle import DatabaseThrottle, ThrottlePolicy
from auth.throttle_policy import Keys
from tests.auth.throttling import AWAY, DAY, HOME, IN_FLIGHT, POLICY, fail, succeed, wait_of


@pytest.fixture
def database(engine):
    return Database(engine, timeout_seconds=30)


@pytest.fixture
def shared(database, clock):
    """Those of two workers."""
    return [DatabaseThrottle(database, ThrottlePolicy(), clock) for _ in range(2)]


async def count_of(database, key):
    async with database.transaction() as connection:
        return (await connection.execute(login_failures.select().where(login_failures.c.key == key))).one()


async def test_of_many_failures_at_once_none_is_lost(shared, database):
    """Fifty accounts, guessed from one address through two workers."""
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(fail(shared[number % 2], f"user-{number}"))
    assert (await count_of(database, Keys.of("", HOME).address)).failures == 50
    assert await wait_of(shared[0], "ada") == await wait_of(shared[1], "ada") == 1


async def test_a_burst_is_let_through_only_as_far_as_is_said(shared, database):
    """Each comes again when it was refused, so as to find every gap between looking and counting."""
    tried = 0

    async def guess(number):
        nonlocal tried
        for _ in range(5):
            try:
                async with shared[number % 2].attempt("ada", HOME) as attempt:
                    tried += 1
                    await asyncio.sleep(0.001 * (number % 3))  # the hashing
                    await attempt.failed()
            except SlowDown:
                await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(guess(number))
    assert 5 <= tried <= (5 - 1) + IN_FLIGHT * len(shared)
    keys = Keys.of("ada", HOME)
    assert [(await count_of(database, key)).failures for key in keys.all()] == [tried] * 3


@pytest.fixture
def statements(engine):
    """The first word of each statement that the database was sent."""
    sent = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: sent.append(args[2].split()[0]))
    return sent


async def test_a_login_as_usual_writes_nothing(shared, statements, clock):
    await succeed(shared[0])
    assert "INSERT" in statements
    statements.clear()
    for throttle in (*shared, *shared):
        clock.now += 3600
        await succeed(throttle)
    assert statements == ["SELECT"] * 4


async def test_nothing_that_was_typed_is_stored(shared, engine):
    await fail(shared[0], "my secret password", "2001:db8::1")
    async with engine.connect() as connection:
        rows = (await connection.execute(login_failures.select())).all()
    assert len(rows) == 3
    assert not any(text in str(rows) for text in ("secret", "2001", "db8"))


async def keys_in(engine):
    async with engine.connect() as connection:
        return set((await connection.execute(sa.select(login_failures.c.key))).scalars())


async def test_pruning_removes_in_small_steps_all_that_says_nothing(shared, engine, statements, clock, monkeypatch):
    monkeypatch.setattr(module, "_PRUNED_AT_ONCE", 7)
    throttle, known = shared[0], Keys.of("ada", HOME)
    await succeed(throttle)
    for number in range(30):
        await fail(throttle, f"user-{number}", f"203.0.113.{number}")
    clock.now += 100
    await fail(throttle, "bob", AWAY)
    clock.now += POLICY.forgotten_after_seconds - 1
    async with asyncio.TaskGroup() as group:
        for each in shared:
            group.create_task(each.prune())
    assert statements.count("DELETE") >= 90 / 7
    assert await keys_in(engine) == {known.pair, *Keys.of("bob", AWAY).all()}
    clock.now += 29 * DAY
    await throttle.prune()
    assert await keys_in(engine) == {known.pair}
    clock.now += DAY
    await throttle.prune()
    assert await keys_in(engine) == set()


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite:///{missing}/tollbook.db", "postgresql+asyncpg://tollbook@/postgres?host={missing}"]
)
async def test_without_its_database_it_lets_nobody_in_and_keeps_no_place(connect, tmp_path, clock, url):
    database = Database(connect(url.format(missing=tmp_path / "missing")))
    throttle = DatabaseThrottle(database, POLICY, clock)
    for _ in range(2 * IN_FLIGHT):
        with pytest.raises(DatabaseUnavailable):
            await fail(throttle)


async def test_times_are_stored_to_the_clock(shared, database, clock):
    await fail(shared[0])
    row = await count_of(database, Keys.of("ada", HOME).pair)
    assert row.last_failure_at == row.updated_at == datetime.fromtimestamp(clock.now, UTC)
    assert row.last_success_at is None
