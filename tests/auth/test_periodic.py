"""Work in the background: done before a worker serves, again and again, and whatever it meets."""

import asyncio

import pytest
from structlog.testing import capture_logs

from auth.database import DatabaseUnavailable
from auth.periodic import Periodic


class Work:
    """Counts its turns. Fails while `failure` is set, and stops at the gate while that is closed."""

    def __init__(self) -> None:
        self.begun = self.done = 0
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._turn = asyncio.Condition()

    async def __call__(self):
        async with self._turn:
            self.begun += 1
            self._turn.notify_all()
        await self.gate.wait()
        if self.failure:
            raise self.failure
        self.done += 1

    async def next_turns(self, count=1):
        """Return when so many more turns have begun, and the last but one is over."""
        wanted = self.begun + count + 1
        async with asyncio.timeout(30), self._turn:
            await self._turn.wait_for(lambda: self.begun >= wanted)


@pytest.fixture
def work():
    return Work()


@pytest.fixture
async def often(work):
    periodic = Periodic("some_work", work, 0.001)
    yield periodic
    work.gate.set()
    await periodic.stop()


@pytest.fixture
async def seldom(work):
    """Does it so seldom that nothing but `start` and `run_now` make it happen."""
    periodic = Periodic("some_work", work, 3600)
    yield periodic
    work.gate.set()
    await periodic.stop()


async def test_it_is_done_when_start_returns(seldom, work):
    await seldom.start()
    assert work.done == 1


async def test_it_goes_on_in_the_background(often, work):
    await often.start()
    await work.next_turns(3)


async def test_what_is_not_wanted_at_once_is_not_waited_for(often, work):
    work.gate.clear()
    await often.start(at_once=False)
    assert work.begun == 0
    await work.next_turns(0)
    assert work.done == 0


async def test_run_now_does_not_wait_for_the_interval(seldom, work):
    await seldom.start()
    await seldom.run_now()
    assert work.done == 2


@pytest.mark.parametrize("failure", [DatabaseUnavailable("OperationalError"), TypeError("a mistake of ours")])
async def test_of_failures_in_a_row_the_first_is_logged_with_its_trace_and_so_is_their_end(often, work, failure):
    with capture_logs() as logs:
        work.failure = failure
        await often.start()
        await work.next_turns(3)
        work.failure = None
        await work.next_turns(3)
        work.failure = failure
        await work.next_turns(3)
    assert [(entry["event"], entry["log_level"], entry["work"], entry.get("exc_info")) for entry in logs] == [
        ("background_work_failed", "error", "some_work", True),
        ("background_work_recovered", "info", "some_work", None),
        ("background_work_failed", "error", "some_work", True),
    ]


async def test_work_that_fails_at_the_start_does_not_keep_a_worker_from_starting(often, work):
    work.failure = DatabaseUnavailable("OSError")
    with capture_logs():
        await often.start()
        work.failure = None
        await work.next_turns(1)
    assert work.done >= 1


async def test_stop_ends_the_pause_and_may_be_called_twice_or_before_start(seldom):
    before = asyncio.all_tasks()
    await seldom.stop()
    await seldom.start()
    async with asyncio.timeout(30):
        await seldom.stop()
        await seldom.stop()
    assert asyncio.all_tasks() == before


async def test_stop_lets_a_turn_that_has_begun_come_to_its_end(often, work):
    await often.start(at_once=False)
    await work.next_turns(0)
    work.gate.clear()
    await work.next_turns(0)
    begun = work.begun
    stopping = asyncio.create_task(often.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    work.gate.set()
    await stopping
    assert (work.begun, work.done) == (begun, begun)
