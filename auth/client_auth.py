"""Which client sends a request to the authorization server: RFC 6749 §2.3.1, by HTTP Basic or in the form."""

import base64
from collections.abc import Mapping
from urllib.parse import unquote_plus

from starlette.requests import Request

from auth.clients import DEFAULT_CLIENT, DEFAULT_CLIENT_ID, Client, Clients
from auth.errors import InvalidClient, InvalidRequest


async def client_of(request: Request, form: Mapping[str, str], clients: Clients, *, default: bool) -> Client:
    """The client, authenticated as its registration wants it.

    Args:
        request: for its Authorization header.
        form: the parameters; those without a value are not in it.
        clients: where they are registered.
        default: whether a request without a client is one of the built-in public client.

    Raises:
        InvalidRequest: it authenticates in two ways at once.
        InvalidClient: it is not who it says, or says so in no way that there is.
        DatabaseUnavailable: it cannot be looked up.
    """
    client_id, secret = _credentials(request, form)
    if client_id is None or (client_id == DEFAULT_CLIENT_ID and secret is None):
        if default and secret is None:
            return DEFAULT_CLIENT
        raise InvalidClient(reason="no_client")
    return await clients.authenticate(client_id, secret)


def _credentials(request: Request, form: Mapping[str, str]) -> tuple[str | None, str | None]:
    client_id, secret = form.get("client_id"), form.get("client_secret")
    headers = request.headers.getlist("authorization")
    if not headers:
        return client_id, secret
    if len(headers) > 1:
        raise InvalidRequest("There are two Authorization headers.")
    named, password = parse_basic(headers[0])
    # What is empty is not sent, here as in the form: Swagger UI sends ":" where no client was filled in, and
    # requests-oauthlib "<client_id>:" for a public client.
    if not named and not password:
        return client_id, secret
    if secret is not None:
        raise InvalidRequest("Authenticate the client in one way only: by HTTP Basic or in the form.")
    if client_id is not None and client_id != named:
        raise InvalidRequest("The header and the form name two clients.")
    return named or None, password or None


def parse_basic(header: str) -> tuple[str, str]:
    """Client id and secret of an Authorization header. Both are form-encoded before they are joined.

    Raises:
        InvalidClient: not that of HTTP Basic (RFC 7617 §2), or not UTF-8. RFC 6749 §5.2 asks for this, not for
            invalid_request, of a client that used the header.
    """
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        raise InvalidClient(reason="wrong_scheme")
    try:
        joined = base64.b64decode(encoded.strip(" "), validate=True).decode()
        client_id, colon, secret = joined.partition(":")
        client_id, secret = unquote_plus(client_id, errors="strict"), unquote_plus(secret, errors="strict")
    except ValueError as error:  # binascii.Error and UnicodeDecodeError among them
        raise InvalidClient(reason="malformed") from error
    if not colon:
        raise InvalidClient(reason="malformed")
    return client_id, secret
