"""An upstream that is broken or hostile: what it can cost us, and how its calls are booked."""

import json

import pytest

from tests.support.calls import chat, open_call, read_until
from tests.support.scripts import ENDLESS_PIECES, UPSTREAM_MARKER


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("model", ["endless-200", "endless-500"])
def test_a_body_without_an_end_is_not_read_to_its_end(service, upstream, books, model, stream, marker):
    answer = chat(service, model, marker, stream=stream)
    assert answer.status_code == 502
    received = upstream.wait_request(marker)
    assert received.cancelled.wait(20)
    assert received.events_sent < ENDLESS_PIECES / 4
    assert books.record(marker).outcome == "upstream_error"


def test_a_cookie_that_came_with_one_answer_is_not_sent_with_another_question(service, upstream, marker):
    for _ in range(2 * service.workers + 1):  # each worker has a jar of its own
        assert chat(service, "cookie", marker).status_code == 200
    requests = upstream.requests(marker)
    assert len(requests) == 2 * service.workers + 1
    assert ["cookie" in request.headers for request in requests] == [False] * len(requests)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate"])
def test_an_error_under_a_200_is_no_answer(service, books, path, marker):
    if path == "/generate":
        with service.client() as client:
            answer = client.post(
                path, json={"model": "error-in-200", "question": marker}, headers={"X-Request-ID": marker}
            )
    else:
        answer = chat(service, "error-in-200", marker)
    assert answer.status_code == 502
    assert UPSTREAM_MARKER not in answer.text
    assert books.record(marker).outcome == "upstream_error"


@pytest.mark.parametrize("model", ["half-of-two", "half-of-two-repeated"])
def test_two_answers_of_which_one_breaks_off_are_not_whole(service, books, model, marker):
    answer = chat(service, model, marker, stream=True, n=2)
    assert "[DONE]" not in answer.text
    assert '"error"' in answer.text
    assert books.record(marker).outcome == "upstream_truncated"


def test_a_client_that_hangs_up_at_an_error_event_did_not_end_the_call(service, books, marker):
    """The openai SDK raises at the event and closes the connection."""
    with open_call(service, "stream-error-then-silence", marker, stream=True) as sock:
        read_until(sock, UPSTREAM_MARKER.encode())
    assert books.record(marker).outcome == "upstream_error"


@pytest.mark.parametrize("asked", [{}, {"stream_options": {"include_usage": True}}], ids=["not asked", "asked"])
def test_an_error_event_that_has_usage_too_reaches_the_client(service, books, asked, marker):
    answer = chat(service, "stream-error-with-usage", marker, stream=True, **asked)
    assert UPSTREAM_MARKER in answer.text
    assert "[DONE]" not in answer.text
    record = books.record(marker)
    assert record.outcome == "upstream_error"
    assert record.tokens == (11, 7, "provider")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("model", ["error-400-surrogate", "error-400-nan"])
def test_an_odd_refusal_is_told_and_booked_alike(service, books, model, stream, marker):
    answer = chat(service, model, marker, stream=stream)
    assert answer.status_code == 400
    error = json.loads(answer.content.decode(), parse_constant=pytest.fail)["error"]
    assert error["message"].startswith("bad")
    record = books.record(marker)
    assert (record.outcome, record.row["http_status"], record.line["status"]) == ("upstream_error", 400, 400)
