"""What is known of the request in hand: one object in the ASGI scope. Rooms add to it, the log line shows it."""

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_KEY = "tollbook.request"


@dataclass(slots=True)
class RequestContext:
    """One HTTP request."""

    request_id: str
    started: float = field(default_factory=time.perf_counter)  # seconds, monotonic
    fields: dict[str, Any] = field(default_factory=dict)  # goes into the canonical log line
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage; goes into Server-Timing


def open_request(scope: MutableMapping[str, Any], request_id: str) -> RequestContext:
    """Put a new context into the ASGI scope."""
    context = RequestContext(request_id)
    scope[_KEY] = context
    return context


def note(scope: MutableMapping[str, Any], **fields: Any) -> None:
    """Add to the log line of a request; does nothing where there is none."""
    context: RequestContext | None = scope.get(_KEY)
    if context is not None:
        context.fields.update(fields)


@contextmanager
def timed(scope: MutableMapping[str, Any], stage: str) -> Iterator[None]:
    """Add the time spent inside to a stage of the request; does nothing where there is none."""
    context: RequestContext | None = scope.get(_KEY)
    began = time.perf_counter()
    try:
        yield
    finally:
        if context is not None:
            context.timings[stage] = context.timings.get(stage, 0.0) + time.perf_counter() - began


def request_id_of(scope: MutableMapping[str, Any]) -> str:
    """The id of a request; empty where there is none."""
    context: RequestContext | None = scope.get(_KEY)
    return context.request_id if context is not None else ""


def request_context(scope: MutableMapping[str, Any]) -> RequestContext:
    """The context of a request.

    Raises:
        KeyError: outside `RequestMiddleware`, which is a mistake in the middleware list.
    """
    context: RequestContext = scope[_KEY]
    return context
