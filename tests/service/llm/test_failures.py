"""What each way in which an upstream can fail means to the client and to the books."""

import json
from typing import Any

import httpx2
import openai
import pytest

from observability.entry import Outcome
from service.llm.failures import (
    UpstreamFailure,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
    UpstreamUnusable,
    failure_of,
)

REQUEST = httpx2.Request("POST", "http://127.0.0.1:9/v1/chat/completions")
OURS = {"message", "type", "param", "code"}


def status_error(status: int, body: Any = b"", **headers: str) -> UpstreamFailure:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx2.Response(status, content=content, headers=sent, request=REQUEST)
    return failure_of(openai.APIStatusError("no", response=response, body=None))


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (302, UpstreamUnusable, 502),
        (400, UpstreamRefused, 400),
        (401, UpstreamUnusable, 502),
        (403, UpstreamUnusable, 502),
        (404, UpstreamRefused, 404),
        (407, UpstreamUnusable, 502),
        (413, UpstreamRefused, 413),
        (422, UpstreamRefused, 422),
        (429, UpstreamRefused, 429),
        (499, UpstreamRefused, 499),
        (500, UpstreamUnusable, 502),
        (503, UpstreamUnusable, 502),
        (529, UpstreamUnusable, 502),
    ],
)
def test_each_status_has_its_failure(status, kind, told):
    failure = status_error(status)
    assert (type(failure), failure.status) == (kind, told)
    assert (failure.outcome, failure.error_type) == (Outcome.UPSTREAM_ERROR, str(status))
    assert set(failure.error) == OURS


@pytest.mark.parametrize(
    ("error", "kind", "told", "outcome", "error_type"),
    [
        (openai.APITimeoutError(REQUEST), UpstreamTimeout, 504, Outcome.UPSTREAM_TIMEOUT, "upstream_timeout"),
        (
            openai.APIConnectionError(request=REQUEST),
            UpstreamUnreachable,
            502,
            Outcome.UPSTREAM_ERROR,
            "upstream_unreachable",
        ),
        (openai.OpenAIError("odd"), UpstreamUnreachable, 502, Outcome.UPSTREAM_ERROR, "upstream_unreachable"),
    ],
)
def test_an_error_without_a_status_has_its_failure(error, kind, told, outcome, error_type):
    failure = failure_of(error)
    assert (type(failure), failure.status, failure.outcome, failure.error_type) == (kind, told, outcome, error_type)
    assert (failure.error["type"], failure.error["code"]) == ("upstream_error", error_type)


def test_a_truncated_answer_has_an_outcome_of_its_own():
    failure = UpstreamTruncated("short")
    assert (failure.status, failure.outcome) == (502, Outcome.UPSTREAM_TRUNCATED)
    assert failure.error == {"message": "short", "type": "upstream_error", "param": None, "code": "upstream_truncated"}


def test_a_refusal_is_in_the_upstreams_own_words():
    error = {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "context_length"}
    assert status_error(400, {"error": error}).error == error


def test_members_that_are_none_of_the_envelope_are_left_out_and_missing_ones_are_null():
    failure = status_error(400, {"error": {"message": "no", "internal": "host-7"}, "trace": "x"})
    assert failure.error == {"message": "no", "type": None, "param": None, "code": None}


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>no</html>", b"[]", b"7", b"null", b'{"error": "no"}', b'{"error": {}}', b'{"error": null}', b"\xff",
     b"[" * 5000],
)  # fmt: skip
def test_a_refusal_in_another_shape_is_told_in_ours(body):
    assert status_error(400, body).error == {
        "message": "The upstream answered 400.",
        "type": "invalid_request_error",
        "param": None,
        "code": "upstream_400",
    }
    assert status_error(429, body).error["type"] == "rate_limit_error"


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_refusal_of_our_key_is_not_told_in_words_that_may_hold_it(status):
    failure = status_error(status, {"error": {"message": "Incorrect API key provided: sk-proj-0123456789"}})
    assert "sk-proj" not in json.dumps(failure.error) + str(failure)
    assert failure.error["message"] == "The upstream refused the service's own credentials."


def test_an_error_of_the_upstream_itself_is_not_passed_on_in_its_words():
    assert "stack" not in json.dumps(status_error(500, {"error": {"message": "stack trace"}}).error)


@pytest.mark.parametrize("status", [429, 503])
def test_when_to_come_back_is_passed_on_and_no_other_header_is(status):
    failure = status_error(status, retry_after="7", retry_after_ms="6500", set_cookie="a=b", x_request_id="theirs")
    assert failure.headers == {"retry-after": "7", "retry-after-ms": "6500"}


def test_message_and_headers_are_the_failures_own():
    given = {"message": "no", "type": None, "param": None, "code": None}
    failure = UpstreamRefused("no", status=400, error=given, headers={})
    failure.error["message"] = "changed"
    assert given["message"] == "no"
