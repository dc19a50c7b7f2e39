"""Teams: whose admin manages whom."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from auth.audit import Actor, AuditRecord
from auth.database import Database
from auth.names import InvalidName, validate_name
from auth.principal import CLIENT_PREFIX
from auth.tables import clients, teams, users

_NOT_EMPTY: Final = "the team has members or clients"


class TeamNameTaken(ValueError):  # noqa: N818  # reads as what it says
    """There is a team of this name."""


class TeamNotEmpty(ValueError):  # noqa: N818  # reads as what it says
    """The team has members or clients."""


class UnknownTeam(LookupError):  # noqa: N818  # reads as what it says
    """There is no such team."""


@dataclass(frozen=True, slots=True)
class Team:
    """One row."""

    id: str
    name: str
    created_at: datetime


class Teams:
    """The repository. Every method may raise `DatabaseUnavailable`.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, team_id: str) -> Team | None:
        """The team of this id. An id that is none of ours is not asked for."""
        try:
            canonical = str(uuid.UUID(team_id))
        except ValueError:
            return None
        return await self._one(teams.c.id == team_id) if canonical == team_id else None

    async def by_name(self, name: str) -> Team | None:
        """The team of this name. A name no team can have is not asked for."""
        try:
            return await self._one(teams.c.name == validate_name(name))
        except InvalidName:
            return None

    async def add(self, name: str, *, by: Actor) -> Team:
        """Make a team.

        Raises:
            InvalidName, TeamNameTaken: nothing was stored.
        """
        team = Team(str(uuid.uuid4()), validate_name(name), datetime.now(UTC))
        row = {"id": team.id, "name": team.name, "created_at": team.created_at}
        try:
            async with self._database.transaction(_audit(team, "team.create", by)) as connection:
                await connection.execute(teams.insert().values(row))
        except IntegrityError as error:
            raise TeamNameTaken("there is a team of this name") from error
        return team

    async def rename(self, team_id: str, name: str, *, by: Actor) -> Team:
        """Give a team another name.

        Raises:
            UnknownTeam, InvalidName, TeamNameTaken: nothing was stored.
        """
        team, wanted = await self._existing(team_id), validate_name(name)
        change = teams.update().where(teams.c.id == team_id).values(name=wanted)
        try:
            async with self._database.transaction(_audit(team, "team.update", by, name=wanted)) as connection:
                if (await connection.execute(change)).rowcount != 1:
                    raise UnknownTeam("there is no such team")
        except IntegrityError as error:
            raise TeamNameTaken("there is a team of this name") from error
        return Team(team.id, wanted, team.created_at)

    async def delete(self, team_id: str, *, by: Actor) -> None:
        """Remove a team that nobody is in.

        Raises:
            UnknownTeam, TeamNotEmpty: it stays.
        """
        team = await self._existing(team_id)
        try:
            async with self._database.transaction(_audit(team, "team.delete", by)) as connection:
                used = [sa.exists().where(table.c.team_id == team_id) for table in (users, clients)]
                change = teams.delete().where(teams.c.id == team_id, ~sa.or_(*used))
                if (await connection.execute(change)).rowcount != 1:
                    raise TeamNotEmpty(_NOT_EMPTY)
        except IntegrityError as error:  # somebody joined at this moment
            raise TeamNotEmpty(_NOT_EMPTY) from error

    async def list(self, *, after: str = "", limit: int = 50) -> tuple[Team, ...]:
        """Teams, by name, from the one after `after` on."""
        wanted = teams.select().where(teams.c.name > after).order_by(teams.c.name).limit(limit)
        async with self._database.transaction() as connection:
            return tuple(_team(row) for row in await connection.execute(wanted))

    async def has(self, team_id: str, name: str) -> bool:
        """Whether the books' name is that of a member or a client of the team."""
        names = self.names_in_books(team_id).subquery()
        async with self._database.transaction() as connection:
            return await connection.scalar(sa.select(sa.exists().where(names.c[0] == name))) is True

    @staticmethod
    def names_in_books(team_id: str) -> sa.CompoundSelect[tuple[str]]:
        """What the books call the members and the clients of a team: a query, to be part of another one."""
        members = sa.select(users.c.username).where(users.c.team_id == team_id)
        return members.union_all(sa.select(CLIENT_PREFIX + clients.c.id).where(clients.c.team_id == team_id))

    async def _one(self, condition: sa.ColumnElement[bool]) -> Team | None:
        async with self._database.transaction() as connection:
            row = (await connection.execute(teams.select().where(condition))).one_or_none()
        return None if row is None else _team(row)

    async def _existing(self, team_id: str) -> Team:
        team = await self.get(team_id)
        if team is None:
            raise UnknownTeam("there is no such team")
        return team


def _team(row: sa.Row[Any]) -> Team:
    return Team(id=row.id, name=row.name, created_at=row.created_at)


def _audit(team: Team, action: str, by: Actor, **details: Any) -> AuditRecord:
    return by.did(action, "team", team.id, target_name=team.name, team_id=team.id, **details)
