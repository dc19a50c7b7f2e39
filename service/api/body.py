"""Reading a JSON body by hand, after the caller is known: FastAPI would decode it first, and answer an unknown caller
with what is wrong with the body.
"""

import json
from typing import Any, Final, Never, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ValidationError

from service.errors import InvalidRequest, UnsupportedMediaType

_MAX_PARTS: Final = 100_000  # objects and arrays: reading a million of them holds the event loop for a second

Model = TypeVar("Model", bound=BaseModel)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


AS_WHOLE_NUMBER: Final = BeforeValidator(_whole)
"""For a strict integer: 99.0 is one, as JSON Schema has it. Last of the annotations, so that the schema keeps all."""


async def read_json(request: Request) -> dict[str, Any]:
    """The object that the body holds.

    Raises:
        UnsupportedMediaType, InvalidRequest: what is wrong with it.
        RequestTimeout, BodyTooLarge: of `BodyLimitsMiddleware`.
        ClientDisconnect: the client went in the middle of it.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType("Send the body as JSON, with Content-Type: application/json.")
    raw = await request.body()
    if raw.count(b"{") + raw.count(b"[") > _MAX_PARTS:
        raise InvalidRequest(f"The body has more than {_MAX_PARTS} brackets.")
    try:
        found = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not valid JSON.") from None
    if not isinstance(found, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return found


def _refuse_constant(name: str) -> Never:
    """NaN and Infinity: Python would take them, JSON (RFC 8259 §6) has no such numbers."""
    raise ValueError(name)


def check(model: type[Model], found: dict[str, Any], error: type[InvalidRequest]) -> Model:
    """The object as a model, or an error that names the field."""
    try:
        return model.model_validate(found)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise error(f"{where}: {first['msg']}" if where else first["msg"], param=where or None) from None
