import asyncio

import argon2.low_level
import pytest
from structlog.testing import capture_logs

from auth.audit import SYSTEM
from auth.database import Database, DatabaseUnavailable
from auth.errors import InvalidGrant, SlowDown, TemporarilyUnavailable
from auth.login import Login
from auth.passwords import Passwords, PasswordsBusy
from auth.throttle import DatabaseThrottle, MemoryThrottle, ThrottlePolicy
from auth.users import Users
from tests.auth.kit import PASSWORD, USERNAME
from tests.auth.throttling import AWAY, HOME, wait_of

UNREACHABLE = ["sqlite+aiosqlite:///{missing}/users.db", "postgresql+asyncpg://tollbook@/postgres?host={missing}"]


@pytest.fixture
def login(users, passwords, throttle, record):
    return Login(users, passwords, throttle, record)


@pytest.fixture
def argon2_work(monkeypatch):
    """Each Argon2 run: its kind, and the parameters of the hash where there is one."""
    work = []
    verify, make = argon2.low_level.verify_secret, argon2.low_level.hash_secret

    def verifying(stored, *args):
        work.append(("verify", stored.split(b"$")[3]))
        return verify(stored, *args)

    def hashing(**kwargs):
        work.append(("hash", kwargs["memory_cost"]))
        return make(**kwargs)

    monkeypatch.setattr(argon2.low_level, "verify_secret", verifying)
    monkeypatch.setattr(argon2.low_level, "hash_secret", hashing)
    return work


async def fail(login, times=1, username=USERNAME):
    for _ in range(times):
        with pytest.raises(InvalidGrant):
            await login.with_password(username, "wrong password", HOME)


async def test_the_right_password_says_who_it_is(login, ada, events):
    with capture_logs() as logs:
        assert await login.with_password(USERNAME, PASSWORD, HOME) == ada
    assert events == [("login", "ok", "none")]
    assert [(entry["event"], entry["subject"]) for entry in logs] == [("login", ada.id)]


@pytest.mark.parametrize(
    ("username", "password", "reason"),
    [
        (USERNAME, "wrong password", "wrong_password"),
        (USERNAME, "", "wrong_password"),
        (USERNAME, PASSWORD + "\0", "wrong_password"),
        (USERNAME, "x" * 2000, "wrong_password"),
        ("bob", PASSWORD, "unknown_user"),
        ("", PASSWORD, "unknown_user"),
        ("ada\0", PASSWORD, "unknown_user"),
        ("ada\r\nroot", PASSWORD, "unknown_user"),
        ("ada\u2028", PASSWORD, "unknown_user"),
        ("\ud800", PASSWORD, "unknown_user"),
        ("\U0001f600", "\U0001f600" * 12, "unknown_user"),
        ("a" * 2000, PASSWORD, "unknown_user"),
        ("ADA", PASSWORD, "unknown_user"),
    ],
)
async def test_all_ways_to_fail_read_the_same_and_are_counted_apart(login, ada, events, username, password, reason):
    with capture_logs() as logs, pytest.raises(InvalidGrant) as caught:
        await login.with_password(username, password, HOME)
    assert caught.value.description == "The username or the password is wrong."
    assert events == [("login", "refused", reason)]
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("login_failed", reason)]


async def test_a_disabled_user_is_refused_like_a_wrong_password(login, ada, users, events):
    await users.set_disabled(ada.id, disabled=True, by=SYSTEM)
    with pytest.raises(InvalidGrant) as caught:
        await login.with_password(USERNAME, PASSWORD, HOME)
    assert caught.value.description == "The username or the password is wrong."
    await fail(login)
    assert events == [("login", "refused", "disabled"), ("login", "refused", "wrong_password")]


async def test_a_throttled_login_is_not_looked_at_whatever_the_password(login, ada, events, argon2_work, monkeypatch):
    await fail(login, times=5)
    events.clear()
    argon2_work.clear()
    monkeypatch.setattr(Users, "get", None)
    with capture_logs() as logs, pytest.raises(SlowDown) as caught:
        await login.with_password(USERNAME, PASSWORD, HOME)
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    assert argon2_work == []
    assert events == [("login", "refused", "throttled")]
    assert [(entry["event"], entry["reason"], entry["subject"]) for entry in logs] == [
        ("login_failed", "throttled", None)
    ]


async def test_after_the_delay_the_right_password_is_taken_and_the_failures_are_forgotten(login, ada, clock):
    await fail(login, times=5)
    clock.now += 1
    assert await login.with_password(USERNAME, PASSWORD, HOME)
    await fail(login, times=5)
    with pytest.raises(SlowDown):
        await login.with_password(USERNAME, PASSWORD, HOME)


@pytest.mark.parametrize("username", [USERNAME, "bob", "", "ada\0", "a" * 2000, "\ud800"])
async def test_whoever_it_is_for_the_same_number_of_failures_is_free(login, ada, username):
    await fail(login, times=5, username=username)
    with pytest.raises(SlowDown) as caught:
        await login.with_password(username, "wrong password", HOME)
    assert caught.value.retry_after_seconds == 1


async def test_the_right_password_of_a_disabled_user_is_a_failure_too(login, ada, users, throttle):
    await users.set_disabled(ada.id, disabled=True, by=SYSTEM)
    for _ in range(5):
        with pytest.raises(InvalidGrant):
            await login.with_password(USERNAME, PASSWORD, HOME)
    assert await wait_of(throttle, USERNAME) == 1


async def test_a_user_is_not_locked_out_of_where_they_log_in_by_guesses_from_elsewhere(login, ada):
    await login.with_password(USERNAME, PASSWORD, HOME)
    for number in range(100):
        with pytest.raises(InvalidGrant):
            await login.with_password(USERNAME, "wrong password", f"203.0.113.{number}")
    assert await login.with_password(USERNAME, PASSWORD, HOME)
    with pytest.raises(SlowDown):
        await login.with_password(USERNAME, PASSWORD, AWAY)


async def test_neither_the_password_nor_a_name_as_typed_is_logged(login, ada):
    with capture_logs() as logs:
        await login.with_password(USERNAME, PASSWORD, HOME)
        for username, password in [(USERNAME, "Secret-1"), ("Secret-2", "Secret-3"), (PASSWORD, "Secret-4")]:
            with pytest.raises(InvalidGrant):
                await login.with_password(username, password, HOME)
    assert len(logs) == 4
    assert "Secret" not in str(logs)
    assert PASSWORD not in str(logs)
    assert [entry["subject"] for entry in logs] == [ada.id, ada.id, None, None]


@pytest.fixture
def stronger(users, throttle, record):
    """The same login after the operator raised the cost of a hash."""
    passwords = Passwords(time_cost=2, memory_cost_kib=16, parallelism=1, threads=2, max_waiting=8)
    yield Login(users, passwords, throttle, record)
    passwords.close()


async def test_a_hash_of_old_parameters_is_replaced_at_login_once(stronger, ada, users, argon2_work):
    await stronger.with_password(USERNAME, PASSWORD, HOME)
    stored = (await users.get(USERNAME)).password_hash
    assert stored.startswith("$argon2id$v=19$m=16,t=2,p=1$")
    await stronger.with_password(USERNAME, PASSWORD, HOME)
    assert argon2_work == [("verify", b"m=8,t=1,p=1"), ("hash", 16), ("verify", b"m=16,t=2,p=1")]


async def test_logins_at_once_that_all_replace_the_hash_say_the_same_user(stronger, ada, users):
    """The one that is stored, or what is decided on it would be refused as out of date."""
    found = await asyncio.gather(*(stronger.with_password(USERNAME, PASSWORD, HOME) for _ in range(4)))
    assert found == [await users.get(USERNAME)] * 4
    assert found[0].password_hash != ada.password_hash


async def test_a_password_that_is_changed_meanwhile_stays_and_the_login_does_not_pass_for_a_new_one(
    stronger, ada, users, passwords, monkeypatch
):
    async def changed_first(*args, **kwargs):
        await users.set_password(ada.id, "another good password", passwords=passwords, by=SYSTEM)
        return await set_password_hash(*args, **kwargs)

    set_password_hash = users.set_password_hash
    monkeypatch.setattr(users, "set_password_hash", changed_first)
    found = await stronger.with_password(USERNAME, PASSWORD, HOME)
    stored = (await users.get(USERNAME)).password_hash
    assert await passwords.verify("another good password", stored)
    assert found.password_hash == ada.password_hash != stored


async def test_a_wrong_password_does_not_replace_the_hash(stronger, ada, users):
    await fail(stronger)
    assert (await users.get(USERNAME)).password_hash == ada.password_hash


@pytest.mark.parametrize("failure", [DatabaseUnavailable("OperationalError"), PasswordsBusy()])
async def test_a_rehash_that_fails_does_not_fail_the_login(stronger, ada, events, monkeypatch, failure):
    async def failing(*_, **__):
        raise failure

    monkeypatch.setattr(Users, "set_password_hash", failing)
    with capture_logs() as logs:
        assert await stronger.with_password(USERNAME, PASSWORD, HOME)
    assert [entry["event"] for entry in logs] == ["rehash_failed", "login"]
    assert events == [("login", "ok", "none")]


@pytest.mark.parametrize("url", UNREACHABLE)
@pytest.mark.parametrize("away", ["throttle", "users"])
async def test_without_its_database_a_login_is_unavailable_and_not_refused(
    connect, tmp_path, passwords, users, throttle, clock, record, events, argon2_work, away, url
):
    database = Database(connect(url.format(missing=tmp_path / "missing")))
    if away == "throttle":
        login = Login(users, passwords, DatabaseThrottle(database, ThrottlePolicy(), clock), record)
    else:
        login = Login(Users(database), passwords, throttle, record)
    for _ in range(10):
        with capture_logs() as logs, pytest.raises(TemporarilyUnavailable) as caught:
            await login.with_password(USERNAME, PASSWORD, HOME)
        assert caught.value.headers == {"Retry-After": "1"}
        assert [(entry["event"], entry["reason"]) for entry in logs] == [("login_failed", "database")]
    assert events == [("login", "error", "database")] * 10
    assert argon2_work == []
    assert await wait_of(throttle, USERNAME) == 0


async def test_a_failure_that_cannot_be_counted_is_not_answered(users, passwords, record, events, clock, monkeypatch):
    async def away(*_):
        raise DatabaseUnavailable

    monkeypatch.setattr(MemoryThrottle, "add_failure", away)
    login = Login(users, passwords, MemoryThrottle(ThrottlePolicy(), clock), record)
    with pytest.raises(TemporarilyUnavailable):
        await login.with_password(USERNAME, "wrong password", HOME)
    assert events == [("login", "error", "database")]


async def test_when_every_thread_hashes_a_login_is_unavailable_and_counts_for_nothing(
    login, ada, events, throttle, monkeypatch
):
    async def busy(*_):
        raise PasswordsBusy

    monkeypatch.setattr(Passwords, "verify", busy)
    for _ in range(10):
        with pytest.raises(TemporarilyUnavailable) as caught:
            await login.with_password(USERNAME, PASSWORD, HOME)
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
    assert events == [("login", "error", "busy")] * 10
    assert await wait_of(throttle, USERNAME) == 0


async def test_more_logins_than_could_hash_are_told_so_before_anything_is_asked(
    users, passwords, throttle, record, events, monkeypatch
):
    login, gate, at_work = Login(users, passwords, throttle, record), asyncio.Event(), []

    async def waiting(username):
        at_work.append(username)
        await gate.wait()

    monkeypatch.setattr(users, "get", waiting)
    tasks = [asyncio.create_task(login.with_password(f"user-{n}", PASSWORD, HOME)) for n in range(200)]
    ends = asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(30):
        while len(at_work) + len(events) < len(tasks):
            await asyncio.sleep(0)
    assert len(at_work) == passwords.capacity == 18
    assert events == [("login", "error", "busy")] * 182
    tasks[0].cancel()
    gate.set()
    assert all(isinstance(end, InvalidGrant | TemporarilyUnavailable | asyncio.CancelledError) for end in await ends)
    for number in range(2 * passwords.capacity):  # every place was given back
        with pytest.raises(InvalidGrant):
            await login.with_password(f"user-{number}", PASSWORD, AWAY)
