"""What a client without a token may do to a connection: heads without an end, and requests ahead of their turn."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from uvicorn.server import ServerState

from service import protocol
from tests.support.calls import CHAT, body, headers
from tests.support.service import RunningService

MIB = 2**20
GIVE_UP_BYTES = 48 * MIB
"""Much more than the sockets of a closed connection have taken by then."""
GROWTH_MIB = 24
OPENING = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"POST /token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
FLOODS = {
    "headers": (OPENING, b"a:b\r\n" * 13000),
    "a header": (OPENING + b"X-A: ", b"a" * 65536),
    "a path": (b"GET /", b"a" * 65536),
    "trailers": (CHUNKED + b"0\r\n", b"a:b\r\n" * 13000),
    "a chunk's extension": (CHUNKED + b"1;", b"a" * 65536),
}
DEADLINE_SECONDS = 20


def peak_mib(pid: int) -> int:
    """The most memory that a process has had so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def sent_until_closed(service: RunningService, opening: bytes, piece: bytes) -> int:
    """How many bytes were sent when the connection was closed on us, or when we gave up."""
    sent = 0
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as sock:
        try:
            sock.sendall(opening)
            while sent < GIVE_UP_BYTES:
                sock.sendall(piece)
                sent += len(piece)
        except ConnectionError:
            pass
    return sent


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_before_a_request_is_whole_is_cut_off_and_costs_no_memory(service, name):
    before = {pid: peak_mib(pid) for pid in service.children()}
    assert sent_until_closed(service, *FLOODS[name]) < GIVE_UP_BYTES
    grown = {pid: peak_mib(pid) - peak for pid, peak in before.items()}
    assert max(grown.values()) < GROWTH_MIB


@pytest.mark.parametrize("path", ["/livez", CHAT])
def test_a_head_that_is_too_large_is_told_so(service, path):
    """Just over the limit, so that all of it is read before the connection closes and the answer is not lost."""
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nX-A: {'a' * protocol.MAX_HEAD_BYTES}".encode()
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as sock:
        sock.sendall(head)
        received = b""
        while piece := sock.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 431 ")


def test_a_large_head_within_the_limit_is_served(service):
    """A browser's cookies may take tens of kilobytes."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as sock:
        sock.sendall(OPENING + b"Cookie: " + b"a" * 48 * 1024 + b"\r\nConnection: close\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """A server of this process that has little patience with a head."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    config = uvicorn.Config(PlainTextResponse("here"), http=protocol.LimitedHttpProtocol, log_config=None)
    config.load()
    made = partial(protocol.LimitedHttpProtocol, config=config, server_state=ServerState(), app_state={})
    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("served_before", [0, 1])
@pytest.mark.parametrize("begun", [b"G", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_a_head_that_does_not_end_is_not_waited_for(port, served_before, begun):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(DEADLINE_SECONDS):
        for _ in range(served_before):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"here")).startswith(b"HTTP/1.1 200 ")
        writer.write(begun)
        assert await reader.read() == b""
    writer.close()


async def test_a_head_that_drips_is_not_waited_for_either(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nX-A: ")

    async def drip() -> None:
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.02)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(drip(), DEADLINE_SECONDS)
    assert reader.at_eof() or reader.exception()
    writer.close()


async def test_a_connection_that_says_nothing_is_closed(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await reader.read() == b""
    writer.close()


def raw_call(service: RunningService, model: str, marker: str) -> bytes:
    """A chat completion, to be sent with what follows it."""
    content = json.dumps(body(model, marker)).encode()
    sent = {**headers(service, marker), "Host": "127.0.0.1", "Content-Length": str(len(content))}
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"POST {CHAT} HTTP/1.1\r\n{head}\r\n".encode() + content


def test_a_client_that_pipelines_and_goes_is_noticed(service, upstream, books, marker):
    """While a request waited for its turn, nothing more would be read: neither would the end of the connection."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as sock:
        sock.sendall(raw_call(service, "silent", marker) + raw_call(service, "silent", f"{marker}-second"))
        received = upstream.wait_request(f'"{marker}"')
    assert received.cancelled.wait(DEADLINE_SECONDS)
    assert books.record(marker).outcome == "client_disconnect"


def test_of_pipelined_requests_the_first_is_answered(service, marker):
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as sock:
        sock.sendall(raw_call(service, "ok", marker) + OPENING + b"\r\n")
        received = b""
        while piece := sock.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"chatcmpl-scripted" in received
    assert received.count(b"HTTP/1.1 ") == 1
