"""Watches a stream of server-sent events (WHATWG HTML §9.2) as its bytes go by, without rebuilding it.

Whole events pass as the bytes that came. Only an event that may hold something to know is parsed: the first one (for
the model), one with a usage object, one with an error.
"""

import json
import re
from typing import Any, Final

from observability.genai import Call
from service.llm.failures import UpstreamUnusable
from service.llm.usage import finished_choices, read_finish_reasons, read_text, read_usage

_END_OF_EVENT: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_END_OF_LINE: Final = re.compile(rb"\r\n|\n|\r")
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_ERROR: Final = re.compile(rb'"error"\s*:\s*[{"]')
_FINISHED: Final = re.compile(rb'"finish_reason"\s*:\s*"')
# Inside a JSON string a quote is escaped, so text of an answer cannot look like one of these keys.
_OUTPUT: Final = re.compile(rb'"(?:content|reasoning_content|reasoning|refusal|arguments|text)"\s*:\s*"(?!")')
_LONGEST_UNFINISHED_END: Final = 3  # of the four bytes of CR LF CR LF
_MAX_EVENT_BYTES: Final = 16 * 2**20


class EventWatcher:
    """Reads a chat completion stream for the books. Feed it what arrives, send on what it returns."""

    def __init__(self, call: Call, *, hide_usage: bool, choices: int = 1) -> None:
        """Watch a stream.

        Args:
            call: told of chunks, usage and model.
            hide_usage: the client did not ask for the usage event, we did: keep it back.
            choices: how many answers were asked for (`n`); each has a finish reason of its own.
        """
        self._call = call
        self._hide_usage = hide_usage
        self._choices = choices
        self._finished: set[int] = set()  # choices that have their finish reason
        self._rest = bytearray()  # of an event that is not whole yet
        self._cut_after_cr = False
        self._last_passed = True
        self.done = False  # [DONE] came
        self.failed = False  # the upstream said in the stream that it failed

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason: no more output will come."""
        return len(self._finished) >= self._choices

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they arrived; returns the bytes of the events that are now whole.

        Raises:
            UpstreamUnusable: an event without an end.
        """
        passed: list[bytes] = []
        if self._cut_after_cr and data.startswith(b"\n"):  # the other half of a line's end, of an event that is through
            passed += [b"\n"] if self._last_passed else []
            data = data[1:]
        self._cut_after_cr = False
        buffer: bytes | bytearray = data
        scan_from = 0
        if self._rest:
            scan_from = max(0, len(self._rest) - _LONGEST_UNFINISHED_END)  # each byte is looked at once
            self._rest += data
            buffer = self._rest
        ends = [match.end() for match in _END_OF_EVENT.finditer(buffer, scan_from)]
        start = chunks = deltas = 0
        for end in ends:
            event = bytes(buffer[start:end])
            start = end
            self._last_passed, is_chunk, is_delta = self._read(event)
            chunks += is_chunk
            deltas += is_delta
            if self._last_passed:
                passed.append(event)
        if start or buffer is data:
            self._cut_after_cr = bool(ends) and start == len(buffer) and buffer.endswith(b"\r")
            self._rest = bytearray(buffer[start:])
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise UpstreamUnusable("The upstream sent an event without an end.")
        if chunks:
            self._call.record_chunks(chunks, deltas)
        return b"".join(passed)

    def end(self) -> bytes:
        """The stream is over: what was left without a blank line after it."""
        rest = bytes(self._rest)
        if rest.strip():
            return self.feed(b"\n\n")[: len(rest)]
        self._rest.clear()
        return rest

    def _read(self, event: bytes) -> tuple[bool, bool, bool]:
        """Whether to pass an event on, whether it is a chunk, and whether it carries output."""
        if b"data" not in event:
            return True, False, False  # a comment that keeps the connection alive
        if b"[DONE]" in event and _data(event).strip() == b"[DONE]":
            self.done = True
            return True, False, False
        call = self._call
        usage = _USAGE.search(event)
        if usage or not call.response_model or _ERROR.search(event):
            chunk = _parse(event)
            call.response_model = call.response_model or read_text(chunk, "model")
            if chunk.get("error"):
                self.failed = True
            if usage:
                call.usage = read_usage(chunk.get("usage")) or call.usage
                if self._hide_usage and not chunk.get("choices") and not chunk.get("error"):
                    return False, False, False
        if _FINISHED.search(event):
            chunk = _parse(event)
            call.finish_reasons = (*call.finish_reasons, *read_finish_reasons(chunk))
            self._finished.update(finished_choices(chunk))
        return True, True, _OUTPUT.search(event) is not None


def _data(event: bytes) -> bytes:
    lines = (line for line in _END_OF_LINE.split(event) if line.startswith(b"data:"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)


def _parse(event: bytes) -> dict[str, Any]:
    try:
        chunk = json.loads(_data(event))
    except (ValueError, RecursionError):
        return {}
    return chunk if isinstance(chunk, dict) else {}


def text_of(events: bytes) -> str:
    """The text that whole events of a chat completion stream add to the answer."""
    pieces = []
    for event in _END_OF_EVENT.split(events):
        if _OUTPUT.search(event):
            choices = _parse(event).get("choices")
            for choice in choices if isinstance(choices, list) else ():
                delta = choice.get("delta") if isinstance(choice, dict) else None
                content = delta.get("content") if isinstance(delta, dict) else None
                pieces.append(content if isinstance(content, str) else "")
    return "".join(pieces)


def error_event(error: dict[str, Any]) -> bytes:
    """An event that OpenAI's clients raise as an error."""
    return b"data: " + json.dumps({"error": error}, separators=(",", ":")).encode() + b"\n\n"
