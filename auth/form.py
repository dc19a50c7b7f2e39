"""The body of a token request: `application/x-www-form-urlencoded` in UTF-8 (RFC 6749 §3.2 and appendix B).

Read here rather than by the framework's form parser, which takes JSON for an empty form, keeps the last of two values
that contradict each other, and turns bytes that are not UTF-8 into replacement characters, in passwords too.
"""

from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request

from auth.errors import InvalidRequest
from auth.jwt import MAX_TOKEN_BYTES

CONTENT_TYPE = "application/x-www-form-urlencoded"
MAX_BODY_BYTES = 16 * 1024
MAX_VALUE_BYTES = 1024
MAX_PARAMETERS = 20
# An access token with many scopes is longer than anything else that is sent here.
_LONGER = {"token": MAX_TOKEN_BYTES}


async def read_form(request: Request) -> dict[str, str]:
    """The parameters. Those sent without a value are left out, as RFC 6749 §3.2 has it.

    Raises:
        InvalidRequest: another content type, too large, not UTF-8, or a parameter twice.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != CONTENT_TYPE:
        raise InvalidRequest(f"Send the parameters as a form: Content-Type {CONTENT_TYPE}.")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise InvalidRequest("The form is too large.")
    except ClientDisconnect as error:  # nobody reads the answer, but it is not a fault of ours either
        raise InvalidRequest("The form ended early.") from error
    return parse_form(bytes(body))


def parse_form(body: bytes) -> dict[str, str]:
    """The same for bytes at hand.

    Raises:
        InvalidRequest: as `read_form`.
    """
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except ValueError as error:
        raise InvalidRequest("The form is not UTF-8, or has too many parameters.") from error
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise InvalidRequest("A parameter is in the form more than once.")
    if any(len(value.encode()) > _LONGER.get(name, MAX_VALUE_BYTES) for name, value in pairs):
        raise InvalidRequest(f"A parameter is longer than {MAX_VALUE_BYTES} bytes; a token, than {MAX_TOKEN_BYTES}.")
    return {name: value for name, value in pairs if value}
