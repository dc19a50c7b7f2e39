import asyncio

import pytest

from auth.database import Database
from auth.throttle import DatabaseThrottle, MemoryThrottle
from auth.throttle_policy import Keys
from tests.auth.throttling import AWAY, DAY, HOME, IN_FLIGHT, POLICY, fail, hold, succeed, wait_of


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def throttle(request, clock):
    if request.param == "memory":
        return MemoryThrottle(POLICY, clock)
    return DatabaseThrottle(Database(request.getfixturevalue(request.param)), POLICY, clock)


async def test_each_failure_past_the_fifth_doubles_the_delay(throttle, clock):
    await fail(throttle, times=5)
    for expected in (1, 2, 4, 8):
        assert await wait_of(throttle) == expected
        clock.now += expected
        await fail(throttle)


async def test_other_accounts_and_addresses_do_not_wait_for_it(throttle):
    await fail(throttle, times=5)
    assert await wait_of(throttle) == 1
    assert await wait_of(throttle, address=AWAY) == 0
    assert await wait_of(throttle, "bob") == 0


async def test_what_is_refused_is_not_counted(throttle, clock):
    await fail(throttle, times=5)
    for _ in range(20):
        assert await wait_of(throttle) == 1
    clock.now += 1
    assert await wait_of(throttle) == 0


@pytest.mark.parametrize("known", [False, True])
async def test_a_success_forgets_the_failures_of_the_account_there(throttle, clock, known):
    if known:
        await succeed(throttle)
    await fail(throttle, times=5)
    clock.now += 1
    await succeed(throttle)
    await fail(throttle, times=4)
    assert await wait_of(throttle) == 0


async def test_guesses_at_many_accounts_from_one_address_are_delayed(throttle):
    for number in range(12):
        await fail(throttle, f"user-{number}")
    assert await wait_of(throttle, "user-12") == 1
    assert await wait_of(throttle, "user-12", AWAY) == 0


async def test_one_good_account_does_not_free_its_address(throttle, clock):
    for number in range(14):
        clock.now += 4
        await fail(throttle, f"user-{number}")
    clock.now += 4
    await succeed(throttle, "mallory")
    await fail(throttle, "user-14")
    assert await wait_of(throttle, "user-15") == 8


async def test_failures_of_others_at_the_same_address_lock_nobody_out_who_has_logged_in_there(throttle):
    await succeed(throttle)
    for number in range(12):
        await fail(throttle, f"user-{number}")
    assert await wait_of(throttle) == 0
    assert await wait_of(throttle, "bob") == 1


async def test_a_stranger_locks_nobody_out_of_where_they_have_logged_in_before(throttle):
    await succeed(throttle)
    for number in range(20):
        await fail(throttle, address=f"203.0.113.{number}")
    assert await wait_of(throttle) == 0
    assert await wait_of(throttle, address=AWAY) == 1


async def test_mistakes_from_a_known_address_do_not_bring_others_nearer_to_a_delay(throttle, clock):
    await succeed(throttle)
    for number in range(19):
        await fail(throttle, address=f"203.0.113.{number}")
    await fail(throttle, times=4)
    assert await wait_of(throttle, address=AWAY) == 0
    await fail(throttle, address=AWAY)
    assert await wait_of(throttle, address="198.51.100.8") == 1


async def test_failures_are_forgotten_when_none_follows(throttle, clock):
    await fail(throttle, times=5)
    clock.now += POLICY.forgotten_after_seconds
    await fail(throttle, times=4)
    assert await wait_of(throttle) == 0
    await fail(throttle)
    assert await wait_of(throttle) == 1


async def test_what_could_not_be_decided_counts_for_nothing(throttle):
    for _ in range(20):
        with pytest.raises(ZeroDivisionError):
            async with throttle.attempt("ada", HOME):
                raise ZeroDivisionError
    assert await wait_of(throttle) == 0


@pytest.mark.parametrize(("known", "bound"), [(False, IN_FLIGHT), (True, 64)])
async def test_only_so_many_of_one_account_and_address_are_at_work_at_once(throttle, known, bound):
    if known:
        await succeed(throttle)
    held: list[int] = []
    gate = asyncio.Event()
    tasks = [asyncio.create_task(hold(throttle, held, gate)) for _ in range(bound + 10)]
    try:
        async with asyncio.timeout(30):
            while len(held) + len(done := [task for task in tasks if task.done()]) < len(tasks):
                await asyncio.sleep(0.001)
        assert len(held) == bound
        assert {task.result() for task in done} == {1}
        assert await wait_of(throttle) == 1
        assert await wait_of(throttle, "bob") == await wait_of(throttle, address=AWAY) == 0
    finally:
        gate.set()
        await asyncio.wait(tasks)
    assert await wait_of(throttle) == 0


async def at_work(throttle, attempts):
    """How many of these attempts are at work at once when all come together."""
    held: list[int] = []
    gate = asyncio.Event()
    tasks = [asyncio.create_task(hold(throttle, held, gate, *attempt)) for attempt in attempts]
    try:
        async with asyncio.timeout(30):
            while len(held) + sum(task.done() for task in tasks) < len(tasks):
                await asyncio.sleep(0.001)
        return len(held)
    finally:
        gate.set()
        await asyncio.wait(tasks)


@pytest.mark.parametrize("suspect", ["address", "account"])
async def test_once_there_were_delays_for_all_only_so_many_come_through_at_the_end_of_each(throttle, clock, suspect):
    """Each alone may: but together they would be many guesses for one delay."""
    if suspect == "address":
        attempts = [(f"user-{number}", HOME) for number in range(12)]
    else:
        attempts = [("ada", f"203.0.113.{number}") for number in range(20)]
    assert await at_work(throttle, attempts) == len(attempts)
    for attempt in attempts:
        await fail(throttle, *attempt)
    clock.now += 1
    assert await at_work(throttle, attempts) == IN_FLIGHT
    assert await at_work(throttle, [("bob", AWAY)] * IN_FLIGHT) == IN_FLIGHT


async def test_a_client_that_leaves_gives_its_place_back(throttle):
    held: list[int] = []
    for _ in range(3 * IN_FLIGHT):
        task = asyncio.create_task(hold(throttle, held, asyncio.Event()))
        while not held:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        held.clear()
    assert await wait_of(throttle) == 0


async def test_a_login_every_day_keeps_an_address_known(throttle, clock):
    for _ in range(40):
        await succeed(throttle)
        clock.now += DAY
    for number in range(20):
        await fail(throttle, address=f"203.0.113.{number}")
    assert await wait_of(throttle) == 0
    clock.now += 29 * DAY
    await fail(throttle, address=AWAY)
    assert await wait_of(throttle) == 0


async def test_pruning_leaves_what_still_counts(throttle, clock):
    for number in range(20):
        await fail(throttle, address=f"203.0.113.{number}")
    clock.now += 60
    await fail(throttle, "bob", times=5)
    await throttle.prune()
    assert (await wait_of(throttle, "bob"), await wait_of(throttle, address=AWAY)) == (1, 0)
    await fail(throttle, address=AWAY)
    assert await wait_of(throttle, address="198.51.100.8") == 2


async def test_pruning_frees_the_memory_of_one_process(clock):
    throttle = MemoryThrottle(POLICY, clock)
    await succeed(throttle)
    await fail(throttle, "bob")
    clock.now += POLICY.forgotten_after_seconds
    await throttle.prune()
    assert set(await throttle.read(Keys.of("ada", HOME))) == {Keys.of("ada", HOME).pair}
    assert await throttle.read(Keys.of("bob", HOME)) == {}
