"""Errors over HTTP: RFC 6749's shape for /token and /users/*, OpenAI's envelope for the rest, and no inner detail."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from auth.scopes import Scope
from service.errors import Unavailable
from service.llm.failures import UpstreamRefused, UpstreamTimeout
from service.settings import HttpSettings
from tests.service.test_http import LIMIT, Served, serving

FORM = "application/x-www-form-urlencoded"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    limits = HttpSettings(max_body_bytes=LIMIT, body_timeout_seconds=0.05)
    async with serving(tmp_path, http=limits) as running:
        yield running


def is_rfc_6749(answer: httpx2.Response, error: str = "invalid_request") -> None:
    found = answer.json()
    assert set(found) == {"error", "error_description"}
    assert found["error"] == error
    assert found["error_description"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["pragma"] == "no-cache"


def is_envelope(answer: httpx2.Response, kind: str, code: str | None, param: str | None = None) -> None:
    found = answer.json()
    assert set(found) == {"error"}
    assert found["error"].pop("message")
    assert found["error"] == {"type": kind, "code": code, "param": param}


async def test_a_path_that_is_not_there_answers_in_the_shape_of_its_family(served):
    for path in ("/users/nobody", "/users/"):
        answer = await served.client.get(path)
        assert answer.status_code == 404
        is_rfc_6749(answer)
    for path in ("/", "/nowhere", "/v1/nothing", "/tokens", "/token/x", "/usersx"):
        answer = await served.client.get(path)
        assert answer.status_code == 404
        is_envelope(answer, "invalid_request_error", None)


async def test_another_method_is_refused_with_those_that_are_allowed(served):
    for path, allowed in (("/token", "POST"), ("/users/me", "GET")):
        answer = await served.client.delete(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        is_rfc_6749(answer)
    for path, allowed in (("/generate", "POST"), ("/usage", "GET"), ("/v1/chat/completions", "POST")):
        answer = await served.client.delete(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        is_envelope(answer, "invalid_request_error", None)


async def test_a_body_that_is_too_large_is_refused_in_the_shape_of_its_family(served):
    large = b"x" * (LIMIT + 1)
    answer = await served.client.post("/token", content=large, headers={"Content-Type": FORM})
    assert answer.status_code == 413
    is_rfc_6749(answer)
    as_json = {"Content-Type": "application/json", **served.bearer("ada", Scope.LLM)}
    for path in ("/generate", "/stream", "/v1/chat/completions"):
        answer = await served.client.post(path, content=large, headers=as_json)
        assert (answer.status_code, answer.headers["connection"]) == (413, "close")
        is_envelope(answer, "invalid_request_error", "request_too_large")


async def test_a_body_that_is_too_slow_is_refused_in_the_shape_of_its_family(served):
    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    answer = await served.client.post("/token", content=slow(), headers={"Content-Type": FORM})
    assert answer.status_code == 408
    is_rfc_6749(answer)
    as_json = {"Content-Type": "application/json", **served.bearer("ada", Scope.LLM)}
    answer = await served.client.post("/generate", content=slow(), headers=as_json)
    assert (answer.status_code, answer.headers["connection"]) == (408, "close")
    is_envelope(answer, "invalid_request_error", "request_timeout")


async def test_who_is_not_known_or_may_not_is_told_so_in_the_shape_of_its_family(served):
    answer = await served.client.get("/users/me")
    assert answer.status_code == 401
    is_rfc_6749(answer, "unauthorized")
    answer = await served.client.get("/users/me", headers={"Authorization": "Bearer x"})
    is_rfc_6749(answer, "invalid_token")
    for path in ("/generate", "/stream", "/v1/chat/completions"):
        answer = await served.client.post(path, json={})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer ")
        is_envelope(answer, "authentication_error", "missing_credentials")
        answer = await served.client.post(path, json={}, headers=served.bearer("ada", Scope.USAGE_READ))
        assert answer.status_code == 403
        assert 'scope="llm"' in answer.headers["www-authenticate"]
        is_envelope(answer, "permission_error", "insufficient_scope")


async def test_a_field_that_is_wrong_is_named(served):
    llm = served.bearer("ada", Scope.LLM)
    answer = await served.client.post("/generate", json={"question": ""}, headers=llm)
    assert answer.status_code == 422
    is_envelope(answer, "invalid_request_error", "invalid_request", "question")
    answer = await served.client.post("/v1/chat/completions", json={"model": "m", "messages": []}, headers=llm)
    assert answer.status_code == 400
    is_envelope(answer, "invalid_request_error", "invalid_request", "messages")
    answer = await served.client.get("/usage?limit=x", headers=served.bearer("ada", Scope.USAGE_READ))
    assert answer.status_code == 422
    is_envelope(answer, "invalid_request_error", None, "limit")


async def test_a_mistake_of_ours_is_answered_with_its_id_logged_once_and_not_explained(served):
    async def boom() -> None:
        raise RuntimeError("secret detail")

    for path in ("/boom", "/users/boom"):
        served.app.add_api_route(path, boom)
        answer = await served.client.get(path, headers={"X-Request-ID": f"id-of{path.replace('/', '-')}"})
        assert answer.status_code == 500
        assert answer.headers["x-request-id"] == f"id-of{path.replace('/', '-')}"
        assert "secret" not in answer.text
        assert "Runtime" not in answer.text
    assert (await served.client.get("/boom")).json()["error"] == {
        "message": "Internal error.",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    told = served.logged.lines("unexpected_error")
    assert len(told) == 3
    assert all("secret detail" in line["exception"] for line in told)
    assert [line["status"] for line in served.logged.lines("request")] == [500] * 3
    assert served.logged.text.count("Traceback") == 3


async def test_a_mistake_of_ours_on_an_oauth_route_is_in_its_shape(served):
    async def boom() -> None:
        raise RuntimeError("secret detail")

    served.app.add_api_route("/users/boom", boom)
    answer = await served.client.get("/users/boom")
    assert answer.status_code == 500
    is_rfc_6749(answer, "server_error")


async def test_a_mistake_after_the_answer_began_breaks_it_off(served):
    async def half(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("secret detail")

    served.app.mount("/half", half)
    with pytest.raises(RuntimeError, match="secret detail"):
        await served.client.get("/half/")
    assert len(served.logged.lines("unexpected_error")) == 1
    assert [line["status"] for line in served.logged.lines("request")] == [200]


async def test_what_an_upstream_refuses_is_passed_on_with_its_headers(served):
    error = {"message": "Slow down.", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}

    async def refused() -> None:
        raise UpstreamRefused("x", status=429, error=error, headers={"retry-after": "7", "x-ratelimit-limit": "3"})

    async def late() -> None:
        raise UpstreamTimeout("The upstream did not answer in time.")

    served.app.add_api_route("/refused", refused)
    served.app.add_api_route("/late", late)
    answer = await served.client.get("/refused")
    assert (answer.status_code, answer.json()) == (429, {"error": error})
    assert (answer.headers["retry-after"], answer.headers["x-ratelimit-limit"]) == ("7", "3")
    answer = await served.client.get("/late")
    assert answer.status_code == 504
    is_envelope(answer, "upstream_error", "upstream_timeout")


async def test_the_headers_of_a_service_error_are_sent_in_either_shape(served):
    async def away() -> None:
        raise Unavailable("Not now.", headers={"Retry-After": "5"})

    for path in ("/away", "/users/away"):
        served.app.add_api_route(path, away)
        answer = await served.client.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_a_token_request_without_a_database_is_a_503_that_says_when(tmp_path):
    url = "postgresql+asyncpg://nobody@127.0.0.1:1/none"
    async with serving(tmp_path, database_url=url, migrated=False) as served:
        form = {"grant_type": "password", "username": "ada", "password": "correct horse battery staple"}
        answer = await served.client.post("/token", data=form)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    is_rfc_6749(answer, "temporarily_unavailable")
