"""What `/token` gives for what: the grants of RFC 6749 §4.3, §4.4 and §6."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from auth.clients import CLIENT_CREDENTIALS, GRANTS, PASSWORD, REFRESH_TOKEN, Client
from auth.database import DatabaseUnavailable
from auth.errors import (
    InvalidGrant,
    InvalidRequest,
    InvalidScope,
    OAuthError,
    TemporarilyUnavailable,
    UnauthorizedClient,
    UnsupportedGrantType,
)
from auth.keys import NoSigningKey
from auth.principal import CLIENT_PREFIX
from auth.scopes import InvalidScopeString, narrow, parse_scope
from auth.service import AuthService
from auth.sessions import Session
from auth.tokens import IssuedToken
from auth.users import User

log = structlog.get_logger("auth.grants")

# Under which word the events of a grant are counted.
EVENTS = {PASSWORD: "login", REFRESH_TOKEN: "refresh", CLIENT_CREDENTIALS: "client_credentials"}
_PARAMETERS: dict[str, tuple[str, ...]] = {
    PASSWORD: ("username", "password"),
    REFRESH_TOKEN: ("refresh_token",),
    CLIENT_CREDENTIALS: (),
}


@dataclass(frozen=True, slots=True)
class Granted:
    """What a client is given."""

    token: IssuedToken
    refresh_token: str | None = None


@contextmanager
def counted(auth: AuthService, event: str, client_id: str = "") -> Iterator[None]:
    """Count and log what is refused inside, and turn what is not the client's fault into an error for it.

    Raises:
        OAuthError: it was refused inside.
    """
    try:
        yield
    except (OAuthError, NoSigningKey, DatabaseUnavailable) as error:
        refusal = _refusal(error)
        result = "error" if isinstance(refusal, TemporarilyUnavailable) else "refused"
        auth.record_event(event, result, refusal.reason)
        log.warning("oauth_refused", operation=event, reason=refusal.reason, client_id=client_id)
        if refusal is error:
            raise
        raise refusal from error


def _refusal(error: OAuthError | NoSigningKey | DatabaseUnavailable) -> OAuthError:
    if isinstance(error, NoSigningKey):
        return TemporarilyUnavailable("No token can be signed now.", reason="no_signing_key")
    if isinstance(error, DatabaseUnavailable):
        return TemporarilyUnavailable("The database does not answer.", reason="database")
    return error


def grant_type_of(form: Mapping[str, str]) -> str:
    """The grant that a form asks for.

    Raises:
        InvalidRequest, UnsupportedGrantType: none, or another than those there are.
    """
    grant_type = required(form, "grant_type")
    if grant_type not in GRANTS:
        raise UnsupportedGrantType(f"The grant types are {', '.join(GRANTS)}.")
    return grant_type


def required(form: Mapping[str, str], name: str) -> str:
    """A parameter that has to be there.

    Raises:
        InvalidRequest: it is not.
    """
    if name not in form:
        raise InvalidRequest(f"The parameter {name} is missing.")
    return form[name]


async def grant(
    auth: AuthService, grant_type: str, client: Client, form: Mapping[str, str], address: str, began: float
) -> Granted:
    """Carry out a grant, and count how it ended.

    Args:
        auth: the parts.
        grant_type: one of `GRANTS`.
        client: who asks, authenticated.
        form: the parameters; those without a value are not in it.
        address: where it comes from; empty where there is none.
        began: when it was begun to look at it, Unix time in seconds. The token counts as issued then: what is revoked
            while the grant is being carried out is revoked for it too.

    Raises:
        OAuthError: it is refused.
    """
    event = EVENTS[grant_type]
    with counted(auth, event, client.id):
        if grant_type not in client.grants:
            raise UnauthorizedClient("The client may not use this grant.")
        for name in _PARAMETERS[grant_type]:
            required(form, name)
        asked = _asked(form)
        auth.tokens.check_can_issue()  # before a password is hashed, or a refresh token spent, for nothing
    user = None  # of the password grant only, where `Login` counts each way out, success too
    if grant_type == PASSWORD:
        user = await auth.login.with_password(form["username"], form["password"], address)
    with counted(auth, event, client.id):
        if user is not None:
            granted = await _begin(auth, client, user, asked, address, began)
        elif grant_type == REFRESH_TOKEN:
            async with auth.place():
                granted = await _refresh(auth, client, form["refresh_token"], asked, began)
        else:
            granted = _for_client(auth, client, asked, began)
    if user is None:
        auth.record_event(event, "ok", "none")
    log.info("token_issued", grant=grant_type, client_id=client.id, jti=granted.token.jti, scope=granted.token.scope)
    return granted


async def _begin(
    auth: AuthService, client: Client, user: User, asked: frozenset[str], address: str, began: float
) -> Granted:
    scopes = _limited(asked, user.scopes, client)
    session_id, refresh_token = "", None
    if REFRESH_TOKEN in client.grants:
        session_id, refresh_token = await auth.sessions.open(user.id, client.id, scopes, address, seen=user)
    elif await auth.users.get_by_id(user.id) != user:  # as `open` does it: to verify a password takes time
        raise InvalidGrant(reason="changed", subject=user.id)
    token = auth.tokens.issue(
        subject=user.id,
        username=user.username,
        scopes=scopes,
        client_id=client.id,
        now=began,
        session_id=session_id,
        team=user.team_id or "",
    )
    return Granted(token, refresh_token)


async def _refresh(auth: AuthService, client: Client, presented: str, asked: frozenset[str], began: float) -> Granted:
    found = await auth.sessions.look(presented)
    if found is not None and found[0].client_id == client.id:
        _of_session(asked, found[0], client)  # a scope that is refused does not cost the client its refresh token
    session, refresh_token = await auth.sessions.refresh(presented, client_id=client.id)
    token = auth.tokens.issue(
        subject=session.user_id,
        username=session.username,
        scopes=_of_session(asked, session, client),
        client_id=client.id,
        now=began,
        session_id=session.id,
        team=session.team_id or "",
    )
    return Granted(token, refresh_token)


def _for_client(auth: AuthService, client: Client, asked: frozenset[str], began: float) -> Granted:
    token = auth.tokens.issue(
        subject=client.id,
        username=CLIENT_PREFIX + client.id,
        scopes=_limited(asked, client.scopes or frozenset(), client),
        client_id=client.id,
        now=began,
        team=client.team_id or "",
    )
    return Granted(token)


def _asked(form: Mapping[str, str]) -> frozenset[str]:
    try:
        return parse_scope(form.get("scope", ""))
    except InvalidScopeString as error:
        raise InvalidScope("The scope is not a list of scope tokens with one space between them.") from error


def _of_session(asked: frozenset[str], session: Session, client: Client) -> frozenset[str]:
    """What a refresh gives. The session keeps what it was granted; a token may have less of it, and what the user has
    lost meanwhile is lost.

    Raises:
        InvalidScope: more than was granted at login was asked for (RFC 6749 §6), or nothing is left.
    """
    if not all(narrow({scope}, session.scopes) for scope in asked):
        raise InvalidScope("A refresh cannot ask for more than was granted at login.")
    return _limited(asked, narrow(session.scopes, session.user_scopes), client)


def _limited(asked: frozenset[str], held: frozenset[str], client: Client) -> frozenset[str]:
    """What was asked for, as far as the holder has it and the client may have it. Nothing asked for is all of that.

    Raises:
        InvalidScope: nothing is left.
    """
    most = held if client.scopes is None else narrow(client.scopes, held)
    granted = narrow(asked, most) if asked else most
    if not granted:
        raise InvalidScope("Nothing of the scope that was asked for can be granted.")
    return granted
