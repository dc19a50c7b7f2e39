"""POST /v1/chat/completions: OpenAI's own API. Every field a client sends reaches the upstream, known to us or not."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from auth.principal import Principal
from service.api.answers import Asked, CallResponse, EventStreamAnswer, PlainAnswer
from service.api.body import AS_WHOLE_NUMBER, check, read_json
from service.api.booked import BookedRoute
from service.errors import InvalidRequest, ModelForbidden, ModelNotFound
from service.limits.admission import Admitted
from service.llm.catalog import Catalog, Model
from service.openapi import errors, json_body
from service.state import Llm

router = APIRouter(prefix="/v1", tags=["llm"], route_class=BookedRoute)

# What a model call can be answered with besides its answer; the upstream's own 4xx are passed on too.
CALL_ERRORS = errors(400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 502, 503, 504)

TokenLimit = Annotated[int, Field(ge=1, strict=True), AS_WHOLE_NUMBER] | None


class StreamOptions(BaseModel):
    """What a stream should hold."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = Field(None, strict=True)


class ChatCompletionRequest(BaseModel):
    """What Tollbook itself looks at. Everything else is the upstream's business and is passed on as it is."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1, description="A model of `/v1/models`.")
    messages: list[Any] = Field(min_length=1)
    stream: bool | None = Field(None, strict=True)
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128, strict=True), AS_WHOLE_NUMBER] | None = None
    max_tokens: TokenLimit = None
    max_completion_tokens: TokenLimit = None


# One sentence for both, so that it tells nobody which models there are.
_NO_MODEL = "The model does not exist, or you may not use it."

_EXAMPLES = {
    "plain": {"value": {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Say hello."}]}},
    "stream": {
        "value": {
            "model": "smollm2-135m-instruct",
            "messages": [{"role": "user", "content": "Say hello."}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    },
}


@router.post(
    "/chat/completions",
    openapi_extra=json_body(ChatCompletionRequest, _EXAMPLES),
    responses={200: {"content": {"application/json": {}, "text/event-stream": {}}}, **CALL_ERRORS},
)
async def create_chat_completion(request: Request, principal: Admitted) -> Response:
    """Answers a conversation, whole or as a stream of events."""
    found = await read_json(request)
    wanted = check(ChatCompletionRequest, found, InvalidRequest)
    llm: Llm = request.state.llm
    model = find_model(llm.catalog, wanted.model, principal)
    stream = bool(wanted.stream)
    ask_usage = stream and not (wanted.stream_options and wanted.stream_options.include_usage)
    if ask_usage:
        found["stream_options"] = {**(found.get("stream_options") or {}), "include_usage": True}
    found["model"] = model.upstream.model
    # Written anew even where nothing changed: of a key that stands twice the upstream might read the other one.
    body = encode(found)
    asked = Asked(principal=principal, model=model, body=body, hide_usage=ask_usage, choices=wanted.n or 1)
    answer: type[CallResponse] = EventStreamAnswer if stream else PlainAnswer
    return answer(request, asked)


def find_model(catalog: Catalog, name: str | None, principal: Principal) -> Model:
    """The model to ask. Without a name the default, or the first that the principal may call.

    Raises:
        ModelNotFound: there is none of that name.
        ModelForbidden: there is, but not for this principal.
        InvalidRequest: none was named, and there is no default.
    """
    model = catalog.resolve(name)
    if name is None and (model is None or not principal.may_call(model.name)):
        model = next((other for other in catalog.models if principal.may_call(other.name)), None)
        if model is None:
            raise InvalidRequest("Name a model: this service has no default.", param="model")
    if model is None:
        raise ModelNotFound(_NO_MODEL, param="model")
    if not principal.may_call(model.name):
        raise ModelForbidden(_NO_MODEL, param="model")
    return model


def encode(body: dict[str, Any]) -> bytes:
    """A body for an upstream. ASCII with escapes, so that even a lone surrogate of a client passes through unharmed.

    Raises:
        InvalidRequest: a number that JSON cannot hold (1e999 is infinite to Python).
    """
    try:
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode("ascii")
    except ValueError:
        raise InvalidRequest("The body holds a number that is too large.") from None
