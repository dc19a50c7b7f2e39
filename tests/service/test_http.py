"""The HTTP surface: headers of every answer, who may call from where, and how large and how slow a body may be.

`serving` is the whole application in this process, for the tests of other files too.
"""

import asyncio
import gc
import io
import json
import logging
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import pytest
import structlog
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

import service.http
from auth.scopes import Scope as AccessScope
from service.app import create_app
from service.database import make_engine, migrate
from service.errors import BodyTooLarge, RequestTimeout
from service.http import BodyLimitsMiddleware
from service.settings import AuthSettings, HttpSettings, Settings
from tests.support.service import clean_environment

UPSTREAM = "http://127.0.0.1:9/v1"
"""Nobody listens there, and nobody is asked."""
LIMIT = 1024
QUICK_HASHES = AuthSettings(auth_argon2_memory_kib=8192)
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


class Logged:
    """What was written to standard output by the log pipeline."""

    def __init__(self) -> None:
        self.raw = io.BytesIO()
        self.stream = io.TextIOWrapper(self.raw, "utf-8", newline="", write_through=True)

    @property
    def text(self) -> str:
        return self.raw.getvalue().decode()

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The lines of one event."""
        return [line for line in map(json.loads, self.text.splitlines()) if line["event"] == event]


@contextmanager
def process_restored() -> Iterator[Logged]:
    """Take back what the service does to its process: environment, logging, warnings, garbage collector."""
    loggers = [logging.getLogger(name) for name in (None, *logging.root.manager.loggerDict)]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    threshold, configure, logged = gc.get_threshold(), structlog.configure, Logged()

    def configure_uncached(**options: Any) -> None:
        # A logger that kept this pipeline would take it into the tests that follow.
        configure(**{**options, "cache_logger_on_first_use": False})

    environment = mock.patch.dict(os.environ, clean_environment({}), clear=True)
    try:
        with environment, mock.patch.object(structlog, "configure", configure_uncached), redirect_stdout(logged.stream):
            yield logged
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
        structlog.reset_defaults()
        logging.captureWarnings(capture=False)
        for logger, handlers, level, propagate in before:
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate


async def join_sqlite_threads() -> None:
    """After a connection that failed, aiosqlite's thread still has a word for the loop, which must be there."""
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 5)


@dataclass(frozen=True)
class Served:
    """One application that runs."""

    app: FastAPI
    state: dict[str, Any]
    client: httpx2.AsyncClient
    settings: Settings
    logged: Logged

    def bearer(self, username: str, *scopes: AccessScope) -> dict[str, str]:
        """The header of somebody with these scopes."""
        token = self.state["auth"].tokens.issue(
            subject="6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55", username=username, scopes=scopes, client_id="tollbook"
        )
        return {"Authorization": f"Bearer {token.access_token}"}


@asynccontextmanager
async def serving(state_dir: Path, *, migrated: bool = True, **changes: Any) -> AsyncIterator[Served]:
    """The application with its lifespan, whose state reaches each request as a server would hand it on."""
    with process_restored() as logged:
        options = {"state_dir": state_dir, "openai_base_url": UPSTREAM, "auth": QUICK_HASHES, **changes}
        settings = Settings.model_validate(options)
        app = create_app(settings)
        if migrated:
            engine = make_engine(settings.effective_database_url)
            await migrate(engine)
            await engine.dispose()
        async with app.router.lifespan_context(app) as state:
            found = dict(state or {})

            async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
                scope["state"] = dict(found)
                await app(scope, receive, send)

            transport = httpx2.ASGITransport(app=with_state)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                yield Served(app, found, client, settings, logged)
        await join_sqlite_threads()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as running:
        yield running


# Headers


async def test_every_answer_has_the_security_headers(served):
    served.app.add_api_route("/boom", _boom)
    for method, path, status in [
        ("GET", "/livez", 200),
        ("GET", "/metrics", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/docs", 200),
        ("GET", "/nowhere", 404),
        ("DELETE", "/token", 405),
        ("POST", "/token", 400),
        ("GET", "/users/me", 401),
        ("POST", "/v1/chat/completions", 401),
        ("GET", "/boom", 500),
    ]:
        answer = await served.client.request(method, path)
        assert answer.status_code == status
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
        assert len(answer.headers.get_list("content-security-policy")) == 1
        assert "strict-transport-security" not in answer.headers
        assert float(answer.headers["x-process-time"]) >= 0
        assert answer.headers["x-request-id"]


async def _boom() -> None:
    raise RuntimeError("secret detail")


async def test_a_page_may_run_its_own_script_and_data_may_do_nothing(served):
    policies = {
        path: (await served.client.get(path)).headers["content-security-policy"]
        for path in ("/docs", "/redoc", "/openapi.json")
    }
    assert policies["/openapi.json"] == "default-src 'none'; frame-ancestors 'none'"
    assert all("script-src 'self'" in policies[page] for page in ("/docs", "/redoc"))
    assert all("frame-ancestors 'none'" in p and "default-src 'none'" in p for p in policies.values())


async def test_hsts_is_sent_when_it_is_set(tmp_path):
    async with serving(tmp_path, http=HttpSettings(hsts_seconds=63072000)) as served:
        for path in ("/livez", "/nowhere"):
            assert (await served.client.get(path)).headers["strict-transport-security"] == "max-age=63072000"


# CORS


def _preflight(origin: str) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }


def _cors(answer: httpx2.Response) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control-")}


async def test_cors_is_closed_by_default(served):
    preflight = await served.client.options("/generate", headers=_preflight("https://app.test"))
    simple = await served.client.get("/livez", headers={"Origin": "https://app.test"})
    assert preflight.status_code >= 400
    assert _cors(preflight) == _cors(simple) == set()


async def test_cors_is_open_for_an_origin_that_is_set_and_for_no_other(tmp_path):
    async with serving(tmp_path, http=HttpSettings(cors_origins=["https://app.test"])) as served:
        allowed = await served.client.options("/generate", headers=_preflight("https://app.test"))
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://app.test"
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in allowed.headers
        for other in ("https://evil.test", "https://app.test.evil.test", "http://app.test", "null"):
            refused = await served.client.options("/generate", headers=_preflight(other))
            simple = await served.client.get("/livez", headers={"Origin": other})
            assert refused.status_code == 400
            assert "access-control-allow-origin" not in refused.headers
            assert "access-control-allow-origin" not in simple.headers


async def test_a_browser_may_read_an_error_and_the_ids_of_its_call(tmp_path):
    async with serving(tmp_path, http=HttpSettings(cors_origins=["https://app.test"])) as served:
        served.app.add_api_route("/boom", _boom)
        for path in ("/users/me", "/nowhere", "/boom"):
            answer = await served.client.get(path, headers={"Origin": "https://app.test"})
            assert answer.headers["access-control-allow-origin"] == "https://app.test"
            exposed = answer.headers["access-control-expose-headers"]
            assert {"X-Request-ID", "X-Tollbook-Call-Id"} <= set(exposed.split(", "))


# Hosts


async def test_other_host_names_are_refused_but_not_of_probes_and_scrapes(tmp_path):
    async with serving(tmp_path, http=HttpSettings(allowed_hosts=["llm.test", "*.llm.test"])) as served:

        async def status(path: str, host: str) -> int:
            return (await served.client.get(path, headers={"Host": host})).status_code

        for host in ("llm.test", "llm.test:8000", "a.llm.test"):
            assert await status("/openapi.json", host) == 200
        for host in ("evil.test", "llm.test.evil.test", "10.1.2.3:8000", "xllm.test"):
            assert await status("/openapi.json", host) == 400
            assert await status("/livez/", host) == 400
            assert [await status(path, host) for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 200]


# Bodies, over the middleware alone


class Client:
    """One connection: what it sends, then silence or its leaving; and what it was answered."""

    def __init__(self, *pieces: bytes, length: int | None = None, then: str = "end") -> None:
        self.scope: Scope = {"type": "http", "path": "/", "headers": []}
        if length is not None:
            self.scope["headers"] = [(b"content-length", str(length).encode())]
        last = len(pieces) - 1
        self._left: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": number < last or then != "end"}
            for number, piece in enumerate(pieces)
        ]
        if then != "silence":
            self._left.append({"type": "http.disconnect"})
        self.taken = 0
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if not self._left:
            await asyncio.Event().wait()
        self.taken += 1
        return self._left.pop(0)

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def header_names(self) -> set[bytes]:
        return {name.lower() for name, _ in self.sent[0]["headers"]}


class Reader:
    """An application that reads the whole body and answers as a route would."""

    def __init__(self) -> None:
        self.body = b""
        self.gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 200
        try:
            more = True
            while more:
                message = await receive()
                self.gone = message["type"] == "http.disconnect"
                self.body += message.get("body", b"")
                more = message.get("more_body", False)
        except (BodyTooLarge, RequestTimeout) as error:
            status = error.status
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})


async def _talk(client: Client, timeout_seconds: float = 30) -> Reader:
    reader = Reader()
    limits = BodyLimitsMiddleware(reader, max_bytes=LIMIT, timeout_seconds=timeout_seconds)
    async with asyncio.timeout(10):
        await limits(client.scope, client.receive, client.send)
    return reader


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("pieces", [[LIMIT], [1, LIMIT - 1], [LIMIT, 0]])
async def test_a_body_of_exactly_the_limit_passes(declared, pieces):
    client = Client(*(b"x" * size for size in pieces), length=LIMIT if declared else None)
    reader = await _talk(client)
    assert (client.status, len(reader.body)) == (200, LIMIT)
    assert b"connection" not in client.header_names


@pytest.mark.parametrize("length", [LIMIT + 1, None, LIMIT, 0])
@pytest.mark.parametrize("pieces", [[LIMIT + 1], [LIMIT, 1], [1] * (LIMIT + 1)])
async def test_one_byte_more_is_refused_whatever_length_was_declared(length, pieces):
    client = Client(*(b"x" * size for size in pieces), length=length)
    reader = await _talk(client)
    assert client.status == 413
    assert len(reader.body) <= LIMIT
    assert b"connection" in client.header_names


async def test_a_body_that_is_declared_too_large_is_not_read_by_the_route():
    reader = await _talk(Client(b"x", length=LIMIT + 1))
    assert reader.body == b""


async def test_a_body_that_does_not_come_in_time_is_given_up():
    client = Client(b"x", then="silence")
    await _talk(client, timeout_seconds=0.01)
    assert client.status == 408
    assert b"connection" in client.header_names


async def test_the_time_is_for_the_whole_body_not_for_each_piece():
    client = Client(*([b"x"] * 500), then="silence")
    fast = client.receive

    async def slow() -> Message:
        await asyncio.sleep(0.01)
        return await fast()

    client.receive = slow  # type: ignore[method-assign]
    await _talk(client, timeout_seconds=0.2)
    assert client.status == 408
    assert client.taken < 100


async def test_the_limit_of_time_ends_with_the_body():
    """A stream listens for its client's leaving for as long as it lasts."""
    left = asyncio.Event()

    async def receive() -> Message:
        if not left.is_set():
            left.set()
            return {"type": "http.request", "body": b"x", "more_body": False}
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def listen(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"

    client = Client()
    await BodyLimitsMiddleware(listen, max_bytes=LIMIT, timeout_seconds=0.01)(client.scope, receive, client.send)


async def test_the_rest_of_a_refused_body_is_taken_in_so_that_the_answer_can_be_read():
    client = Client(*([b"x" * LIMIT] * 50))
    await _talk(client)
    assert client.taken == 50
    assert b"".join(m.get("body", b"") for m in client.sent) == b"answer"
    assert [m.get("more_body", False) for m in client.sent[1:]] == [True, False]


async def test_no_more_than_a_limit_of_it_is_taken_in(monkeypatch):
    monkeypatch.setattr(service.http, "_LINGER_BYTES", 5 * LIMIT)
    client = Client(*([b"x" * LIMIT] * 50))
    await _talk(client)
    assert client.taken == 2 + 5
    assert client.sent[-1] == {"type": "http.response.body", "body": b""}


async def test_it_is_not_waited_for_longer_than_a_limit(monkeypatch):
    monkeypatch.setattr(service.http, "_LINGER_SECONDS", 0.01)
    client = Client(b"x" * (LIMIT + 1), then="silence")
    await _talk(client)
    assert client.sent[-1] == {"type": "http.response.body", "body": b""}


async def test_a_client_that_hangs_up_is_heard_while_it_sends_and_while_it_is_refused():
    reader = await _talk(Client(b"x", then="hang up"))
    assert reader.gone
    refused = Client(b"x" * (LIMIT + 1), b"x", then="hang up")
    await _talk(refused)
    assert (refused.status, refused.taken) == (413, 3)


async def test_what_is_no_request_is_none_of_its_business():
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    client = Client()
    await BodyLimitsMiddleware(app, max_bytes=LIMIT, timeout_seconds=1)(
        {"type": "lifespan"}, client.receive, client.send
    )
    assert seen == ["lifespan"]
