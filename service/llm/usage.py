"""Reads what an upstream says of an answer: usage, model, finish reasons. What is malformed is unknown, never zero."""

from collections.abc import Mapping
from typing import Any

from observability.entry import Usage

# A hundred million tokens: far over any context there is, and at the highest price still a cost that the ledger holds.
_LARGEST = 10**8


def read_usage(found: object) -> Usage | None:
    """OpenAI's `usage` object. None when it says nothing of use.

    An explicit zero stays zero. `cached_tokens` are part of the input, `reasoning_tokens` part of the output.
    """
    if not isinstance(found, Mapping):
        return None
    usage = Usage(
        input_tokens=_count(found, "prompt_tokens"),
        output_tokens=_count(found, "completion_tokens"),
        cached_input_tokens=_detail(found, "prompt_tokens_details", "cached_tokens"),
        reasoning_tokens=_detail(found, "completion_tokens_details", "reasoning_tokens"),
    )
    return None if usage.input_tokens is None and usage.output_tokens is None else usage


def read_text(found: Mapping[str, Any], key: str, limit: int = 200) -> str:
    """A printable string of the upstream, cut to a length that may go into a label; "" when there is none."""
    value = found.get(key)
    return value[:limit] if isinstance(value, str) and value.isprintable() else ""


def read_finish_reasons(found: Mapping[str, Any]) -> tuple[str, ...]:
    """The finish reason of each choice that has one."""
    choices = found.get("choices")
    if not isinstance(choices, list):
        return ()
    found_reasons = (read_text(choice, "finish_reason", 50) for choice in choices if isinstance(choice, dict))
    return tuple(reason for reason in found_reasons if reason)


def finished_choices(found: Mapping[str, Any]) -> set[int]:
    """The indexes of the choices that have a finish reason; a choice without an index counts as the first."""
    choices = found.get("choices")
    if not isinstance(choices, list):
        return set()
    finished = (choice for choice in choices if isinstance(choice, dict) and read_text(choice, "finish_reason", 50))
    return {_count(choice, "index") or 0 for choice in finished}


def _detail(found: Mapping[str, Any], group: str, key: str) -> int | None:
    details = found.get(group)
    return _count(details, key) if isinstance(details, Mapping) else None


def _count(found: Mapping[str, Any], key: str) -> int | None:
    value = found.get(key)
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST
    return value if good else None
