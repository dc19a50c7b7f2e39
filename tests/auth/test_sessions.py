"""Sessions and their refresh tokens, on both databases."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from auth.audit import SYSTEM, Actor
from auth.clients import DEFAULT_CLIENT_ID
from auth.database import Database, DatabaseUnavailable
from auth.errors import InvalidGrant
from auth.secret_tokens import hash_secret
from auth.sessions import Session, Sessions, UnknownSession
from auth.tables import audit_log, metadata, refresh_tokens, revocations
from auth.tables import sessions as table
from auth.tables import users as users_table
from auth.teams import Teams
from tests.auth.kit import PASSWORD

ADMIN = Actor("id-admin", "grace", "192.0.2.7", "req-1")
CLIENT = "client-1"
REFRESH_TTL, SESSION_TTL, OVERLAP = 1000, 5000, 10
DAY = 86400


@pytest.fixture
def database(engine: AsyncEngine) -> Database:
    """Each database in turn, for the fixtures of conftest.py too."""
    return Database(engine)


def make_sessions(database, clock, **changes) -> Sessions:
    options: dict[str, Any] = {
        "refresh_ttl_seconds": REFRESH_TTL,
        "session_ttl_seconds": SESSION_TTL,
        "overlap_seconds": OVERLAP,
    }
    return Sessions(database, **options | changes, clock=clock)


@pytest.fixture
def sessions(database, clock) -> Sessions:
    return make_sessions(database, clock)


@pytest.fixture
def login(sessions, ada):
    async def login(user=ada, client_id=CLIENT, scopes=("llm", "usage:read")):
        return await sessions.open(user.id, client_id, scopes, "192.0.2.1")

    return login


async def rows(database, *columns):
    async with database.transaction() as connection:
        return [tuple(row) for row in await connection.execute(sa.select(*columns))]


async def revoked(database):
    return await rows(database, revocations.c.kind, revocations.c.value)


async def audited(database):
    """What was done to sessions, and by whom."""
    columns = (audit_log.c.target_kind, audit_log.c.target, audit_log.c.actor, audit_log.c.details)
    written = await rows(database, audit_log.c.action, *columns)
    return [(kind, target, actor, details["because"]) for action, kind, target, actor, details in written
            if action == "session.revoke"]  # fmt: skip


async def reason(attempt):
    with pytest.raises(InvalidGrant) as caught:
        await attempt
    assert caught.value.description == "The refresh token is not valid."
    return caught.value.reason


# Beginning one


async def test_a_login_begins_a_session_and_gives_its_first_refresh_token(sessions, login, database, ada, clock):
    session_id, token = await login()
    assert re.fullmatch(r"tbr_[A-Za-z0-9_-]{43}", token)
    now = datetime.fromtimestamp(clock(), UTC)
    assert await sessions.get(session_id) == Session(
        id=session_id,
        user_id=ada.id,
        username="ada",
        team_id=None,
        client_id=CLIENT,
        scopes=frozenset({"llm", "usage:read"}),
        user_scopes=ada.scopes,
        address="192.0.2.1",
        created_at=now,
        last_used_at=now,
        expires_at=now + timedelta(seconds=SESSION_TTL),
    )
    assert await rows(database, refresh_tokens.c.token_hash) == [(hash_secret(token),)]


async def test_nothing_in_the_database_is_a_refresh_token(sessions, login, database):
    _, token = await login()
    _, successor = await sessions.refresh(token, client_id=CLIENT)
    await sessions.refresh(successor, client_id=CLIENT)
    written = str(await rows(database, *refresh_tokens.c)) + str(await rows(database, *table.c))
    for secret in (token, successor):
        assert secret not in written
        assert secret.removeprefix("tbr_") not in written


async def test_a_disabled_user_begins_no_session(sessions, login, users, database, ada):
    await users.set_disabled(ada.id, disabled=True, by=SYSTEM)
    with pytest.raises(InvalidGrant) as caught:
        await login()
    assert caught.value.reason == "disabled"
    assert caught.value.description == "The username or the password is wrong."
    assert await rows(database, table.c.id) == []
    assert await rows(database, refresh_tokens.c.token_hash) == []


async def test_a_user_who_is_another_than_was_seen_begins_no_session(sessions, users, passwords, database, ada):
    async def login(seen):
        return await sessions.open(ada.id, CLIENT, ["llm"], "", seen=seen)

    async def refused(seen):
        with pytest.raises(InvalidGrant) as caught:
            await login(seen)
        assert (caught.value.reason, caught.value.subject) == ("changed", ada.id)

    await login(ada)
    scoped = await users.update(ada.id, scopes=["llm"], by=SYSTEM)
    await refused(ada)
    await login(scoped)
    renewed = await users.set_password(ada.id, PASSWORD + "!", passwords=passwords, by=SYSTEM)
    await refused(scoped)
    assert len(await rows(database, table.c.id)) == 2
    await login(renewed)


# Refreshing


async def test_a_refresh_token_is_traded_for_the_next(sessions, login, clock):
    session_id, token = await login()
    seen = {token}
    for _ in range(5):
        clock.now += REFRESH_TTL - 1  # each has its full life
        if clock.now - 1_800_000_000 >= SESSION_TTL:
            break
        session, token = await sessions.refresh(token, client_id=CLIENT)
        assert session.id == session_id
        assert session.last_used_at == datetime.fromtimestamp(clock(), UTC)
        assert session == await sessions.get(session_id)
        assert re.fullmatch(r"tbr_[A-Za-z0-9_-]{43}", token)
        seen.add(token)
    assert len(seen) == 6


async def test_a_refresh_token_dies_when_it_is_not_used(sessions, login, clock):
    _, token = await login()
    clock.now += REFRESH_TTL
    assert await reason(sessions.refresh(token, client_id=CLIENT)) == "expired"
    assert await sessions.look(token) is None


async def test_a_session_ends_however_often_it_is_refreshed(sessions, login, clock):
    session_id, token = await login()
    for _ in range(5):
        clock.now += REFRESH_TTL - 1
        _, token = await sessions.refresh(token, client_id=CLIENT)
    _, expires_at = await sessions.look(token)
    assert expires_at == datetime.fromtimestamp(1_800_000_000 + SESSION_TTL, UTC)
    clock.now = expires_at.timestamp()
    assert await reason(sessions.refresh(token, client_id=CLIENT)) == "expired"
    assert await sessions.get(session_id) is None


async def test_a_client_that_lost_the_answer_gets_the_same_successor_again(sessions, login, clock):
    _, token = await login()
    first = await sessions.refresh(token, client_id=CLIENT)
    for _ in range(2):
        clock.now += OVERLAP / 2
        again = await sessions.refresh(token, client_id=CLIENT)
        assert again.refresh_token == first.refresh_token
        assert again.session == first.session
    await sessions.refresh(first.refresh_token, client_id=CLIENT)


async def test_a_spent_token_is_reuse_after_the_overlap_and_ends_the_session(sessions, login, database, clock):
    session_id, token = await login()
    other, other_token = await login()
    _, successor = await sessions.refresh(token, client_id=CLIENT)
    clock.now += OVERLAP + 0.001
    with capture_logs() as logs:
        assert await reason(sessions.refresh(token, client_id=CLIENT)) == "reuse"
    assert [line["event"] for line in logs] == ["audit", "refresh_token_reused"]
    assert (logs[1]["log_level"], logs[1]["session_id"]) == ("warning", session_id)
    assert token not in str(logs)
    assert successor not in str(logs)
    for dead in (successor, token):
        assert await reason(sessions.refresh(dead, client_id=CLIENT)) == "revoked"
    assert await revoked(database) == [("session", session_id)]
    assert await audited(database) == [("session", session_id, "system", "reuse")]
    assert (session_id, "reuse") in await rows(database, table.c.id, table.c.revoked_because)
    await sessions.refresh(other_token, client_id=CLIENT)
    assert [session.id for session in await sessions.list()] == [other]


async def test_a_spent_token_is_reuse_as_soon_as_its_successor_was_used(sessions, login, clock):
    session_id, token = await login()
    _, second = await sessions.refresh(token, client_id=CLIENT)
    _, third = await sessions.refresh(second, client_id=CLIENT)
    assert await reason(sessions.refresh(token, client_id=CLIENT)) == "reuse"
    assert await reason(sessions.refresh(third, client_id=CLIENT)) == "revoked"
    assert await sessions.get(session_id) is None


async def test_a_used_successor_is_kept_for_nobody(sessions, login, database):
    _, token = await login()
    _, second = await sessions.refresh(token, client_id=CLIENT)
    _, other = await login()
    await sessions.refresh(other, client_id=CLIENT)
    await sessions.refresh(second, client_id=CLIENT)
    sealed = await rows(database, refresh_tokens.c.token_hash, refresh_tokens.c.successor_sealed)
    kept = {token_hash for token_hash, successor in sealed if successor is not None}
    assert kept == {hash_secret(second), hash_secret(other)}


@pytest.mark.parametrize("later", [0, -5, 0.001])
async def test_an_overlap_of_zero_is_none(database, login, clock, later):
    strict = make_sessions(database, clock, overlap_seconds=0)
    _, token = await login()
    await strict.refresh(token, client_id=CLIENT)
    clock.now += later  # also before: by the clock of another machine
    assert await reason(strict.refresh(token, client_id=CLIENT)) == "reuse"


async def test_a_token_that_there_is_not_is_refused(sessions, login, database):
    _, token = await login()
    for wrong in ("", "tbr_", "x", token[:-1], token + "x", token.upper(), "\0", "\ud800", "' OR ''='", "x" * 100_000):
        assert await reason(sessions.refresh(wrong, client_id=CLIENT)) == "unknown_token"
        assert await sessions.look(wrong) is None
    assert await reason(sessions.refresh(hash_secret(token), client_id=CLIENT)) == "unknown_token"
    await sessions.refresh(token, client_id=CLIENT)


async def test_another_client_cannot_use_a_token_nor_spoil_it(sessions, login, clock, database):
    session_id, token = await login()
    for other in (DEFAULT_CLIENT_ID, "", "client-2"):
        assert await reason(sessions.refresh(token, client_id=other)) == "wrong_client"
    _, successor = await sessions.refresh(token, client_id=CLIENT)
    clock.now += OVERLAP + 1
    assert await reason(sessions.refresh(token, client_id="client-2")) == "wrong_client"
    assert await revoked(database) == []
    assert (await sessions.refresh(successor, client_id=CLIENT)).session.id == session_id


async def test_a_token_of_a_disabled_user_is_refused_and_not_spent(sessions, login, users, database, ada):
    _, token = await login()
    _, spent = await login()
    await sessions.refresh(spent, client_id=CLIENT)

    async def set_disabled(value):  # in the row alone: what else Users does is not to be needed here
        async with database.transaction() as connection:
            await connection.execute(sa.text("UPDATE users SET disabled = :value"), {"value": value})

    await set_disabled(True)
    for _ in range(2):
        assert await reason(sessions.refresh(token, client_id=CLIENT)) == "disabled"
    assert await reason(sessions.refresh(spent, client_id=CLIENT)) == "disabled"
    assert await sessions.look(token) is None
    await set_disabled(False)
    await sessions.refresh(token, client_id=CLIENT)


async def test_the_sessions_of_a_user_who_was_disabled_stay_ended(sessions, login, users, ada):
    _, token = await login()
    await users.set_disabled(ada.id, disabled=True, by=SYSTEM)
    await users.set_disabled(ada.id, disabled=False, by=SYSTEM)
    assert await reason(sessions.refresh(token, client_id=CLIENT)) == "revoked"


async def test_a_refresh_tells_what_the_user_has_now_and_never_adds_to_the_session(sessions, login, users, ada):
    _, token = await login(scopes=["llm"])
    await users.update(ada.id, scopes=["usage:read", "admin"], by=SYSTEM)
    session, token = await sessions.refresh(token, client_id=CLIENT)
    assert (session.scopes, session.user_scopes) == ({"llm"}, {"usage:read", "admin"})
    again, _ = await sessions.refresh(token, client_id=CLIENT)
    assert (again.scopes, again.user_scopes) == ({"llm"}, {"usage:read", "admin"})


async def test_a_refresh_tells_the_team_of_now(sessions, login, users, database, ada):
    _, token = await login()
    team = await Teams(database).add("engines", by=SYSTEM)
    await users.update(ada.id, team_id=team.id, by=SYSTEM)
    session, _ = await sessions.refresh(token, client_id=CLIENT)
    assert session.team_id == team.id


async def test_a_refresh_begins_with_its_change(sessions, login, engine):
    """SQLite gives the one lock for writing at the first change. Who had read before it would have read what was."""
    _, token = await login()
    statements = []
    sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda *event: statements.append(event[2]))
    await sessions.refresh(token, client_id=CLIENT)
    assert statements[0].startswith("UPDATE refresh_tokens SET spent_at")
    statements.clear()
    await sessions.refresh(token, client_id=CLIENT)
    assert statements[0].startswith("UPDATE refresh_tokens SET spent_at")


async def test_a_refresh_whose_end_fails_has_spent_nothing(sessions, login, database, monkeypatch):
    _, token = await login()

    async def failing(*_):
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(sessions, "_add_token", failing)
        with pytest.raises(DatabaseUnavailable):
            await sessions.refresh(token, client_id=CLIENT)
    assert await rows(database, refresh_tokens.c.spent_at) == [(None,)]
    await sessions.refresh(token, client_id=CLIENT)


# Looking


async def test_looking_at_a_token_spends_nothing(sessions, login, clock, database):
    session_id, token = await login()
    before = await rows(database, *refresh_tokens.c)
    for _ in range(2):
        session, expires_at = await sessions.look(token)
        assert (session.id, expires_at.timestamp()) == (session_id, clock() + REFRESH_TTL)
    assert await rows(database, *refresh_tokens.c) == before
    _, successor = await sessions.refresh(token, client_id=CLIENT)
    assert await sessions.look(token) is None
    assert await sessions.look(successor) is not None
    await sessions.revoke(session_id, because="logout", by=ADMIN)
    assert await sessions.look(successor) is None


# Ending


async def test_ending_a_session_ends_its_token_and_is_on_record_once(sessions, login, database):
    session_id, token = await login()
    other, _ = await login()
    await sessions.revoke(session_id, because="logout", by=ADMIN)
    assert await reason(sessions.refresh(token, client_id=CLIENT)) == "revoked"
    assert [session.id for session in await sessions.list()] == [other]
    for gone in (session_id, "x", "\0", "\ud800", session_id.upper() + "0"):
        assert await sessions.get(gone) is None
        with pytest.raises(UnknownSession):
            await sessions.revoke(gone, because="logout", by=ADMIN)
    assert await revoked(database) == [("session", session_id)]
    assert await audited(database) == [("session", session_id, "id-admin", "logout")]


async def test_a_refresh_token_spent_or_not_ends_its_session(sessions, login, database):
    """RFC 7009 §2.1."""
    ended = []
    for spend in (False, True):
        session_id, token = await login()
        if spend:
            await sessions.refresh(token, client_id=CLIENT)
        assert await sessions.revoke_by_token(token, client_id=CLIENT, by=ADMIN) == session_id
        assert await reason(sessions.refresh(token, client_id=CLIENT)) == "revoked"
        assert await sessions.revoke_by_token(token, client_id=CLIENT, by=ADMIN) is None
        ended.append(session_id)
    assert await sessions.revoke_by_token("tbr_unknown", client_id=CLIENT, by=ADMIN) is None
    assert await sessions.revoke_by_token("\ud800", client_id=CLIENT, by=ADMIN) is None
    assert sorted(await revoked(database)) == sorted(("session", each) for each in ended)
    assert len(await audited(database)) == 2


async def test_a_token_is_not_ended_by_another_client(sessions, login, database):
    _, token = await login()
    assert await reason(sessions.revoke_by_token(token, client_id="client-2", by=ADMIN)) == "wrong_client"
    assert await revoked(database) == []
    await sessions.refresh(token, client_id=CLIENT)


async def test_all_sessions_of_a_user_end_and_nobody_elses(sessions, login, users, passwords, database, ada):
    grace = await users.add("grace", PASSWORD, ["llm"], passwords=passwords)
    tokens = [(await login())[1], (await login(client_id=DEFAULT_CLIENT_ID))[1]]
    other, other_token = await login(user=grace)
    await sessions.revoke_user(ada.id, because="logout", by=ADMIN, team_id="t")
    assert await reason(sessions.refresh(tokens[0], client_id=CLIENT)) == "revoked"
    assert await reason(sessions.refresh(tokens[1], client_id=DEFAULT_CLIENT_ID)) == "revoked"
    assert [session.id for session in await sessions.list()] == [other]
    await sessions.refresh(other_token, client_id=CLIENT)
    assert await revoked(database) == [("user", ada.id)]
    assert await audited(database) == [("user", ada.id, "id-admin", "logout")]


# Lists


async def test_sessions_are_listed_the_newest_first_a_page_at_a_time(sessions, login, users, passwords, clock, ada):
    grace = await users.add("grace", PASSWORD, ["llm"], passwords=passwords)
    opened = []
    for user in (ada, grace, ada, ada):
        clock.now += 1
        opened.append((await login(user=user))[0])
    newest = opened[::-1]
    first = [session.id for session in await sessions.list(limit=3)]
    assert first == newest[:3]
    assert [session.id for session in await sessions.list(limit=3, before=first[-1])] == newest[3:]
    hers = [session.id for session in await sessions.list(user_id=ada.id)]
    assert hers == [opened[3], opened[2], opened[0]]
    assert [session.id for session in await sessions.list(user_id=ada.id, before=hers[0], limit=1)] == hers[1:2]
    assert await sessions.list(user_id="nobody") == ()


async def test_sessions_are_listed_by_team(sessions, login, users, passwords, database, ada):
    team = await Teams(database).add("engines", by=SYSTEM)
    grace = await users.add("grace", PASSWORD, ["llm"], passwords=passwords, team_id=team.id)
    await login()
    hers, _ = await login(user=grace)
    assert [session.id for session in await sessions.list(team_id=team.id)] == [hers]
    assert await sessions.list(team_id=team.id, user_id=ada.id) == ()


async def test_a_session_that_nobody_can_refresh_is_not_listed_but_can_be_ended(sessions, login, clock, database):
    idle, _ = await login()
    clock.now += 1
    kept, token = await login()
    clock.now += REFRESH_TTL - 2
    await sessions.refresh(token, client_id=CLIENT)
    assert [session.id for session in await sessions.list()] == [kept, idle]
    clock.now += 1
    assert [session.id for session in await sessions.list()] == [kept]
    # An access token that it gave may be alive.
    await sessions.revoke(idle, because="logout", by=ADMIN)
    assert await revoked(database) == [("session", idle)]


# Tidying up


async def test_what_is_over_for_more_than_a_day_is_removed_with_its_tokens(
    sessions, login, database, ada, clock, monkeypatch
):
    monkeypatch.setattr("auth.sessions._PRUNED_AT_ONCE", 2)
    long = make_sessions(database, clock, refresh_ttl_seconds=10 * DAY, session_ttl_seconds=11 * DAY)
    began = clock.now
    brief = {(await login())[0] for _ in range(5)}  # more than one batch, and a full last one
    ended, _ = await long.open(ada.id, CLIENT, ["llm"], "")
    idle, _ = await long.open(ada.id, CLIENT, ["llm"], "")
    used, token = await long.open(ada.id, CLIENT, ["llm"], "")
    await long.revoke(ended, because="logout", by=ADMIN)
    left = [
        (DAY, {*brief, ended, idle, used}),
        (DAY + 1, {*brief, idle, used}),  # `ended` was
        (DAY + REFRESH_TTL - 1, {*brief, idle, used}),
        (DAY + REFRESH_TTL, {idle, used}),  # nobody refreshed `brief`
        (11 * DAY - 1, {idle, used}),
        (11 * DAY, {used}),  # nobody refreshed `idle`
        (12 * DAY - 1, {used}),
        (12 * DAY, set()),  # longer than 11 days no session lives
    ]
    for seconds, expected in left:
        if expected == {idle, used}:
            clock.now = began + 9 * DAY
            token = (await long.refresh(token, client_id=CLIENT)).refresh_token
        clock.now = began + seconds
        await sessions.prune()
        assert {each for (each,) in await rows(database, table.c.id)} == expected, seconds
        assert {each for (each,) in await rows(database, refresh_tokens.c.session_id)} == expected, seconds


async def test_tokens_are_removed_where_the_database_does_not_do_it_by_itself(connect, tmp_path, clock):
    """SQLite keeps to foreign keys only where it was told to."""
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'loose.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        now = datetime.now(UTC)
        user = {"id": "x", "username": "x", "password_hash": "", "scopes": "llm", "created_at": now, "updated_at": now}
        await connection.execute(users_table.insert().values(user))
    sessions = make_sessions(Database(engine), clock)
    await sessions.open("x", CLIENT, ["llm"], "")
    clock.now += SESSION_TTL + DAY + 1
    await sessions.prune()
    assert await rows(Database(engine), table.c.id) == []
    assert await rows(Database(engine), refresh_tokens.c.token_hash) == []


async def test_a_session_in_use_is_never_removed(database, login, ada, clock):
    sessions = make_sessions(database, clock, refresh_ttl_seconds=3 * DAY, session_ttl_seconds=30 * DAY)
    session_id, token = await sessions.open(ada.id, CLIENT, ["llm"], "")
    for _ in range(14):
        clock.now += 2 * DAY
        await sessions.prune()
        _, token = await sessions.refresh(token, client_id=CLIENT)
    assert await sessions.get(session_id) is not None


async def test_without_a_database_it_says_so(connect, tmp_path, clock):
    sessions = make_sessions(Database(connect(f"sqlite+aiosqlite:///{tmp_path}/no/such/directory.db")), clock)
    for attempt in (
        sessions.refresh("tbr_x", client_id=CLIENT),
        sessions.look("tbr_x"),
        sessions.open("x", CLIENT, ["llm"], ""),
        sessions.get("0196f3a0-0000-7000-8000-000000000000"),
        sessions.list(),
        sessions.prune(),
    ):
        with pytest.raises(DatabaseUnavailable):
            await attempt
