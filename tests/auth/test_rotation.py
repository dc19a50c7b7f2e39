"""The keys of one worker over time: refresh, rotation on schedule and by command, revocation, and stores that fail."""

import asyncio
import base64
import threading
import time

import pytest
from structlog.testing import capture_logs

from auth.audit import SYSTEM, Actor
from auth.database import Database, DatabaseUnavailable
from auth.jwt import UnknownKeyError
from auth.keyfiles import FileKeyStore
from auth.keys import NoSigningKey, RingKey, SigningKey
from auth.keystore import DatabaseKeyStore, KeyAdded, KeyStoreError, KeyStoreReadOnly, UnknownKid
from auth.rotation import SOON_SECONDS, Keys
from auth.tokens import Tokens

TTL, LEEWAY, PUBLISH, DAYS = 600, 5, 300, 30
ROTATION = DAYS * 86400
OPERATOR = Actor("cli", "operator")


class MemoryKeyStore:
    """The simplest store: one process, a clock moved by hand, and failures on request."""

    def __init__(self, clock):
        self.keys = []
        self.clock = clock
        self.fails = None
        self.read_only = False
        self.attempts = 0
        self.faster = 0  # how many times another is faster

    async def load(self):
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails
        return list(self.keys)

    async def add(self, key, activates_at, *, known, by=SYSTEM):
        self.attempts += 1
        if self.read_only:
            raise KeyStoreReadOnly("keys cannot be written")
        if self.faster:
            self.faster -= 1
            self.keys.append(RingKey(SigningKey.generate(), activates_at + 100, self.clock()))
        if len(self.keys) != known:
            raise KeyAdded
        self.keys.append(RingKey(key, activates_at, self.clock()))

    async def revoke(self, kid, *, by):
        if self.read_only:
            raise KeyStoreReadOnly("keys cannot be written")
        if kid not in {each.key.kid for each in self.keys}:
            raise UnknownKid
        self.keys = [each for each in self.keys if each.key.kid != kid]


@pytest.fixture
def store(clock):
    return MemoryKeyStore(clock)


@pytest.fixture
def make_keys(store, clock):
    """Makes the keys of several workers, all on the same store."""

    def make_keys(**options):
        options = {"store": store, "publish_seconds": PUBLISH, "rotation_days": DAYS, **options}
        return Keys(options.pop("store"), ttl_seconds=TTL, leeway_seconds=LEEWAY, clock=clock, **options)

    return make_keys


@pytest.fixture
async def keys(make_keys):
    keys = make_keys()
    await keys.refresh()
    return keys


def kids(keys):
    return [each.key.kid for each in keys.ring.keys]


def published(keys, clock):
    return [each["kid"] for each in keys.ring.jwks(clock())["keys"]]


# reading


async def test_the_first_key_signs_at_once_and_there_is_one(keys, store, clock):
    (first,) = keys.ring.keys
    assert (keys.ring.signer(clock()), first.activates_at) == (first.key, 0)
    await keys.refresh()
    assert kids(keys) == [first.key.kid]


async def test_load_makes_no_key(make_keys, store):
    keys = make_keys()
    await keys.load()
    assert store.keys == []
    assert kids(keys) == []


async def test_what_another_worker_made_is_known_after_a_refresh(keys, make_keys):
    other = make_keys()
    await other.refresh()
    made = await other.rotate(by=OPERATOR)
    await keys.refresh()
    assert made.kid in kids(keys)


async def test_the_ring_is_another_object_exactly_if_the_keys_are_others(keys, store, clock):
    store.keys.append(RingKey(SigningKey.generate("HS256"), 0))  # of no use here
    ring = keys.ring
    await keys.refresh()
    assert keys.ring is ring
    store.keys[0] = RingKey(store.keys[0].key, clock() - 1)  # as if its file got another name
    await keys.refresh()
    assert keys.ring is not ring


async def test_a_store_that_is_away_leaves_the_last_known_keys(keys, store, clock):
    known = kids(keys)
    for failure in (DatabaseUnavailable("TimeoutError"), KeyStoreError("unreadable")):
        store.fails = failure
        with pytest.raises(type(failure)):
            await keys.keep_up()
        assert kids(keys) == known
        assert keys.ring.signer(clock()).kid == known[0]


async def test_a_worker_that_starts_without_the_store_signs_and_accepts_nothing_until_it_is_there(
    keys, make_keys, store, clock
):
    def tokens(keys):
        return Tokens(keys, issuer="i", audience="a", ttl_seconds=TTL, leeway_seconds=LEEWAY, clock=clock)

    def issue(keys):
        return tokens(keys).issue(subject="id-1", username="ada", scopes=["llm"], client_id="c").access_token

    late, token = make_keys(), issue(keys)
    store.fails = DatabaseUnavailable("ConnectionRefusedError")
    with pytest.raises(DatabaseUnavailable):
        await late.keep_up()
    await late.rotate_if_due()
    with pytest.raises(UnknownKeyError):
        tokens(late).verify(token)
    for work in (tokens(late).check_can_issue, lambda: issue(late)):
        with pytest.raises(NoSigningKey):
            work()
    store.fails = None
    await late.keep_up()
    assert tokens(late).verify(token).subject == "id-1"
    assert tokens(keys).verify(issue(late))


# rotation


async def test_a_new_key_is_published_then_signs_and_the_old_one_dies_with_its_last_token(keys, clock):
    (old,) = kids(keys)
    new = (await keys.rotate(by=OPERATOR)).kid
    assert published(keys, clock) == [old, new]
    clock.now += PUBLISH - 1
    assert keys.ring.signer(clock()).kid == old
    clock.now += 1
    assert keys.ring.signer(clock()).kid == new
    clock.now += TTL + LEEWAY - 1
    assert published(keys, clock) == [old, new]
    clock.now += 1
    assert published(keys, clock) == [new]
    assert keys.ring.verifier(old, clock()) is None


async def test_a_key_for_now_signs_soon_and_is_the_one_that_is_named(keys, clock):
    later = await keys.rotate(by=OPERATOR)
    soon = await keys.rotate(by=OPERATOR, delay_seconds=SOON_SECONDS)
    clock.now += SOON_SECONDS
    assert keys.ring.signer(clock()) == soon
    clock.now += PUBLISH
    assert keys.ring.signer(clock()) == later


async def test_a_key_is_replaced_when_it_is_old_enough_and_once(keys, clock):
    (old,) = kids(keys)
    clock.now += ROTATION - PUBLISH - 1
    await keys.keep_up()
    assert kids(keys) == [old]
    clock.now += 1
    for _ in range(3):
        await keys.keep_up()
    (_, new) = kids(keys)
    clock.now += PUBLISH - 1
    assert keys.ring.signer(clock()).kid == old
    clock.now += 1
    assert keys.ring.signer(clock()).kid == new  # at the age of thirty days, to the second
    clock.now += ROTATION - PUBLISH
    await keys.keep_up()
    assert len(kids(keys)) == 2
    assert old not in kids(keys)
    assert kids(keys)[0] == new


async def test_a_key_of_a_vault_is_as_old_as_its_name_says_and_not_its_file(make_keys, store, clock):
    store.keys = [RingKey(SigningKey.generate(), clock() - ROTATION, created_at=clock())]
    keys = make_keys()
    await keys.keep_up()
    assert len(kids(keys)) == 2


async def test_zero_days_is_never(make_keys, clock):
    keys = make_keys(rotation_days=0)
    await keys.refresh()
    clock.now += 1000 * ROTATION
    await keys.keep_up()
    assert len(kids(keys)) == 1


async def test_another_algorithm_gets_a_key_of_its_own_that_is_published_first(keys, make_keys, clock):
    changed = make_keys(algorithm="RS256")
    await changed.keep_up()
    assert changed.ring.signer(clock()).algorithm == "ES256"
    clock.now += PUBLISH
    assert changed.ring.signer(clock()).algorithm == "RS256"
    await changed.keep_up()
    assert len(kids(changed)) == 2


async def test_replicas_with_different_settings_do_not_outdo_each_other(keys, make_keys, clock):
    """As while the setting is rolled out."""
    changed = make_keys(algorithm="RS256")
    for _ in range(PUBLISH // 5):
        for each in (changed, keys):
            await each.keep_up()
        clock.now += 5
    assert len(kids(keys)) == 2


@pytest.fixture(params=["memory", "files", "sqlite", "postgres"])
def make_store(request, store, tmp_path, database):
    if request.param == "memory":
        return lambda: store
    if request.param == "files":
        return lambda: FileKeyStore(tmp_path / "keys", database)
    shared = Database(request.getfixturevalue(request.param), timeout_seconds=30)
    return lambda: DatabaseKeyStore(shared, base64.b64encode(b"k" * 32).decode())


async def test_of_several_workers_for_which_it_is_due_one_makes_a_key(make_keys, make_store, clock):
    clock.now = time.time()  # by which files and rows are dated
    workers = [make_keys(store=make_store()) for _ in range(6)]
    for wanted in (1, 2):
        await asyncio.gather(*(each.keep_up() for each in workers))
        for each in workers:
            await each.load()
        assert {len(kids(each)) for each in workers} == {wanted}
        assert len({tuple(kids(each)) for each in workers}) == 1
        clock.now = workers[0].ring.keys[0].created_at + ROTATION


async def test_who_asks_for_a_key_gets_it_even_if_another_was_faster(keys, store, clock):
    store.faster = 2
    made = await keys.rotate(by=OPERATOR, delay_seconds=SOON_SECONDS)
    assert [each.key for each in store.keys if each.activates_at == clock() + SOON_SECONDS] == [made]
    store.faster = 1000
    with pytest.raises(KeyStoreError, match="try again"):
        await keys.rotate(by=OPERATOR)


async def test_keys_are_not_made_on_the_event_loop(keys, monkeypatch):
    threads = []
    generate = SigningKey.generate

    def watched(algorithm):
        threads.append(threading.current_thread())
        return generate(algorithm)

    monkeypatch.setattr(SigningKey, "generate", watched)
    await keys.rotate(by=OPERATOR)
    assert threads
    assert threading.main_thread() not in threads


async def test_where_keys_cannot_be_written_that_is_said_once_and_tried_again_in_an_hour(keys, store, clock):
    clock.now += ROTATION
    store.read_only = True
    with capture_logs() as logs:
        for _ in range(10):
            await keys.keep_up()
            clock.now += 5
        assert store.attempts == 2  # the first key, and this one
        clock.now += 3600
        await keys.keep_up()
        assert store.attempts == 3
    assert logs == [{"event": "rotation_skipped", "log_level": "warning", "reason": "keys cannot be written"}]
    with pytest.raises(KeyStoreReadOnly, match="cannot be written"):
        await keys.rotate(by=OPERATOR)
    store.read_only = False
    clock.now += 3600
    await keys.keep_up()
    assert len(kids(keys)) == 2


# retirement


async def test_a_key_is_removed_when_its_last_token_has_expired_on_every_clock(keys, store, clock):
    """A worker whose clock is ahead must not take a key from the others that is still accepted there."""
    (old,) = kids(keys)
    new = await keys.rotate(by=OPERATOR)
    clock.now += PUBLISH + TTL + LEEWAY
    assert keys.ring.verifier(old, clock()) is None
    clock.now += PUBLISH - 1
    await keys.keep_up()
    assert kids(keys) == [old, new.kid]
    clock.now += 1
    await keys.keep_up()
    assert [each.key for each in store.keys] == [new]
    await keys.revoke(new.kid, by=OPERATOR)
    assert old not in kids(keys)  # and comes to life no more


async def test_several_workers_remove_a_key_at_once(keys, make_keys, make_store, clock):
    clock.now = time.time()
    workers = [make_keys(store=make_store()) for _ in range(3)]
    for each in workers:
        await each.refresh()
    new = await workers[0].rotate(by=OPERATOR, delay_seconds=0)
    clock.now += TTL + LEEWAY + PUBLISH + 1
    outcomes = await asyncio.gather(*(each.keep_up() for each in workers), return_exceptions=True)
    assert outcomes == [None] * 3
    assert [kids(each) for each in workers] == [[new.kid]] * 3


async def test_where_keys_cannot_be_written_a_retired_key_stays_and_is_refused(keys, store, clock):
    (old,) = kids(keys)
    await keys.rotate(by=OPERATOR)
    clock.now += 3 * PUBLISH + TTL + LEEWAY
    store.read_only = True
    await keys.keep_up()
    assert old in kids(keys)
    assert keys.ring.verifier(old, clock()) is None
    assert old not in published(keys, clock)


# revocation


async def test_a_revoked_key_is_refused_at_once_and_the_next_newest_signs(keys, clock):
    (old,) = kids(keys)
    new = (await keys.rotate(by=OPERATOR)).kid
    clock.now += PUBLISH
    await keys.revoke(new, by=OPERATOR)
    assert keys.ring.verifier(new, clock()) is None
    assert published(keys, clock) == [old]
    assert keys.ring.signer(clock()).kid == old


async def test_where_none_is_left_a_new_one_signs_at_once(keys, clock):
    (old,) = kids(keys)
    await keys.revoke(old, by=OPERATOR)
    (new,) = kids(keys)
    assert new != old
    assert keys.ring.signer(clock()).kid == new
    assert keys.ring.verifier(old, clock()) is None


async def test_where_only_one_that_is_yet_to_sign_is_left_a_new_one_signs_until_then(keys, clock):
    (old,) = kids(keys)
    later = (await keys.rotate(by=OPERATOR)).kid
    await keys.revoke(old, by=OPERATOR)
    assert keys.ring.signer(clock()).kid not in (old, later)
    clock.now += PUBLISH
    assert keys.ring.signer(clock()).kid == later


async def test_an_unknown_key_cannot_be_revoked(keys):
    known = kids(keys)
    with pytest.raises(UnknownKid):
        await keys.revoke("no such key", by=OPERATOR)
    assert kids(keys) == known


async def test_a_revoked_key_is_refused_even_if_the_others_cannot_be_read_then(keys, store, clock):
    (old,) = kids(keys)
    store.fails = DatabaseUnavailable("TimeoutError")
    with pytest.raises(DatabaseUnavailable):
        await keys.revoke(old, by=OPERATOR)
    assert keys.ring.verifier(old, clock()) is None


async def test_a_slow_reading_does_not_bring_a_revoked_key_back(keys, store, clock):
    (old,) = kids(keys)
    await keys.rotate(by=OPERATOR, delay_seconds=0)
    reading_ends, load = asyncio.Event(), store.load

    async def slow_load():
        found = await load()
        store.load = load  # only this one is slow
        await reading_ends.wait()
        return found

    store.load = slow_load
    reading = asyncio.create_task(keys.refresh())
    while store.load is slow_load:
        await asyncio.sleep(0)
    revoking = asyncio.create_task(keys.revoke(old, by=OPERATOR))
    for _ in range(20):
        await asyncio.sleep(0)
    reading_ends.set()
    await asyncio.gather(reading, revoking)
    assert old not in kids(keys)
