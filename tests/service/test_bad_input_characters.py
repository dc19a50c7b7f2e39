"""NUL, line ends, bidirectional controls and characters of four bytes, in names, ids and prompts."""

import http.client
import json

import httpx2
import pytest

from tests.support.calls import chat, post
from tests.support.service import PASSWORD

NASTY = {
    "NUL": "a\x00b",
    "CRLF": 'a\r\n{"event":"request","request_id":"forged"}',
    "LF": '\n{"event": "request", "outcome": "forged"}\n',
    "ESC": "a\x1b[2Jb",
    "line separator": "a\u2028b\u2029c\x85d",
    "right to left": "a\u202eb",
    "four bytes": "\U0001f600\U0001d54f",
    "combining": "e\u0301\u200d",
    "very long": "n" * 10_000,
}
nasty = pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())


@nasty
def test_a_prompt_reaches_the_upstream_as_it_is(service, text, marker):
    answer = chat(service, "echo", marker, messages=[{"role": "user", "content": text}])
    seen = json.loads(answer.json()["choices"][0]["message"]["content"])
    assert seen["messages"][0]["content"] == text


@nasty
@pytest.mark.parametrize("path", ["/generate", "/stream"])
def test_a_question_reaches_the_upstream_as_it_is(service, text, path, marker):
    answer = post(service, marker, json.dumps({"question": text, "model": "echo"}).encode(), path)
    seen = json.loads(answer.text if path == "/stream" else answer.json()["answer"])
    assert seen["messages"][-1]["content"] == text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_half_a_character_in_json_is_no_server_error(service, stream, marker):
    """A lone surrogate can be written in JSON and cannot be written in UTF-8."""
    content = b'{"model": "echo", "stream": %s, "messages": [{"role": "user", "content": "\\ud83d"}]}'
    answer = post(service, marker, content % str(stream).lower().encode())
    assert answer.status_code in {200, 400, 422}


@nasty
def test_a_user_name_that_nobody_has_is_refused_in_one_line(service, text, marker):
    form = {"grant_type": "password", "username": text, "password": "wrong"}
    answer = httpx2.post(f"{service.base_url}/token", data=form, headers={"X-Request-ID": marker})
    assert answer.status_code == 400
    assert answer.json()["error"] in {"invalid_grant", "invalid_request"}
    assert service.wait_line(request_id=marker)["status"] == 400


@nasty
def test_a_request_id_that_is_not_sane_is_replaced(service, text):
    # http.client sends no such header either; a socket would, and a proxy would refuse what a server must not split.
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    connection.putrequest("GET", "/livez")
    connection._buffer.append(b"X-Request-ID: " + text.encode("utf-8"))  # type: ignore[attr-defined]
    connection.endheaders()
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status in {200, 400}
    if answer.status == 200:
        assert answer.headers["X-Request-ID"] not in {text, "forged"}
        assert service.wait_line(request_id=answer.headers["X-Request-ID"])["status"] == 200


@nasty
def test_a_model_name_is_refused_and_forges_nothing(service, text, marker):
    answer = chat(service, text, marker)
    assert answer.status_code in {400, 404, 422}
    assert service.wait_line(request_id=marker)["status"] == answer.status_code
    assert service.metric("tollbook_calls_total", model=text) == 0


def test_no_line_of_the_log_was_forged(service):
    """Each line is one whole JSON object, and none is what the texts above wanted to pass for."""
    lines = [json.loads(line) for line in service.stdout.read_text().split("\n") if line]
    assert all("event" in line for line in lines)
    assert "forged" not in [value for line in lines for value in line.values()]


def test_a_user_with_a_name_of_four_byte_characters_can_log_in_and_call(service, marker):
    name = "Zo\u00eb \U0001f600"
    service.tollbook("users", "add", name, TOLLBOOK_NEW_PASSWORD=PASSWORD)
    form = {"grant_type": "password", "username": name, "password": PASSWORD}
    token = httpx2.post(f"{service.base_url}/token", data=form).json()["access_token"]
    answer = post(service, marker, b"{}", "/generate", authorization=f"Bearer {token}")
    assert answer.status_code in {400, 422}
    me = httpx2.get(f"{service.base_url}/users/me", headers={"Authorization": f"Bearer {token}"})
    assert me.json()["username"] == name
    assert service.wait_line(request_id=marker)["principal"] == name
