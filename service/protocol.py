"""What Uvicorn's HTTP protocol leaves open to a client without a token: how large a request's head may be, how long it
may take, and requests sent ahead of their turn.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024
HEAD_SECONDS: Final = 30.0

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"  # RFC 6585 §5
)


class LimitedHttpProtocol(HttpToolsProtocol):
    """Bounds what has come and has led to nothing yet: a head, or trailers.

    A pipelined request (RFC 9112 §9.3.2) is not taken: while it waited, nothing more would be read, so that a client's
    leaving would go unnoticed. The connection closes after the answer before it, as the RFC allows.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pending = 0  # bytes since the last head, piece of body, or end of a message
        self._ahead = False  # a request came before its turn: nothing that follows is looked at
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the base class
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ahead or self.transport.is_closing():
            return
        self._pending += len(data)
        super().data_received(data)
        if self._pending > MAX_HEAD_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._ahead = True
            self.cycle.keep_alive = False
            return
        if self._head_timer is None:
            self._await_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._ahead:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._ahead:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._ahead:
            self._pending = 0
            self._head_came()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._ahead:
            self._pending = 0
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._ahead:
            self._pending = 0
            super().on_message_complete()
