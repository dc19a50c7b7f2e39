"""POST /generate and POST /stream: one question, one answer, for callers who want no more than that."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from observability.genai import Call
from service.api.answers import Asked, PlainAnswer, TextStreamAnswer
from service.api.body import AS_WHOLE_NUMBER, check, read_json
from service.api.booked import BookedRoute
from service.api.chat import CALL_ERRORS, encode, find_model
from service.errors import UnprocessableRequest
from service.limits.admission import Admitted
from service.llm.failures import UpstreamUnusable
from service.openapi import json_body
from service.state import Llm

router = APIRouter(tags=["llm"], route_class=BookedRoute)


class Question(BaseModel):
    """A question to a model."""

    model_config = ConfigDict(extra="forbid")

    question: str = Field(min_length=1, description="What to ask.")
    max_tokens: Annotated[int, AS_WHOLE_NUMBER] = Field(
        150, ge=1, strict=True, description="Longest answer, in tokens."
    )
    model: str | None = Field(None, min_length=1, description="A model of `/v1/models`; default: the first.")


class TokenUsage(BaseModel):
    """Tokens as the upstream counted them; null where it did not say."""

    input_tokens: int | None
    output_tokens: int | None


class Answer(BaseModel):
    """An answer."""

    answer: str
    model: str
    usage: TokenUsage
    call_id: str


_EXAMPLES = {"question": {"value": {"question": "What is the capital of France?", "max_tokens": 50}}}
_BODY = json_body(Question, _EXAMPLES)
_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


async def _ask(request: Request, principal: Admitted, *, stream: bool) -> Asked:
    found = await read_json(request)
    question = check(Question, found, UnprocessableRequest)
    llm: Llm = request.state.llm
    model = find_model(llm.catalog, question.model, principal)
    body: dict[str, Any] = {
        "model": model.upstream.model,
        "messages": [{"role": "user", "content": question.question}],
        "max_tokens": question.max_tokens,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Asked(principal=principal, model=model, body=encode(body), hide_usage=stream)


def _shape(call: Call, _data: bytes, answer: dict[str, Any]) -> bytes:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        text = ...  # neither text nor the null of an answer that is all tool calls
    if not (text is None or isinstance(text, str)):
        raise UpstreamUnusable("The upstream's answer holds no text.", error_type="no_text")
    usage = call.usage
    shaped = Answer(
        answer=text or "",
        model=call.target.model,
        usage=TokenUsage(
            input_tokens=usage.input_tokens if usage else None, output_tokens=usage.output_tokens if usage else None
        ),
        call_id=call.call_id,
    )
    # json, not pydantic's writer, which refuses a lone surrogate in the model's text.
    return json.dumps(shaped.model_dump(), separators=(",", ":")).encode("ascii")


@router.post("/generate", openapi_extra=_BODY, responses={200: {"model": Answer}, **CALL_ERRORS})
async def generate(request: Request, principal: Admitted) -> Response:
    """Answers a question."""
    return PlainAnswer(request, await _ask(request, principal, stream=False), _shape)


@router.post("/stream", openapi_extra=_BODY, responses={**_TEXT, **CALL_ERRORS})
async def stream(request: Request, principal: Admitted) -> Response:
    """Answers a question with the text as it comes. An answer that breaks off has no proper end of its HTTP body."""
    return TextStreamAnswer(request, await _ask(request, principal, stream=True))
