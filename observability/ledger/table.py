"""The ledger table: one row per call. Prompts and answers are not in it."""

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, MetaData, String, Table

from observability.columns import Money, UtcDateTime

metadata = MetaData()

ledger = Table(
    "ledger",
    metadata,
    Column("call_id", String(36), primary_key=True),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime, nullable=False),
    Column("principal", String(128), nullable=False),
    Column("auth_method", String(32), nullable=False),
    Column("model", String(200), nullable=False),
    Column("upstream", String(200), nullable=False),
    Column("upstream_model", String(200), nullable=False),
    Column("operation", String(32), nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("http_status", Integer, nullable=False),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("cached_input_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    Column("usage_source", String(16), nullable=False),
    Column("cost_usd", Money),
    Column("price_version", String(64), nullable=False),
    Column("ttft_ms", Float),
    Column("duration_ms", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("trace_id", String(32), nullable=False),
    Column("request_id", String(128), nullable=False),
    Index("ix_ledger_started_at", "started_at"),
    Index("ix_ledger_principal_started_at", "principal", "started_at"),
)
