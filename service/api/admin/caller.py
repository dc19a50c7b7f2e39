"""Who calls a route of the admin API: let in by what they may do now, refused in writing."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, Never

from fastapi import Depends, Request

from auth.audit import Actor
from auth.authority import Authority, Level, authority_of
from auth.dependencies import actor_of, auth_of, requires
from auth.errors import InsufficientScope, InvalidToken
from auth.principal import Principal
from auth.scopes import Scope
from auth.service import AuthService
from service.api.admin.common import ID_PATTERN, not_found
from service.errors import Forbidden

_NEEDED: Final = {
    Level.TEAM: Scope.TEAM_ADMIN,
    Level.DIRECTORY: Scope.USERS_ADMIN,
    Level.SERVICE: Scope.ADMIN,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller, and the word under which the audit log has what they do."""

    auth: AuthService
    principal: Principal
    by: Actor
    action: str
    kind: str  # of what it is done to

    async def refuse(
        self,
        reason: str,
        target: str = "",
        name: str = "",
        team_id: str | None = None,
        *,
        hidden: bool = False,
        message: str = "You may not do this.",
    ) -> Never:
        """Write down that this was asked for and refused, and say so.

        Args:
            reason: a word for the audit log: authority, scopes, team, self, credential, last_admin.
            target: id of what was to be changed; empty where it was to be made.
            name: its name.
            team_id: the team it belongs to.
            hidden: the caller is not to learn that it is there.
            message: what they are told otherwise.

        Raises:
            Forbidden, NotFound: always.
        """
        await self.note_refusal(reason, target, name, team_id)
        raise not_found() if hidden else Forbidden(message)

    async def note_refusal(self, reason: str, target: str = "", name: str = "", team_id: str | None = None) -> None:
        """Only write it down."""
        record = self.by.did(
            self.action, self.kind, target, target_name=name, team_id=team_id, result="refused", reason=reason
        )
        async with self.auth.database.transaction(record):
            pass


@dataclass(frozen=True, slots=True)
class Admin(Caller):
    """A caller who administers something."""

    authority: Authority

    async def must_manage(
        self, user_id: str, scopes: frozenset[str], team_id: str | None, *, target: str, name: str
    ) -> None:
        """Refuse, unless the caller may change this user, or something that is theirs.

        Args:
            user_id: the user.
            scopes: what they have now.
            team_id: the team they are in.
            target: id of what is to be changed.
            name: its name.
        """
        if not self.authority.may_manage(user_id, scopes, team_id):
            await self.refuse("authority", target, name, team_id, hidden=not self.authority.sees(team_id))

    def is_self(self, user_id: str) -> bool:
        """Whether the caller is this user."""
        return self.authority.user_id == user_id


async def have_body(request: Request, principal: Principal) -> None:
    """Wait for the body. Its sender may take half a minute over it, so what they may do is asked after that.

    Raises:
        InvalidToken: the credential was revoked meanwhile.
        ServiceError, ClientDisconnect: the body is too large, too slow or not whole.
    """
    await request.body()
    auth = auth_of(request)
    reason = auth.revocations.refuses(principal)
    if reason is not None:
        raise auth.refusal(InvalidToken(reason=reason))


def may(level: Level, action: str = "", kind: str = "") -> Any:
    """A dependency that gives the caller, if their authority reaches that far.

    Args:
        level: how far.
        action: the word for the audit log, where the route changes something. A caller whose credential is one for
            administering, and who may not do this, is written down.
        kind: of what it is done to, where the action does not say it.
    """
    needed = _NEEDED[level]
    others = [scope for scope in _NEEDED.values() if scope != needed]

    async def admin(request: Request, principal: Annotated[Principal, Depends(requires(needed, *others))]) -> Admin:
        auth = auth_of(request)
        await have_body(request, principal)
        try:
            authority = await authority_of(principal, auth.users, auth.clients, auth.teams)
        except InvalidToken as error:
            raise auth.refusal(error) from None
        by, kind_of_target = actor_of(request, principal), kind or action.partition(".")[0]
        found = Admin(auth, principal, by, action, kind_of_target, authority)
        if authority.level < level:
            if action:
                target = next(iter(request.path_params.values()), "")
                await found.note_refusal("authority", target if re.fullmatch(ID_PATTERN, target) else "")
            raise auth.refusal(InsufficientScope(needed))
        return found

    return Depends(admin)
