"""The repository of users: what is stored, what is refused, and what a change ends."""

import asyncio
import unicodedata
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from auth.audit import SYSTEM, Actor, read_records
from auth.database import Database, DatabaseUnavailable
from auth.passwords import InvalidPassword
from auth.scopes import InvalidScopeString
from auth.sessions import Sessions
from auth.tables import metadata, revocations, sessions
from auth.tables import users as users_table
from auth.teams import Teams, UnknownTeam
from auth.users import (
    InvalidUsername,
    LastAdmin,
    UnknownUser,
    UserChanged,
    UsernameTaken,
    Users,
    validate_username,
)
from tests.auth.kit import PASSWORD

HOSTILE_NAMES = {
    "empty": "",
    "blank": " ",
    "leading": " ada",
    "trailing": "ada\u00a0",
    "long": "a" * 129,
    "nul": "a\0da",
    "crlf": "ada\r\nroot",
    "tab": "a\tda",
    "c1": "a\u0085da",
    "line separator": "a\u2028da",
    "paragraph separator": "a\u2029da",
    "surrogate": "a\ud800da",
    "right-to-left override": "a\u202eda",
    "isolate": "a\u2066da",
    "that of a client": "client:nightly",
    "that of an outside provider": "oidc:ada",
    "that of a client, written otherwise": "Client:nightly",
}
NOBODY = "6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55"
BOSS = Actor("4a7d6c1e-0000-4000-8000-000000000000", "boss", "192.0.2.7", "request-1")


@pytest.fixture
def users(engine):
    return Users(Database(engine))


@pytest.fixture
def add(users, passwords):
    async def add(username="ada", password=PASSWORD, scopes=("llm",), team_id=None):
        return await users.add(username, password, scopes, passwords=passwords, team_id=team_id)

    return add


@pytest.fixture
async def team(engine):
    return await Teams(Database(engine)).add("research", by=SYSTEM)


@pytest.fixture
def log_in(engine):
    """Begins a session of a user."""

    async def log_in(user):
        made = Sessions(Database(engine), refresh_ttl_seconds=1000, session_ttl_seconds=5000, overlap_seconds=10)
        session_id, _ = await made.open(user.id, "tollbook", user.scopes, "192.0.2.1")
        return session_id

    return log_in


@pytest.fixture
def rows(engine):
    async def rows(table):
        async with engine.connect() as connection:
            return (await connection.execute(table.select())).mappings().all()

    return rows


@pytest.fixture
def audited(engine):
    """The audit records, the newest first."""

    async def audited():
        async with engine.connect() as connection:
            return await read_records(connection)

    return audited


@pytest.fixture
def statements(engine):
    """What was asked of the database."""
    asked = []

    def note(_connection, _cursor, statement, *_):
        asked.append(statement)

    sa.event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield asked
    sa.event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_a_user_is_stored_and_found_by_name_and_by_id(users, add, passwords):
    before = datetime.now(UTC)
    user = await add(scopes=["usage:read", "llm"])
    assert await users.get("ada") == await users.get_by_id(user.id) == user
    assert user.scopes == {"llm", "usage:read"}
    assert not user.disabled
    assert before <= user.created_at == user.updated_at <= datetime.now(UTC)
    assert user.created_at.utcoffset() == timedelta(0)
    assert await passwords.verify(PASSWORD, user.password_hash)
    assert user.password_hash not in repr(user)


async def test_times_come_back_as_utc_whatever_zone_they_were_written_in(users, add, engine):
    await add()
    moment = datetime.fromisoformat("2026-03-29T02:30:00+05:30")
    async with engine.begin() as connection:
        await connection.execute(users_table.update().values(created_at=moment))
    found = await users.get("ada")
    assert found.created_at == moment
    assert found.created_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "name", ["ada lovelace", "ada@example.org", "\U0001f600\U0001f468\u200d\U0001f469", "a", "é" * 128]
)
async def test_names_of_any_script_and_emoji_are_kept(users, add, name):
    await add(name)
    found = await users.get(name)
    assert found.username == name


async def test_the_two_spellings_of_a_name_are_one_user(users, add):
    await add("caf\u00e9")
    assert (await users.get("cafe\u0301")).username == "caf\u00e9"
    with pytest.raises(UsernameTaken):
        await add("cafe\u0301")


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES)
async def test_a_name_nobody_can_have_is_refused_and_not_asked_for(users, add, statements, name):
    with pytest.raises(InvalidUsername) as caught:
        await add(name)
    assert not name.strip() or name not in str(caught.value)
    assert await users.get(name) is None
    with pytest.raises(UnknownUser):
        await users.set_disabled(name, disabled=True, by=SYSTEM)
    assert statements == []


@pytest.mark.parametrize("user_id", ["", "x\0", "x\r\n", "\U0001f600", "ada", "6F1C2A52-3A0B-4B7E-9F0A-0D7A4B1C9E55"])
async def test_an_id_that_is_none_of_ours_is_not_asked_for(users, statements, user_id):
    assert await users.get_by_id(user_id) is None
    assert statements == []


async def test_nobody_is_found_who_is_not_there(users):
    assert await users.get("ada") is None
    assert await users.get_by_id("6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55") is None


async def test_a_name_is_given_once(users, add):
    user = await add()
    with pytest.raises(UsernameTaken):
        await add()
    assert await users.list() == (user,)


@pytest.mark.parametrize("password", ["elevenchars", "correct\0horse battery", "x" * 1025, "lone surrogate \ud800"])
async def test_a_bad_password_is_not_set(users, add, passwords, password):
    with pytest.raises(InvalidPassword):
        await add(password=password)
    assert await users.count() == 0
    user = await add()
    with pytest.raises(InvalidPassword):
        await users.set_password(user.id, password, passwords=passwords, by=SYSTEM)
    assert await users.get("ada") == user


@pytest.mark.parametrize("scopes", [[], ["root"], ["llm", "admin "]])
async def test_scopes_that_do_not_exist_are_not_given(users, add, scopes):
    with pytest.raises(InvalidScopeString):
        await add(scopes=scopes)
    assert await users.count() == 0


async def test_list_is_by_name_and_count_counts(users, add):
    for name in ("bob", "ada", "eve"):
        await add(name)
    assert [user.username for user in await users.list()] == ["ada", "bob", "eve"]
    assert await users.count() == 3


async def test_a_list_goes_on_after_a_name_and_keeps_to_a_team(users, add, team):
    for name in ("bob", "ada", "eve", "dan"):
        await add(name, team_id=team.id if name in {"bob", "eve"} else None)
    first = await users.list(limit=2)
    assert [user.username for user in first] == ["ada", "bob"]
    await add("abe")  # before where the reader is
    await add("cat")  # after it
    assert [user.username for user in await users.list(after="bob", limit=2)] == ["cat", "dan"]
    assert [user.username for user in await users.list(team_id=team.id)] == ["bob", "eve"]
    assert await users.list(team_id=NOBODY) == ()


async def test_disabling_and_enabling(users, add):
    ada = await add("ada")
    await add("bob")
    changed = await users.set_disabled(ada.id, disabled=True, by=SYSTEM)
    assert changed == await users.get("ada")
    assert changed.disabled
    assert changed.updated_at > ada.updated_at
    assert changed.created_at == ada.created_at
    assert not (await users.get("bob")).disabled
    assert not (await users.set_disabled(ada.id, disabled=False, by=SYSTEM)).disabled


async def test_a_new_password_replaces_the_old_one(users, add, passwords):
    ada = await add()
    await users.set_password(ada.id, "another good password", passwords=passwords, by=SYSTEM)
    stored = (await users.get("ada")).password_hash
    assert await passwords.verify("another good password", stored)
    assert not await passwords.verify(PASSWORD, stored)


async def test_who_is_not_there_cannot_be_changed(users, passwords, rows):
    with pytest.raises(UnknownUser):
        await users.set_disabled(NOBODY, disabled=True, by=SYSTEM)
    with pytest.raises(UnknownUser):
        await users.set_password(NOBODY, PASSWORD, passwords=passwords, by=SYSTEM)
    with pytest.raises(UnknownUser):
        await users.update(NOBODY, scopes=["llm"], by=SYSTEM)
    assert await rows(revocations) == []


async def test_scopes_and_team_are_changed_together_or_each_alone(users, add, team):
    ada = await add()
    both = await users.update(ada.id, scopes=["llm", "usage:read"], team_id=team.id, by=SYSTEM)
    assert both == await users.get("ada")
    assert (both.scopes, both.team_id) == ({"llm", "usage:read"}, team.id)
    assert (await users.update(ada.id, scopes=["llm"], by=SYSTEM)).team_id == team.id
    left = await users.update(ada.id, team_id=None, by=SYSTEM)
    assert (left.scopes, left.team_id) == ({"llm"}, None)
    with pytest.raises(InvalidScopeString):
        await users.update(ada.id, scopes=["root"], by=SYSTEM)
    assert await users.get("ada") == left


async def test_a_team_that_is_not_there_takes_nobody(users, add):
    ada = await add()
    with pytest.raises(UnknownTeam):
        await users.update(ada.id, team_id=NOBODY, by=SYSTEM)
    assert await users.get("ada") == ada
    with pytest.raises(UnknownTeam):
        await add("bob", team_id=NOBODY)
    assert await users.count() == 1
    with pytest.raises(UsernameTaken):
        await add("ada", team_id=NOBODY)


async def test_a_change_decided_on_what_is_not_so_any_more_is_not_made(users, add, team):
    seen = await add(scopes=["llm", "usage:read"])
    for change in ({"scopes": ["llm"]}, {"team_id": team.id}, {"disabled": True}):
        changed = await users.update(seen.id, **change, by=SYSTEM)
        with pytest.raises(UserChanged):
            await users.update(seen.id, scopes=["llm", "usage:read"], seen=seen, by=SYSTEM)
        assert await users.get("ada") == changed
        seen = changed
    assert (await users.update(seen.id, disabled=False, seen=seen, by=SYSTEM)).disabled is False


# What a change ends, and what is written down


@pytest.mark.parametrize(
    ("change", "action", "session_ends"),
    [
        (lambda users, user, _: users.update(user.id, scopes=["llm"], by=BOSS), "user.update", None),
        (lambda users, user, _: users.update(user.id, team_id=None, by=BOSS), "user.update", None),
        (lambda users, user, _: users.set_disabled(user.id, disabled=True, by=BOSS), "user.disable", "disabled"),
        (lambda users, user, _: users.set_disabled(user.id, disabled=False, by=BOSS), "user.enable", None),
        (
            lambda users, user, passwords: users.set_password(
                user.id, "another good password", passwords=passwords, by=BOSS
            ),
            "user.password",
            "password",
        ),
    ],
    ids=["scopes", "team", "disable", "enable", "password"],
)
async def test_each_change_has_its_record_and_ends_what_it_has_to(
    users, add, team, log_in, passwords, rows, audited, change, action, session_ends
):
    user, other = await add("ada", team_id=team.id), await add("bob")
    mine, others = await log_in(user), await log_in(other)
    before = datetime.now(UTC)
    await change(users, user, passwords)
    because = {row["id"]: row["revoked_because"] for row in await rows(sessions)}
    assert because == {mine: session_ends, others: None}
    (revoked,) = await rows(revocations)
    assert (revoked["kind"], revoked["value"]) == ("user", user.id)
    assert revoked["issued_before"] >= before
    record = (await audited())[0]
    wanted = {
        "actor": BOSS.id,
        "actor_name": "boss",
        "address": "192.0.2.7",
        "request_id": "request-1",
        "action": action,
        "target_kind": "user",
        "target": user.id,
        "target_name": "ada",
        "team_id": team.id,
        "result": "ok",
    }
    assert {name: record[name] for name in wanted} == wanted


async def test_a_new_user_has_a_record_too(add, team, audited):
    user = await add(scopes=["usage:read", "llm"], team_id=team.id)
    record = (await audited())[0]
    assert (record["action"], record["target"], record["team_id"]) == ("user.create", user.id, team.id)
    assert (record["actor"], record["details"]) == ("system", {"scopes": "llm usage:read"})


async def test_what_fails_leaves_nothing_behind(users, add, log_in, engine, rows, audited):
    """No record of a change that was not made, and no end of sessions for it."""
    root = await add("root", scopes=["admin"])
    await log_in(root)
    before = await audited()
    with pytest.raises(LastAdmin):
        await users.set_disabled(root.id, disabled=True, by=BOSS)
    assert await users.get("root") == root
    assert await audited() == before
    assert await rows(revocations) == []
    assert [row["revoked_at"] for row in await rows(sessions)] == [None]


async def test_without_a_place_for_its_record_a_change_is_not_made(users, add, engine):
    ada = await add()
    async with engine.begin() as connection:
        await connection.run_sync(metadata.tables["audit_log"].drop)
    with pytest.raises(DatabaseUnavailable):
        await users.set_disabled(ada.id, disabled=True, by=BOSS)
    assert await users.get("ada") == ada


# The last admin


async def test_the_last_admin_stays_one(users, add):
    root = await add("root", scopes=["admin", "llm"])
    await add("almost", scopes=["users:admin", "team:admin"])
    other = await add("other", scopes=["admin"])
    await users.set_disabled(other.id, disabled=True, by=SYSTEM)
    for change in ({"disabled": True}, {"scopes": ["users:admin", "llm"]}, {"scopes": ["admin"], "disabled": True}):
        with pytest.raises(LastAdmin):
            await users.update(root.id, **change, by=SYSTEM)
    assert await users.get("root") == root
    assert (await users.update(root.id, scopes=["admin", "usage:read"], by=SYSTEM)).scopes == {"admin", "usage:read"}
    await users.set_disabled(other.id, disabled=False, by=SYSTEM)
    assert (await users.update(root.id, disabled=True, by=SYSTEM)).disabled


async def test_where_there_never_was_an_admin_others_can_be_disabled(users, add):
    ada = await add()
    assert (await users.set_disabled(ada.id, disabled=True, by=SYSTEM)).disabled


@pytest.mark.parametrize("change", [{"disabled": True}, {"scopes": ["llm"]}], ids=["disable", "demote"])
async def test_of_admins_who_take_each_other_out_at_once_one_is_left(users, add, change):
    admins = [await add(name, scopes=["admin"]) for name in ("ada", "bob", "eve", "dan")]
    changes = (users.update(user.id, **change, by=SYSTEM) for user in admins)
    done = await asyncio.gather(*changes, return_exceptions=True)
    assert sum(isinstance(each, LastAdmin) for each in done) == 1, done
    left = [user for user in await users.list() if "admin" in user.scopes and not user.disabled]
    assert len(left) == 1


async def test_a_rehash_does_not_undo_a_password_change_that_came_between(users, add):
    user = await add()
    assert await users.set_password_hash(user.id, "rehash", replacing=user.password_hash)
    assert not await users.set_password_hash(user.id, "late rehash", replacing=user.password_hash)
    assert (await users.get("ada")).password_hash == "rehash"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite+aiosqlite:///{missing}/users.db",
        "postgresql+asyncpg://tollbook@/postgres?host={missing}",
        "postgresql+asyncpg://tollbook@127.0.0.1:1/postgres",
    ],
)
async def test_a_database_that_is_not_there_is_unavailable(connect, tmp_path, url, passwords):
    engine = connect(url.format(missing=tmp_path / "missing"))
    users = Users(Database(engine))
    for attempt in (users.get("ada"), users.list(), users.add("ada", PASSWORD, ["llm"], passwords=passwords)):
        with pytest.raises(DatabaseUnavailable):
            await attempt


async def test_a_table_that_is_not_there_is_unavailable(connect, tmp_path):
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(DatabaseUnavailable):
        await Users(Database(engine)).get("ada")


async def test_a_database_that_refuses_the_login_is_unavailable(connect, postgres_url):
    engine = connect(postgres_url.replace("tollbook@", "nobody-of-this-name@"))
    with pytest.raises(DatabaseUnavailable):
        await Users(Database(engine)).get("ada")


async def test_a_connection_that_is_cut_is_unavailable_once(connect, postgres, postgres_url):
    users = Users(Database(postgres))
    assert await users.count() == 0
    killer = connect(postgres_url)
    async with killer.begin() as connection:
        others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'postgres'"
        await connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) {others}"))
    with pytest.raises(DatabaseUnavailable):
        await users.count()
    assert await users.count() == 0


async def test_a_database_that_does_not_answer_is_unavailable_in_time(connect, postgres, postgres_url):
    users = Users(Database(postgres, timeout_seconds=0.1))
    other = connect(postgres_url)
    async with other.connect() as connection:
        await connection.execute(sa.text("LOCK TABLE users IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(DatabaseUnavailable):
            await users.get("ada")
        await connection.rollback()
    assert await Users(Database(postgres)).get("ada") is None


async def test_an_exhausted_pool_is_unavailable(connect, postgres_url):
    engine = connect(postgres_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    async with engine.connect():
        with pytest.raises(DatabaseUnavailable):
            await Users(Database(engine)).get("ada")


@given(st.text())
def test_a_valid_name_is_normalised_and_can_forge_no_line(text):
    try:
        name = validate_username(text)
    except InvalidUsername:
        return
    assert name == unicodedata.normalize("NFC", text) == validate_username(name)
    assert 1 <= len(name) <= 128
    assert len(name.splitlines()) == 1
    assert name == name.strip()
    assert name.encode()
    assert all(ord(c) >= 0x20 and not 0x7F <= ord(c) <= 0x9F for c in name)
    assert not any(unicodedata.bidirectional(c) in {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "PDI"} for c in name)
