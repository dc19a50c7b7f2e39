"""How an upstream can fail us, and what the client is told. Pure: service/errors.py renders it.

UpstreamFailure
├── UpstreamRefused      4xx of the upstream that is the client's business: passed on with its own words
├── UpstreamUnusable     5xx, nonsense, our key refused: 502
├── UpstreamUnreachable  no connection: 502
├── UpstreamTimeout      too slow: 504
└── UpstreamTruncated    the answer ended without its end: 502, or an error event in a stream that has begun
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

import openai

from observability.entry import Outcome

# Its refusals of these kinds concern our key and our configuration, never the client's token.
_OURS = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED}
_PASSED_ON_HEADERS = ("retry-after", "retry-after-ms")


class UpstreamFailure(Exception):  # noqa: N818 - "failure" is the word
    """An upstream did not answer as it should.

    Attributes:
        status: what the client is answered.
        error: the members of OpenAI's `error` object.
        headers: to send with the answer.
        outcome, error_type: for the books.
    """

    outcome: ClassVar[Outcome] = Outcome.UPSTREAM_ERROR
    status: int = HTTPStatus.BAD_GATEWAY
    code = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        error_type: str = "",
        error: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.error_type = error_type or self.code
        self.error = dict(error or {"message": message, "type": "upstream_error", "param": None, "code": self.code})
        self.headers = dict(headers or {})


class UpstreamRefused(UpstreamFailure):
    """The upstream answered 4xx: the client's request is at fault, or it is asked to slow down."""

    def __init__(self, message: str, *, status: int, error: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        super().__init__(message, error_type=str(status), error=error, headers=headers)
        self.status = status


class UpstreamUnusable(UpstreamFailure):
    """The upstream answered, but not with anything a client can use."""


class UpstreamUnreachable(UpstreamFailure):
    """No connection, or it broke before the answer began."""

    code = "upstream_unreachable"


class UpstreamTimeout(UpstreamFailure):
    """The upstream was silent for too long, or the whole call took too long."""

    outcome = Outcome.UPSTREAM_TIMEOUT
    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "upstream_timeout"


class UpstreamTruncated(UpstreamFailure):
    """The answer stopped before its end."""

    outcome = Outcome.UPSTREAM_TRUNCATED
    code = "upstream_truncated"


def failure_of(error: openai.OpenAIError) -> UpstreamFailure:
    """What an error of the SDK means to the client."""
    if isinstance(error, openai.APITimeoutError):
        return UpstreamTimeout("The upstream did not answer in time.")
    if isinstance(error, openai.APIStatusError):
        return _status_failure(error)
    return UpstreamUnreachable("The upstream could not be reached.")


def _status_failure(error: openai.APIStatusError) -> UpstreamFailure:
    status = error.status_code
    headers = {name: error.response.headers[name] for name in _PASSED_ON_HEADERS if name in error.response.headers}
    if status in _OURS:
        return UpstreamUnusable("The upstream refused the service's own credentials.", error_type=str(status))
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return UpstreamRefused(
            f"The upstream answered {status}.",
            status=status,
            error=_error_object(error.response.text, status),
            headers=headers,
        )
    return UpstreamUnusable(f"The upstream answered {status}.", error_type=str(status), headers=headers)


def _error_object(text: str, status: int) -> dict[str, Any]:
    """The upstream's own `error` object, if it sent one in OpenAI's shape; else one that we make."""
    try:
        found = json.loads(text)["error"]
        message = found["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {
            "message": f"The upstream answered {status}.",
            "type": "rate_limit_error" if status == HTTPStatus.TOO_MANY_REQUESTS else "invalid_request_error",
            "param": None,
            "code": f"upstream_{status}",
        }
    return {"message": str(_sendable(message)), **{key: _sendable(found.get(key)) for key in ("type", "param", "code")}}


def _sendable(value: object) -> str | int | None:
    """What can be written into JSON and sent, however odd the upstream's own JSON was."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value if isinstance(value, int) else None
