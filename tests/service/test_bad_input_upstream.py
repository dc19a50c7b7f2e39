"""An upstream in trouble: its clients see the exception that users of the openai SDK expect, and no secret of ours."""

import openai
import pytest

from tests.support.calls import chat
from tests.support.catalog import DOWN, UPSTREAM_KEY
from tests.support.scripts import RETRY_AFTER, UPSTREAM_MARKER, UPSTREAM_SECRET
from tests.support.shapes import ANSWER

FAULTS = [
    ("error-400", openai.BadRequestError, 400),
    # The upstream refuses OUR key: no client can mend that, so it must not look like a fault of theirs.
    ("error-401", openai.InternalServerError, 502),
    ("error-403", openai.InternalServerError, 502),
    ("error-404", openai.NotFoundError, 404),
    ("error-413", openai.APIStatusError, 413),
    ("error-422", openai.UnprocessableEntityError, 422),
    ("error-429", openai.RateLimitError, 429),
    ("error-500", openai.InternalServerError, 502),
    ("error-503", openai.InternalServerError, 502),
    ("html-200", openai.InternalServerError, 502),
    ("html-502", openai.InternalServerError, 502),
    ("bad-json", openai.InternalServerError, 502),
    ("half-json", openai.InternalServerError, 502),
    ("hang", openai.InternalServerError, 504),
    (DOWN, openai.InternalServerError, 502),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("model", "error", "status"), FAULTS, ids=[fault[0] for fault in FAULTS])
async def test_a_fault_arrives_as_the_right_exception(openai_client, model, error, status, stream, marker):
    with pytest.raises(openai.APIStatusError) as caught:
        await openai_client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": marker}], stream=stream
        )
    assert (type(caught.value), caught.value.status_code) == (error, status)
    error_object = caught.value.response.json()["error"]
    assert set(error_object) == {"message", "type", "param", "code"}
    assert error_object["message"]


async def test_retry_after_reaches_the_client(openai_client, marker):
    with pytest.raises(openai.RateLimitError) as caught:
        await openai_client.chat.completions.create(model="error-429", messages=[{"role": "user", "content": marker}])
    assert caught.value.response.headers["retry-after"] == RETRY_AFTER


@pytest.mark.parametrize("model", ["error-400", "error-404", "error-422"])
def test_what_the_upstream_says_of_a_bad_request_reaches_the_client(service, model, marker):
    assert UPSTREAM_MARKER in chat(service, model, marker).json()["error"]["message"]


@pytest.mark.parametrize("model", ["error-401", "error-403", "error-500", "error-503", "html-200", "html-502"])
def test_what_the_upstream_says_of_itself_does_not(service, model, marker):
    """OpenAI's 401 repeats most of the key."""
    answer = chat(service, model, marker)
    assert UPSTREAM_MARKER not in answer.text
    assert UPSTREAM_SECRET not in answer.text
    assert answer.headers["content-type"].startswith("application/json")


def test_no_key_is_ever_logged(service, marker):
    for model in ("error-401", "error-500", DOWN, "html-200"):
        chat(service, model, marker)
    service.wait_line(request_id=marker)
    written = service.stdout.read_text() + service.stderr.read_text()
    assert UPSTREAM_KEY not in written
    assert UPSTREAM_SECRET not in written
    assert service.token() not in written


def test_the_upstream_gets_our_key_and_not_the_clients_token(service, upstream, marker):
    chat(service, "ok", marker)
    received = upstream.wait_request(marker)
    assert received.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert service.token() not in str(received)


def test_a_compressed_answer_is_readable(service, marker):
    assert chat(service, "gzip", marker).json()["choices"][0]["message"]["content"] == ANSWER


def test_a_refusal_that_may_pass_is_tried_again(service, books, marker):
    assert chat(service, "flaky", marker).status_code == 200
    record = books.record(marker)
    assert (record.outcome, record.row["attempts"]) == ("ok", 2)
