"""`unless_disconnected`: work is cancelled when its client goes, and harmed by nothing else."""

import asyncio

import pytest
from starlette.types import Message

from service.api.disconnect import ClientGone, unless_disconnected


class Connection:
    """A client that stays until it goes."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()
        self._body_told = False

    def go(self) -> None:
        self._gone.set()

    async def receive(self) -> Message:
        if not self._body_told:  # what a server says once more after the body was read
            self._body_told = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture(autouse=True)
async def _no_task_is_left():
    before = asyncio.all_tasks()
    yield
    for _ in range(3):  # one that was cancelled needs a turn to end
        await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()} == set()


async def test_work_is_cancelled_when_the_client_goes(connection):
    cancelled = False
    with pytest.raises(ClientGone):
        async with asyncio.timeout(10), unless_disconnected(connection.receive) as watched:
            connection.go()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled = True
                raise
    assert cancelled
    assert watched.gone
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # nothing of the cancellation is left for who comes next


async def test_a_client_that_was_gone_before_the_work_began_is_noticed(connection):
    connection.go()
    with pytest.raises(ClientGone):
        async with asyncio.timeout(10), unless_disconnected(connection.receive):
            await asyncio.Event().wait()


async def test_work_may_finish_within_its_grace(connection):
    finished = False
    with pytest.raises(ClientGone):
        async with unless_disconnected(connection.receive, grace=lambda: 60.0) as watched:
            connection.go()
            while not watched.gone:
                await asyncio.sleep(0)
            finished = True
    assert finished


async def test_the_grace_ends(connection):
    with pytest.raises(ClientGone):
        async with asyncio.timeout(10), unless_disconnected(connection.receive, grace=lambda: 0.01):
            connection.go()
            await asyncio.Event().wait()


async def test_the_grace_is_asked_for_when_the_client_goes_and_not_before(connection):
    asked = 0

    def grace() -> float:
        nonlocal asked
        asked += 1
        return 0.0

    with pytest.raises(ClientGone):
        async with asyncio.timeout(10), unless_disconnected(connection.receive, grace=grace):
            await asyncio.sleep(0)
            assert asked == 0
            connection.go()
            await asyncio.Event().wait()
    assert asked == 1


async def test_work_that_completes_is_unharmed_by_a_client_that_goes_later(connection):
    async with unless_disconnected(connection.receive) as watched:
        await asyncio.sleep(0)
    connection.go()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not watched.gone


async def test_a_cancellation_from_outside_passes_through(connection):
    async def work() -> None:
        async with unless_disconnected(connection.receive):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_cancellation_from_outside_passes_through_in_the_grace_of_a_client_that_went(connection):
    went = asyncio.Event()

    def grace() -> float:
        went.set()
        return 60.0

    async def work() -> None:
        async with unless_disconnected(connection.receive, grace=grace):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    connection.go()
    await went.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_limit_of_time_outside_is_still_a_timeout(connection):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), unless_disconnected(connection.receive):
            await asyncio.Event().wait()


@pytest.mark.parametrize("gone", [True, False])
async def test_an_exception_of_the_work_passes_through(connection, gone):
    with pytest.raises(KeyError, match="mine"):
        async with unless_disconnected(connection.receive, grace=lambda: 60.0) as watched:
            if gone:
                connection.go()
                while not watched.gone:
                    await asyncio.sleep(0)
            raise KeyError("mine")
