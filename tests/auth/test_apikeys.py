"""The repository of API keys: what is stored, what is accepted, and how keys end."""

import asyncio
import hmac
import time
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from structlog.testing import capture_logs

from auth.apikeys import ApiKeys, InvalidKeyData, UnknownKey, WrongKey
from auth.audit import SYSTEM, Actor, read_records
from auth.database import Database
from auth.names import InvalidName
from auth.scopes import InvalidScopeString
from auth.tables import api_keys, revocations
from auth.teams import Teams
from auth.users import Users
from tests.auth.kit import PASSWORD, Clock

BOSS = Actor("4a7d6c1e-0000-4000-8000-000000000000", "boss", "192.0.2.7", "request-1")
UNKNOWN = "tbk_aaaaaaaaaaaaaaaa_" + "A" * 43


@pytest.fixture
def clock():
    clock = Clock()
    clock.now = float(int(time.time()))
    return clock


@pytest.fixture
def database(engine):
    return Database(engine)


@pytest.fixture
def keys(database, clock):
    return ApiKeys(database, clock)


@pytest.fixture
def create(keys, ada):
    async def create(*scopes, user=ada, name="laptop", expires_at=None):
        return await keys.create(user.id, name, scopes=scopes or ("llm",), expires_at=expires_at, by=BOSS)

    return create


@pytest.fixture
def moment(clock):
    """So many seconds from now."""
    return lambda seconds: datetime.fromtimestamp(clock.now + seconds, UTC)


async def refused(keys, presented):
    with pytest.raises(WrongKey) as caught:
        await keys.verify(presented)
    return caught.value.reason


async def rows(database, table):
    async with database.transaction() as connection:
        return (await connection.execute(table.select())).all()


async def records(database, target):
    async with database.transaction() as connection:
        return await read_records(connection, target=target)


async def test_a_key_that_was_made_is_accepted_and_says_whose_it_is(keys, create, ada, moment):
    made, key = await create("llm", expires_at=moment(60))
    assert key.startswith(f"tbk_{made.id}_")
    found = await keys.verify(key)
    assert found == made == await keys.get(made.id)
    assert (found.user_id, found.username, found.name) == (ada.id, ada.username, "laptop")
    assert (found.created_at, found.expires_at) == (moment(0), moment(60))
    assert (found.last_used_at, found.revoked_at) == (None, None)


async def test_two_keys_have_nothing_in_common(create):
    (first, one), (second, two) = await create(), await create()
    assert first.id != second.id
    assert one[-43:] != two[-43:]


async def test_of_a_secret_only_a_hash_is_stored_and_nothing_is_written_down(keys, create, database):
    with capture_logs() as logs:
        made, key = await create()
        await keys.verify(key)
        _, new = await keys.rotate(made.id, overlap_seconds=0, by=BOSS)
    written = repr((await rows(database, api_keys), await records(database, made.id), logs, made))
    assert made.id in written
    assert key[-43:] not in written
    assert new[-43:] not in written
    shown = repr((await keys.list(), await records(database, made.id), logs))
    assert not any(row.secret_hash in shown for row in await rows(database, api_keys))


@pytest.mark.parametrize(
    ("granted", "held", "left"),
    [
        (["llm"], ["llm", "usage:read"], {"llm"}),
        (["llm", "usage:read"], ["llm"], {"llm"}),
        (["llm"], ["llm:a", "llm:b"], {"llm:a", "llm:b"}),
        (["llm:a"], ["llm"], {"llm:a"}),
        (["admin"], ["llm"], set()),
    ],
    ids=str,
)
async def test_a_key_can_do_what_both_it_and_its_user_may_now(keys, create, database, ada, granted, held, left):
    made, key = await create(*granted)
    await Users(database).update(ada.id, scopes=held, by=SYSTEM)
    found = await keys.verify(key)
    assert found.effective_scopes == left
    assert found.scopes == made.scopes == frozenset(granted)


async def test_making_a_key_is_in_the_audit_log(create, database, ada):
    made, _ = await create("llm", "usage:read")
    (record,) = await records(database, made.id)
    assert (record["action"], record["actor"], record["target_name"]) == ("key.create", BOSS.id, "laptop")
    assert (record["address"], record["request_id"]) == (BOSS.address, BOSS.request_id)
    assert record["details"] == {"scopes": "llm usage:read", "user": ada.id}


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"expires_in": 0}, InvalidKeyData),
        ({"expires_in": -1}, InvalidKeyData),
        ({"name": ""}, InvalidName),
        ({"name": "a\r\nb"}, InvalidName),
        ({"scopes": ()}, InvalidScopeString),
        ({"scopes": ("root",)}, InvalidScopeString),
        ({"scopes": ("llm:a b",)}, InvalidScopeString),
    ],
    ids=str,
)
async def test_a_key_that_there_cannot_be_is_not_made(keys, database, ada, moment, wrong, error):
    expires_at = moment(wrong["expires_in"]) if "expires_in" in wrong else None
    with pytest.raises(error):
        await keys.create(
            ada.id, wrong.get("name", "laptop"), scopes=wrong.get("scopes", ("llm",)), expires_at=expires_at, by=BOSS
        )
    assert await rows(database, api_keys) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda key: "",
        lambda key: "tbk_",
        lambda key: key[:-1],
        lambda key: key + "A",
        lambda key: key + "\n",
        lambda key: " " + key,
        lambda key: key.upper(),
        lambda key: key.replace("tbk_", "tbr_"),
        lambda key: key[:-1] + "\u00e9",
        lambda key: key[:-1] + "\ud800",
        lambda key: key[:-1] + "\0",
        lambda key: "tbk_" + "' OR 1=1 --".ljust(16) + key[20:],
        lambda key: "tbk_" + "A" * 100_000,
    ],
)
async def test_what_does_not_look_like_a_key_is_not_looked_up(keys, create, monkeypatch, change):
    _, key = await create()

    def never(*_):
        raise AssertionError("the database was asked")

    monkeypatch.setattr(Database, "transaction", never)
    assert await refused(keys, change(key)) == "malformed"


async def test_an_unknown_id_and_a_wrong_secret_are_refused(keys, create):
    _, key = await create()
    _, other = await create()
    assert await refused(keys, UNKNOWN) == "unknown_key"
    assert await refused(keys, key[:-43] + other[-43:]) == "wrong_secret"
    assert await refused(keys, key[:-43] + "A" * 43) == "wrong_secret"


async def test_a_wrong_secret_costs_the_same_work_whether_or_not_the_id_exists(keys, create, engine, monkeypatch):
    """No clock is read: what is compared, and what the database is asked, is the same in kind and in length."""
    _, key = await create()
    done: list[tuple[object, ...]] = []
    compare = hmac.compare_digest

    def compared(one, two):
        done.append(("compared", len(one), len(two)))
        return compare(one, two)

    def asked(_connection, _cursor, statement, *_):
        done.append(("asked", statement))

    monkeypatch.setattr(hmac, "compare_digest", compared)
    event.listen(engine.sync_engine, "before_cursor_execute", asked)
    work = []
    for presented in (UNKNOWN, key[:-43] + "A" * 43, key):
        done.clear()
        if presented == key:
            await keys.verify(presented)
        else:
            await refused(keys, presented)
        work.append(list(done))
    assert work[0] == work[1] == work[2]
    assert ("compared", 64, 64) in work[0]


async def test_a_key_is_accepted_until_it_expires(keys, create, clock, moment):
    _, key = await create(expires_at=moment(60))
    clock.now += 59.9
    assert await keys.verify(key)
    clock.now += 0.1
    assert await refused(keys, key) == "expired"


async def test_the_key_of_a_disabled_user_is_refused_until_they_are_enabled(keys, create, database, ada):
    _, key = await create()
    await Users(database).set_disabled(ada.id, disabled=True, by=SYSTEM)
    assert await refused(keys, key) == "disabled"
    await Users(database).set_disabled(ada.id, disabled=False, by=SYSTEM)
    assert await keys.verify(key)


async def test_only_who_has_the_secret_is_told_what_became_of_a_key(keys, create, database, ada, clock, moment):
    made, key = await create(expires_at=moment(60))
    await keys.revoke(made.id, by=BOSS)
    await Users(database).set_disabled(ada.id, disabled=True, by=SYSTEM)
    clock.now += 60
    assert await refused(keys, key[:-43] + "A" * 43) == "wrong_secret"


async def test_rotating_makes_a_key_like_the_old_one_which_goes_on_for_the_overlap(keys, create, clock, moment):
    made, old = await create("llm:a", "usage:read", expires_at=moment(1000))
    clock.now += 1
    new, key = await keys.rotate(made.id, overlap_seconds=60, by=BOSS)
    assert (new.name, new.scopes, new.user_id, new.expires_at) == (
        made.name,
        made.scopes,
        made.user_id,
        made.expires_at,
    )
    assert (new.id != made.id, new.created_at) == (True, moment(0))
    clock.now += 59.9
    assert (await keys.verify(old)).id == made.id
    assert (await keys.verify(key)).id == new.id
    clock.now += 0.1
    assert await refused(keys, old) == "expired"
    assert await keys.verify(key)


async def test_without_an_overlap_the_old_key_ends_at_once(keys, create):
    made, old = await create()
    _, key = await keys.rotate(made.id, overlap_seconds=0, by=BOSS)
    assert await refused(keys, old) == "expired"
    assert await keys.verify(key)


async def test_an_overlap_does_not_prolong_the_life_of_the_old_key(keys, create, clock, moment):
    made, old = await create(expires_at=moment(10))
    await keys.rotate(made.id, overlap_seconds=60, by=BOSS)
    assert (await keys.get(made.id)).expires_at == moment(10)
    clock.now += 10
    assert await refused(keys, old) == "expired"


async def test_of_two_rotations_at_once_the_shorter_overlap_counts(keys, create, moment, monkeypatch):
    made, _ = await create()
    await keys.rotate(made.id, overlap_seconds=10, by=BOSS)

    async def as_it_was(_):
        return made

    monkeypatch.setattr(keys, "get", as_it_was)
    await keys.rotate(made.id, overlap_seconds=1000, by=BOSS)
    monkeypatch.undo()
    assert (await keys.get(made.id)).expires_at == moment(10)


async def test_a_key_that_is_revoked_while_it_is_rotated_has_no_successor(keys, create, database, monkeypatch):
    made, _ = await create()
    await keys.revoke(made.id, by=BOSS)

    async def as_it_was(_):
        return made

    monkeypatch.setattr(keys, "get", as_it_was)
    with pytest.raises(UnknownKey):
        await keys.rotate(made.id, overlap_seconds=1000, by=BOSS)
    assert len(await rows(database, api_keys)) == 1


async def test_rotating_is_in_the_audit_log_and_has_every_worker_read_the_old_key_anew(keys, create, database):
    made, _ = await create()
    new, _ = await keys.rotate(made.id, overlap_seconds=60, by=BOSS)
    (record,) = await records(database, new.id)
    assert record["action"] == "key.rotate"
    assert (record["details"]["replaces"], record["details"]["overlap_seconds"]) == (made.id, 60)
    assert [(row.kind, row.value) for row in await rows(database, revocations)] == [("key", made.id)]


@pytest.mark.parametrize("overlap", [-1, float("nan"), float("inf"), 1e300, 367 * 86400])
async def test_an_overlap_that_there_cannot_be_changes_nothing(keys, create, database, overlap):
    made, key = await create()
    with pytest.raises(InvalidKeyData):
        await keys.rotate(made.id, overlap_seconds=overlap, by=BOSS)
    assert await keys.verify(key) == made
    assert len(await rows(database, api_keys)) == 1


async def test_a_key_that_has_ended_is_not_rotated(keys, create, clock, moment):
    revoked, _ = await create()
    await keys.revoke(revoked.id, by=BOSS)
    expired, _ = await create(expires_at=moment(10))
    clock.now += 10
    for key_id in (revoked.id, expired.id, "a" * 16):
        with pytest.raises(UnknownKey):
            await keys.rotate(key_id, overlap_seconds=60, by=BOSS)


async def test_a_revoked_key_is_never_accepted_again(keys, create, database, moment):
    made, key = await create()
    await keys.revoke(made.id, by=BOSS)
    assert await refused(keys, key) == "revoked"
    assert (await keys.get(made.id)).revoked_at == moment(0)
    assert [(row.kind, row.value) for row in await rows(database, revocations)] == [("key", made.id)]
    (record, _) = await records(database, made.id)
    assert (record["action"], record["actor"], record["target_name"]) == ("key.revoke", BOSS.id, "laptop")


async def test_a_key_is_revoked_once(keys, create, database):
    made, _ = await create()
    ended = await asyncio.gather(*(keys.revoke(made.id, by=BOSS) for _ in range(4)), return_exceptions=True)
    assert [type(each) for each in ended if each is not None] == [UnknownKey] * 3
    assert [record["action"] for record in await records(database, made.id)] == ["key.revoke", "key.create"]
    with pytest.raises(UnknownKey):
        await keys.revoke("a" * 16, by=BOSS)


async def test_keys_are_listed_by_user_by_team_and_page_by_page_revoked_ones_too(
    keys, create, database, users, passwords, ada
):
    team = await Teams(database).add("research", by=SYSTEM)
    bob = await users.add("bob", PASSWORD, ["llm"], passwords=passwords, team_id=team.id)
    of_ada = sorted([(await create())[0].id for _ in range(5)])
    of_bob = (await create(user=bob))[0]
    await keys.revoke(of_ada[0], by=BOSS)
    assert of_bob.team_id == team.id
    assert [key.id for key in await keys.list(user_id=ada.id)] == of_ada
    assert [key.id for key in await keys.list(team_id=team.id)] == [of_bob.id]
    assert await keys.list(user_id=ada.id, team_id=team.id) == ()
    assert [key.id for key in await keys.list(user_id=ada.id, after=of_ada[1], limit=2)] == of_ada[2:4]
    assert {key.id for key in await keys.list()} == {*of_ada, of_bob.id}


async def test_the_last_use_is_written_and_never_goes_back(keys, create, moment):
    used, unused = (await create())[0], (await create())[0]
    await keys.touch({used.id: moment(60), "a" * 16: moment(60)})
    assert (await keys.get(used.id)).last_used_at == moment(60)
    assert (await keys.get(unused.id)).last_used_at is None
    await keys.touch({used.id: moment(30)})  # of a worker that writes later
    assert (await keys.get(used.id)).last_used_at == moment(60)
    await keys.touch({used.id: moment(90)})
    assert (await keys.get(used.id)).last_used_at == moment(90)


async def test_all_workers_write_last_uses_in_one_order(keys, create, engine, moment):
    """In PostgreSQL two that write the same rows in different orders would wait for each other."""
    made = [(await create())[0].id for _ in range(5)]
    written: list[str] = []

    def watch(_connection, _cursor, _statement, parameters, *_):
        written.extend(value for row in parameters for value in row if value in made)

    event.listen(engine.sync_engine, "before_cursor_execute", watch)
    for order in (made, made[::-1]):
        written.clear()
        await keys.touch(dict.fromkeys(order, moment(60)))
        assert written == sorted(made)


async def test_nothing_but_the_hash_of_the_secret_decides(keys, create, database):
    _, key = await create()
    async with database.transaction() as connection:
        await connection.execute(sa.update(api_keys).values(secret_hash=key[-43:]))
    assert await refused(keys, key) == "wrong_secret"
