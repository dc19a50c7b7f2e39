"""The least of an HTTP/1.1 server: raw asyncio protocol on uvloop, keep-alive, bodies with a length. For benchmarks."""

import asyncio
import gc
import re
import signal
from collections.abc import Callable
from typing import Final, cast

import uvloop

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """One connection. Subclasses answer; a request without a length has no body."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        while (head_end := received.find(b"\r\n\r\n")) >= 0:
            head = received[:head_end]
            found = _LENGTH.search(head)
            body_start = head_end + 4
            end = body_start + (int(found.group(1)) if found else 0)
            if len(received) < end:
                break
            method, path, _ = head.split(b" ", 2)
            self.answer(method, path, head, received[body_start:end])
            received = received[end:]
        self._received = received

    def answer(self, method: bytes, path: bytes, head: bytes, body: bytes) -> None:
        """A whole request has come."""
        raise NotImplementedError

    def send(self, body: bytes, content_type: bytes = b"application/json", status: bytes = b"200 OK") -> None:
        """A whole answer."""
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (status, content_type, len(body), body)
        )


def run(factory: Callable[[], Connection]) -> None:
    """Serve on a free loopback port, which is written to standard output, until SIGTERM or SIGINT."""
    # Nothing here makes cycles, and a collection would show up as the latency of somebody else.
    gc.disable()
    uvloop.run(_serve(factory))


async def _serve(factory: Callable[[], Connection]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = await loop.create_server(factory, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stopped.wait()
    server.close()
