"""`tollbook chat`: a client of the service, the way any OpenAI client is."""

import time
from dataclasses import dataclass

import httpx2
import openai
from openai.types import CompletionUsage
from rich.console import Console


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask."""

    prompt: str
    model: str | None
    max_tokens: int


@dataclass(slots=True)
class _Took:
    first_token: float | None = None
    usage: CompletionUsage | None = None
    trace_id: str = ""
    call_id: str = ""


async def chat(url: str, username: str, password: str, question: Question) -> int:
    """Ask, print the answer as it comes, then what it took.

    Returns:
        The exit status: 0, or 1 after a message.
    """
    errors = Console(stderr=True)
    try:
        token = await _log_in(url, username, password)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as client:
            model = question.model or await _first_model(client)
            started = time.perf_counter()
            took = await _stream(client, model, question, started)
            seconds = time.perf_counter() - started
    except openai.APIStatusError as error:
        errors.print(f"Error: {error.status_code}: {error.message}", style="red", highlight=False, markup=False)
        return 1
    except (openai.OpenAIError, httpx2.TransportError, _Refused) as error:
        errors.print(f"Error: {error}", style="red", highlight=False, markup=False)
        return 1
    print(flush=True)  # noqa: T201 - the end of the answer's last line
    errors.print(_summary(model, took, seconds), style="dim", highlight=False, markup=False)
    return 0


class _Refused(Exception):  # noqa: N818
    """The service did not let us in, or offers nothing."""


async def _log_in(url: str, username: str, password: str) -> str:
    async with httpx2.AsyncClient(base_url=url) as client:
        form = {"grant_type": "password", "username": username, "password": password}
        response = await client.post("/token", data=form)
    body = response.json() if "json" in response.headers.get("content-type", "") else {}
    if response.status_code != httpx2.codes.OK:
        raise _Refused(f"Login failed: {body.get('error_description') or response.status_code}")
    token: str = body["access_token"]
    return token


async def _first_model(client: openai.AsyncOpenAI) -> str:
    models = (await client.models.list()).data
    if not models:
        raise _Refused("The service lists no models: name one with --model.")
    return models[0].id


async def _stream(client: openai.AsyncOpenAI, model: str, question: Question, started: float) -> _Took:
    took = _Took()
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question.prompt}],
        max_tokens=question.max_tokens,
        stream=True,
        stream_options={"include_usage": True},
    )
    headers = stream.response.headers
    took.call_id = headers.get("x-tollbook-call-id", "")
    took.trace_id = headers.get("traceresponse", "--").split("-")[1]
    async with stream:
        async for chunk in stream:
            took.usage = chunk.usage or took.usage
            for choice in chunk.choices:
                if choice.delta.content:
                    took.first_token = took.first_token or time.perf_counter() - started
                    print(choice.delta.content, end="", flush=True)  # noqa: T201 - the answer goes to stdout, unstyled
    return took


def _summary(model: str, took: _Took, seconds: float) -> str:
    tokens = f"{took.usage.prompt_tokens} in, {took.usage.completion_tokens} out" if took.usage else "not reported"
    first = f"{took.first_token * 1000:.0f} ms" if took.first_token is not None else "none came"
    lines = [
        f"model        {model}",
        f"tokens       {tokens}",
        f"first token  {first}",
        f"total        {seconds * 1000:.0f} ms",
        f"trace id     {took.trace_id or 'none'}",
        f"call id      {took.call_id or 'none'}",
    ]
    return "\n".join(lines)
