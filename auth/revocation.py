"""Which users are disabled, known to this process without a round trip per request.

A task reads the whole set every few seconds (it is small: the disabled ones only). When the database is away the last
known set stands: serving never depends on the database, and a token lives an hour at the most anyway.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger("auth.revocation")


class DisabledUsers:
    """The disabled subjects. `start` and `stop` belong to the lifespan.

    Args:
        load: reads the set; it must not wait for ever.
        interval_seconds: pause between two reads, and so about the time until a disabled user's tokens are refused.
    """

    def __init__(self, load: Callable[[], Awaitable[frozenset[str]]], interval_seconds: float = 2.0) -> None:
        self._load = load
        self._interval_seconds = interval_seconds
        self._subjects: frozenset[str] = frozenset()
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    def contains(self, subject: str) -> bool:
        """Whether the subject was disabled when last read."""
        return subject in self._subjects

    async def start(self) -> None:
        """Read once, so that a fresh process knows before it serves, and then go on in the background."""
        await self.refresh()
        self._task = asyncio.create_task(self._run(), name="disabled-users")

    async def stop(self) -> None:
        """End the background task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def refresh(self) -> None:
        """Read the set now. A failure keeps the last known set; the first of a row is logged, and so is its end."""
        try:
            self._subjects = await self._load()
        except Exception:
            # All of them: a mistake in the loader must not end the task and leave the set stale for ever, unseen.
            if not self._failing:
                log.exception("disabled_users_unreadable")
            self._failing = True
        else:
            if self._failing:
                log.info("disabled_users_readable_again")
            self._failing = False

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds)
            await self.refresh()
