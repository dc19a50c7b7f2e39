"""Every instrument of the service. Callers record verbs; nothing else touches an instrument.

Names and labels are a contract, documented in docs/telemetry.md; the `gen_ai_*` names and bucket boundaries are those
of the OpenTelemetry GenAI semantic conventions v1.41.1. Label values come from bounded sets: one that is full goes on
as `other`, and `tollbook_label_overflow_total` says so.
"""

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from observability.entry import Entry, UsageSource

DURATION_BUCKETS: Final = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
TOKEN_BUCKETS: Final = (
    1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
)  # fmt: skip
_OVERHEAD_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_LAG_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_GEN_AI_LABELS: Final = (
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_response_model",
    "error_type",
)
OTHER: Final = "other"


class BoundedLabel:
    """Lets the first `limit` values of a label through and folds the rest into `other`."""

    def __init__(self, name: str, limit: int, overflow: Counter, known: Iterable[str] = ()) -> None:
        self._seen = set(known)
        self._limit = max(limit, len(self._seen))
        self._overflow = overflow.labels(name)

    def __call__(self, value: str) -> str:
        if value in self._seen:
            return value
        if len(self._seen) < self._limit:
            self._seen.add(value)
            return value
        self._overflow.inc()
        return OTHER


class Metrics:
    """The instruments of one process. In a worker, their values live in the files of its slot."""

    def __init__(self, registry: CollectorRegistry, *, model_limit: int, principal_limit: int) -> None:
        """Register the instruments.

        Args:
            registry: where they are registered; one of its own for each app.
            model_limit: model names with a series of their own.
            principal_limit: principals with a series of their own.
        """
        self.registry = registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode="livesum")

        def histogram(name: str, text: str, labels: Iterable[str], buckets: Iterable[float]) -> Histogram:
            return Histogram(name, text, tuple(labels), registry=registry, buckets=tuple(buckets))

        self._duration = histogram(
            "gen_ai_client_operation_duration_seconds", "GenAI operation duration.", _GEN_AI_LABELS, DURATION_BUCKETS
        )
        self._token_usage = histogram(
            "gen_ai_client_token_usage",
            "Number of input and output tokens used.",
            (*_GEN_AI_LABELS, "gen_ai_token_type"),
            TOKEN_BUCKETS,
        )
        self._first_chunk = histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "Time to receive the first chunk of a stream.",
            _GEN_AI_LABELS,
            DURATION_BUCKETS,
        )
        self._chunk_gap = histogram(
            "gen_ai_client_operation_time_per_output_chunk_seconds",
            "Time from one chunk of a stream to the next.",
            _GEN_AI_LABELS,
            DURATION_BUCKETS,
        )
        self._overhead = histogram(
            "tollbook_overhead_seconds", "Time that we, not the upstream, spent.", ("stage",), _OVERHEAD_BUCKETS
        )
        self._loop_lag = histogram(
            "tollbook_event_loop_lag_seconds", "How late the event loop wakes a timer.", (), _LAG_BUCKETS
        )
        self._calls = counter("tollbook_calls_total", "Calls, by how they ended.", "model", "outcome")
        self._tokens = counter("tollbook_tokens_total", "Tokens, by who counted them.", "model", "type", "usage_source")
        self._cost = counter("tollbook_cost_usd_total", "Cost of calls with a known price and usage.", "model")
        self._in_flight = gauge("tollbook_calls_in_flight", "Calls open now.", "model")
        self._streams_in_flight = gauge("tollbook_streams_in_flight", "Streams open now.", "model")
        self._stalls = counter("tollbook_stream_stalls_total", "Gaps between chunks over the set limit.", "model")
        self._attempts = counter(
            "tollbook_upstream_attempts_total", "Requests sent to an upstream.", "upstream", "model", "result"
        )
        self._auth_events = counter(
            "tollbook_auth_events_total", "What happened at the door.", "event", "result", "reason"
        )
        self._principal_cost = counter("tollbook_principal_cost_usd_total", "Cost by principal.", "principal")
        self._principal_tokens = counter("tollbook_principal_tokens_total", "Tokens by principal.", "principal")
        self._restarts = counter("tollbook_worker_restarts_total", "Workers that took over a used slot.")
        self._overflow = counter(
            "tollbook_label_overflow_total", "Values folded into `other` because their label was full.", "label"
        )
        self._build = Gauge(
            "tollbook_build_info", "1, with the version.", ("version",), registry=registry, multiprocess_mode="max"
        )
        self._ledger_lag = Gauge(
            "tollbook_ledger_lag_seconds",
            "Age of the oldest closed call that is not in the ledger yet.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._ledger_pending = gauge("tollbook_ledger_pending_records", "Closed calls that are not in the ledger yet.")
        self.model_label = BoundedLabel("model", model_limit, self._overflow)
        self.principal_label = BoundedLabel("principal", principal_limit, self._overflow)

    def record_start(self, *, version: str, restarted: bool) -> None:
        """A worker begins."""
        self._build.labels(version).set(1)
        if restarted:
            self._restarts.inc()

    def record_call_opened(self, model: str, *, stream: bool) -> None:
        """A call is in flight. `model` is a bounded label already."""
        self._in_flight.labels(model).inc()
        if stream:
            self._streams_in_flight.labels(model).inc()

    def record_first_chunk(self, labels: tuple[str, ...], seconds: float) -> None:
        """The first chunk of a stream came. `labels`: the GenAI labels of the call."""
        self._first_chunk.labels(*labels).observe(seconds)

    def gap_recorder(self, labels: tuple[str, ...]) -> Callable[[float], None]:
        """Records the gaps between the chunks of one stream, in seconds. Looked up once: it is used at every chunk."""
        record: Callable[[float], None] = self._chunk_gap.labels(*labels).observe
        return record

    def record_stall(self, model: str) -> None:
        """A gap between two chunks was over the limit."""
        self._stalls.labels(model).inc()

    def record_attempt(self, upstream: str, model: str, result: str) -> None:
        """A request to an upstream is over."""
        self._attempts.labels(upstream, model, result).inc()

    def record_call_closed(self, entry: Entry, model: str, labels: tuple[str, ...]) -> None:
        """A call is over. `model` and `labels` are bounded."""
        self._in_flight.labels(model).dec()
        if entry.stream:
            self._streams_in_flight.labels(model).dec()
        self._calls.labels(model, entry.outcome).inc()
        if entry.upstream:
            self._duration.labels(*labels).observe(entry.duration_ms / 1000)
        self._record_tokens(entry, model, labels)
        if entry.cost_usd is not None:
            self._cost.labels(model).inc(float(entry.cost_usd))
        if entry.principal:
            self._record_principal(entry)

    def _record_tokens(self, entry: Entry, model: str, labels: tuple[str, ...]) -> None:
        counts = {
            "input": entry.input_tokens,
            "output": entry.output_tokens,
            "cached_input": entry.cached_input_tokens,
            "reasoning": entry.reasoning_tokens,
        }
        for kind, count in counts.items():
            if count is not None:
                self._tokens.labels(model, kind, entry.usage_source).inc(count)
        if entry.usage_source != UsageSource.PROVIDER:
            return
        # "Usage is billable tokens": only what the provider said goes into the convention's histogram.
        for kind in ("input", "output"):
            count = counts[kind]
            if count is not None:
                self._token_usage.labels(*labels, kind).observe(count)

    def _record_principal(self, entry: Entry) -> None:
        label = self.principal_label(entry.principal)
        self._principal_tokens.labels(label).inc((entry.input_tokens or 0) + (entry.output_tokens or 0))
        if entry.cost_usd is not None:
            self._principal_cost.labels(label).inc(float(entry.cost_usd))

    def record_overhead(self, stage: str, seconds: float) -> None:
        """Time that we spent on a request before or beside the upstream."""
        self._overhead.labels(stage).observe(seconds)

    def record_auth_event(self, event: str, result: str, reason: str) -> None:
        """Something happened at the door. All three are words of closed sets."""
        self._auth_events.labels(event, result, reason).inc()

    def record_loop_lag(self, seconds: float) -> None:
        """How much later than asked the event loop woke up."""
        self._loop_lag.observe(seconds)

    def record_ledger(self, *, pending: int, lag_seconds: float) -> None:
        """Where the ledger's writer stands."""
        self._ledger_pending.set(pending)
        self._ledger_lag.set(lag_seconds)
