import asyncio
import threading

import argon2.low_level
import pytest
from structlog.testing import capture_logs

from auth.passwords import MAX_PASSWORD_BYTES, InvalidPassword, Passwords, PasswordsBusy
from tests.auth.kit import PASSWORD, USERNAME


@pytest.fixture
def verifications(monkeypatch):
    """Every Argon2 verification, by the parameters of the hash it was made against."""
    made = []
    real = argon2.low_level.verify_secret

    def counting(stored, *args, **kwargs):
        made.append(stored.split(b"$")[3])
        return real(stored, *args, **kwargs)

    monkeypatch.setattr(argon2.low_level, "verify_secret", counting)
    return made


@pytest.fixture
def gate(monkeypatch):
    """Argon2 verifications wait until the gate is opened."""
    gate = threading.Event()
    monkeypatch.setattr(argon2.low_level, "verify_secret", lambda *_: gate.wait(30))
    yield gate
    gate.set()


async def test_a_hash_is_argon2id_with_the_parameters_asked_for_and_verifies(passwords):
    stored = await passwords.hash(PASSWORD)
    assert stored.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    assert await passwords.verify(PASSWORD, stored)
    assert not await passwords.verify(PASSWORD + "!", stored)
    assert stored != await passwords.hash(PASSWORD)


async def test_an_unknown_user_costs_as_much_as_a_known_one(passwords, verifications):
    stored = await passwords.hash(PASSWORD)
    assert not await passwords.verify("wrong password", stored)
    known = list(verifications)
    verifications.clear()
    assert not await passwords.verify("wrong password", None)
    assert verifications == known == [b"m=8,t=1,p=1"]


async def test_nobody_is_let_in_by_the_dummy_hash(passwords):
    assert not await passwords.verify("nobody has this password", None)


async def test_a_password_in_another_unicode_form_is_the_same_password(passwords):
    stored = await passwords.hash("caf\u00e9 au lait \U0001f95b")
    assert await passwords.verify("cafe\u0301 au lait \U0001f95b", stored)


@pytest.mark.parametrize(
    "password",
    ["correct\0horse", "x" * (MAX_PASSWORD_BYTES + 1), "correct \ud800 horse"],
    ids=["nul", "long", "surrogate"],
)
async def test_a_password_nobody_can_have_is_wrong_and_cannot_be_set(passwords, password):
    stored = await passwords.hash("correct")
    assert not await passwords.verify(password, stored)
    assert not await passwords.verify(password, None)
    for setting in (passwords.hash(password), passwords.hash_new(password, USERNAME)):
        with pytest.raises(InvalidPassword):
            await setting


async def test_a_new_password_is_checked_and_hashed(passwords):
    stored = await passwords.hash_new(PASSWORD, USERNAME)
    assert await passwords.verify(PASSWORD, stored)


async def test_nothing_is_hashed_on_the_event_loop(passwords, monkeypatch):
    threads = []

    def noting(real):
        def note(*args, **kwargs):
            threads.append(threading.current_thread().name)
            return real(*args, **kwargs)

        return note

    for name in ("hash_secret", "verify_secret"):
        monkeypatch.setattr(argon2.low_level, name, noting(getattr(argon2.low_level, name)))
    await passwords.verify(PASSWORD, await passwords.hash(PASSWORD))
    await passwords.verify(PASSWORD, await passwords.hash_new(PASSWORD, USERNAME))
    await passwords.verify(PASSWORD, None)
    assert len(threads) == 5
    assert all(thread.startswith("passwords") for thread in threads)


async def test_the_event_loop_goes_on_while_a_password_is_hashed(gate):
    passwords = Passwords(time_cost=1, memory_cost_kib=8, parallelism=1, threads=1, max_waiting=1)
    working = asyncio.create_task(passwords.verify(PASSWORD, None))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not working.done()
    gate.set()
    await working
    passwords.close()


@pytest.mark.parametrize(
    "other", [{"time_cost": 2}, {"memory_cost_kib": 16}, {"parallelism": 2, "memory_cost_kib": 16}]
)
async def test_a_hash_of_other_parameters_needs_an_update(passwords, other):
    parameters = {"time_cost": 1, "memory_cost_kib": 8, "parallelism": 1} | other
    others = Passwords(**parameters, threads=1, max_waiting=1)
    stored = await others.hash(PASSWORD)
    others.close()
    assert passwords.needs_update(stored)
    assert await passwords.verify(PASSWORD, stored)
    assert not passwords.needs_update(await passwords.hash(PASSWORD))


def test_the_dummy_has_the_parameters_of_the_hashes_that_are_made(monkeypatch):
    made = []
    make = argon2.low_level.hash_secret

    def hashing(**kwargs):
        made.append((kwargs["time_cost"], kwargs["memory_cost"], kwargs["parallelism"]))
        return make(**kwargs)

    monkeypatch.setattr(argon2.low_level, "hash_secret", hashing)
    Passwords(time_cost=2, memory_cost_kib=64, parallelism=2, threads=1, max_waiting=1).close()
    assert made == [(2, 64, 2)]


@pytest.mark.parametrize("stored", ["", "!", "$argon2id$v=19$m=8,t=1,p=1$c2FsdA$???", "$2b$12$abc"])
async def test_an_unreadable_hash_lets_nobody_in_and_is_logged_without_it(passwords, stored):
    with capture_logs() as logs:
        assert not await passwords.verify(PASSWORD, stored)
    assert [entry["event"] for entry in logs] == ["stored_hash_unreadable"]
    assert not stored or stored not in str(logs)


async def test_past_the_queue_it_is_busy_at_once_and_the_others_are_served(gate):
    passwords = Passwords(time_cost=1, memory_cost_kib=8, parallelism=1, threads=1, max_waiting=2)
    stored = await passwords.hash(PASSWORD)
    admitted = [asyncio.create_task(passwords.verify(PASSWORD, stored)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(PasswordsBusy):
        await passwords.verify(PASSWORD, stored)
    gate.set()
    assert await asyncio.gather(*admitted) == [True] * 3
    assert await passwords.verify(PASSWORD, stored)
    passwords.close()


async def test_a_client_that_leaves_keeps_its_place_while_its_hash_is_at_work(gate):
    passwords = Passwords(time_cost=1, memory_cost_kib=8, parallelism=1, threads=1, max_waiting=1)
    working, waiting = (asyncio.create_task(passwords.verify(PASSWORD, None)) for _ in range(2))
    await asyncio.sleep(0)
    waiting.cancel()
    working.cancel()
    await asyncio.wait([working, waiting])
    another = asyncio.create_task(passwords.verify(PASSWORD, None))  # the place of the one that waited is free
    await asyncio.sleep(0)
    with pytest.raises(PasswordsBusy):  # that of the one that works is not
        await passwords.verify(PASSWORD, None)
    gate.set()
    assert not await another
    passwords.close()


async def test_a_closed_pool_is_busy(passwords):
    passwords.close()
    with pytest.raises(PasswordsBusy):
        await passwords.verify(PASSWORD, None)


async def test_in_a_storm_no_more_hash_at_once_than_there_are_threads(monkeypatch):
    """So the memory of hashing is bounded: threads times the memory of one."""
    at_work, most = 0, 0
    lock = threading.Lock()

    def verifying(*_):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        threading.Event().wait(0.002)
        with lock:
            at_work -= 1
        return True

    passwords = Passwords(time_cost=1, memory_cost_kib=8, parallelism=1, threads=3, max_waiting=20)
    stored = await passwords.hash(PASSWORD)
    monkeypatch.setattr(argon2.low_level, "verify_secret", verifying)
    ends = await asyncio.gather(*(passwords.verify(PASSWORD, stored) for _ in range(200)), return_exceptions=True)
    assert most == 3
    assert ends.count(True) == 23
    assert sum(isinstance(end, PasswordsBusy) for end in ends) == 177
    passwords.close()


async def test_a_password_that_is_far_too_long_is_refused_before_it_is_normalised(passwords, monkeypatch):
    """To normalise it takes time that grows with the square of its length, on the event loop."""
    monkeypatch.setattr("auth.passwords.unicodedata", None)
    assert not await passwords.verify("\u0301\u0316" * MAX_PASSWORD_BYTES, None)
