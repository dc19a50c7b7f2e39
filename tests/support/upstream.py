"""A real HTTP server that speaks OpenAI's API and misbehaves to order."""

import json
from collections import Counter
from typing import Self

from tests.support.rawhttp import Exchange, RawServer, Received
from tests.support.scripts import JSON_TYPE, behaviours
from tests.support.shapes import dump, error
from tests.support.waiting import eventually


class ScriptedUpstream:
    """`POST /v1/chat/completions` and `GET /v1/models` on a loopback port; the model's name is the behaviour.

    Tests share one, each finding its own requests by a marker that it put into them.
    """

    def __init__(self) -> None:
        self._behaviours = behaviours()
        self._server = RawServer(self._handle)
        self.served: Counter[str] = Counter()
        """Completions asked for so far, by model."""

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.__exit__(*exc_info)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}/v1"

    @property
    def models(self) -> list[str]:
        return list(self._behaviours)

    def requests(self, marker: str) -> list[Received]:
        """The completions asked for so far whose body holds `marker`, in order of arrival."""
        text = marker.encode()
        return [r for r in list(self._server.received) if r.path.endswith("/chat/completions") and text in r.body]

    def wait_request(self, marker: str, timeout: float = 15) -> Received:
        """The first request whose body holds `marker`, once it is there."""
        return eventually(lambda: self.requests(marker), f"an upstream request with {marker!r}", timeout)[0]

    async def _handle(self, exchange: Exchange) -> None:
        received = exchange.received
        if received.method == "GET" and received.path.endswith("/models"):
            models = [{"id": m, "object": "model", "created": 1767225600, "owned_by": "scripted"} for m in self.models]
            await exchange.respond(200, dump({"object": "list", "data": models}), JSON_TYPE)
        elif received.method == "POST" and received.path.endswith("/chat/completions"):
            await self._complete(exchange, json.loads(received.body))
        else:
            await exchange.respond(404, error("no such path", "invalid_request_error"), JSON_TYPE)

    async def _complete(self, exchange: Exchange, request: dict[str, object]) -> None:
        model = str(request["model"])
        self.served[model] += 1
        behaviour = self._behaviours.get(model)
        if behaviour is None:
            body = error(f"The model `{model}` does not exist", "invalid_request_error", "model_not_found")
            await exchange.respond(404, body, JSON_TYPE)
        else:
            await behaviour(exchange, request)
