"""Ending tokens (RFC 7009) and asking about them (RFC 7662)."""

from typing import Any

from auth.apikeys import PREFIX as API_KEY_PREFIX
from auth.audit import Actor
from auth.clients import DEFAULT_CLIENT_ID, REFRESH_TOKEN, Client
from auth.errors import InvalidGrant, UnsupportedTokenType
from auth.jwt import TokenError
from auth.scopes import Scope, format_scope, narrow
from auth.service import AuthService, principal_of
from auth.sessions import PREFIX, UnknownSession
from auth.tokens import Claims

INACTIVE: dict[str, Any] = {"active": False}


async def revoke(auth: AuthService, token: str, client: Client, by: Actor) -> bool:
    """End a token: of a refresh token the whole session. Whether there was one alive; RFC 7009 §2.2 tells nobody.

    Raises:
        InvalidGrant: it was issued to another client.
        UnsupportedTokenType: an API key. Its sender must not believe that it has ended.
        DatabaseUnavailable: it lives on.
    """
    if token.startswith(API_KEY_PREFIX):
        raise UnsupportedTokenType("API keys are revoked by their user, or by an administrator.")
    if token.startswith(PREFIX):
        try:
            session_id = await auth.sessions.revoke_by_token(token, client_id=client.id, by=by)
        except UnknownSession:  # another request was a moment faster
            session_id = None
        if session_id is not None:
            auth.revocations.apply_now("session", session_id)
        return session_id is not None
    claims = _living(auth, token)
    if claims is None:
        return False
    if claims.client_id != client.id:
        raise InvalidGrant("The token was issued to another client.", reason="wrong_client")
    await auth.revoke_token(principal_of(claims), by=by)
    return True


async def introspect(auth: AuthService, token: str, client: Client) -> dict[str, Any]:
    """What RFC 7662 §2.2 says of a token. One that is not alive, or not the client's to ask about, is not active.

    Raises:
        DatabaseUnavailable: a refresh token cannot be looked up.
    """
    may_ask_all = client.scopes is not None and Scope.INTROSPECT in client.scopes
    if token.startswith(PREFIX):
        found = await auth.sessions.look(token)
        if found is None or not (may_ask_all or found[0].client_id == client.id):
            return INACTIVE
        session, expires_at = found
        if not await _may_refresh(auth, session.client_id):
            return INACTIVE
        return {
            "active": True,
            "client_id": session.client_id,
            "username": session.username,
            "scope": format_scope(narrow(session.scopes, session.user_scopes)),
            "sub": session.user_id,
            "exp": int(expires_at.timestamp()),
            "iss": auth.tokens.issuer,
        }
    claims = _living(auth, token)
    if claims is None or not (may_ask_all or claims.client_id == client.id):
        return INACTIVE
    return {
        "active": True,
        "client_id": claims.client_id,
        "username": claims.username,
        "scope": format_scope(claims.scopes),
        "token_type": "Bearer",
        "sub": claims.subject,
        "aud": auth.tokens.audience,
        "iss": auth.tokens.issuer,
        "exp": int(claims.expires_at),
        "iat": int(claims.issued_at),
        "jti": claims.jti,
    }


async def _may_refresh(auth: AuthService, client_id: str) -> bool:
    """Whether the client could use a refresh token of its own."""
    if client_id == DEFAULT_CLIENT_ID:
        return auth.default_client
    client = await auth.clients.get(client_id)
    return client is not None and not client.disabled and REFRESH_TOKEN in client.grants


def _living(auth: AuthService, token: str) -> Claims | None:
    try:
        claims = auth.tokens.verify(token)
    except TokenError:
        return None
    return None if auth.revocations.refuses(principal_of(claims)) else claims
