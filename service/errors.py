"""The errors of the service, and the one file that knows OpenAI's error envelope.

There are two shapes. The authorization server and `/users/*` speak RFC 6749 (auth/errors.py); everything else answers
`{"error": {"message", "type", "param", "code"}}`, which OpenAI's clients turn into their exception classes.

ServiceError
├── InvalidRequest         400
│   └── UnprocessableRequest 422
├── Forbidden              403
├── NotFound               404
├── Conflict               409
├── RequestTimeout         408
├── ModelNotFound          404
│   └── ModelForbidden     404, as if it were not there
├── BodyTooLarge           413
├── UnsupportedMediaType   415
└── Unavailable            503
"""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from auth.errors import NO_STORE, BearerError, OAuthError, bearer_error_response, oauth_error_response
from observability.logging import get_logger
from service.llm.failures import UpstreamFailure

log = get_logger("service.errors")

_OAUTH_PATHS = frozenset({"/token", "/revoke", "/introspect"})
_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


class ServiceError(Exception):
    """A request that we refuse."""

    status: int = HTTPStatus.BAD_REQUEST
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.headers = dict(headers or {})


class InvalidRequest(ServiceError):  # noqa: N818 - named after the field's words, like the rest of the tree
    code = "invalid_request"


class UnprocessableRequest(InvalidRequest):
    status = HTTPStatus.UNPROCESSABLE_ENTITY


class RequestTimeout(ServiceError):  # noqa: N818
    status = HTTPStatus.REQUEST_TIMEOUT
    code = "request_timeout"


class Forbidden(ServiceError):  # noqa: N818
    status = HTTPStatus.FORBIDDEN
    code = "forbidden"


class NotFound(ServiceError):  # noqa: N818
    status = HTTPStatus.NOT_FOUND
    code = "not_found"


class Conflict(ServiceError):  # noqa: N818
    status = HTTPStatus.CONFLICT
    code = "conflict"


class ModelNotFound(ServiceError):  # noqa: N818
    status = HTTPStatus.NOT_FOUND
    code = "model_not_found"


class ModelForbidden(ModelNotFound):
    """There is such a model, but not for this principal."""


class BodyTooLarge(ServiceError):  # noqa: N818
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "request_too_large"


class UnsupportedMediaType(ServiceError):  # noqa: N818
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unsupported_media_type"


class Unavailable(ServiceError):  # noqa: N818
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "unavailable"


def envelope(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error in OpenAI's shape."""
    default = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    error = {"message": message, "type": _TYPES.get(HTTPStatus(status), default), "param": param, "code": code}
    return JSONResponse({"error": error}, status_code=status, headers=dict(headers or {}))


def _speaks_oauth(scope: Scope) -> bool:
    path: str = scope["path"]
    return path in _OAUTH_PATHS or path.startswith(("/users/", "/.well-known/"))


def _oauth_shape(
    status: int, description: str, headers: Mapping[str, str] | None = None, *, error: str = "invalid_request"
) -> JSONResponse:
    """What is no error of auth's own, in the shape of its routes."""
    body = {"error": error, "error_description": description}
    return JSONResponse(body, status_code=status, headers={**NO_STORE, **(headers or {})})


def _bearer(request: Request, error: BearerError) -> JSONResponse:
    if _speaks_oauth(request.scope):
        return bearer_error_response(error)
    return envelope(error.status, error.description, code=error.error or "missing_credentials", headers=error.headers)


def _oauth(request: Request, error: OAuthError) -> JSONResponse:
    if _speaks_oauth(request.scope):
        return oauth_error_response(error)
    return envelope(error.status, error.description, code=error.error, headers=error.headers)


def _service(request: Request, error: ServiceError) -> JSONResponse:
    if _speaks_oauth(request.scope):
        return _oauth_shape(error.status, str(error), error.headers)
    return envelope(error.status, str(error), code=error.code, param=error.param, headers=error.headers)


def _upstream(_request: Request, error: UpstreamFailure) -> JSONResponse:
    return JSONResponse({"error": error.error}, status_code=error.status, headers=error.headers)


def _http(request: Request, error: HTTPException) -> JSONResponse:
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The framework names the methods of the first route of this path; RFC 9110 §15.5.6 wants those of all.
        headers["Allow"] = ", ".join(sorted(_methods(request.app.routes, request.scope)))
    if _speaks_oauth(request.scope):
        return _oauth_shape(error.status_code, str(error.detail), headers)
    return envelope(error.status_code, str(error.detail), headers=headers)


def _methods(routes: Iterable[Any], scope: Scope) -> set[str]:
    found: set[str] = set()
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            found |= _methods(included.routes, scope)
        elif route.matches(scope)[0] is not Match.NONE:
            found |= set(getattr(route, "methods", None) or ())
    return found


def _validation(_request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in {"body", "query", "path"})
    return envelope(
        HTTPStatus.UNPROCESSABLE_ENTITY, f"{where}: {first['msg']}" if where else first["msg"], param=where or None
    )


def add_error_handlers(app: FastAPI) -> None:
    """Render each branch of the error trees."""
    handlers: dict[type[Exception], Any] = {
        BearerError: _bearer,
        OAuthError: _oauth,
        ServiceError: _service,
        UpstreamFailure: _upstream,
        HTTPException: _http,
        RequestValidationError: _validation,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


class UnexpectedErrorMiddleware:
    """A mistake of ours: logged with its trace, and answered without telling what it was.

    It stands inside the other middleware, so that even this answer has its id, its headers and its log line.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting_start(message: Any) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, noting_start)
        except Exception:
            if scope["type"] != "http":
                raise
            log.exception("unexpected_error")
            if started:
                raise
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            if _speaks_oauth(scope):
                response = _oauth_shape(status, "Internal error.", error="server_error")
            else:
                response = envelope(status, "Internal error.", code="internal_error")
            await response(scope, receive, send)
