"""Column types that mean the same in SQLite and in PostgreSQL. The lowest room has them, so that every table can."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import DateTime, Dialect, Numeric
from sqlalchemy.sql.type_api import TypeEngine
from sqlalchemy.types import BigInteger, TypeDecorator

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
