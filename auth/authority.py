"""What a caller may administer. Read from the database at each request, so that no token outlives the rights in it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from auth.clients import Client, Clients
from auth.errors import InvalidToken
from auth.principal import CLIENT_TOKEN, OUTSIDE, Principal
from auth.scopes import Scope, is_model_scope, narrow
from auth.teams import Teams
from auth.users import User, Users

MANAGING: Final = frozenset({Scope.ADMIN, Scope.USERS_ADMIN, Scope.TEAM_ADMIN})
"""The scopes without which a credential administers nothing."""
# What a team's admin may give to its members, of what they hold themselves.
_TEAM_GRANTS: Final = frozenset({Scope.LLM, Scope.USAGE_READ, Scope.ACCOUNT})
_POWERFUL: Final = MANAGING | {Scope.INTROSPECT}


class Level(IntEnum):
    """How far it reaches."""

    NONE = 0
    TEAM = 1  # the members of one team
    DIRECTORY = 2  # everybody but holders of `admin`
    SERVICE = 3  # everything


@dataclass(frozen=True, slots=True)
class Authority:
    """What one caller may do to others now."""

    level: Level
    scopes: frozenset[str]  # in the credential, and still held
    team_id: str | None = None
    user_id: str | None = None  # the caller, where they are one of our users

    @property
    def only_team(self) -> str | None:
        """The team that all they see belongs to; None: they see everything. Of no use at level NONE."""
        return self.team_id if self.level == Level.TEAM else None

    @property
    def own_team(self) -> str | None:
        """The team whose usage they may read, beside what else they may."""
        return self.team_id if Scope.TEAM_ADMIN in self.scopes else None

    def sees(self, team_id: str | None) -> bool:
        """Whether things of this team, or of none, exist for the caller."""
        return self.level >= Level.DIRECTORY or (self.level == Level.TEAM and team_id == self.team_id)

    def may_manage(self, user_id: str, scopes: frozenset[str], team_id: str | None) -> bool:
        """Whether the caller may change a user with these scopes in this team, their keys and their sessions."""
        if self.level == Level.TEAM:
            # Whoever can set the password of someone more powerful, or as powerful, can be them.
            return team_id == self.team_id and (user_id == self.user_id or not scopes & _POWERFUL)
        return self.level == Level.SERVICE or (self.level == Level.DIRECTORY and Scope.ADMIN not in scopes)

    def may_manage_client(self, client: Client) -> bool:
        """Whether the caller may change this client."""
        if self.level == Level.DIRECTORY:
            return Scope.ADMIN not in (client.scopes or ())
        return self.level == Level.SERVICE

    def may_grant(self, scopes: Iterable[str]) -> bool:
        """Whether the caller may give others these scopes, or take them away: not what they do not hold themselves."""
        wanted = frozenset(scopes)
        if self.level == Level.SERVICE:
            return True
        if self.level == Level.TEAM and not all(each in _TEAM_GRANTS or is_model_scope(each) for each in wanted):
            return False
        return self.level > Level.NONE and wanted <= narrow(wanted, self.scopes)


async def authority_of(principal: Principal, users: Users, clients: Clients, teams: Teams) -> Authority:
    """What a principal may administer now: what the credential carries, as far as its holder still has it.

    Of a principal of an outside provider the token alone says it; their team is the one of that name.

    Raises:
        InvalidToken: the user or the client is disabled, or not there any more.
        DatabaseUnavailable: it cannot be said.
    """
    if not principal.scopes & MANAGING:
        return Authority(Level.NONE, principal.scopes)
    if principal.auth_method == OUTSIDE:
        team = await teams.by_name(principal.team) if principal.team else None
        return _authority(principal.scopes, team.id if team else None)
    if principal.auth_method == CLIENT_TOKEN:
        client = await clients.get(principal.subject)
        if client is None or client.disabled:
            raise InvalidToken(reason="disabled")
        return _authority(narrow(principal.scopes, client.scopes or ()), client.team_id)
    user = await users.get_by_id(principal.subject)
    if user is None or user.disabled:
        raise InvalidToken(reason="disabled")
    return _authority(own_scopes(principal, user), user.team_id, user.id)


def own_scopes(principal: Principal, user: User) -> frozenset[str]:
    """What a user has to use, or to pass on to a key of theirs: what the credential carries and they still have."""
    return narrow(principal.scopes, user.scopes)


def _authority(scopes: frozenset[str], team_id: str | None, user_id: str | None = None) -> Authority:
    if Scope.ADMIN in scopes:
        level = Level.SERVICE
    elif Scope.USERS_ADMIN in scopes:
        level = Level.DIRECTORY
    else:
        level = Level.TEAM if Scope.TEAM_ADMIN in scopes and team_id is not None else Level.NONE
    return Authority(level, scopes, team_id, user_id)
