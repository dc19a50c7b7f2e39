"""One request to an upstream: a CLIENT span of its own below the call's span, and a count."""

from enum import StrEnum

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.semconv.attributes import error_attributes, http_attributes, server_attributes, url_attributes
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

HTTP_TOO_MANY_REQUESTS = 429
HTTP_SERVER_ERROR = 500
HTTP_CLIENT_ERROR = 400


class AttemptResult(StrEnum):
    """How an attempt ended: the closed set of the label `result`."""

    OK = "ok"
    CLIENT_ERROR = "client_error"  # 4xx but 429
    RATE_LIMITED = "rate_limited"  # 429
    SERVER_ERROR = "server_error"  # 5xx, or an answer that makes no sense
    TIMEOUT = "timeout"
    CONNECTION_ERROR = "connection_error"
    TRUNCATED = "truncated"
    CANCELLED = "cancelled"

    @classmethod
    def of_status(cls, status: int) -> "AttemptResult":
        """The result that an HTTP status means."""
        if status == HTTP_TOO_MANY_REQUESTS:
            return cls.RATE_LIMITED
        if status >= HTTP_SERVER_ERROR:
            return cls.SERVER_ERROR
        return cls.CLIENT_ERROR if status >= HTTP_CLIENT_ERROR else cls.OK


class Attempt:
    """A request that was sent. The first `end` counts."""

    def __init__(
        self, tracer: Tracer, parent: Span, *, method: str, path: str, host: str, port: int, number: int
    ) -> None:
        # An empty context, so that baggage a client sent us is not passed on to the upstream.
        context = set_span_in_context(parent, Context())
        attributes: dict[str, str | int] = {
            http_attributes.HTTP_REQUEST_METHOD: method,
            server_attributes.SERVER_ADDRESS: host,
            server_attributes.SERVER_PORT: port,
            url_attributes.URL_PATH: path,
        }
        if number:
            attributes[http_attributes.HTTP_REQUEST_RESEND_COUNT] = number
        self._span = tracer.start_span(f"{method} {path}", context, SpanKind.CLIENT, attributes)
        self._result: AttemptResult | None = None
        self.headers: dict[str, str] = {}
        propagate.inject(self.headers, set_span_in_context(self._span, Context()))

    @property
    def result(self) -> AttemptResult:
        """How it ended; OK while it is open."""
        return self._result or AttemptResult.OK

    def answered(self, status: int) -> None:
        """The head of the answer came. An error ends the attempt; else the body is still to come."""
        self._span.set_attribute(http_attributes.HTTP_RESPONSE_STATUS_CODE, status)
        result = AttemptResult.of_status(status)
        if result is not AttemptResult.OK:
            self.end(result, error_type=str(status))

    def end(self, result: AttemptResult, error_type: str = "") -> None:
        """The attempt is over."""
        if self._result is not None:
            return
        self._result = result
        if result is not AttemptResult.OK:
            self._span.set_attribute(error_attributes.ERROR_TYPE, error_type or result)
            if result is not AttemptResult.CANCELLED:
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
