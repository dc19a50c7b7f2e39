"""Logins as the throttle sees them."""

import asyncio

from auth.errors import SlowDown
from auth.throttle import LoginThrottle, ThrottlePolicy

HOME, AWAY = "192.0.2.1", "198.51.100.7"
DAY = 86400.0
IN_FLIGHT = 4
"""Attempts of one account and address that a worker has at work at once where nobody was let in before."""
POLICY = ThrottlePolicy(free_failures=5, address_failures=12, account_failures=20)


async def fail(throttle: LoginThrottle, username: str = "ada", address: str = HOME, times: int = 1) -> None:
    for _ in range(times):
        async with throttle.attempt(username, address) as attempt:
            await attempt.failed()


async def succeed(throttle: LoginThrottle, username: str = "ada", address: str = HOME) -> None:
    async with throttle.attempt(username, address) as attempt:
        await attempt.succeeded()


async def wait_of(throttle: LoginThrottle, username: str = "ada", address: str = HOME) -> int:
    """The seconds that an attempt now would have to wait. It counts for nothing."""
    try:
        async with throttle.attempt(username, address):
            return 0
    except SlowDown as error:
        return error.retry_after_seconds


async def hold(
    throttle: LoginThrottle, held: list[int], gate: asyncio.Event, username: str = "ada", address: str = HOME
) -> int:
    """Be at work until the gate opens. As `wait_of`."""
    try:
        async with throttle.attempt(username, address):
            held.append(0)
            await gate.wait()
            return 0
    except SlowDown as error:
        return error.retry_after_seconds
