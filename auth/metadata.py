"""`/.well-known/`: what a client finds out by itself (RFC 8414), and the keys of our tokens (RFC 7517)."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from auth.clients import GRANTS
from auth.dependencies import auth_of
from auth.errors import NO_STORE
from auth.scopes import Scope

router = APIRouter(prefix="/.well-known", tags=["auth"])

# As long as a new key is published before it signs, at the least.
_MAX_AGE = {"Cache-Control": "public, max-age=300"}
_CLIENT_AUTHENTICATION = ["client_secret_basic", "client_secret_post"]


@router.get("/oauth-authorization-server", summary="Metadata of the authorization server")
async def metadata(request: Request, response: Response) -> dict[str, Any]:
    """RFC 8414 §2. The endpoints are under the issuer when that is an address, else under the one that was asked."""
    issuer = auth_of(request).tokens.issuer
    base = issuer if issuer.startswith(("https://", "http://")) else str(request.base_url)
    base = base.rstrip("/")
    # An address from a request's own header is for nobody else.
    response.headers.update(_MAX_AGE if base == issuer.rstrip("/") else NO_STORE)
    return {
        "issuer": issuer,
        "token_endpoint": f"{base}/token",
        "revocation_endpoint": f"{base}/revoke",
        "introspection_endpoint": f"{base}/introspect",
        "jwks_uri": f"{base}/.well-known/jwks.json",
        "grant_types_supported": list(GRANTS),
        "response_types_supported": [],
        "scopes_supported": [str(scope) for scope in Scope],
        "token_endpoint_auth_methods_supported": [*_CLIENT_AUTHENTICATION, "none"],
        "revocation_endpoint_auth_methods_supported": [*_CLIENT_AUTHENTICATION, "none"],
        "introspection_endpoint_auth_methods_supported": _CLIENT_AUTHENTICATION,
        "service_documentation": f"{base}/docs",
    }


@router.get("/jwks.json", summary="Keys that access tokens are signed with")
async def jwks(request: Request, response: Response) -> dict[str, Any]:
    """The public keys as a JWK set: the one that signs, those that signed, and those that are about to."""
    response.headers.update(_MAX_AGE)
    return auth_of(request).keys.ring.jwks(time.time())
