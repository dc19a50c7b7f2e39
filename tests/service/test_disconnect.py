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


async def _until_gone(watched: unless_disconnected) -> None:
    for _ in range(10):
        if not watched.gone:
            await asyncio.sleep(0)
    assert watched.gone


async def _wait(connection: Connection, grace: float = 0.0, seen: list[str] | None = None) -> int:
    """Work that never ends by itself. Returns how often its task is still being cancelled after ClientGone."""

    async def work() -> int:
        try:
            async with unless_disconnected(connection.receive, grace=lambda: grace):
                try:
                    await asyncio.Event().wait()
                finally:
                    if seen is not None:
                        await asyncio.sleep(0)  # cleaning up may take its time
                        seen.append("cleaned up")
        except ClientGone:
            await asyncio.sleep(0)  # nothing of the cancellation is left for who comes next
            task = asyncio.current_task()
            assert task is not None
            return task.cancelling()
        return -1

    task = asyncio.create_task(work())
    # Not asyncio.timeout, whose cancelling would stand in for the one that is tested.
    done, _ = await asyncio.wait([task], timeout=10)
    task.cancel()
    assert done, "the client's leaving did not end the work"
    return await task


async def test_work_is_cancelled_when_the_client_goes(connection):
    seen: list[str] = []
    asyncio.get_running_loop().call_soon(connection.go)
    assert await _wait(connection, seen=seen) == 0
    assert seen == ["cleaned up"]


async def test_a_client_that_was_gone_before_the_work_began_is_noticed(connection):
    connection.go()
    assert await _wait(connection) == 0


async def test_work_may_finish_within_its_grace(connection):
    done: list[str] = []

    async def work() -> None:
        async with unless_disconnected(connection.receive, grace=lambda: 60.0) as watched:
            connection.go()
            await _until_gone(watched)
            done.append("all of it")

    with pytest.raises(ClientGone):
        await work()
    assert done == ["all of it"]


async def test_the_grace_ends(connection):
    connection.go()
    assert await _wait(connection, grace=0.01) == 0


async def test_the_grace_is_asked_for_when_the_client_goes_and_not_before(connection):
    asked: list[bool] = []
    gone = False

    def grace() -> float:
        asked.append(gone)
        return 0.0

    async def work() -> None:
        nonlocal gone
        async with asyncio.timeout(10), unless_disconnected(connection.receive, grace=grace):
            await asyncio.sleep(0)
            gone = True
            connection.go()
            await asyncio.Event().wait()

    with pytest.raises(ClientGone):
        await work()
    assert asked == [True]


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
    async def work() -> None:
        async with unless_disconnected(connection.receive, grace=lambda: 60.0) as watched:
            if gone:
                connection.go()
                await _until_gone(watched)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await work()
