"""Identifiers that this service makes."""

import os
import time
import uuid


def time_ordered_id(now: float | None = None) -> str:
    """A UUID version 7 (RFC 9562 §5.7) in its text form: sorts by time of creation to the millisecond.

    Args:
        now: Unix time in seconds; the clock's when left out.
    """
    milliseconds = time.time_ns() // 1_000_000 if now is None else int(now * 1000)
    value = milliseconds << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return str(uuid.UUID(int=value))
