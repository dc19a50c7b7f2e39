"""A small HTTP/1.1 server that hands its handler the socket, for answers no well-behaved server would send.

It runs in a thread with a loop of its own, so that a test which blocks does not stop it.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

REASONS = {200: "OK", 400: "Bad Request", 429: "Too Many Requests", 500: "Internal Server Error"}


@dataclass
class Received:
    """One request as it came, and what became of the answer."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case; a repeated header keeps its last value."""
    body: bytes
    sent: bytearray = field(default_factory=bytearray)
    """The payload of the answer as sent so far, without HTTP framing."""
    events_sent: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when the client closed its side before the answer was complete."""
    done: threading.Event = field(default_factory=threading.Event)
    """Set when the handler has ended, whichever way."""


class Exchange:
    """One request and the means to answer it, properly or not."""

    def __init__(self, received: Received, writer: asyncio.StreamWriter) -> None:
        self.received = received
        self._writer = writer
        self.closing = False

    async def respond(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        await self._head(status, {"Content-Length": str(len(body)), **(headers or {})})
        self.received.sent += body
        await self._write(body)

    async def open_stream(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        await self._head(status, {"Transfer-Encoding": "chunked", **(headers or {})})

    async def send(self, payload: bytes) -> None:
        """Send one HTTP chunk; it counts as one event."""
        self.received.sent += payload
        await self._write(b"%x\r\n%s\r\n" % (len(payload), payload))
        self.received.events_sent += 1

    async def end_stream(self) -> None:
        await self._write(b"0\r\n\r\n")

    def cut(self) -> None:
        """End the connection with a FIN once what was written has gone out."""
        self.closing = True

    def reset(self) -> None:
        """End the connection with a RST, losing what the peer has not read."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        self.closing = True

    async def _head(self, status: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        await self._write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


Handler = Callable[[Exchange], Awaitable[None]]


class RawServer:
    """Serve `handler` on a free loopback port; usable as a context manager."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="raw-server", daemon=True)
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.received: list[Received] = []

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=2048)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            # A server that is being stopped cancels its connections; asyncio.streams would report that as an error.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                read_ahead: bytes | None = b""
                while read_ahead is not None:
                    read_ahead = await self._serve_one(reader, writer, read_ahead)
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve_one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, read_ahead: bytes
    ) -> bytes | None:
        """Answer the next request of a connection, of which `read_ahead` was read before.

        Returns what was read of the request after it, or None when the connection is to be closed.
        """
        received = await _read_request(reader, read_ahead)
        if received is None:
            return None
        self.received.append(received)
        exchange = Exchange(received, writer)
        answer = asyncio.ensure_future(self._handler(exchange))
        # Nobody pipelines here: what can be read before the answer is complete is the client going away.
        watch = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() or isinstance(answer.exception(), ConnectionError):
                received.cancelled.set()
                return None
            answer.result()
        finally:
            answer.cancel()
            watch.cancel()
            _, ahead = await asyncio.gather(answer, watch, return_exceptions=True)
            received.done.set()
        # A client may be quick enough to start its next request before the watch is over.
        return None if exchange.closing or ahead == b"" else ahead if isinstance(ahead, bytes) else b""


async def _read_request(reader: asyncio.StreamReader, read_ahead: bytes) -> Received | None:
    try:
        head = (read_ahead + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    request_line, *lines = head[:-4].split("\r\n")
    method, path, _ = request_line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "chunked" in headers.get("transfer-encoding", ""):
        body = await _read_chunked(reader)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return bytes(body)
