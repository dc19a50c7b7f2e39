"""Bodies that are not what they should be: each is refused in words, before any upstream is asked."""

import json
from collections.abc import Iterator

import httpx2
import openai
import pytest

from tests.support.calls import body, chat, post
from tests.support.service import ADMIN, PASSWORD

TWENTY_MB = 20 * 2**20
ENVELOPE = {"message", "type", "param", "code"}

UNPROCESSABLE = {
    "no body": b"",
    "malformed": b'{"model": "ok", "messages": [',
    "not UTF-8": b'{"model": "ok", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "a list": b"[]",
    "a string": b'"ok"',
    "null": b"null",
    "two values": b"{} {}",
    "a number no JSON has": b'{"model": "ok", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "nested too deeply": b'{"model": "ok", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "no messages": b'{"model": "ok"}',
    "empty messages": b'{"model": "ok", "messages": []}',
    "messages of another type": b'{"model": "ok", "messages": "hello"}',
    "model of another type": b'{"model": 7, "messages": [{"role": "user", "content": "x"}]}',
    "stream of another type": b'{"model": "ok", "stream": "maybe", "messages": [{"role": "user", "content": "x"}]}',
    "negative max_tokens": b'{"model": "ok", "max_tokens": -1, "messages": [{"role": "user", "content": "x"}]}',
}


@pytest.mark.parametrize("content", UNPROCESSABLE.values(), ids=UNPROCESSABLE.keys())
def test_a_bad_chat_body_is_refused_and_asks_no_upstream(service, upstream, content, marker):
    asked = sum(upstream.served.values())
    answer = post(service, marker, content)
    assert answer.status_code in {400, 422}, answer.text
    assert set(answer.json()["error"]) == ENVELOPE
    assert answer.headers["x-request-id"] == marker
    assert sum(upstream.served.values()) == asked


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "no-such-model"}, openai.NotFoundError),
        ({"messages": []}, openai.BadRequestError),
        ({"max_tokens": -1}, openai.BadRequestError),
    ],
    ids=["unknown model", "empty messages", "negative max_tokens"],
)
async def test_the_sdk_raises_what_openai_would_make_it_raise(openai_client, fields, error, marker):
    with pytest.raises(error) as caught:
        await openai_client.chat.completions.create(**(body("ok", marker) | fields))
    assert caught.value.body["param"] == next(iter(fields))


async def test_an_unknown_model_has_openais_code(openai_client):
    with pytest.raises(openai.NotFoundError) as caught:
        await openai_client.models.retrieve("no-such-model")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("path", ["/generate", "/stream"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"question": ""}, {"question": 7}, {"question": "x", "max_tokens": -1}, {"question": "x", "max_tokens": 0}],
    ids=["no question", "empty question", "question of another type", "negative max_tokens", "no max_tokens"],
)
def test_a_bad_question_is_refused(service, path, fields, marker):
    answer = post(service, marker, json.dumps(fields).encode(), path)
    assert answer.status_code in {400, 422}, answer.text
    assert set(answer.json()["error"]) == ENVELOPE


@pytest.mark.parametrize("path", ["/generate", "/stream", "/v1/chat/completions"])
def test_a_form_where_json_belongs_is_refused(service, path, marker):
    content = b"model=ok&question=hello&messages=hello"
    answer = post(service, marker, content, path, content_type="application/x-www-form-urlencoded")
    assert answer.status_code in {400, 415, 422}
    assert set(answer.json()["error"]) == ENVELOPE


@pytest.mark.parametrize("fields", [{"username": ADMIN, "password": PASSWORD}, {}], ids=["JSON", "empty JSON"])
def test_json_where_a_form_belongs_is_refused_as_rfc_6749_says(service, fields):
    answer = httpx2.post(f"{service.base_url}/token", json={"grant_type": "password", **fields})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert PASSWORD not in answer.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate", "/stream"])
def test_twenty_megabytes_are_refused(service, path, marker):
    content = json.dumps(body("ok", "x" * TWENTY_MB) | {"question": "x"}).encode()
    answer = post(service, marker, content, path)
    assert answer.status_code == 413
    assert set(answer.json()["error"]) == ENVELOPE


def test_twenty_megabytes_without_a_length_are_refused(service, marker):
    def endless() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 2**20

    try:
        answer = post(service, marker, endless())
    except (httpx2.WriteError, httpx2.RemoteProtocolError):
        # Refused while it was being sent; the log says how.
        assert service.wait_line(request_id=marker)["status"] == 413
    else:
        assert answer.status_code == 413


def test_a_token_request_of_twenty_megabytes_is_refused(service):
    form = {"grant_type": "password", "username": ADMIN, "password": "x" * TWENTY_MB}
    answer = httpx2.post(f"{service.base_url}/token", data=form, timeout=60)
    assert (answer.status_code, answer.json()["error"]) == (413, "invalid_request")


async def test_the_sdk_raises_413(openai_client):
    with pytest.raises(openai.APIStatusError) as caught:
        await openai_client.chat.completions.create(**body("ok", "x" * TWENTY_MB))
    assert caught.value.status_code == 413


def test_a_body_without_a_length_is_as_good_as_any(service, upstream, marker):
    content = json.dumps(body("ok", marker)).encode()
    answer = post(service, marker, iter([content[:20], content[20:]]))
    assert answer.status_code == 200
    assert len(upstream.requests(marker)) == 1


def test_a_body_that_is_not_called_json_is_still_not_a_server_error(service, marker):
    content = json.dumps(body("ok", marker)).encode()
    assert post(service, marker, content, content_type=None).status_code < 500


def test_after_all_this_the_service_is_well(service, marker):
    assert chat(service, "ok", marker).status_code == 200
