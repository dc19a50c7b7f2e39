"""Every refusal and every fault ends in each of the four books exactly once, under the same word."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.calls import body, post
from tests.support.catalog import DOWN
from tests.support.service import RunningService

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Case:
    """What is sent and how it must end."""

    name: str
    status: int
    outcome: str
    usage_source: str
    model: str = "ok"
    stream: bool = False
    path: str = "/v1/chat/completions"
    fields: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str | None] = field(default_factory=dict)
    scope: str | None = None
    content: bytes | None = None
    counted_as: str | None = None
    """The label `model`, where it is not the model that was asked for."""

    def send(self, service: RunningService, marker: str) -> int:
        content = self.content
        if content is None:
            sent = body(self.model, marker, stream=self.stream) | self.fields
            if self.path != "/v1/chat/completions":
                sent = {"model": self.model, "question": marker}
            content = json.dumps(sent).encode()
        headers = dict(self.headers)
        if self.scope:
            headers["authorization"] = f"Bearer {service.token(self.scope)}"
        return post(service, marker, content, self.path, **headers).status_code


def upstream_case(model: str, status: int, outcome: str, usage_source: str, *, stream: bool = False) -> Case:
    name = f"{model}{' stream' if stream else ''}"
    return Case(name, status, outcome, usage_source, model=model, stream=stream)


CASES = [
    upstream_case("ok", 200, "ok", "provider"),
    upstream_case("ok", 200, "ok", "provider", stream=True),
    upstream_case("tools", 200, "ok", "provider"),
    upstream_case("gzip", 200, "ok", "provider"),
    upstream_case("flaky", 200, "ok", "provider", stream=True),
    upstream_case("no-usage", 200, "ok", "unknown"),
    Case("generate", 200, "ok", "provider", path="/generate"),
    Case("text stream", 200, "ok", "provider", path="/stream"),
    *(
        upstream_case(f"error-{status}", told, "upstream_error", "unknown", stream=stream)
        for status, told in {
            400: 400,
            401: 502,
            403: 502,
            404: 404,
            413: 413,
            422: 422,
            429: 429,
            500: 502,
            503: 502,
        }.items()
        for stream in (False, True)
    ),
    *(
        upstream_case(model, status, outcome, "unknown", stream=stream)
        for model, status, outcome in [
            ("html-200", 502, "upstream_error"),
            ("html-502", 502, "upstream_error"),
            ("bad-json", 502, "upstream_error"),
            ("hang", 504, "upstream_timeout"),
            (DOWN, 502, "upstream_error"),
        ]
        for stream in (False, True)
    ),
    upstream_case("half-json", 502, "upstream_truncated", "unknown"),
    upstream_case("half-stream", 200, "upstream_truncated", "partial", stream=True),
    upstream_case("half-stream-clean", 200, "upstream_truncated", "partial", stream=True),
    upstream_case("reset-mid-stream", 200, "upstream_truncated", "partial", stream=True),
    upstream_case("hang-mid-stream", 200, "upstream_timeout", "partial", stream=True),
    upstream_case("stream-error-event", 200, "upstream_error", "partial", stream=True),
    Case("generate, upstream in trouble", 502, "upstream_error", "unknown", model="error-500", path="/generate"),
    Case("text stream, upstream in trouble", 502, "upstream_error", "unknown", model="error-500", path="/stream"),
    Case("unknown model", 404, "rejected_invalid", "unknown", model="no-such-model", counted_as=UNKNOWN),
    Case("empty messages", 400, "rejected_invalid", "unknown", fields={"messages": []}, counted_as=UNKNOWN),
    Case("negative max_tokens", 400, "rejected_invalid", "unknown", fields={"max_tokens": -1}, counted_as=UNKNOWN),
    Case("malformed JSON", 400, "rejected_invalid", "unknown", content=b"{", counted_as=UNKNOWN),
    Case("not an object", 400, "rejected_invalid", "unknown", content=b"[]", counted_as=UNKNOWN),
    Case("no question", 422, "rejected_invalid", "unknown", path="/generate", content=b"{}", counted_as=UNKNOWN),
    Case("too large", 413, "rejected_invalid", "unknown", content=b" " * 20 * 2**20, counted_as=UNKNOWN),
    Case("no token", 401, "rejected_auth", "unknown", headers={"authorization": None}, counted_as=UNKNOWN),
    Case("a garbled token", 401, "rejected_auth", "unknown", headers={"authorization": "Bearer x"}, counted_as=UNKNOWN),
    Case("a missing scope", 403, "rejected_auth", "unknown", scope="usage:read", counted_as=UNKNOWN),
    Case(
        "no token for a text stream",
        401,
        "rejected_auth",
        "unknown",
        path="/stream",
        headers={"authorization": None},
        counted_as=UNKNOWN,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_is_in_every_book_once(service, books, case, marker):
    with books.counting(case.counted_as or case.model) as counted:
        assert case.send(service, marker) == case.status
        record = books.record(marker)
    assert counted == {case.outcome: 1}
    assert (record.outcome, record.row["usage_source"], record.row["http_status"]) == (
        case.outcome,
        case.usage_source,
        case.status,
    )
    assert record.line["status"] == case.status
    assert (record.row["input_tokens"] is None) == (case.usage_source != "provider")


def test_tokens_and_cost_are_counted_as_they_are_booked(service, books, marker):
    """The counters grow by exactly what the row says."""

    def counters() -> dict[str, float]:
        tokens = {
            kind: service.metric("tollbook_tokens_total", model="tools", type=kind) for kind in ("input", "output")
        }
        return {**tokens, "cost": service.metric("tollbook_cost_usd_total", model="tools")}

    before = counters()
    for number in range(3):
        assert post(service, f"{marker}-{number}", json.dumps(body("tools", marker)).encode()).status_code == 200
    rows = [books.record(f"{marker}-{number}").row for number in range(3)]
    grown = {name: value - before[name] for name, value in counters().items()}
    assert grown["input"] == sum(row["input_tokens"] for row in rows)
    assert grown["output"] == sum(row["output_tokens"] for row in rows)
    assert grown["cost"] == pytest.approx(float(sum(row["cost_usd"] for row in rows)))
