"""What the tests of this room share: four books in memory, an entry to change, and a pipeline to read back."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry

from observability.context import RequestContext
from observability.entry import Entry, Outcome, UsageSource
from observability.genai import Books, Call, Caller, Target
from observability.metrics import Metrics
from tests.support.waiting import eventually

T = TypeVar("T")
MODEL = "small"
UPSTREAM = "scripted"
PRINCIPAL = "ada"
STALL_SECONDS = 5.0


@dataclass
class Desk:
    """One worker's books, where a test can read all four."""

    model_limit: int = 10
    principal_limit: int = 10
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    entries: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("test")
        metrics = Metrics(self.registry, model_limit=self.model_limit, principal_limit=self.principal_limit)
        self.books = Books(
            tracer=self.tracer, metrics=metrics, enqueue=self.entries.append, stall_seconds=STALL_SECONDS
        )
        self.request = RequestContext("request-1")

    def open_call(
        self, *, stream: bool = True, model: str = MODEL, principal: str = PRINCIPAL, cost: str | None = None
    ) -> Call:
        price = None if cost is None else Decimal(cost)
        target = Target(
            model=model,
            upstream=UPSTREAM,
            upstream_model=f"{model}-1",
            provider="openai",
            cost=lambda _usage: price,
            price_version="2026-01",
        )
        return self.books.open_call(
            self.request, Caller(principal, "password"), target, operation="chat", stream=stream
        )

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every sample of every metric."""
        found = (sample for family in self.registry.collect() for sample in family.samples)
        return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples called `name` that have all of `labels`."""
        wanted = labels.items()
        return sum(value for (found, has), value in self.samples().items() if found == name and wanted <= has)

    def spans(self, kind: SpanKind) -> list[ReadableSpan]:
        """What was exported: INTERNAL are calls, CLIENT are attempts."""
        return [span for span in self.exporter.get_finished_spans() if span.kind is kind]

    def call_span(self) -> ReadableSpan:
        """The span of the one call."""
        (span,) = self.spans(SpanKind.INTERNAL)
        return span


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    """A span's attributes, never None."""
    return span.attributes or {}


def attempt(call: Call) -> Any:
    """A request to the upstream begins."""
    return call.begin_attempt(method="POST", path="/v1/chat/completions", host="127.0.0.1", port=8080)


_ENTRY = Entry(
    call_id="00000000-0000-7000-8000-000000000000",
    started_at=datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC),
    ended_at=datetime(2026, 3, 1, 12, 0, 1, tzinfo=UTC),
    principal=PRINCIPAL,
    auth_method="password",
    model=MODEL,
    upstream=UPSTREAM,
    upstream_model="small-1",
    operation="chat",
    stream=False,
    outcome=Outcome.OK,
    http_status=200,
    input_tokens=7,
    output_tokens=5,
    cached_input_tokens=None,
    reasoning_tokens=None,
    usage_source=UsageSource.PROVIDER,
    cost_usd=Decimal("0.0000000001"),
    price_version="2026-01",
    ttft_ms=None,
    duration_ms=1000.0,
    attempts=1,
    trace_id="0" * 31 + "1",
    request_id="request-1",
)


def entry(number: int = 0, **changes: Any) -> Entry:
    """A closed call; `number` makes its id, in which order they sort."""
    values = {name: getattr(_ENTRY, name) for name in _ENTRY.__slots__}
    return Entry(**{**values, "call_id": f"00000000-0000-7000-8000-{number:012x}", **changes})


async def until(probe: Callable[[], T], what: str) -> T:
    """As `eventually`, with the loop running on."""
    return await asyncio.to_thread(eventually, probe, what)


def json_lines(text: str) -> list[dict[str, Any]]:
    """Each line as the JSON object that it must be."""
    return [json.loads(line) for line in text.split("\n") if line]
