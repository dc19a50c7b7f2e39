"""What is revoked, as each worker knows it. Two workers are two `Revocations` with a `Database` each."""

import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from auth import revocation
from auth.audit import SYSTEM
from auth.clients import Clients
from auth.database import Database, DatabaseUnavailable
from auth.principal import ACCESS_TOKEN, API_KEY, CLIENT_TOKEN, Principal
from auth.revocation import Revocations, write_revocation
from auth.tables import metadata, revocations
from auth.users import Users
from service.settings import AuthSettings
from tests.auth.kit import PASSWORD, Clock

DAY = 86400.0
ABOUT = {"token": "jti-1", "session": "session-1", "user": "user-1", "client": "client-1"}


@pytest.fixture
def clock():
    """Rows are written with the time there is."""
    clock = Clock()
    clock.now = time.time()
    return clock


@pytest.fixture
def database(engine):
    return Database(engine)


@pytest.fixture
def here(database, clock):
    """The worker where a change is made."""
    return Revocations(database, clock)


@pytest.fixture
def there(engine, clock):
    """Another worker."""
    return Revocations(Database(engine), clock)


@pytest.fixture
def principal(clock):
    """Of an access token that was issued a minute ago."""
    return Principal(
        subject="user-1",
        username="ada",
        scopes=frozenset({"llm"}),
        auth_method=ACCESS_TOKEN,
        expires_at=clock.now + 600,
        issued_at=clock.now - 60,
        credential_id="jti-1",
        client_id="client-1",
        session_id="session-1",
    )


@pytest.fixture
def key(principal):
    """Of an API key."""
    return replace(principal, auth_method=API_KEY, credential_id="key-1", client_id="", session_id="")


@pytest.fixture
def tell(database):
    """Writes a row, as a change does."""

    async def tell(kind, value):
        async with database.transaction() as connection:
            await write_revocation(connection, kind, value)

    return tell


@pytest.fixture
def insert(database, clock):
    """Writes a row with any times, in seconds from now."""

    async def insert(kind, value, *, created=0.0, expires=DAY):
        now = datetime.fromtimestamp(clock.now, UTC)
        row = {
            "id": str(uuid.uuid4()),
            "kind": kind,
            "value": value,
            "issued_before": now,
            "created_at": now + timedelta(seconds=created),
            "expires_at": now + timedelta(seconds=expires),
        }
        async with database.transaction() as connection:
            await connection.execute(revocations.insert().values(row))

    return insert


async def count(database):
    async with database.transaction() as connection:
        return await connection.scalar(sa.select(sa.func.count()).select_from(revocations))


async def test_nothing_revoked_refuses_nobody(here, principal):
    await here.refresh()
    assert here.refuses(principal) is None


@pytest.mark.parametrize("kind", ABOUT)
async def test_a_row_that_one_worker_wrote_is_known_to_the_other_after_its_next_reading(tell, there, principal, kind):
    await there.refresh()
    await tell(kind, ABOUT[kind])
    assert there.refuses(principal) is None
    await there.refresh()
    assert there.refuses(principal) == "revoked"


@pytest.mark.parametrize("kind", ABOUT)
async def test_the_worker_that_made_the_change_does_not_wait_for_a_reading(here, principal, kind):
    here.apply_now(kind, ABOUT[kind])
    assert here.refuses(principal) == "revoked"


@pytest.mark.parametrize("kind", ABOUT)
async def test_what_is_revoked_is_that_and_not_its_namesakes(here, principal, kind):
    here.apply_now(kind, "another")
    for other in ABOUT.keys() - {kind}:
        here.apply_now(other, ABOUT[kind])
    assert here.refuses(principal) is None


@pytest.mark.parametrize("kind", ["user", "client"])
async def test_tokens_that_are_issued_afterwards_are_accepted(here, clock, principal, kind):
    here.apply_now(kind, ABOUT[kind])
    assert here.refuses(replace(principal, issued_at=clock.now)) == "revoked"
    assert here.refuses(replace(principal, issued_at=clock.now + 0.001)) is None


@pytest.mark.parametrize("kind", ["token", "session"])
async def test_a_token_or_session_is_refused_whenever_it_was_issued(here, clock, principal, kind):
    here.apply_now(kind, ABOUT[kind])
    assert here.refuses(replace(principal, issued_at=clock.now + 60)) == "revoked"


async def test_of_two_revocations_the_later_instant_counts_in_whatever_order_they_are_learned(
    here, tell, clock, principal
):
    clock.now += 300
    here.apply_now("user", "user-1")
    await tell("user", "user-1")  # by a machine whose clock is five minutes behind
    await here.refresh()
    assert here.refuses(replace(principal, issued_at=clock.now - 10)) == "revoked"


async def test_a_row_that_was_committed_late_is_not_missed(insert, there, principal):
    await there.refresh()
    await insert("user", "user-1", created=-59)
    await there.refresh()
    assert there.refuses(principal) == "revoked"


async def test_a_worker_that_begins_reads_all_that_is_of_use(insert, there, principal):
    await insert("user", "user-1", created=-DAY)
    await there.refresh()
    assert there.refuses(principal) == "revoked"


async def test_rows_of_no_use_are_not_read(insert, there, principal):
    await insert("user", "user-1", created=-3 * DAY, expires=-1)
    await there.refresh()
    assert there.refuses(principal) is None
    assert there.learned == 0


async def test_a_row_is_learned_once_though_readings_overlap(tell, there):
    await tell("user", "user-1")
    await there.refresh()
    learned = there.learned
    await there.refresh()
    await there.refresh()
    assert there.learned == learned
    await tell("user", "user-1")
    await there.refresh()
    assert there.learned == learned + 1


async def test_a_disabled_user_is_refused_with_any_credential_until_enabled(
    database, passwords, there, clock, principal, key
):
    users = Users(database)
    ada = await users.add("ada", PASSWORD, ["llm"], passwords=passwords)
    later = {"subject": ada.id, "issued_at": clock.now + 60}
    theirs = [replace(principal, **later), replace(key, **later)]
    await users.set_disabled(ada.id, disabled=True, by=SYSTEM)
    await there.refresh()
    assert [there.refuses(each) for each in theirs] == ["disabled"] * 2
    assert there.refuses(principal) is None
    await users.set_disabled(ada.id, disabled=False, by=SYSTEM)
    await there.refresh()
    assert [there.refuses(each) for each in theirs] == [None] * 2


async def test_a_disabled_client_is_refused_until_enabled(database, there, clock, principal):
    clients = Clients(database)
    client, _ = await clients.add("nightly", grants=["client_credentials"], scopes=["llm"], by=SYSTEM)
    machine = replace(
        principal, subject=client.id, client_id=client.id, auth_method=CLIENT_TOKEN, issued_at=clock.now + 60
    )
    await clients.update(client.id, disabled=True, by=SYSTEM)
    await there.refresh()
    assert there.refuses(machine) == "disabled"
    await clients.update(client.id, disabled=False, by=SYSTEM)
    await there.refresh()
    assert there.refuses(machine) is None


async def test_the_last_known_stands_while_the_database_is_away(engine, tell, there, principal):
    await tell("user", "user-1")
    await there.refresh()
    async with engine.begin() as connection:
        await connection.run_sync(metadata.drop_all)
    with pytest.raises(DatabaseUnavailable):
        await there.refresh()
    assert there.refuses(principal) == "revoked"


async def test_a_worker_that_begins_without_a_database_reads_all_when_it_comes_back(
    engine, insert, there, principal, monkeypatch
):
    await insert("user", "user-1", created=-DAY)
    with monkeypatch.context() as away:
        away.setattr(there, "_database", Database(engine, timeout_seconds=0))
        with pytest.raises(DatabaseUnavailable):
            await there.refresh()
    await there.refresh()
    assert there.refuses(principal) == "revoked"


async def test_what_happened_during_an_outage_is_read_after_it(engine, insert, there, clock, principal, monkeypatch):
    await there.refresh()
    await insert("user", "user-1", created=1)
    with monkeypatch.context() as away:
        away.setattr(there, "_database", Database(engine, timeout_seconds=0))
        for _ in range(3):
            clock.now += 600
            with pytest.raises(DatabaseUnavailable):
                await there.refresh()
    await there.refresh()
    assert there.refuses(principal) == "revoked"


async def test_a_request_asks_nobody(tell, there, principal, key, monkeypatch):
    await tell("session", "session-1")
    await there.refresh()

    def never(*_):
        raise AssertionError("the database was asked")

    monkeypatch.setattr(Database, "transaction", never)
    assert there.refuses(principal) == "revoked"
    assert there.changed(key, since=0) is False


@pytest.mark.parametrize(("kind", "value"), [("key", "key-1"), ("user", "user-1")])
async def test_an_api_key_is_not_refused_but_read_anew(tell, there, key, kind, value):
    await there.refresh()
    since = there.learned
    await tell(kind, value)
    assert not there.changed(key, since=since)
    await there.refresh()
    assert there.changed(key, since=since)
    assert there.refuses(key) is None
    assert not there.changed(key, since=there.learned)


async def test_an_api_key_is_not_read_anew_for_what_does_not_concern_it(here, key):
    for kind, value in (("key", "key-2"), ("user", "user-2"), ("client", ""), ("token", "key-1"), ("session", "")):
        here.apply_now(kind, value)
    assert not here.changed(key, since=0)
    assert here.refuses(key) is None


@pytest.mark.parametrize("ahead", [-30, 30])
async def test_a_clock_that_differs_from_that_of_another_machine_keeps_no_key_alive(tell, there, clock, key, ahead):
    clock.now += ahead
    await there.refresh()
    since = there.learned
    read = replace(key, issued_at=clock.now)
    await tell("key", "key-1")
    await there.refresh()
    assert there.changed(read, since=since)


async def test_what_is_of_no_use_any_more_is_forgotten(here, there, tell, clock, principal):
    here.apply_now("user", "user-1")
    await tell("token", "jti-1")
    await there.refresh()
    clock.now += 2 * DAY + 60
    for worker in (here, there):
        await worker.refresh()
        assert worker.refuses(principal) is None
        assert worker._known == {}


async def test_an_api_key_that_was_not_used_until_its_revocation_was_forgotten_is_read_anew(here, clock, key):
    since = here.learned
    here.apply_now("key", "key-1")
    clock.now += 2 * DAY + 60
    await here.refresh()
    assert here.changed(key, since=since)
    assert not here.changed(key, since=here.learned)


async def test_no_api_key_is_read_anew_because_a_token_s_revocation_was_forgotten(here, clock, key):
    since = here.learned
    here.apply_now("token", "jti-1")
    clock.now += 2 * DAY + 60
    await here.refresh()
    assert here._known == {}
    assert not here.changed(key, since=since)


def test_what_is_revoked_is_known_for_longer_than_a_token_lives():
    longest = sum(
        next(limit.le for limit in AuthSettings.model_fields[name].metadata if hasattr(limit, "le"))
        for name in ("auth_token_ttl_seconds", "auth_leeway_seconds")
    )
    assert revocation._KEPT.total_seconds() > longest


async def test_pruning_removes_all_that_is_of_no_use_in_batches_and_nothing_else(
    here, insert, database, principal, monkeypatch
):
    monkeypatch.setattr(revocation, "_PRUNED_AT_ONCE", 2)
    for _ in range(5):
        await insert("token", "old", expires=-1)
    await insert("token", "jti-1", expires=1)
    batches = []
    transaction = Database.transaction

    def counted(self):
        batches.append(self)
        return transaction(self)

    with monkeypatch.context() as watched:
        watched.setattr(Database, "transaction", counted)
        await here.prune()
    assert len(batches) == 3
    assert await count(database) == 1
    await here.refresh()
    assert here.refuses(principal) == "revoked"
    await here.prune()
    assert await count(database) == 1
