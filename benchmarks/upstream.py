"""A fast fake of an OpenAI-compatible upstream: `python -m benchmarks.upstream` writes its port and serves.

A plain answer is one write. The events of a stream are a write each, one turn of the event loop apart, so that streams
that are open together take turns as real ones do, at the highest pace this process can keep.
"""

import asyncio
import json
from collections import Counter
from typing import Any, Final

from benchmarks import wire
from benchmarks.server import Connection, run

SERVED: Final = b"/served"  # answers with how many calls were answered, by kind

_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_FRAMED: Final = tuple(b"%x\r\n%b\r\n" % (len(event), event) for event in wire.STREAM_EVENTS)
_END: Final = b"0\r\n\r\n"


class Upstream(Connection):
    """One connection; `served` is shared by all."""

    def __init__(self, served: Counter[str]) -> None:
        super().__init__()
        self._served = served
        self._loop = asyncio.get_running_loop()

    def answer(self, method: bytes, path: bytes, head: bytes, body: bytes) -> None:
        del head
        if path == SERVED:
            self.send(json.dumps(self._served).encode())
        elif (method, path) != (b"POST", wire.PATH.encode()):
            self.send(b"{}", status=b"404 Not Found")
        else:
            self._complete(json.loads(body))

    def _complete(self, asked: dict[str, Any]) -> None:
        mark = asked["messages"][-1]["content"].encode()
        if asked.get("stream"):
            self._served["streams"] += 1
            self._write_event(mark, 0)
        else:
            self._served["calls"] += 1
            self.send(wire.filled(wire.ANSWERS[False], mark))

    def _write_event(self, mark: bytes, number: int) -> None:
        if self.transport.is_closing():
            return
        event = wire.filled(_FRAMED[number], mark)
        if number == 0:
            event = _STREAM_HEAD + event
        if number == len(_FRAMED) - 1:
            self.transport.write(event + _END)
        else:
            self.transport.write(event)
            self._loop.call_soon(self._write_event, mark, number + 1)


def main() -> None:
    served: Counter[str] = Counter()
    run(lambda: Upstream(served))


if __name__ == "__main__":
    main()
