"""A receiver of OTLP traces over HTTP that counts spans by name: `python -m benchmarks.collector` writes its port."""

import gzip
import json
from collections import Counter
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.server import Connection, run

SPANS: Final = b"/spans"  # answers with how many spans came, by name


class Collector(Connection):
    """One connection; `spans` is shared by all."""

    def __init__(self, spans: Counter[str]) -> None:
        super().__init__()
        self._spans = spans

    def answer(self, method: bytes, path: bytes, head: bytes, body: bytes) -> None:
        del method
        if path == SPANS:
            self.send(json.dumps(self._spans).encode())
            return
        if b"content-encoding: gzip" in head.lower():
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        self._spans.update(
            span.name for group in request.resource_spans for scoped in group.scope_spans for span in scoped.spans
        )
        self.send(b"", b"application/x-protobuf")


def main() -> None:
    spans: Counter[str] = Counter()
    run(lambda: Collector(spans))


if __name__ == "__main__":
    main()
