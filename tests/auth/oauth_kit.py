"""What the tests of the OAuth endpoints share: a login, registered clients, and what every refusal looks like."""

import base64
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus

from auth.audit import SYSTEM
from auth.clients import PASSWORD as PASSWORD_GRANT
from auth.clients import REFRESH_TOKEN
from auth.service import AuthService
from tests.auth.kit import PASSWORD, USERNAME

FORM = {"grant_type": "password", "username": USERNAME, "password": PASSWORD}
URLENCODED = "application/x-www-form-urlencoded"
USER_GRANTS = (PASSWORD_GRANT, REFRESH_TOKEN)


def basic(client_id: str, secret: str) -> dict[str, str]:
    """The header of RFC 6749 §2.3.1."""
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@dataclass(frozen=True)
class Registered:
    """A client, and how it says who it is: by HTTP Basic, or with these fields in the form."""

    id: str
    secret: str | None

    @property
    def by_basic(self) -> dict[str, Any]:
        return {"headers": basic(self.id, self.secret or "")}

    @property
    def fields(self) -> dict[str, str]:
        return {"client_id": self.id} | ({} if self.secret is None else {"client_secret": self.secret})


async def register(
    auth: AuthService,
    *grants: str,
    scopes: tuple[str, ...] = ("llm", "usage:read"),
    confidential: bool = True,
    team_id: str | None = None,
) -> Registered:
    client, secret = await auth.clients.add(
        "a client",
        grants=grants or USER_GRANTS,
        scopes=scopes,
        confidential=confidential,
        team_id=team_id,
        by=SYSTEM,
    )
    return Registered(client.id, secret)


def check_no_store(answer: Any) -> None:
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["pragma"] == "no-cache"


def check_refused(answer: Any, error: str, status: int = 400) -> None:
    """RFC 6749 §5.2."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error", "error_description"}
    assert answer.json()["error"] == error
    assert ("www-authenticate" in answer.headers) == (status == 401)
    if status == 401:
        assert answer.headers["www-authenticate"] == 'Basic realm="tollbook"'
    check_no_store(answer)


def granted(answer: Any) -> dict[str, Any]:
    """The body of a token response."""
    assert answer.status_code == 200, answer.text
    check_no_store(answer)
    body: dict[str, Any] = answer.json()
    return body
