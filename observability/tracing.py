"""OpenTelemetry tracing: the provider of one worker. Build it after fork, because its exporter runs a thread.

Configured by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, ...).
Without an endpoint spans are not recorded, but trace ids still exist, so log lines of one request can be found.
"""

import asyncio
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider, Tracer
from opentelemetry.trace import TracerProvider as TracerProviderApi

from observability.logging import get_logger

log = get_logger("observability.tracing")

_PROTOCOL: Final = "http/protobuf"


def exports(environ: Mapping[str, str]) -> bool:
    """Whether the environment says where spans go."""
    if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return False
    return bool(environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


class _OutboundOnly(TextMapPropagator):
    """Sends the trace on to upstreams, takes none from clients."""

    def __init__(self, inner: TextMapPropagator) -> None:
        self.inner = inner

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        del carrier, getter
        return context or Context()

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        self.inner.inject(carrier, context, setter)

    @property
    def fields(self) -> set[str]:
        return self.inner.fields


def _trust_inbound(*, trusted: bool) -> None:
    """OpenTelemetry has one propagator for the process; set it both ways, so that the last one built has its way."""
    propagator = propagate.get_global_textmap()
    inner = propagator.inner if isinstance(propagator, _OutboundOnly) else propagator
    propagate.set_global_textmap(inner if trusted else _OutboundOnly(inner))


class Tracing:
    """The tracer provider of one worker."""

    def __init__(self, *, enabled: bool, version: str, trust_clients: bool = True) -> None:
        """Make the provider.

        Args:
            enabled: without it nothing is traced and there are no trace ids.
            version: goes into the resource as `service.version`.
            trust_clients: continue the trace that a client's `traceparent` names; else each request begins its own.
        """
        _trust_inbound(trusted=trust_clients)
        # The FastAPI instrumentation then uses the stable HTTP conventions (http.request.method), not the old names.
        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
        self._sdk: TracerProvider | None = None
        self.provider: TracerProviderApi = NoOpTracerProvider()
        if not enabled:
            return
        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes over what we say.
        ours = Resource.create().merge(Resource({SERVICE_NAME: "tollbook", SERVICE_VERSION: version}))
        resource = ours.merge(OTELResourceDetector().detect())
        if exports(os.environ):
            protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
                "OTEL_EXPORTER_OTLP_PROTOCOL", _PROTOCOL
            )
            if protocol != _PROTOCOL:
                log.warning("otlp_protocol_unsupported", asked=protocol, used=_PROTOCOL)
            self._sdk = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._sdk.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        else:
            self._sdk = TracerProvider(resource=resource, sampler=ALWAYS_OFF, shutdown_on_exit=False)
        self.provider = self._sdk

    def tracer(self, name: str) -> Tracer:
        """A tracer of this provider."""
        return self.provider.get_tracer(name)

    async def shutdown(self, timeout_seconds: float) -> None:
        """Export what is still queued, for at most so long."""
        if self._sdk is None:
            return
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def export(sdk: TracerProvider) -> None:
            sdk.shutdown()
            with suppress(RuntimeError):  # the loop has closed: nobody waits any more
                loop.call_soon_threadsafe(done.set)

        # Not a thread of the pool, which the end of the process would wait for however long the exporter hangs.
        threading.Thread(target=export, args=(self._sdk,), daemon=True, name="flush-spans").start()
        try:
            await asyncio.wait_for(done.wait(), timeout_seconds)
        except TimeoutError:
            log.warning("spans_not_flushed", timeout_seconds=timeout_seconds)
