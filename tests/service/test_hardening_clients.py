"""A client that is broken or hostile: what it can cost us, what it can hide, and what it may not read."""

import json
import socket
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.books import Books
from tests.support.calls import CHAT, body, chat, headers, post
from tests.support.scripts import SECRET_ANSWER
from tests.support.service import PASSWORD, RunningService
from tests.support.waiting import eventually

SECRET = "hunter2-is-no-secret"


def written(service: RunningService) -> str:
    return service.stdout.read_text() + service.stderr.read_text()


@pytest.fixture(scope="module")
def hurried(service_options, tmp_path_factory) -> Iterator[RunningService]:
    """A service whose calls last three seconds at most. It logs all it can."""
    env = {
        **service_options["env"],
        "TOLLBOOK_REQUEST_TIMEOUT_SECONDS": "3",
        "TOLLBOOK_BODY_TIMEOUT_SECONDS": "3",
        "TOLLBOOK_LOG_LEVEL": "debug",
    }
    with RunningService(tmp_path_factory.mktemp("hurried"), **{**service_options, "env": env}, workers=1) as running:
        yield running


@pytest.mark.parametrize("key", ["model", "mod\\u0065l"])
def test_of_a_doubled_key_the_upstream_gets_what_was_booked(service, upstream, books, key, marker):
    """Of two values one parser takes the first and another the last."""
    message = json.dumps([{"role": "user", "content": marker}])
    content = f'{{"{key}":"error-400","model":"ok","stream":true,"stream":false,"messages":{message}}}'
    answer = post(service, marker, content.encode())
    requests = upstream.requests(marker)
    if answer.status_code == 400:
        assert requests == []
        return
    assert answer.status_code == 200
    (received,) = requests
    pairs = json.loads(received.body, object_pairs_hook=list)
    names = [name for name, _ in pairs]
    assert sorted(names) == sorted(set(names))
    row = books.record(marker).row
    assert (dict(pairs)["model"], dict(pairs)["stream"]) == (row["model"], row["stream"]) == ("ok", False)


@pytest.mark.parametrize("piece", ["[]", '{"a":1}', "[[]]"])
def test_a_body_of_a_million_brackets_is_refused(service, upstream, piece, marker):
    """Built into objects, it would hold the event loop, and with it every other client of the worker."""
    many = ",".join([piece] * 1_000_000)
    content = json.dumps(body("ok", marker))[:-1] + f',"metadata":[{many}]}}'
    assert len(content) < 10 * 2**20
    answer = post(service, marker, content.encode())
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert upstream.requests(marker) == []


def test_a_prompt_full_of_brackets_is_served(service, marker):
    """Source code and JSON are usual prompts."""
    prompt = "[{(" * 20_000
    assert chat(service, "ok", marker, messages=[{"role": "user", "content": prompt}]).status_code == 200


def test_a_client_that_stops_reading_is_let_go_and_booked_as_gone(hurried, otlp, upstream, marker):
    content = json.dumps(body("bulk", marker, stream=True)).encode()
    sent = {**headers(hurried, marker), "Host": "127.0.0.1", "Content-Length": str(len(content))}
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", hurried.port))
        sock.sendall(f"POST {CHAT} HTTP/1.1\r\n{head}\r\n".encode() + content)
        # The line is written when the response is over, and the client still holds its end.
        record = Books(hurried, otlp).record(marker)
    assert record.outcome == "client_disconnect"
    assert upstream.wait_request(marker).cancelled.wait(10)
    eventually(lambda: hurried.metric("tollbook_calls_in_flight") == 0, "nothing to be in flight")


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", f"/token?username=bob&password={SECRET}"), ("GET", f"/users/me?access_token={SECRET}")],
    ids=["password", "token"],
)
def test_a_secret_in_the_address_is_in_no_span_and_no_log(service, otlp, method, path):
    answer = httpx2.request(method, service.base_url + path)
    assert answer.status_code in {400, 401, 422}
    trace_id = answer.headers["traceresponse"].split("-")[1]
    otlp.wait_for(lambda span: span.trace_id == trace_id and span.kind == "SERVER")
    assert SECRET not in str(otlp.spans(trace_id=trace_id))
    service.wait_line(trace_id=trace_id)
    assert SECRET not in written(service)
    assert SECRET not in answer.text


@pytest.mark.parametrize("host", ["metrics.example", "x/livez?", "x/metrics", "x/livez#", "livez"])
def test_no_host_header_switches_tracing_off(service, books, host, marker):
    answer = post(service, marker, json.dumps(body("ok", marker)).encode(), host=host)
    if answer.status_code == 400:
        return
    assert answer.status_code == 200
    trace_id = answer.headers["traceresponse"].split("-")[1]
    record = books.record(marker)
    assert record.span.trace_id == record.line["trace_id"] == trace_id
    assert record.span.parent_id


def test_an_answer_is_in_no_log_even_where_it_is_none(service, books, marker):
    with service.client() as client:
        answer = client.post("/generate", json={"model": "parts", "question": marker}, headers={"X-Request-ID": marker})
    assert answer.status_code == 502
    record = books.record(marker)
    assert record.outcome == "upstream_error"
    assert SECRET_ANSWER not in str(record)
    assert SECRET_ANSWER not in written(service)


def test_all_that_can_be_logged_holds_no_password_no_token_and_no_prompt(hurried, marker):
    chat(hurried, "ok", marker, messages=[{"role": "user", "content": SECRET}])
    hurried.wait_line(request_id=marker)
    text = written(hurried)
    assert '"debug"' in text
    for secret in ("$argon2", PASSWORD, hurried.token(), SECRET):
        assert secret not in text
