"""How this room reaches its tables: bounded in time, with one exception for all the ways a database can be away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from auth.audit import AuditRecord, log_record, write_record


class DatabaseUnavailable(Exception):  # noqa: N818  # a state, not a fault
    """The database did not answer, or not in time."""


class Database:
    """Gives out transactions.

    Args:
        engine: sqlite+aiosqlite or postgresql+asyncpg.
        timeout_seconds: how long a database that does not answer is waited for.
    """

    def __init__(self, engine: AsyncEngine, *, timeout_seconds: float = 5.0) -> None:
        self._engine = engine
        self._timeout_seconds = timeout_seconds

    @asynccontextmanager
    async def transaction(self, audit: AuditRecord | None = None) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at the end of the block. The audit record is in it: there is no change without it.

        Raises:
            DatabaseUnavailable: nothing was stored. IntegrityError passes, and is the caller's to name.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds), self._engine.begin() as connection:
                yield connection
                if audit is not None:
                    await write_record(connection, audit)
        except (IntegrityError, DataError):  # the latter is a mistake of ours, and not a state of the database
            raise
        except (DBAPIError, PoolTimeoutError, OSError) as error:  # OSError: no route, no socket, or our timeout
            raise DatabaseUnavailable(type(error).__name__) from error
        if audit is not None:
            log_record(audit)
