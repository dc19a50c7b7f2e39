"""Calls as a client without an SDK makes them."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from tests.support.service import RunningService

CHAT = "/v1/chat/completions"


def body(model: str, marker: str, **fields: Any) -> dict[str, Any]:
    """The body of a chat completion; `marker` is the prompt."""
    return {"model": model, "messages": [{"role": "user", "content": marker}], **fields}


def headers(service: RunningService, marker: str) -> dict[str, str]:
    """A token, JSON, and `marker` as the request id."""
    return {
        "Authorization": f"Bearer {service.token()}",
        "Content-Type": "application/json",
        "X-Request-ID": marker,
    }


def chat(service: RunningService, model: str, marker: str, **fields: Any) -> httpx2.Response:
    """One chat completion over a connection of its own; of a stream, all of it."""
    return post(service, marker, json.dumps(body(model, marker, **fields)).encode())


def post(
    service: RunningService, marker: str, content: Any, path: str = CHAT, **overrides: str | None
) -> httpx2.Response:
    """POST `content` as it is. `overrides` are headers, `_` standing for `-`; None takes one away."""
    sent: dict[str, str | None] = {**headers(service, marker)}
    sent |= {name.replace("_", "-").title(): value for name, value in overrides.items()}
    kept = {name: value for name, value in sent.items() if value is not None}
    return httpx2.post(service.base_url + path, content=content, headers=kept, timeout=60)


@contextmanager
def open_call(service: RunningService, model: str, marker: str, **fields: Any) -> Iterator[socket.socket]:
    """A chat completion that was sent over a bare socket and not read yet; closed at the end, read or not."""
    content = json.dumps(body(model, marker, **fields)).encode()
    sent = {**headers(service, marker), "Host": "127.0.0.1", "Content-Length": str(len(content))}
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as sock:
        sock.sendall(f"POST {CHAT} HTTP/1.1\r\n{head}\r\n".encode() + content)
        yield sock


def read_until(sock: socket.socket, text: bytes, times: int = 1) -> bytes:
    """What was received up to the piece that holds the last of `times` occurrences of `text`."""
    received = b""
    while received.count(text) < times:
        piece = sock.recv(65536)
        if not piece:
            raise AssertionError(f"closed before {text!r} came: {received!r}")
        received += piece
    return received
