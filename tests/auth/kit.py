"""What the tests of this room share: a clock that stands still, a user, and a forge for tokens."""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any

from jose.utils import base64url_decode, base64url_encode

USERNAME = "ada"
PASSWORD = "correct horse battery staple"
ISSUER, AUDIENCE = "https://issuer.test", "tollbook-test"
TTL_SECONDS, LEEWAY_SECONDS = 600, 5


class Clock:
    """Unix time, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def open_token(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims, unverified."""
    header, claims, _ = token.split(".")
    return json.loads(base64url_decode(header.encode())), json.loads(base64url_decode(claims.encode()))


def forge(header: Mapping[str, Any] | bytes, claims: Mapping[str, Any] | bytes, sign: Callable[[bytes], bytes]) -> str:
    """A token of any content, signed by any means."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    signing_input = b".".join(base64url_encode(part) for part in parts)
    return b".".join([signing_input, base64url_encode(sign(signing_input))]).decode()


def by_hmac(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda data: hmac.new(secret, data, hashlib.sha256).digest()
