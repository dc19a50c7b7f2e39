"""Routes of model calls: what they refuse is in the books too."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from auth.errors import AuthError
from observability.context import request_context
from observability.entry import Outcome
from observability.genai import Caller
from observability.middleware import HTTP_CLIENT_CLOSED_REQUEST
from service.api.answers import caller_of
from service.errors import ModelForbidden, ServiceError
from service.state import Llm


class BookedRoute(APIRoute):
    """A request that is refused before it becomes a call ends as `rejected_auth` or `rejected_invalid`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps the handler that FastAPI makes."""
        handler = super().get_route_handler()

        async def booked(request: Request) -> Response:
            try:
                return await handler(request)
            except (AuthError, ModelForbidden) as error:
                _refuse(request, Outcome.REJECTED_AUTH, error.status)
                raise
            except ServiceError as error:
                _refuse(request, Outcome.REJECTED_INVALID, error.status)
                raise
            except ClientDisconnect:
                _refuse(request, Outcome.CLIENT_DISCONNECT, HTTP_CLIENT_CLOSED_REQUEST)
                return Response(status_code=HTTP_CLIENT_CLOSED_REQUEST)
            except Exception as error:
                # A mistake of ours, before any upstream was asked. It is answered and logged further out.
                status = getattr(error, "status_code", HTTPStatus.INTERNAL_SERVER_ERROR)
                _refuse(request, Outcome.REJECTED_INVALID, status)
                raise

        return booked


def _refuse(request: Request, outcome: Outcome, status: int) -> None:
    llm: Llm = request.state.llm
    principal = getattr(request.state, "principal", None)
    caller = caller_of(principal) if principal is not None else Caller()
    llm.books.refuse_call(request_context(request.scope), caller, outcome, operation="chat", http_status=status)
