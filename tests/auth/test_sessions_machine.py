"""Refresh tokens against a model of them: any order of logins, refreshes, replays, ends and time going by.

The model below knows nothing of hashes, rows or transactions. It says what the next answer has to be.
"""

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from auth.audit import SYSTEM
from auth.database import Database
from auth.errors import InvalidGrant
from auth.secret_tokens import hash_secret
from auth.sessions import Sessions, UnknownSession
from auth.tables import audit_log, metadata, refresh_tokens
from auth.tables import sessions as table
from auth.tables import users as users_table
from auth.users import Users
from service.database import _set_pragmas
from tests.auth.kit import Clock

REFRESH_TTL, SESSION_TTL, OVERLAP = 100, 150, 10
CLIENTS = ("client-1", "client-2")
SCOPES = ("llm", "usage:read", "account")
PICK = st.integers(0, 3)  # which of several


@dataclass(eq=False)
class ModelUser:
    id: str
    scopes: frozenset[str]
    disabled: bool = False


@dataclass(eq=False)
class Family:
    """What a login begins."""

    id: str
    user: ModelUser
    client: str
    scopes: frozenset[str]
    expires_at: float
    tokens: list["Token"] = field(default_factory=list)
    ended: str = ""


@dataclass(eq=False)
class Token:
    text: str
    family: Family
    expires_at: float
    spent_at: float | None = None
    successor: "Token | None" = None

    def answer(self, now: float) -> str:
        """What sending it has to lead to: `next`, `again`, or why it is refused."""
        family = self.family
        if family.ended:
            return "revoked"
        if now >= family.expires_at or (self.spent_at is None and now >= self.expires_at):
            return "expired"
        if family.user.disabled:
            return "disabled"
        if self.spent_at is None:
            return "next"
        assert self.successor is not None
        lost = now - self.spent_at <= OVERLAP and self.successor.spent_at is None
        return "again" if lost else "reuse"


class RefreshTokens(RuleBasedStateMachine):
    """The rules. Each asks the model what the answer has to be, and then the repository."""

    def __init__(self, runner: asyncio.Runner, database: Database) -> None:
        super().__init__()
        self.run = runner.run
        self.database = database
        self.clock = Clock()
        self.clock.now = float(int(time.time()))  # the clock of `Users` cannot be moved: both begin together
        self.sessions = Sessions(
            database,
            refresh_ttl_seconds=REFRESH_TTL,
            session_ttl_seconds=SESSION_TTL,
            overlap_seconds=OVERLAP,
            clock=self.clock,
        )
        self.people = Users(database)
        self.users: list[ModelUser] = []
        self.all: list[Family] = []

    @property
    def living(self) -> list[Family]:
        """Those that can be refreshed, the newest first."""
        return [
            family
            for family in reversed(self.all)
            if not family.ended and self.clock.now < min(family.expires_at, family.tokens[-1].expires_at)
        ]

    @initialize()
    def two_users(self):
        self.users = [ModelUser(str(uuid.uuid4()), frozenset(SCOPES)) for _ in range(2)]
        now = datetime.now(UTC)
        rows = [
            {"id": user.id, "username": user.id, "password_hash": "", "scopes": " ".join(SCOPES)}
            | {"created_at": now, "updated_at": now}
            for user in self.users
        ]

        async def insert():
            async with self.database.transaction() as connection:
                await connection.execute(users_table.insert(), rows)

        self.run(insert())

    @rule(who=st.integers(0, 1), client=st.sampled_from(CLIENTS), scopes=st.sets(st.sampled_from(SCOPES)))
    def login(self, who, client, scopes):
        user = self.users[who]
        family = Family("", user, client, frozenset(scopes), self.clock.now + SESSION_TTL)
        family.id, text = self.run(self.sessions.open(user.id, client, scopes, ""))
        self._learn(family, text)
        self.all.append(family)

    @precondition(lambda self: self.living)
    @rule(pick=PICK)
    def refresh(self, pick):
        """As an honest client does it: with the newest."""
        family = self._pick(pick)
        assert self._send(family.tokens[-1]) == "next"

    @precondition(lambda self: self.living)
    @rule(pick=PICK, early=st.sampled_from([30, 1, 0, -1]))
    def refresh_in_the_last_moment_or_too_late(self, pick, early):
        token = self._pick(pick).tokens[-1]
        self.clock.now = max(self.clock.now, token.expires_at - early)
        assert self._send(token) == ("expired" if early <= 0 else "next")

    @precondition(lambda self: self.living)
    @rule(pick=PICK, seconds=st.sampled_from([0, OVERLAP / 2, OVERLAP]))
    def lose_the_answer(self, pick, seconds):
        token = self._pick(pick).tokens[-1]
        assert self._send(token) == "next"
        self.clock.now += seconds
        self._send(token)  # the same again, but for a session that ended meanwhile

    @precondition(lambda self: self.living)
    @rule(pick=PICK, refreshes=st.integers(1, 3), seconds=st.sampled_from([0, 1, OVERLAP, OVERLAP + 0.5]))
    def replay(self, pick, refreshes, seconds):
        """One that was spent: within the overlap or after it, with its successor spent or not."""
        family = self._pick(pick)
        spent = family.tokens[-1]
        for _ in range(refreshes):
            assert self._send(family.tokens[-1]) == "next"
        self.clock.now += seconds
        self._send(spent)

    @precondition(lambda self: self.living)
    @rule(pick=PICK, count=st.integers(2, 4))
    def refresh_at_once(self, pick, count):
        family = self._pick(pick)
        token = family.tokens[-1]

        async def together():
            attempts = (self.sessions.refresh(token.text, client_id=family.client) for _ in range(count))
            return await asyncio.gather(*attempts)

        (successor,) = {refreshed.refresh_token for refreshed in self.run(together())}
        self._learn(family, successor, spent=token)

    @precondition(lambda self: self.living)
    @rule(pick=PICK)
    def refresh_for_a_user_who_is_disabled(self, pick):
        """In the row alone, which would do: the sessions did not end."""
        family = self._pick(pick)
        self._set_disabled_in_the_row(family.user, disabled=True)
        for token in family.tokens[-2:]:
            assert self._send(token) == "disabled"
        opening = self._ask(self.sessions.open(family.user.id, family.client, ["llm"], ""))
        assert opening.reason == "disabled"
        assert self.run(self.sessions.look(family.tokens[-1].text)) is None
        self._set_disabled_in_the_row(family.user, disabled=False)

    @precondition(lambda self: len(self.all) > len(self.living))
    @rule(pick=PICK, back=st.integers(1, 3))
    def try_one_that_is_over(self, pick, back):
        over = [family for family in self.all if family not in self.living]
        tokens = over[pick % len(over)].tokens
        self._send(tokens[max(-back, -len(tokens))])

    @precondition(lambda self: self.all)
    @rule(pick=PICK)
    def look(self, pick):
        family = self.all[-1 - pick % len(self.all)]
        for token in family.tokens:
            found = self.run(self.sessions.look(token.text))
            assert (found is not None) == (token.answer(self.clock.now) == "next")
            if found is not None:
                assert found[0].id == family.id
                assert found[1].timestamp() == pytest.approx(token.expires_at, abs=1e-5)

    @rule(seconds=st.sampled_from([0.5, OVERLAP / 2, OVERLAP, OVERLAP + 1]))
    def time_goes_by(self, seconds):
        self.clock.now += seconds

    @precondition(lambda self: self.all)
    @rule(pick=PICK, how=st.sampled_from(["session", "token", "wrong client", "user", "disabled"]))
    def end(self, pick, how):
        family = self.all[-1 - pick % len(self.all)]
        living = not family.ended and self.clock.now < family.expires_at
        user, token = family.user, family.tokens[pick % len(family.tokens)].text
        if how == "session":
            done = self._ask(self.sessions.revoke(family.id, because="logout", by=SYSTEM))
            assert isinstance(done, UnknownSession) != living
            self._end([family] if living else [], "logout")
        elif how == "token":
            done = self._ask(self.sessions.revoke_by_token(token, client_id=family.client, by=SYSTEM))
            assert done == (family.id if living else None)
            self._end([family] if living else [], "revoked")
        elif how == "wrong client":
            done = self._ask(self.sessions.revoke_by_token(token, client_id="another", by=SYSTEM))
            assert getattr(done, "reason", None) == ("wrong_client" if living else None)
        elif how == "user":
            self.run(self.sessions.revoke_user(user.id, because="logout", by=SYSTEM))
            self._end([each for each in self.all if each.user is user], "logout")
        else:
            for disabled in (True, False):
                self.run(self.people.set_disabled(user.id, disabled=disabled, by=SYSTEM))
            self._end([each for each in self.all if each.user is user], "disabled")

    @rule(who=st.integers(0, 1), scopes=st.sets(st.sampled_from([*SCOPES, "users:admin"]), min_size=1))
    def change_the_scopes_of_a_user(self, who, scopes):
        user = self.users[who]
        self.run(self.people.update(user.id, scopes=scopes, by=SYSTEM))
        user.scopes = frozenset(scopes)

    @rule()
    def prune(self):
        self.run(self.sessions.prune())  # nothing here is over for a day: it removes nothing

    @invariant()
    def a_living_session_has_one_token_at_most_and_no_more_scopes_than_at_login(self):
        ids = [family.id for family in self.all]
        now = datetime.fromtimestamp(self.clock.now, UTC)

        async def read():
            mine = table.c.id.in_(ids)
            unspent = sa.select(refresh_tokens.c.token_hash, refresh_tokens.c.session_id).where(
                refresh_tokens.c.session_id.in_(ids),
                refresh_tokens.c.spent_at.is_(None),
                refresh_tokens.c.expires_at > now,
            )
            async with self.database.transaction() as connection:
                return (
                    (await connection.execute(table.select().where(mine))).all(),
                    (await connection.execute(unspent)).all(),
                )

        rows, unspent = self.run(read())
        found = {row.id: row for row in rows}
        assert found.keys() == set(ids)
        tokens = Counter(row.session_id for row in unspent)
        assert all(count == 1 for count in tokens.values())
        newest = {hash_secret(family.tokens[-1].text) for family in self.all}
        assert {row.token_hash for row in unspent} <= newest
        for family in self.all:
            row = found[family.id]
            assert frozenset(row.scopes.split()) == family.scopes
            assert row.client_id == family.client
            assert (row.revoked_because or "") == family.ended

    @invariant()
    def those_that_can_be_refreshed_are_listed(self):
        for user in self.users:
            listed = {session.id for session in self.run(self.sessions.list(user_id=user.id))}
            assert listed == {family.id for family in self.living if family.user is user}

    def teardown(self):
        """No family gives anything after its end, which is on record once, nor after its time."""

        async def read():
            wanted = sa.select(audit_log.c.target, audit_log.c.details).where(
                audit_log.c.action == "session.revoke", audit_log.c.target.in_([family.id for family in self.all])
            )
            async with self.database.transaction() as connection:
                return [(row.target, row.details["because"]) for row in await connection.execute(wanted)]

        for family in self.living[::2]:  # chance would leave out some of the ends
            stolen = family.tokens[-1]
            self._send(stolen)
            self.clock.now += OVERLAP + 0.5
            self._send(stolen)
        for family in self.all:
            for token in family.tokens if family.ended else ():
                assert self._send(token) == "revoked"
        for family in self.living:
            self.clock.now = max(self.clock.now, family.tokens[-1].expires_at)
            assert self._send(family.tokens[-1]) == "expired"
        told = Counter(self.run(read()))
        by_itself = ("reuse", "revoked")
        for family in self.all:
            for because in by_itself:
                assert told[family.id, because] == (family.ended == because)

    def _ask(self, attempt):
        """What it returned, or the error with which it refused."""

        async def asked():
            try:
                return await attempt
            except (InvalidGrant, UnknownSession) as error:
                return error

        return self.run(asked())

    def _pick(self, pick):
        return self.living[pick % len(self.living)]

    def _end(self, families, because):
        for family in families:
            family.ended = family.ended or because

    def _set_disabled_in_the_row(self, user, *, disabled):
        async def update():
            change = users_table.update().where(users_table.c.id == user.id)
            async with self.database.transaction() as connection:
                await connection.execute(change.values(disabled=disabled))

        self.run(update())
        user.disabled = disabled

    def _learn(self, family, text, spent=None):
        """A token that was given out for the first time."""
        assert all(text != token.text for each in self.all for token in each.tokens)
        token = Token(text, family, min(self.clock.now + REFRESH_TTL, family.expires_at))
        family.tokens.append(token)
        if spent is not None:
            assert spent.successor is None  # no token works twice
            spent.spent_at, spent.successor = self.clock.now, token

    def _send(self, token):
        """Send a token, first by another client, to which it is worth nothing and which does it no harm. The answer has
        to be that of the model.
        """
        family = token.family
        (other,) = set(CLIENTS) - {family.client}
        answer = self._ask(self.sessions.refresh(token.text, client_id=other))
        assert (answer.reason, answer.description) == ("wrong_client", "The refresh token is not valid.")
        expected = token.answer(self.clock.now)
        answer = self._ask(self.sessions.refresh(token.text, client_id=family.client))
        if expected not in {"next", "again"}:
            assert (answer.reason, answer.description) == (expected, "The refresh token is not valid.")
            if expected == "reuse":
                family.ended = "reuse"
            return expected
        session, text = answer
        assert (session.id, session.user_id, session.client_id) == (family.id, family.user.id, family.client)
        assert session.scopes == family.scopes
        assert session.user_scopes == family.user.scopes
        if expected == "next":
            self._learn(family, text, spent=token)
        else:
            assert text == token.successor.text
        return expected


def in_a_hurry(connection, _record):
    """As the service has SQLite, but for the disk."""
    _set_pragmas(connection, _record)
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=OFF")
    cursor.close()


def run_machine(url, examples, steps):
    with asyncio.Runner() as runner:
        engine = create_async_engine(url)
        if engine.dialect.name == "sqlite":
            event.listen(engine.sync_engine, "connect", in_a_hurry)

        async def make_tables():
            async with engine.begin() as connection:
                await connection.run_sync(metadata.drop_all)
                await connection.run_sync(metadata.create_all)

        runner.run(make_tables())
        machine: Any = partial(RefreshTokens, runner, Database(engine, timeout_seconds=60))
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=steps,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow],
                ),
            )
        finally:
            runner.run(engine.dispose())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_refresh_tokens_do_what_the_model_says_on_sqlite(tmp_path):
    run_machine(f"sqlite+aiosqlite:///{tmp_path / 'machine.db'}", examples=80, steps=40)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_refresh_tokens_do_what_the_model_says_on_postgresql(postgres_url):
    run_machine(postgres_url, examples=20, steps=30)
