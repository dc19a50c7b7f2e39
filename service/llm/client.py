"""One openai SDK client per upstream: it owns connections, retries and time limits. Made after fork, in the worker."""

from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final

import aiohttp
import httpx2
import openai
from openai._vendor.httpx_aiohttp import AiohttpTransport  # its only home; needed to hand it a session

from observability.attempt import Attempt, AttemptResult
from observability.genai import Call
from service.llm.catalog import Upstream
from service.llm.failures import failure_of

_MAX_CONNECTIONS: Final = 4096  # in one worker, to one upstream; past it a call waits for a free one
_KEEPALIVE_SECONDS: Final = 30.0
_RATE_LIMITED: Final = 429
_MAX_ERROR_BYTES: Final = 64 * 1024
_OF_THE_BODY: Final = {"content-encoding", "content-length", "transfer-encoding"}
_LOOPBACK: Final = {"127.0.0.1", "::1", "localhost"}
_WITHOUT_KEY: Final[openai.RequestOptions] = {"headers": {"Authorization": openai.omit}}

# The SDK decides when it sends again, so each sending asks which call it belongs to. Set only around one await.
_current_call: ContextVar[Call] = ContextVar("current_call")


class _AttemptClient(openai.DefaultAioHttpClient):
    """The SDK's aiohttp transport, with a span and a count for each request that is really sent."""

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        url = request.url
        attempt = _current_call.get().begin_attempt(
            method=request.method,
            path=url.path,
            host=url.host,
            port=url.port or (443 if url.scheme == "https" else 80),
        )
        request.headers.update(attempt.headers)
        try:
            with naming_connection_errors(request):
                response = await super().send(request, **options)
        except BaseException as error:
            _end_failed(attempt, error)
            raise
        attempt.answered(response.status_code)
        if response.is_error:
            response = await _with_short_body(response)
        if response.status_code == _RATE_LIMITED:
            # The client is told at once, with Retry-After: waiting is its decision, and it holds no slot of ours.
            response.headers["x-should-retry"] = "false"
        return response


async def _with_short_body(response: httpx2.Response) -> httpx2.Response:
    """The same error with no more of its body than can matter: the SDK reads error bodies to their end."""
    try:
        with naming_connection_errors(response.request):
            body = await read_at_most(response, _MAX_ERROR_BYTES)
    finally:
        await response.aclose()
    headers = [(name, value) for name, value in response.headers.items() if name not in _OF_THE_BODY]
    return httpx2.Response(response.status_code, headers=headers, content=body, request=response.request)


async def read_at_most(response: httpx2.Response, limit: int) -> bytes:
    """The body, or its first bytes and some more if it is longer than the limit."""
    body = bytearray()
    async with aclosing(response.aiter_bytes()) as arriving:
        async for data in arriving:
            body += data
            if len(body) > limit:
                break
    return bytes(body)


def _end_failed(attempt: Attempt, error: BaseException) -> None:
    if isinstance(error, httpx2.TimeoutException):
        attempt.end(AttemptResult.TIMEOUT)
    elif isinstance(error, Exception):
        attempt.end(AttemptResult.CONNECTION_ERROR, error_type=type(error).__name__)
    else:
        attempt.end(AttemptResult.CANCELLED)


@contextmanager
def naming_connection_errors(request: httpx2.Request) -> Iterator[None]:
    """Give each error of the transport its right class.

    The transport calls every broken connection a connect timeout, and lets some of aiohttp's errors through.
    """
    try:
        yield
    except httpx2.TimeoutException as error:
        if isinstance(error.__cause__, TimeoutError):
            raise
        raise httpx2.ConnectError(str(error), request=request) from error
    except aiohttp.ClientError as error:
        raise httpx2.RemoteProtocolError(str(error), request=request) from error


class Upstreams:
    """The clients of one worker, made at first use."""

    def __init__(self) -> None:
        self._clients: dict[Upstream, openai.AsyncOpenAI] = {}

    async def ask(self, call: Call, upstream: Upstream, path: str, body: bytes) -> httpx2.Response:
        """Send a call to its upstream and return the answer's head; the body is still to be read, and to be closed.

        Raises:
            UpstreamFailure: no usable answer after the retries that the catalog allows.
        """
        client = self._client(upstream)
        token = _current_call.set(call)
        try:
            response: Any = await client.post(
                path,
                cast_to=httpx2.Response,
                content=body,
                options={} if upstream.api_key else _WITHOUT_KEY,
                stream=True,
                stream_cls=openai.AsyncStream[Any],
            )
        except openai.OpenAIError as error:
            raise failure_of(error) from error
        finally:
            _current_call.reset(token)
        answer: httpx2.Response = response  # which is what `cast_to` asks for, whatever the stream's type says
        return answer

    def _client(self, upstream: Upstream) -> openai.AsyncOpenAI:
        shared = replace(upstream, model="")  # models of one upstream share its connections
        client = self._clients.get(shared)
        if client is None:
            client = self._clients[shared] = _make_client(shared)
        return client

    async def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()


def _make_client(upstream: Upstream) -> openai.AsyncOpenAI:
    timeouts = upstream.timeouts
    # "pool" is the wait for a free connection when all are in use: as long as the call itself may take.
    timeout = httpx2.Timeout(connect=timeouts.connect, read=timeouts.read, write=timeouts.read, pool=timeouts.total)
    return openai.AsyncOpenAI(
        base_url=upstream.base_url,
        # Never empty: the SDK would then take OPENAI_API_KEY, a key for somebody else. `_WITHOUT_KEY` keeps it unsent.
        api_key=upstream.api_key.get_secret_value() if upstream.api_key else "unused",
        default_headers={"Accept-Encoding": "identity"},  # bytes are relayed: compressing them gains nothing
        max_retries=upstream.max_retries,
        http_client=_AttemptClient(
            timeout=timeout,
            # A redirect would carry a prompt to a host that no operator named.
            follow_redirects=False,
            # A cookie that came with one principal's answer is not sent with another's question.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            transport=AiohttpTransport(client=partial(_make_session, httpx2.URL(upstream.base_url).host)),
        ),
    )


def _make_session(host: str) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEPALIVE_SECONDS, ssl=httpx2.create_ssl_context()
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=host not in _LOOPBACK,  # HTTPS_PROXY and the like; no proxy leads to this machine itself
    )
