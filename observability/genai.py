"""One object per LLM call. It owns the span, the metrics, the log fields and the ledger entry, so they cannot disagree.

A call is opened before the upstream is asked and closed once: the first `close` counts, later ones do nothing.
Span and attribute names: OpenTelemetry GenAI semantic conventions v1.41.1.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from observability.attempt import Attempt, AttemptResult
from observability.context import RequestContext
from observability.entry import Entry, Outcome, Usage, UsageSource
from observability.ids import time_ordered_id
from observability.metrics import Metrics

UNKNOWN_MODEL: Final = "unknown"  # the client named none that we serve

_ATTEMPT_RESULT = {
    Outcome.OK: AttemptResult.OK,
    Outcome.CLIENT_DISCONNECT: AttemptResult.CANCELLED,
    Outcome.CANCELLED_SHUTDOWN: AttemptResult.CANCELLED,
    Outcome.UPSTREAM_TIMEOUT: AttemptResult.TIMEOUT,
    Outcome.UPSTREAM_TRUNCATED: AttemptResult.TRUNCATED,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: what the books need to know of a principal."""

    principal: str = ""
    auth_method: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a call goes, and how its cost is reckoned."""

    model: str  # the name that clients use
    upstream: str  # a short name of the upstream: a metric label
    upstream_model: str
    provider: str  # gen_ai.provider.name
    cost: Callable[[Usage], Decimal | None] = lambda _usage: None
    price_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Where calls are recorded. One for each worker."""

    tracer: Tracer
    metrics: Metrics
    enqueue: Callable[[Entry], None]  # takes an entry for the ledger; never blocks
    stall_seconds: float
    _open: set["Call"] = field(default_factory=set)

    @property
    def open_calls(self) -> int:
        """Calls that are not closed yet."""
        return len(self._open)

    async def wait_until_closed(self, timeout_seconds: float) -> None:
        """At shutdown the server cancels requests but does not wait for them: give each its moment to be closed."""
        waiting = [asyncio.create_task(call.closed.wait()) for call in self._open]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def open_call(
        self, request: RequestContext, caller: Caller, target: Target, *, operation: str, stream: bool
    ) -> "Call":
        """A call that is about to go to its upstream."""
        return Call(self, request, caller, target, operation=operation, stream=stream)

    def refuse_call(
        self,
        request: RequestContext,
        caller: Caller,
        outcome: Outcome,
        *,
        operation: str,
        http_status: int,
        model: str = UNKNOWN_MODEL,
        stream: bool = False,
    ) -> "Call":
        """A call that is refused before any upstream is asked: in the books all the same."""
        target = Target(model=model, upstream="", upstream_model="", provider="")
        call = Call(self, request, caller, target, operation=operation, stream=stream)
        call.close(outcome, http_status=http_status)
        return call


class Call:
    """One LLM call, from the moment it is accepted to the moment it is over."""

    def __init__(
        self, books: Books, request: RequestContext, caller: Caller, target: Target, *, operation: str, stream: bool
    ) -> None:
        self.call_id = time_ordered_id()
        self.target = target
        self.stream = stream
        self.operation = operation
        self.chunks = 0
        self.deltas = 0  # chunks that carried output, for the partial count of a stream that is cut short
        self.usage: Usage | None = None
        self.response_model = ""
        self._response_label = ""
        self.finish_reasons: tuple[str, ...] = ()
        self.closed = asyncio.Event()
        self._books = books
        self._request = request
        self._caller = caller
        self._started_at = datetime.now(UTC)
        self._t0 = time.perf_counter()
        self._first_chunk: float | None = None
        self._last_chunk = 0.0
        self._attempts: list[Attempt] = []
        self._model = books.metrics.model_label(target.model)
        self._span = self._start_span()
        self._record_gap: Callable[[float], None] | None = None
        books.metrics.record_call_opened(self._model, stream=stream)
        books._open.add(self)  # noqa: SLF001 - the two are one thing
        request.fields["call_id"] = self.call_id
        self._record_overhead()

    def _start_span(self) -> Span:
        attributes: dict[str, str | bool | int | float] = {
            gen_ai.GEN_AI_OPERATION_NAME: self.operation,
            gen_ai.GEN_AI_REQUEST_MODEL: self.target.model,
            gen_ai.GEN_AI_REQUEST_STREAM: self.stream,
            "tollbook.call_id": self.call_id,
            "tollbook.request_id": self._request.request_id,
        }
        if self.target.provider:
            attributes[gen_ai.GEN_AI_PROVIDER_NAME] = self.target.provider
        if self._caller.principal:
            attributes["enduser.id"] = self._caller.principal
        name = f"{self.operation} {self.target.model}"
        return self._books.tracer.start_span(name, kind=SpanKind.INTERNAL, attributes=attributes)

    def _record_overhead(self) -> None:
        """What we took until now, by stage; `route` is what no stage of its own accounts for."""
        stages = self._request.timings
        for stage, seconds in stages.items():
            self._books.metrics.record_overhead(stage, seconds)
        self._books.metrics.record_overhead("route", self._t0 - self._request.started - sum(stages.values()))

    def note_upstream_wait(self) -> None:
        """What the client waits for is here: the head of a stream, or a whole answer. Goes into Server-Timing."""
        self._request.timings["upstream"] = time.perf_counter() - self._t0

    def begin_attempt(self, *, method: str, path: str, host: str, port: int) -> Attempt:
        """A request to the upstream is about to be sent. Its `headers` carry the trace on."""
        attempt = Attempt(
            self._books.tracer, self._span, method=method, path=path, host=host, port=port, number=len(self._attempts)
        )
        self._attempts.append(attempt)
        return attempt

    def record_chunks(self, count: int, deltas: int) -> None:
        """Events of the answer's stream have come.

        Args:
            count: events in what was just read; they came together.
            deltas: how many of them carried output.
        """
        now = time.perf_counter()
        self.chunks += count
        self.deltas += deltas
        record_gap = self._record_gap
        if record_gap is None:
            self._first_chunk = now - self._t0
            self._books.metrics.record_first_chunk(self._labels(""), self._first_chunk)
            record_gap = self._record_gap = self._books.metrics.gap_recorder(self._labels(""))
        else:
            gap = now - self._last_chunk
            record_gap(gap)
            if gap > self._books.stall_seconds:
                self._books.metrics.record_stall(self._model)
        for _ in range(count - 1):
            record_gap(0.0)
        self._last_chunk = now

    @property
    def is_closed(self) -> bool:
        """Whether the call is in the books already."""
        return self.closed.is_set()

    def close(self, outcome: Outcome, *, http_status: int, error_type: str = "") -> None:
        """The one finaliser. Ends the spans, records the metrics, fills the log line, writes the ledger entry.

        Args:
            outcome: how the call ended.
            http_status: what the client was answered; 499 when it had gone before any answer.
            error_type: a word of a closed set, `error.type`; the outcome when there is nothing better.
        """
        if self.is_closed:
            return
        self.closed.set()
        self._books._open.discard(self)  # noqa: SLF001
        error_type = "" if outcome is Outcome.OK else error_type or outcome
        entry = self._entry(outcome, http_status)
        self._end_spans(entry, error_type)
        self._books.metrics.record_call_closed(entry, self._model, self._labels(error_type))
        self._fill_log_line(entry)
        self._books.enqueue(entry)

    def _labels(self, error_type: str) -> tuple[str, ...]:
        if self.response_model and not self._response_label:  # asked once: a label that is full counts each asking
            self._response_label = self._books.metrics.model_label(self.response_model)
        return (self.operation, self.target.provider, self._model, self._response_label, error_type)

    def _entry(self, outcome: Outcome, http_status: int) -> Entry:
        usage, source = self._settled_usage(outcome)
        # From the monotonic clock: a wall clock that is stepped back cannot end a call before it began.
        elapsed = time.perf_counter() - self._t0
        cost = self.target.cost(usage) if source is UsageSource.PROVIDER else None
        context = self._span.get_span_context()
        return Entry(
            call_id=self.call_id,
            started_at=self._started_at,
            ended_at=self._started_at + timedelta(seconds=elapsed),
            principal=self._caller.principal,
            auth_method=self._caller.auth_method,
            model=self.target.model,
            upstream=self.target.upstream,
            upstream_model=self.target.upstream_model,
            operation=self.operation,
            stream=self.stream,
            outcome=outcome,
            http_status=http_status,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_input_tokens=usage.cached_input_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            usage_source=source,
            cost_usd=cost,
            price_version=self.target.price_version if cost is not None else "",
            ttft_ms=None if self._first_chunk is None else round(self._first_chunk * 1000, 3),
            duration_ms=round(elapsed * 1000, 3),
            attempts=len(self._attempts),
            trace_id=f"{context.trace_id:032x}" if context.is_valid else "",
            request_id=self._request.request_id,
        )

    def _settled_usage(self, outcome: Outcome) -> tuple[Usage, UsageSource]:
        if self.usage is not None:
            return self.usage, UsageSource.PROVIDER
        if self.deltas and outcome is not Outcome.OK:
            return Usage(output_tokens=self.deltas), UsageSource.PARTIAL
        return Usage(), UsageSource.UNKNOWN

    def _end_spans(self, entry: Entry, error_type: str) -> None:
        result = _ATTEMPT_RESULT.get(entry.outcome, AttemptResult.SERVER_ERROR)
        for attempt in self._attempts:
            attempt.end(result)  # only the last can still be open
            self._books.metrics.record_attempt(self.target.upstream, self._model, attempt.result)
        span = self._span
        if span.is_recording():
            span.set_attributes(
                {key: value for key, value in self._closing_attributes(entry).items() if value is not None}
            )
            if error_type:
                span.set_attribute(error_attributes.ERROR_TYPE, error_type)
                if entry.outcome is not Outcome.CLIENT_DISCONNECT:
                    span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _closing_attributes(self, entry: Entry) -> dict[str, str | int | float | tuple[str, ...] | None]:
        return {
            "tollbook.outcome": entry.outcome,
            "tollbook.usage_source": entry.usage_source,
            "tollbook.upstream": entry.upstream or None,
            gen_ai.GEN_AI_RESPONSE_MODEL: self.response_model or None,
            gen_ai.GEN_AI_RESPONSE_FINISH_REASONS: self.finish_reasons or None,
            gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: self._first_chunk,
            gen_ai.GEN_AI_USAGE_INPUT_TOKENS: entry.input_tokens,
            gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: entry.output_tokens,
            gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: entry.cached_input_tokens,
            gen_ai.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: entry.reasoning_tokens,
        }

    def _fill_log_line(self, entry: Entry) -> None:
        self._request.fields.update(
            call_id=entry.call_id,
            model=entry.model,
            upstream=entry.upstream,
            outcome=entry.outcome,
            input_tokens=entry.input_tokens,
            output_tokens=entry.output_tokens,
            usage_source=entry.usage_source,
            cost_usd=None if entry.cost_usd is None else f"{entry.cost_usd:f}",
            ttft_ms=entry.ttft_ms,
            chunks=self.chunks,
            attempts=entry.attempts,
        )
