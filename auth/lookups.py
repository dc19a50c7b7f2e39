"""How a worker looks API keys up: once for all who wait, a few at a time, and junk only as often as the database bears.

Every key is unknown to a worker that has just begun, and so is what a stranger makes up. The former may wait a little;
the latter must not keep it from the database.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from auth.apikeys import ApiKey, WrongKey, split_key
from auth.errors import TemporarilyUnavailable
from auth.secret_tokens import hash_secret

AT_ONCE: Final = 4  # connections of the pool that are not there for others meanwhile
PATIENCE_SECONDS: Final = 5.0  # how long a place is waited for
JUNK_PER_SECOND: Final = 20  # of one address
MAX_REFUSED: Final = 1024


class Lookups:
    """Finds keys, and remembers those that there are not.

    Args:
        verify: `ApiKeys.verify`.
        clock: Unix time in seconds.
    """

    def __init__(self, verify: Callable[[str], Awaitable[ApiKey]], clock: Callable[[], float]) -> None:
        self._verify = verify
        self._clock = clock
        self._places = asyncio.Semaphore(AT_ONCE)
        self._under_way: dict[tuple[str, int], asyncio.Task[ApiKey]] = {}
        # Why a key was refused, and what was learned before; the least recently used first.
        self._refused: OrderedDict[str, tuple[str, int]] = OrderedDict()
        # How much came from each address in this second.
        self._junk: Counter[str] = Counter()
        self._second = int(clock())

    async def find(self, presented: str, learned: int, address: str = "") -> ApiKey:
        """The key that was presented.

        Args:
            presented: as it came.
            learned: how many changes this worker knows of. An answer from before the last of them is of no use.
            address: from where. Junk has an allowance for each, so that a stranger keeps nobody else from the database.

        Raises:
            WrongKey: it is not accepted.
            TemporarilyUnavailable: too much junk came just now, or there is no place to be had.
            DatabaseUnavailable: it cannot be looked up.
        """
        split_key(presented)  # what does not even look like a key costs no more than this
        name = hash_secret(presented)
        self._refuse_again(name, learned)
        flight = name, learned
        if flight not in self._under_way:
            self._under_way[flight] = asyncio.create_task(self._look(presented, name, learned, address))
            self._under_way[flight].add_done_callback(lambda task: self._landed(flight, task))
        # A client that goes away does not take the answer from the others.
        return await asyncio.shield(self._under_way[flight])

    def _landed(self, flight: tuple[str, int], task: asyncio.Task[ApiKey]) -> None:
        del self._under_way[flight]
        if not task.cancelled():
            task.exception()  # of which otherwise the loop complains when all who waited have gone away

    async def _look(self, presented: str, name: str, learned: int, address: str) -> ApiKey:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._places.acquire()
        except TimeoutError as error:
            raise _busy() from error
        try:
            self._check_allowance(address)
            return await self._verify(presented)
        except WrongKey as error:
            self._junk[address] += 1
            self._refused[name] = error.reason, learned
            if len(self._refused) > MAX_REFUSED:
                self._refused.popitem(last=False)
            raise
        finally:
            self._places.release()

    def _refuse_again(self, name: str, learned: int) -> None:
        """Nothing makes a wrong key right. Only a disabled user may be enabled."""
        reason, before = self._refused.get(name, ("", 0))
        if reason and (reason != "disabled" or before == learned):
            self._refused.move_to_end(name)
            raise WrongKey(reason)

    def _check_allowance(self, address: str) -> None:
        second = int(self._clock())
        if second != self._second:
            self._junk, self._second = Counter(), second
        if self._junk[address] >= JUNK_PER_SECOND:
            raise _busy()


def _busy() -> TemporarilyUnavailable:
    return TemporarilyUnavailable("Too many keys that were not seen before.", reason="busy")
