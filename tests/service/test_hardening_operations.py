"""What goes wrong around a service that runs: a catalog broken since, a hung database, a rolled back release."""

import asyncio
import os
import signal
import sqlite3
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import asyncpg
import httpx2
import pytest

from auth.scopes import Scope
from observability.ledger import clerk, query
from service.commands.serve import prepare
from tests.service.test_http import Served, process_restored, serving
from tests.support.calls import chat
from tests.support.service import RunningService, processes
from tests.support.waiting import eventually

T = TypeVar("T")
URL_SECRET = "url-secret-0123456789"
DEADLINE_SECONDS = 40
NOBODY = "http://127.0.0.1:9"
PROXY = {"HTTP_PROXY": NOBODY, "http_proxy": NOBODY, "NO_PROXY": "", "no_proxy": ""}
AMBIENT = {
    "OPENAI_ORG_ID": "org-for-openai-alone",
    "OPENAI_PROJECT_ID": "proj-for-openai-alone",
    "OPENAI_CUSTOM_HEADERS": "X-Gateway-Key: key-for-openai-alone",
}


@pytest.fixture(scope="module")
def plain(service_options, tmp_path_factory) -> Iterator[RunningService]:
    """A service that may be harmed, in a state directory that was there before and that everybody may read."""
    untraced = {"TOLLBOOK_TRACING_ENABLED": "false"}  # the exporter would look for the proxy
    options = {**service_options, "env": {**service_options["env"], **untraced, **AMBIENT, **PROXY}}
    running = RunningService(tmp_path_factory.mktemp("plain"), **options)
    before = os.umask(0o022)
    try:
        running.state_dir.mkdir()
        running.start()
    finally:
        os.umask(before)
    yield running
    running.stop()


def test_what_is_in_the_state_directory_is_for_nobody_else(plain, marker):
    chat(plain, "ok", marker)
    plain.wait_line(request_id=marker)
    names = {path.name for path in plain.state_dir.iterdir()}
    assert "tollbook.db" in names
    opened = [
        str(path.relative_to(plain.state_dir))
        for path in plain.state_dir.rglob("*")
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    assert opened == []


def test_what_the_environment_says_to_openai_is_not_told_to_the_upstreams_of_a_catalog(plain, upstream, marker):
    assert chat(plain, "ok", marker).status_code == 200
    told = upstream.wait_request(marker).headers
    assert "for-openai-alone" not in str(told)
    assert not {"openai-organization", "openai-project", "x-gateway-key"} & set(told)


def test_a_model_on_this_machine_is_not_asked_through_a_proxy(plain, marker):
    assert chat(plain, "ok", marker).status_code == 200


def test_the_settings_are_printed_without_the_password_of_a_url(plain):
    said = plain.tollbook(
        "config",
        COLUMNS="400",
        OPENAI_BASE_URL=f"http://user:{URL_SECRET}@127.0.0.1:1/v1",
        TOLLBOOK_DATABASE_URL=f"postgresql://user:{URL_SECRET}@127.0.0.1:1/books?password={URL_SECRET}",
    )
    assert "OPENAI_BASE_URL" in said
    assert "127.0.0.1:1/v1" in said
    assert URL_SECRET not in said


def test_a_catalog_that_broke_since_stops_no_worker_that_serves(plain, marker):
    catalog = plain.directory / "tollbook.yaml"
    good = catalog.read_text()
    killed, survivor = plain.children()
    started = len(plain.log_lines(event="worker_started"))

    def tried() -> bool:
        """Whether somebody came in the place of the one that was killed, and served or went."""
        return len(plain.log_lines(event="worker_started")) > started or successor not in plain.children()

    catalog.write_text("models: [")
    os.kill(killed, signal.SIGKILL)
    successor = eventually(lambda: set(plain.children()) - {killed, survivor}, "a successor").pop()
    eventually(tried, "the successor to serve or to go", DEADLINE_SECONDS)
    for number in range(4):
        assert chat(plain, "ok", f"{marker}-{number}").status_code == 200
    assert survivor in plain.children()

    catalog.write_text(good)
    eventually(lambda: len(plain.log_lines(event="worker_started")) > started, "a second worker", DEADLINE_SECONDS)
    assert survivor in plain.children()


async def test_a_database_that_a_newer_version_has_migrated_is_served(tmp_path):
    """A release was rolled back."""
    async with serving(tmp_path) as newer:
        settings = newer.settings
    with sqlite3.connect(tmp_path / "tollbook.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with process_restored():
        await asyncio.to_thread(prepare, settings, must_reach_database=False)  # `serve` goes on
    async with serving(tmp_path, migrated=False) as served:
        assert (await served.client.get("/readyz")).status_code == 200
        await call_in_vain(served)
        calls = await within_deadline(lambda: calls_of(served))
        assert [call["outcome"] for call in calls] == ["upstream_error"]


async def call_in_vain(served: Served) -> None:
    """Nobody listens where its upstream should be."""
    asked = {"model": "any", "messages": [{"role": "user", "content": "x"}]}
    answer = await served.client.post("/v1/chat/completions", json=asked, headers=bearer(served))
    assert answer.status_code == 502


def bearer(served: Served) -> dict[str, str]:
    return served.bearer("ada", Scope.USAGE_READ, Scope.LLM)


async def usage(served: Served) -> httpx2.Response:
    return await served.client.get("/usage", headers=bearer(served))


async def calls_of(served: Served) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await usage(served)).json().get("calls", [])
    return found


async def within_deadline(probe: Callable[[], Awaitable[T]]) -> T:
    """The first true value of `await probe()`."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        value = await probe()
        while not value:
            await asyncio.sleep(0.1)
            value = await probe()
    return value


@contextmanager
def stopped(pids: set[int]) -> Iterator[None]:
    """Nothing of a server runs meanwhile, and all its connections stay open."""
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def server_processes(postgres_url: str) -> set[int]:
    """The pids of the database server: of its postmaster and of all its children."""
    connection = await asyncpg.connect(postgres_url.replace("+asyncpg", ""))
    backend: int = await connection.fetchval("SELECT pg_backend_pid()")
    table = await asyncio.to_thread(processes)
    await connection.close()
    postmaster = table[backend]
    return {postmaster} | {pid for pid, parent in table.items() if parent == postmaster and pid != backend}


async def test_a_hung_database_is_told_and_costs_no_call(postgres_url, tmp_path, monkeypatch):
    monkeypatch.setattr(query, "_QUERY_SECONDS", 0.5)
    monkeypatch.setattr(clerk, "_INSERT_SECONDS", 0.5)
    async with serving(tmp_path, database_url=postgres_url) as served:

        async def is_counted() -> bool:
            return "tollbook_ledger_pending_records 1.0" in (await served.client.get("/metrics")).text

        async def is_logged() -> bool:
            return bool(served.logged.lines("ledger_unreachable"))

        before = len(await calls_of(served))
        with stopped(await server_processes(postgres_url)):
            for _ in range(2):
                async with asyncio.timeout(DEADLINE_SECONDS):
                    answer = await usage(served)
                assert answer.status_code == 503
                assert answer.headers["retry-after"]
            await call_in_vain(served)
            await within_deadline(is_counted)
            await within_deadline(is_logged)

        async def is_written() -> bool:
            return len(await calls_of(served)) == before + 1

        await within_deadline(is_written)
