"""Notices that the client has gone while its answer is being made."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from starlette.types import Receive


class ClientGone(Exception):  # noqa: N818 - an event, not an error
    """The client closed its connection before it had its answer."""


class unless_disconnected:  # noqa: N801 - used like asyncio.timeout
    """`async with unless_disconnected(receive):` cancels what is inside when the client goes, and raises ClientGone.

    The body must have been read: the next thing that `receive` says can then only be that the client has gone.
    """

    def __init__(self, receive: Receive, *, grace: Callable[[], float] = lambda: 0.0) -> None:
        """Watch a connection.

        Args:
            receive: of the request.
            grace: asked when the client has gone: how many seconds the work may still go on.
        """
        self._receive = receive
        self._grace = grace
        self.gone = False  # whether the client has gone

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - an async with is always inside a task
        self._task = task
        self._cancelling = task.cancelling()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        await asyncio.sleep(self._grace())
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cancelled_by_us = self._watcher.done() and self.gone
        self._watcher.cancel()
        # The end of the watcher holds its frames, and they hold us: without this only the collector would free them.
        del self._watcher
        if cancelled_by_us and self._task.uncancel() > self._cancelling:
            return  # somebody else cancels the task as well: that goes first
        if self.gone and (kind is None or (kind is asyncio.CancelledError and cancelled_by_us)):
            raise ClientGone from error
