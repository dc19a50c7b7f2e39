"""What is known of a call once it is over. Span, metrics, log line and ledger row are all read from it."""

from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a call ended: a closed set, the same word in all four books."""

    OK = "ok"
    CLIENT_DISCONNECT = "client_disconnect"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    REJECTED_LIMIT = "rejected_limit"
    REJECTED_BUDGET = "rejected_budget"
    REJECTED_INVALID = "rejected_invalid"
    REJECTED_AUTH = "rejected_auth"
    CANCELLED_SHUTDOWN = "cancelled_shutdown"
    WORKER_LOST = "worker_lost"


class UsageSource(StrEnum):
    """Who counted the tokens."""

    PROVIDER = "provider"  # the upstream said so
    PARTIAL = "partial"  # cut short: what was counted as it went by
    UNKNOWN = "unknown"  # nobody knows, and nothing is made up


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a call. None is "not known", which is not zero.

    Cached input is part of the input and reasoning is part of the output, as in OpenAI's usage object.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the books. The fields are the columns of the ledger."""

    call_id: str
    started_at: datetime
    ended_at: datetime
    principal: str  # "" when nobody was recognised
    auth_method: str
    model: str
    upstream: str  # "" when no upstream was asked
    upstream_model: str
    operation: str
    stream: bool
    outcome: Outcome
    http_status: int
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    reasoning_tokens: int | None
    usage_source: UsageSource
    cost_usd: Decimal | None
    price_version: str
    ttft_ms: float | None
    duration_ms: float
    attempts: int
    trace_id: str
    request_id: str

    def row(self) -> dict[str, Any]:
        """The ledger row."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
