import asyncio

import pytest
from structlog.testing import capture_logs

from auth.revocation import DisabledUsers
from auth.users import UsersUnavailable


class Source:
    """The database, as the loader sees it: a set, or an exception to raise."""

    def __init__(self) -> None:
        self.subjects: frozenset[str] = frozenset()
        self.failure: Exception | None = None
        self.reads = 0
        self.read = asyncio.Condition()

    async def __call__(self):
        async with self.read:
            self.reads += 1
            self.read.notify_all()
        if self.failure:
            raise self.failure
        return self.subjects

    async def after(self, reads):
        """Return when so many more reads are over."""
        wanted = self.reads + reads + 1  # the last of them may be under way still
        async with asyncio.timeout(30), self.read:
            await self.read.wait_for(lambda: self.reads >= wanted)


@pytest.fixture
def source():
    return Source()


@pytest.fixture
async def disabled(source):
    disabled = DisabledUsers(source, interval_seconds=0.001)
    yield disabled
    await disabled.stop()


async def test_who_is_disabled_is_known_when_start_returns(disabled, source):
    source.subjects = frozenset({"id-1"})
    assert not disabled.contains("id-1")
    await disabled.start()
    assert disabled.contains("id-1")
    assert not disabled.contains("id-2")


async def test_a_change_is_seen_without_being_asked_for(disabled, source):
    await disabled.start()
    source.subjects = frozenset({"id-1"})
    await source.after(1)
    assert disabled.contains("id-1")
    source.subjects = frozenset()
    await source.after(1)
    assert not disabled.contains("id-1")


@pytest.mark.parametrize("failure", [UsersUnavailable("OperationalError"), TypeError("a mistake of ours")])
async def test_an_outage_keeps_the_last_known_set_and_is_logged_once(disabled, source, failure):
    source.subjects = frozenset({"id-1"})
    await disabled.start()
    with capture_logs() as logs:
        source.failure = failure
        await source.after(3)
        assert disabled.contains("id-1")
        source.failure = None
        source.subjects = frozenset({"id-2"})
        await source.after(2)
        assert disabled.contains("id-2")
        source.failure = failure
        await source.after(3)
    assert [entry["event"] for entry in logs] == [
        "disabled_users_unreadable",
        "disabled_users_readable_again",
        "disabled_users_unreadable",
    ]


async def test_a_database_that_is_down_at_start_is_read_when_it_comes_up(disabled, source):
    source.subjects = frozenset({"id-1"})
    source.failure = UsersUnavailable("OSError")
    with capture_logs():
        await disabled.start()
        assert not disabled.contains("id-1")
        source.failure = None
        await source.after(1)
    assert disabled.contains("id-1")


async def test_contains_asks_nobody(disabled, source):
    await disabled.refresh()
    reads = source.reads
    for _ in range(1000):
        disabled.contains("id-1")
    assert source.reads == reads


async def test_stop_ends_the_task_and_may_be_called_twice(disabled, source):
    before = asyncio.all_tasks()
    await disabled.start()
    await disabled.stop()
    await disabled.stop()
    assert asyncio.all_tasks() == before


async def test_stop_does_not_wait_for_a_read_that_hangs(source):
    hanging = asyncio.Event()

    async def load():
        if source.reads:
            hanging.set()
            await asyncio.Event().wait()
        return await source()

    disabled = DisabledUsers(load, interval_seconds=0.001)
    await disabled.start()
    await hanging.wait()
    async with asyncio.timeout(30):
        await disabled.stop()
