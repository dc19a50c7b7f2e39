"""One keep-alive client: a raw asyncio protocol, with as much of HTTP/1.1 as it takes to know an answer is whole."""

import asyncio
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol, cast

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"


class WrongAnswerError(Exception):
    """An answer is not the one it must be."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and the body that its answer must have."""

    request: bytes
    answer: bytes


class Owner(Protocol):
    """Gives a client its calls, and is told of the answers."""

    def next_call(self) -> Call | None: ...
    def answered(self, latency_ns: int, pieces: int) -> None: ...
    def client_done(self) -> None: ...
    def fail(self, error: WrongAnswerError) -> None: ...


class Client(asyncio.Protocol):
    """Sends a call when the last is answered, until there is none."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport
        self._call: Call | None = None
        self._received = bytearray()
        self._pieces = 0
        self._sent_at = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send_next(self) -> None:
        """Send a call, or stop."""
        self._call = self._owner.next_call()
        if self._call is None:
            self._owner.client_done()
            return
        self._received.clear()
        self._pieces = 0
        self._sent_at = time.perf_counter_ns()
        self._transport.write(self._call.request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._pieces += 1
        try:
            body = body_of(self._received)
        except WrongAnswerError as error:
            self._give_up(error)
            return
        if body is None:
            return
        if self._call is None or body != self._call.answer:
            self._give_up(WrongAnswerError(f"to {self._call}: {body!r}"))
            return
        self._owner.answered(time.perf_counter_ns() - self._sent_at, self._pieces)
        self.send_next()

    def _give_up(self, error: WrongAnswerError) -> None:
        self._owner.fail(error)
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._call is not None:
            self._owner.fail(WrongAnswerError(f"closed in a call ({exc}) after {bytes(self._received)!r}"))

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


def body_of(received: bytearray) -> bytes | None:
    """The body of a response; None while it is not whole.

    Raises:
        WrongAnswerError: not a 200, or not framed as RFC 9112 has it.
    """
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    if not received.startswith(b"HTTP/1.1 200 "):
        raise WrongAnswerError(received.decode(errors="replace"))
    body_start = head_end + 4
    length = _LENGTH.search(received, 0, body_start)
    if length:
        missing = body_start + int(length.group(1)) - len(received)
        if missing < 0:
            raise WrongAnswerError(f"{-missing} bytes too many")
        return bytes(received[body_start:]) if missing == 0 else None
    if not _CHUNKED.search(received, 0, body_start):
        raise WrongAnswerError("the answer has neither a length nor chunks")
    # No answer of this benchmark holds these bytes, so they are the end.
    return b"".join(_chunks(bytes(received), body_start)) if received.endswith(_LAST_CHUNK) else None


def _chunks(received: bytes, position: int) -> Iterator[bytes]:
    while position < len(received):
        line_end = received.index(b"\r\n", position)
        size = int(received[position:line_end], 16)
        yield received[line_end + 2 : line_end + 2 + size]
        position = line_end + 2 + size + 2
    if position != len(received):
        raise WrongAnswerError("broken chunks")
