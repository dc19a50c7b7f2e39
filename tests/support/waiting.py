"""Waiting for what another thread or process is about to do."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PROBE_SECONDS = 0.02


def eventually(probe: Callable[[], T], what: str, timeout: float = 15) -> T:
    """The first true value of `probe()`; AssertionError, naming `what`, when there is none within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s in vain for {what}; last seen: {value!r}")
        time.sleep(PROBE_SECONDS)
