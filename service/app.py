"""Puts the service together. Read this first: everything that exists at run time is made here and handed down."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.semconv.attributes.url_attributes import URL_QUERY
from opentelemetry.trace import Span
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope

from auth.metadata import router as metadata_router
from auth.router import router as auth_router
from observability import multiprocess
from observability.logging import configure_logging
from observability.metrics import Metrics
from observability.middleware import RequestMiddleware
from observability.tracing import Tracing
from service import health
from service.api import admin, chat, generate, metrics_route, models, usage
from service.errors import UnexpectedErrorMiddleware, add_error_handlers
from service.http import (
    OPERATIONAL_PATHS,
    AllowedHostsMiddleware,
    BodyLimitsMiddleware,
    SecurityHeadersMiddleware,
    TurnstileMiddleware,
)
from service.openapi import add_body_schemas
from service.settings import Settings
from service.state import State
from service.worker_state import worker_state

_DESCRIPTION = "An LLM service where every call is on the books."
# FastAPI has telemetry of its own, on by default. The spans are ours: two of each would be wrong, and cost time.
_NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}
# Matched against scheme, Host header and path: the path is the end of it, whatever a client wrote into the header.
_UNTRACED = f"^[a-z]+://[^/?#]*({'|'.join(OPERATIONAL_PATHS)})$"


def create_app(settings: Settings) -> FastAPI:
    """The application of one worker. Nothing is opened or started before its lifespan begins."""
    configure_logging(settings.observability.log_format, settings.observability.log_level)
    release = version("tollbook")
    watch = settings.observability
    registry = CollectorRegistry()
    metrics = Metrics(registry, model_limit=watch.model_label_limit, principal_limit=watch.principal_label_limit)
    metrics.record_start(version=release, restarted=multiprocess.is_successor())
    tracing = Tracing(enabled=watch.tracing_enabled, version=release, trust_clients=watch.trust_traceparent)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        async with worker_state(settings, metrics, tracing) as state:
            yield state

    app: FastAPI = FastAPIOffline(
        title="Tollbook",
        description=_DESCRIPTION,
        version=release,
        lifespan=lifespan,
        middleware=_middleware(settings, registry),
        telemetry=_NO_TELEMETRY,
        swagger_ui_init_oauth={"scopes": "llm usage:read"},
    )
    add_error_handlers(app)
    add_body_schemas(app, chat.ChatCompletionRequest, generate.Question, *admin.bodies)
    for room in (
        auth_router,
        metadata_router,
        chat.router,
        generate.router,
        models.router,
        usage.router,
        *admin.routers,
        health.router,
    ):
        app.include_router(room)
    if watch.metrics_enabled:
        app.include_router(metrics_route.make_router(registry))
    if watch.tracing_enabled:
        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=tracing.provider,
            excluded_urls=_UNTRACED,
            exclude_spans=["receive", "send"],
            server_request_hook=_hide_query,
        )
    return app


def _hide_query(span: Span, scope: Scope) -> None:
    """A client that puts a token or a password into the address is refused; it is not written down either."""
    if scope.get("query_string") and span.is_recording():
        span.set_attribute(URL_QUERY, "REDACTED")


def _middleware(settings: Settings, registry: CollectorRegistry) -> list[Middleware]:
    """From the outermost in."""
    http = settings.http
    found = [
        Middleware(RequestMiddleware),
        Middleware(TurnstileMiddleware, path="/token"),
        Middleware(SecurityHeadersMiddleware, hsts_seconds=http.hsts_seconds),
    ]
    if settings.observability.metrics_enabled:
        found.append(
            Middleware(
                PrometheusInstrumentatorMiddleware,
                registry=registry,
                should_group_status_codes=False,
                excluded_handlers=[f"^{path}$" for path in OPERATIONAL_PATHS],
            )
        )
    if http.allowed_hosts != ["*"]:
        found.append(Middleware(AllowedHostsMiddleware, allowed_hosts=http.allowed_hosts))
    if http.cors_origins:
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=http.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type", "X-Request-ID", "traceparent"],
                expose_headers=["X-Request-ID", "X-Process-Time", "Server-Timing", "X-Tollbook-Call-Id"],
            )
        )
    body = Middleware(BodyLimitsMiddleware, max_bytes=http.max_body_bytes, timeout_seconds=http.body_timeout_seconds)
    return [*found, Middleware(UnexpectedErrorMiddleware), body]
