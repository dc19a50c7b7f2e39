"""The harness itself: an upstream that does not misbehave as told would prove nothing."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.otlp import OtlpReceiver
from tests.support.scripts import ERRORS, RETRY_AFTER
from tests.support.shapes import ANSWER, TOOL_CALL, usage_of
from tests.support.upstream import ScriptedUpstream

ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def direct(upstream: ScriptedUpstream) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=upstream.base_url, api_key="x", max_retries=0, timeout=10) as client:
        yield client


async def raw_stream(upstream: ScriptedUpstream, model: str, **fields: object) -> bytes:
    body = {"model": model, "stream": True, "messages": ASK, **fields}
    async with httpx2.AsyncClient() as client:
        return (await client.post(f"{upstream.base_url}/chat/completions", json=body)).content


async def test_answers_with_the_usage_it_promises(direct):
    answer = await direct.chat.completions.create(model="ok", messages=ASK)
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage.model_dump(exclude_none=True) == usage_of("ok").as_json()


@pytest.mark.parametrize(
    "model", ["ok", "stream-split", "stream-crlf", "stream-comments", "stream-joined", "stream-806", "tools"]
)
async def test_streams_with_usage_only_when_asked(direct, model):
    async def last_usage(**options):
        stream = await direct.chat.completions.create(model=model, messages=ASK, stream=True, **options)
        return [chunk.usage async for chunk in stream][-1]

    assert await last_usage() is None
    usage = await last_usage(stream_options={"include_usage": True})
    assert (usage.prompt_tokens, usage.completion_tokens) == (usage_of(model).prompt, usage_of(model).completion)


async def test_split_crlf_and_joined_streams_say_the_same(upstream):
    plain = await raw_stream(upstream, "stream-split")
    assert (await raw_stream(upstream, "stream-crlf")).replace(b"\r\n", b"\n").replace(b"crlf", b"split") == plain
    assert (await raw_stream(upstream, "stream-joined")).replace(b"joined", b"split") == plain


@pytest.mark.parametrize("status", list(ERRORS))
async def test_errors_arrive_with_their_status(direct, status):
    with pytest.raises(openai.APIStatusError) as caught:
        await direct.chat.completions.create(model=f"error-{status}", messages=ASK)
    assert caught.value.status_code == status
    assert caught.value.response.headers.get("retry-after") == (RETRY_AFTER if status == 429 else None)


@pytest.mark.parametrize("model", ["half-stream", "reset-mid-stream"])
async def test_broken_streams_break(upstream, model):
    with pytest.raises(httpx2.TransportError):
        await raw_stream(upstream, model)


async def test_a_clean_half_stream_ends_without_done(upstream):
    assert b"[DONE]" not in await raw_stream(upstream, "half-stream-clean")


async def test_half_a_json_breaks(direct):
    with pytest.raises(openai.APIConnectionError):
        await direct.chat.completions.create(model="half-json", messages=ASK)


async def test_tools_are_called(direct):
    answer = await direct.chat.completions.create(model="tools", messages=ASK)
    assert answer.choices[0].message.tool_calls[0].function.model_dump() == TOOL_CALL


async def test_records_the_exact_body_and_its_echo(direct, upstream):
    answer = await direct.chat.completions.create(model="echo", messages=[{"role": "user", "content": "mark-echo"}])
    assert answer.choices[0].message.content.encode() == upstream.wait_request("mark-echo").body


async def test_sees_a_client_leave_mid_stream(direct, upstream):
    ask = [{"role": "user", "content": "mark-leaves"}]
    async with await direct.chat.completions.create(model="slow-chunks", messages=ask, stream=True) as stream:
        async for _ in stream:
            break
    record = upstream.wait_request("mark-leaves")
    assert await asyncio.to_thread(record.done.wait, 10)
    assert record.cancelled.is_set()
    assert 0 < record.events_sent < 400


async def test_a_kept_alive_connection_serves_many(upstream):
    async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=1)) as client:
        for number in range(50):
            body = {"model": "ok", "messages": [{"role": "user", "content": f"keep-{number}"}]}
            assert (await client.post(f"{upstream.base_url}/chat/completions", json=body)).status_code == 200
    assert not any(record.cancelled.is_set() for record in upstream.requests("keep-"))


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_the_receiver_flattens_what_an_exporter_sends(otlp: OtlpReceiver, compression):
    exporter = OTLPSpanExporter(endpoint=f"{otlp.endpoint}/v1/traces", compression=compression)
    provider = TracerProvider(resource=Resource({"service.name": "harness"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("harness")
    with tracer.start_as_current_span("outer") as outer:
        inner = tracer.start_span("inner", kind=trace.SpanKind.CLIENT, attributes={"n": 3, "tags": ["a", "b"]})
        inner.end()
    provider.shutdown()
    context = inner.get_span_context()
    span = otlp.wait_for(lambda s: s.span_id == f"{context.span_id:016x}")
    assert (span.name, span.kind, span.trace_id) == ("inner", "CLIENT", f"{context.trace_id:032x}")
    assert span.parent_id == f"{outer.get_span_context().span_id:016x}"
    assert span.attributes == {"n": 3, "tags": ["a", "b"]}
    assert span.resource["service.name"] == "harness"


async def test_postgres_answers(postgres_url):
    engine = create_async_engine(postgres_url)
    async with engine.connect() as connection:
        assert (await connection.execute(text("select 1"))).scalar() == 1
    await engine.dispose()
