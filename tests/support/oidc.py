"""An identity provider on loopback: keys that rotate, its JWK set over HTTP, and tokens made by joserfc, not by us."""

import json
import time
from collections.abc import Callable
from typing import Any, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from tests.support.rawhttp import Exchange, Handler, RawServer, Received

PROVIDER = "https://login.example/realms/acme"
OUR_AUDIENCE = "tollbook-api"
JSON_TYPE = {"Content-Type": "application/json"}
CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}

ProviderKey = RSAKey | ECKey


def new_key(algorithm: str = "RS256", **members: Any) -> ProviderKey:
    """A private key of a provider, with `kid`, `use` and `alg` as most have them; a member set to None is left out."""
    made = RSAKey.generate_key(2048) if algorithm.startswith("RS") else ECKey.generate_key(CURVES[algorithm])
    kid = made.thumbprint()
    found = {**made.as_dict(private=True), "kid": kid, "use": "sig", "alg": algorithm, **members}
    return type(made).import_key({name: value for name, value in found.items() if value is not None})


def public(key: ProviderKey, **changes: Any) -> dict[str, Any]:
    """The key as it stands in a JWK set; a member set to None is left out."""
    members = {**key.as_dict(private=False), **changes}
    return {name: value for name, value in members.items() if value is not None}


def signer(key: ProviderKey) -> Callable[[bytes], bytes]:
    """Signs by RS256 or ES256, also what joserfc would refuse to."""
    private = key.get_op_key("sign")
    if isinstance(private, rsa.RSAPrivateKey):
        return lambda data: private.sign(data, padding.PKCS1v15(), hashes.SHA256())
    assert isinstance(private, ec.EllipticCurvePrivateKey)

    def sign(data: bytes) -> bytes:
        numbers = decode_dss_signature(private.sign(data, ec.ECDSA(hashes.SHA256())))
        return b"".join(number.to_bytes(32, "big") for number in numbers)

    return sign


class Provider:
    """`GET /jwks` answers with the public half of `keys`, or as `handler` does; usable as a context manager."""

    def __init__(self, *keys: ProviderKey, issuer: str = PROVIDER, clock: Callable[[], float] = time.time) -> None:
        self.issuer = issuer
        self.keys = list(keys)
        self.handler: Handler | None = None
        self._clock = clock
        self._server: RawServer | None = None
        self.jwks_url = ""
        self.fetches: list[Received] = []

    def __enter__(self) -> Self:
        self._server = RawServer(self._handle)
        self._server.received = self.fetches
        self._server.__enter__()
        self.jwks_url = f"http://127.0.0.1:{self._server.port}/jwks"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Be down from now on."""
        if self._server is not None:
            self._server.__exit__()
            self._server = None

    def key_set(self) -> bytes:
        return json.dumps({"keys": [public(key) for key in self.keys]}).encode()

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Those of a good token; one that is set to None is left out."""
        now = int(self._clock())
        claims = {
            "iss": self.issuer,
            "aud": OUR_AUDIENCE,
            "sub": "f3a1",
            "iat": now,
            "exp": now + 300,
            "jti": "token-1",
            "scope": "llm usage:read",
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, key: ProviderKey | None = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token signed by the newest of `keys`, or by another; header members set to None are left out."""
        key = self.keys[-1] if key is None else key
        members = {"alg": key.get("alg") or "RS256", "kid": key.kid, "typ": "at+jwt", **(header or {})}
        members = {name: value for name, value in members.items() if value is not None}
        return jwt.encode(members, self.claims(**claims), key, algorithms=[str(members["alg"])])

    async def _handle(self, exchange: Exchange) -> None:
        if self.handler is not None:
            await self.handler(exchange)
        else:
            await exchange.respond(200, self.key_set(), JSON_TYPE)
