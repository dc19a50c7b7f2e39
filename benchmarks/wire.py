"""The requests and answers of the benchmark, byte for byte, so that every answer can be compared with what it must be.

A marker of fixed length goes out in the prompt and comes back as the answer's id, in every event of a stream too: an
answer that was cut, altered or given to another call is noticed.
"""

import json
from typing import Any, Final

MODEL: Final = "bench"
PATH: Final = "/v1/chat/completions"
EVENTS: Final = 34  # of a stream: a role, 30 pieces of text, a finish reason, the usage, [DONE]
INPUT_TOKENS: Final = 17
OUTPUT_TOKENS: Final = 30

_PLACEHOLDER: Final = b"@marker@"
_COMMON: Final = {"id": _PLACEHOLDER.decode(), "created": 1_767_225_600, "model": MODEL, "system_fingerprint": "fp_0"}
_USAGE: Final = {
    "prompt_tokens": INPUT_TOKENS,
    "completion_tokens": OUTPUT_TOKENS,
    "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
}


def marker(number: int) -> bytes:
    """The marker of the call of this number: 12 characters."""
    return b"c%011d" % number


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _request(*, stream: bool) -> bytes:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": _PLACEHOLDER.decode()},
        ],
        "max_tokens": 64,
        "temperature": 0.2,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return _json(body)


def _plain() -> bytes:
    message = {"role": "assistant", "content": "All of it is on the books, and so is this. " * 2, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return _json({**_COMMON, "object": "chat.completion", "choices": [choice], "usage": _USAGE})


def _events() -> list[bytes]:
    def event(*choices: dict[str, Any], usage: dict[str, int] | None = None) -> bytes:
        chunk = {**_COMMON, "object": "chat.completion.chunk", "choices": choices, "usage": usage}
        return b"data: " + _json(chunk) + b"\n\n"

    def delta(finish_reason: str | None = None, **fields: str) -> dict[str, Any]:
        return {"index": 0, "delta": fields, "logprobs": None, "finish_reason": finish_reason}

    return [
        event(delta(role="assistant", content="")),
        *(event(delta(content=f" word{number}")) for number in range(OUTPUT_TOKENS)),
        event(delta("stop")),
        event(usage=_USAGE),
        b"data: [DONE]\n\n",
    ]


def _fill(template: bytes) -> bytes:
    """A template in which the marker has its real length, so that lengths can be reckoned once."""
    return template.replace(_PLACEHOLDER, _BLANK)


_BLANK: Final = b"@marker-12c@"
REQUESTS: Final = {stream: _fill(_request(stream=stream)) for stream in (False, True)}
ANSWERS: Final = {False: _fill(_plain()), True: _fill(b"".join(_events()))}
STREAM_EVENTS: Final = tuple(_fill(event) for event in _events())


def filled(template: bytes, mark: bytes) -> bytes:
    """The template with its marker; its length does not change."""
    return template.replace(_BLANK, mark)
