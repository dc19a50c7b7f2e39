import unicodedata
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

import auth.users
from auth.passwords import InvalidPassword
from auth.scopes import InvalidScopeString
from auth.users import InvalidUsername, UnknownUser, UsernameTaken, Users, UsersUnavailable, validate_username
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
}


@pytest.fixture
def users(engine):
    return Users(engine)


@pytest.fixture
def add(users, passwords):
    async def add(username="ada", password=PASSWORD, scopes=("llm",)):
        return await users.add(username, password, scopes, passwords=passwords)

    return add


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
        await connection.execute(auth.users.users.update().values(created_at=moment))
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
        await users.set_disabled(name, disabled=True)
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
        await users.set_password("ada", password, passwords=passwords)
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


async def test_disabling_and_enabling(users, add):
    ada = await add("ada")
    await add("bob")
    assert await users.disabled_ids() == frozenset()
    await users.set_disabled("ada", disabled=True)
    assert await users.disabled_ids() == {ada.id}
    changed = await users.get("ada")
    assert changed.disabled
    assert changed.updated_at > ada.updated_at
    assert changed.created_at == ada.created_at
    await users.set_disabled("ada", disabled=False)
    assert await users.disabled_ids() == frozenset()


async def test_a_new_password_replaces_the_old_one(users, add, passwords):
    await add()
    await users.set_password("ada", "another good password", passwords=passwords)
    stored = (await users.get("ada")).password_hash
    assert await passwords.verify("another good password", stored)
    assert not await passwords.verify(PASSWORD, stored)


async def test_who_is_not_there_cannot_be_changed(users, passwords):
    with pytest.raises(UnknownUser):
        await users.set_disabled("ada", disabled=True)
    with pytest.raises(UnknownUser):
        await users.set_password("ada", PASSWORD, passwords=passwords)


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
    users = Users(engine)
    for attempt in (users.get("ada"), users.disabled_ids(), users.add("ada", PASSWORD, ["llm"], passwords=passwords)):
        with pytest.raises(UsersUnavailable):
            await attempt


async def test_a_table_that_is_not_there_is_unavailable(connect, tmp_path):
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(UsersUnavailable):
        await Users(engine).get("ada")


async def test_a_database_that_refuses_the_login_is_unavailable(connect, postgres_url):
    engine = connect(postgres_url.replace("tollbook@", "nobody-of-this-name@"))
    with pytest.raises(UsersUnavailable):
        await Users(engine).get("ada")


async def test_a_connection_that_is_cut_is_unavailable_once(connect, postgres, postgres_url):
    users = Users(postgres)
    assert await users.count() == 0
    killer = connect(postgres_url)
    async with killer.begin() as connection:
        others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'postgres'"
        await connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) {others}"))
    with pytest.raises(UsersUnavailable):
        await users.count()
    assert await users.count() == 0


async def test_a_database_that_does_not_answer_is_unavailable_in_time(connect, postgres, postgres_url):
    users = Users(postgres, timeout_seconds=0.1)
    other = connect(postgres_url)
    async with other.connect() as connection:
        await connection.execute(sa.text("LOCK TABLE users IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(UsersUnavailable):
            await users.get("ada")
        await connection.rollback()
    assert await Users(postgres).get("ada") is None


async def test_an_exhausted_pool_is_unavailable(connect, postgres_url):
    engine = connect(postgres_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    async with engine.connect():
        with pytest.raises(UsersUnavailable):
            await Users(engine).get("ada")


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
