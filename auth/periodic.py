"""Work that a worker does again and again in the background."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger("auth.periodic")


class Periodic:
    """Does some work every so often. `start` and `stop` belong to the lifespan.

    Args:
        name: a word for the log.
        work: what to do; it must not wait for ever.
        interval_seconds: pause between two turns.
    """

    def __init__(self, name: str, work: Callable[[], Awaitable[object]], interval_seconds: float) -> None:
        self._name = name
        self._work = work
        self._interval_seconds = interval_seconds
        self._failing = False
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, *, at_once: bool = True) -> None:
        """Go on in the background; with `at_once` when it was done for the first time, before the worker serves."""
        if at_once:
            await self.run_now()
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """End the background task. A turn that has begun ends first: cancelled in the middle, a driver may be left with
        an open connection, and SQLite with a lock.
        """
        if self._task is not None:
            self._stopping.set()
            await asyncio.wait([self._task])
            self._task = None

    async def run_now(self) -> None:
        """Do it now. Of failures in a row the first is logged, and so is their end."""
        try:
            await self._work()
        except Exception:
            # All of them: a mistake in the work must not end the task and leave things stale for ever, unseen.
            if not self._failing:
                log.exception("background_work_failed", work=self._name)
            self._failing = True
        else:
            if self._failing:
                log.info("background_work_recovered", work=self._name)
            self._failing = False

    async def _run(self) -> None:
        while not await self._stopped_within(self._interval_seconds):
            await self.run_now()

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True
