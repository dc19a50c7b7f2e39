"""Opens what one worker needs, in order, and closes it in the reverse order."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from sqlalchemy import text

from observability.genai import Books
from observability.ledger.clerk import Clerk
from observability.ledger.query import LedgerReader
from observability.logging import get_logger
from observability.metrics import Metrics
from observability.tracing import Tracing
from service.authorization import authorization
from service.bootstrap import keep_trying, load_catalog
from service.database import make_engine
from service.health import Health
from service.llm.client import Upstreams
from service.llm.relay import Relay
from service.settings import Settings
from service.state import Llm, State

log = get_logger("service.worker")

_FLUSH_SECONDS: Final = 5.0  # at the end, for the ledger and for the spans each
_LAG_INTERVAL_SECONDS: Final = 0.5
_GC_THRESHOLD: Final = 10_000  # allocations between two looks at the youngest; Python's own is 700


@asynccontextmanager
async def worker_state(settings: Settings, metrics: Metrics, tracing: Tracing) -> AsyncIterator[State]:
    """The lifespan of a worker. At its end the server has closed the open calls: their entries are flushed here."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(tracing.shutdown, _FLUSH_SECONDS)
        engine = make_engine(settings.effective_database_url)
        stack.push_async_callback(engine.dispose)

        auth = await stack.enter_async_context(authorization(settings, engine, metrics.record_auth_event))

        clerk = Clerk(engine, metrics.record_ledger)
        clerk.start()
        stack.push_async_callback(clerk.stop, _FLUSH_SECONDS)

        upstreams = Upstreams()
        stack.push_async_callback(upstreams.close)
        books = Books(
            tracer=tracing.tracer("tollbook"),
            metrics=metrics,
            enqueue=clerk.enqueue,
            stall_seconds=settings.observability.stream_stall_seconds,
        )
        relay = Relay(upstreams, limit_seconds=settings.http.request_timeout_seconds)
        stack.push_async_callback(books.wait_until_closed, _FLUSH_SECONDS)

        async def check_database() -> None:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))

        health = Health(check_database, settings.drain_file)
        health.start()
        stack.push_async_callback(health.stop)

        for background in (keep_trying(settings, engine), _watch_loop(metrics)):
            task = asyncio.create_task(background)
            stack.push_async_callback(_cancel, task)
        _freeze_garbage()
        log.info("worker_started")
        yield State(
            auth=auth,
            llm=Llm(catalog=load_catalog(settings), relay=relay, books=books),
            ledger=LedgerReader(engine),
            health=health,
        )
        log.info("worker_stopping", open_calls=books.open_calls)


def _freeze_garbage() -> None:
    """What was imported and built by now lives as long as the worker: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _watch_loop(metrics: Metrics) -> None:
    """How late the loop wakes us is how long something held it."""
    while True:
        due = time.perf_counter() + _LAG_INTERVAL_SECONDS
        await asyncio.sleep(_LAG_INTERVAL_SECONDS)
        metrics.record_loop_lag(max(0.0, time.perf_counter() - due))
