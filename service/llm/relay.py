"""Passes an upstream's answer on, and reads it for the books as it goes by."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, Final

import httpx2

from observability.genai import Call
from service.llm.catalog import Model
from service.llm.client import Upstreams, naming_connection_errors, read_at_most
from service.llm.failures import UpstreamTimeout, UpstreamTruncated, UpstreamUnusable
from service.llm.sse import EventWatcher
from service.llm.usage import read_finish_reasons, read_text, read_usage

CHAT_PATH: Final = "/chat/completions"
_MAX_ANSWER_BYTES: Final = 32 * 2**20  # of an answer that is no stream


class Relay:
    """Asks upstreams. One for each worker."""

    def __init__(self, upstreams: Upstreams, *, limit_seconds: float) -> None:
        """Make a relay.

        Args:
            upstreams: the clients.
            limit_seconds: longest life of a call, whatever the catalog allows.
        """
        self._upstreams = upstreams
        self._limit = limit_seconds

    def _deadline(self, model: Model) -> float:
        return asyncio.get_running_loop().time() + min(model.upstream.timeouts.total, self._limit)

    async def complete(self, call: Call, model: Model, body: bytes) -> tuple[bytes, dict[str, Any]]:
        """The whole answer: its bytes as they came, and what they say.

        Raises:
            UpstreamFailure: there is no usable answer.
        """
        async with deadline(self._deadline(model)):
            response = await self._upstreams.ask(call, model.upstream, CHAT_PATH, body)
            try:
                with _naming_broken_answers(response):
                    data = await read_at_most(response, _MAX_ANSWER_BYTES)
            finally:
                await response.aclose()
        call.note_upstream_wait()
        if len(data) > _MAX_ANSWER_BYTES:
            raise UpstreamUnusable("The upstream's answer is too large.", error_type="too_large")
        answer = _parse(data)
        if answer.get("error") and not answer.get("choices"):
            raise UpstreamUnusable("The upstream reported an error as its answer.", error_type="error_object")
        call.usage = read_usage(answer.get("usage"))
        call.response_model = read_text(answer, "model")
        call.finish_reasons = read_finish_reasons(answer)
        return data, answer

    async def open_stream(self, call: Call, model: Model, body: bytes, *, hide_usage: bool, choices: int) -> "Stream":
        """A stream whose head has come, of so many choices. Close it.

        Raises:
            UpstreamFailure: there is no stream.
        """
        ends_at = self._deadline(model)
        async with deadline(ends_at):
            response = await self._upstreams.ask(call, model.upstream, CHAT_PATH, body)
        call.note_upstream_wait()
        kind = response.headers.get("content-type", "")
        if not kind.lower().startswith("text/event-stream"):
            await response.aclose()
            raise UpstreamUnusable("The upstream did not answer with a stream.", error_type="not_a_stream")
        return Stream(response, EventWatcher(call, hide_usage=hide_usage, choices=choices), ends_at)


class Stream:
    """The events of an answer.

    Attributes:
        watcher: what is known of the stream so far.
        deadline: when it must be over, on the event loop's clock.
    """

    def __init__(self, response: httpx2.Response, watcher: EventWatcher, ends_at: float) -> None:
        self._response = response
        self.watcher = watcher
        self.deadline = ends_at

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """What to send to the client, as it comes.

        Raises:
            UpstreamFailure: the stream broke off.
        """
        watcher = self.watcher
        try:
            with _naming_broken_answers(self._response):
                async with aclosing(self._response.aiter_bytes()) as arriving:
                    async for data in arriving:
                        passed = watcher.feed(data)
                        if passed:
                            yield passed
        except (UpstreamTimeout, UpstreamTruncated):
            if not watcher.done:
                raise
        rest = watcher.end()
        if rest:
            yield rest
        if watcher.failed:
            raise UpstreamUnusable("The upstream reported an error in its answer.", error_type="error_event")
        # Some upstreams close an answer properly but send no [DONE]: a finish reason is an end too.
        if not (watcher.done or watcher.finished):
            raise UpstreamTruncated("The upstream ended its answer before it was complete.")

    async def close(self) -> None:
        """Drop the connection if the answer is not all read: the upstream then stops generating."""
        await self._response.aclose()


@asynccontextmanager
async def deadline(ends_at: float) -> AsyncIterator[None]:
    """End what is inside at that moment of the event loop's clock, with UpstreamTimeout."""
    try:
        async with asyncio.timeout_at(ends_at):
            yield
    except TimeoutError as error:
        raise UpstreamTimeout("The call took longer than it may.") from error


@contextmanager
def _naming_broken_answers(response: httpx2.Response) -> Iterator[None]:
    try:
        with naming_connection_errors(response.request):
            yield
    except httpx2.TimeoutException as error:
        raise UpstreamTimeout("The upstream fell silent in the middle of its answer.") from error
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        raise UpstreamTruncated("The upstream broke off its answer.") from error


def _parse(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UpstreamUnusable("The upstream's answer is not JSON.", error_type="not_json") from error
    if not isinstance(answer, dict):
        raise UpstreamUnusable("The upstream's answer is not a JSON object.", error_type="not_json")
    return answer
