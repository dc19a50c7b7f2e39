"""The ledger table: one row per call. Prompts and answers are not in it."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Boolean, Column, DateTime, Dialect, Float, Index, Integer, MetaData, Numeric, String, Table
from sqlalchemy.sql.type_api import TypeEngine
from sqlalchemy.types import BigInteger, TypeDecorator

metadata = MetaData()

COST_DIGITS: Final = 10  # after the point: a price of 0.0001 USD per million tokens is exact for one token


class UtcDateTime(TypeDecorator[datetime]):
    """An instant. SQLite keeps no zone, so the value is stored in UTC and read back as UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database."""
        del dialect
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Money(TypeDecorator[Decimal]):
    """US dollars, exact. SQLite has no decimals and would sum floats: there it is a whole number of 1e-10 dollars."""

    impl = Numeric(20, COST_DIGITS)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column type of this database."""
        return dialect.type_descriptor(BigInteger() if dialect.name == "sqlite" else Numeric(20, COST_DIGITS))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Decimal | int | None:
        """To the database."""
        if value is None or dialect.name != "sqlite":
            return value
        return int(value.scaleb(COST_DIGITS).to_integral_value())

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """From the database."""
        if value is None:
            return None
        return Decimal(value).scaleb(-COST_DIGITS) if dialect.name == "sqlite" else Decimal(value)


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
