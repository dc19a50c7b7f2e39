"""The tracer provider of a worker: ids always, export where an endpoint is set, an end in time."""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from opentelemetry import propagate, trace
from opentelemetry.context import Context

from observability.tracing import Tracing, exports
from tests.observability.kit import json_lines
from tests.support.otlp import OtlpReceiver

PARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No OTEL_* of whoever runs the tests, and none left for the tests that follow."""
    for name in [*os.environ]:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    textmap = propagate.get_global_textmap()
    yield
    propagate.set_global_textmap(textmap)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An endpoint that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        # The thread of the export, which nobody can end, holds the loop of the test until then.
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
        yield


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": " NONE "}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318"}, False),
    ],
)
def test_whether_the_environment_says_where_spans_go(environ, said):
    assert exports(environ) is said


async def test_without_an_endpoint_there_are_ids_and_nothing_is_recorded_or_exported(otlp):
    before = len(otlp.spans())
    tracing = Tracing(enabled=True, version="1")
    with tracing.tracer("test").start_as_current_span("work") as span:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
    context = span.get_span_context()
    assert context.is_valid
    assert not context.trace_flags.sampled
    assert not span.is_recording()
    version, trace_id, span_id, flags = carrier["traceparent"].split("-")
    assert (version, trace_id, span_id) == ("00", f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert int(flags, 16) & 1 == 0
    await tracing.shutdown(30)
    assert len(otlp.spans()) == before


async def test_a_client_that_says_sampled_makes_nothing_recorded_where_nothing_is_exported():
    tracing = Tracing(enabled=True, version="1")
    span = tracing.tracer("test").start_span("work", propagate.extract(PARENT))
    assert f"{span.get_span_context().trace_id:032x}" in PARENT["traceparent"]
    assert not span.is_recording()


async def test_spans_still_queued_are_exported_by_the_end_of_shutdown(otlp, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")  # nothing goes by itself
    tracing = Tracing(enabled=True, version="1.2.3")
    with tracing.tracer("test").start_as_current_span("work") as span:
        pass
    trace_id = f"{span.get_span_context().trace_id:032x}"
    await tracing.shutdown(30)
    (found,) = otlp.spans(trace_id=trace_id)
    assert found.name == "work"
    assert (found.resource["service.name"], found.resource["service.version"]) == ("tollbook", "1.2.3")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_SERVICE_NAME", "mine"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,deployment.environment.name=x")],
)
async def test_the_operator_names_the_service(otlp: OtlpReceiver, monkeypatch, variable, value):
    """Either way that OpenTelemetry's SDK specification gives."""
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.endpoint)
    tracing = Tracing(enabled=True, version="1")
    span = tracing.tracer("test").start_span("work")
    span.end()
    await tracing.shutdown(30)
    (found,) = otlp.spans(trace_id=f"{span.get_span_context().trace_id:032x}")
    assert found.resource["service.name"] == "mine"


async def test_an_endpoint_that_hangs_does_not_hold_up_the_shutdown(hanging, logged):
    tracing = Tracing(enabled=True, version="1")
    tracing.tracer("test").start_span("work").end()
    ended = asyncio.create_task(tracing.shutdown(0.1))
    async with asyncio.timeout(1.5):  # well before the export itself gives up
        await ended
    assert [line["event"] for line in json_lines(logged()) if line["logger"] == "observability.tracing"] == [
        "spans_not_flushed"
    ]


async def test_an_endpoint_that_hangs_does_not_hold_up_the_end_of_the_process(hanging):
    """Python waits for every thread that is not a daemon."""
    before = set(threading.enumerate())
    tracing = Tracing(enabled=True, version="1")
    tracing.tracer("test").start_span("work").end()
    await tracing.shutdown(0.1)
    assert [thread for thread in threading.enumerate() if not thread.daemon and thread not in before] == []


async def test_disabled_there_are_no_ids():
    tracing = Tracing(enabled=False, version="1")
    with tracing.tracer("test").start_as_current_span("work") as span:
        assert not span.get_span_context().is_valid
    await tracing.shutdown(30)


@pytest.mark.parametrize(("trust", "continued"), [(True, True), (False, False)])
def test_the_trace_of_a_client_goes_on_only_when_clients_are_trusted(trust, continued):
    Tracing(enabled=True, version="1", trust_clients=trust)
    context = trace.get_current_span(propagate.extract(PARENT, Context())).get_span_context()
    assert context.is_valid is continued


def test_without_trust_our_own_trace_still_goes_out():
    tracing = Tracing(enabled=True, version="1", trust_clients=False)
    carrier: dict[str, str] = {}
    span = tracing.tracer("test").start_span("work")
    propagate.inject(carrier, trace.set_span_in_context(span))
    assert f"{span.get_span_context().trace_id:032x}" in carrier["traceparent"]


def test_baggage_of_a_client_that_is_not_trusted_is_not_taken_either():
    Tracing(enabled=True, version="1", trust_clients=False)
    assert propagate.extract({"baggage": "a=b"}, Context()) == Context()


def test_an_app_that_trusts_is_not_bound_by_one_that_did_not():
    Tracing(enabled=True, version="1", trust_clients=False)
    Tracing(enabled=True, version="1", trust_clients=True)
    assert trace.get_current_span(propagate.extract(PARENT, Context())).get_span_context().is_valid
