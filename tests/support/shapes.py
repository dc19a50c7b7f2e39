"""What the scripted upstream says, and how much of it.

The shapes are OpenAI's: https://platform.openai.com/docs/api-reference/chat. As there, usage comes with a stream only
when `stream_options.include_usage` asks for it, and then every other chunk says `"usage": null`.
"""

import json
from dataclasses import dataclass
from typing import Any

WORDS = ["Books", " are", " kept", " \u2615", " here", " \U0001f600", "."]
"""The answer, a delta each; one is of three bytes and one of four."""
ANSWER = "".join(WORDS)
DELTAS_806 = 806


@dataclass(frozen=True)
class Usage:
    """What a behaviour reports, in tokens."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


USUAL = Usage(prompt=11, completion=len(WORDS))
USAGE = {
    "stream-usage-zero": Usage(prompt=0, completion=0),
    "stream-cached-reasoning": Usage(prompt=1200, completion=345, cached=1024, reasoning=300),
    "stream-806": Usage(prompt=21, completion=DELTAS_806),
    "tools": Usage(prompt=31, completion=17),
}
"""Usage by behaviour; USUAL for one that is not here."""


def usage_of(model: str) -> Usage:
    return USAGE.get(model, USUAL)


def response_model(model: str) -> str:
    """The name the upstream answers with: like OpenAI's, more exact than the name that was asked for."""
    return f"{model}-2026-01-01"


def error(message: str, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    return dump({"error": {"message": message, "type": kind, "param": param, "code": code}})


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def completion(model: str, content: str | None = ANSWER, **message: Any) -> dict[str, Any]:
    finish = "tool_calls" if "tool_calls" in message else "stop"
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 1767225600,
        "model": response_model(model),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None, "annotations": [], **message},
                "logprobs": None,
                "finish_reason": finish,
            }
        ],
        "usage": usage_of(model).as_json(),
        "service_tier": "default",
        "system_fingerprint": "fp_scripted",
    }


class Stream:
    """The frames of one streamed answer to one request."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.model: str = request["model"]
        self.wants_usage = bool((request.get("stream_options") or {}).get("include_usage"))

    def frames(
        self, words: list[str] | None = None, *, tool: bool = False, usage: bool = True, done: bool = True
    ) -> list[bytes]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "", "refusal": None}]
        deltas += TOOL_DELTAS if tool else [{"content": word} for word in (WORDS if words is None else words)]
        frames = [self._chunk(delta) for delta in deltas]
        frames.append(self._chunk({}, finish="tool_calls" if tool else "stop"))
        if self.wants_usage and usage:
            frames.append(self.usage_frame())
        if done:
            frames.append(b"data: [DONE]\n\n")
        return frames

    def usage_frame(self) -> bytes:
        return self._frame([], usage=usage_of(self.model).as_json())

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return self._frame([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], usage=None)

    def _frame(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> bytes:
        chunk: dict[str, Any] = {
            "id": "chatcmpl-scripted",
            "object": "chat.completion.chunk",
            "created": 1767225600,
            "model": response_model(self.model),
            "service_tier": "default",
            "system_fingerprint": "fp_scripted",
            "choices": choices,
        }
        if self.wants_usage:
            chunk["usage"] = usage
        return b"data: " + dump(chunk) + b"\n\n"


TOOL_CALL = {"name": "get_weather", "arguments": '{"city":"Z\u00fcrich"}'}
TOOL_DELTAS: list[dict[str, Any]] = [
    {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {**TOOL_CALL, "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"Z\u00fcrich"}'}}]},
]
