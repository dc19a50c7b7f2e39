"""Who a credential belongs to: verified once, asked about revocation always. Tokens and API keys."""

import asyncio
import time
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from jose.backends import ECKey
from structlog.testing import capture_logs

from auth import lookups
from auth.apikeys import ApiKeys
from auth.audit import SYSTEM, read_records
from auth.database import Database, DatabaseUnavailable
from auth.errors import InvalidToken, TemporarilyUnavailable
from auth.keys import KeyRing, RingKey, SigningKey
from auth.lookups import JUNK_PER_SECOND
from auth.principal import OUTSIDE, Principal
from auth.revocation import Revocations
from auth.tables import revocations
from tests.auth.kit import LEEWAY_SECONDS, TTL_SECONDS, USERNAME, Clock

CLIENT = {"client_id": "tollbook"}


@pytest.fixture
def clock():
    """Rows of revocations are written with the time there is."""
    clock = Clock()
    clock.now = time.time()
    return clock


@pytest.fixture
def database(engine):
    return Database(engine)


@pytest.fixture
def signatures(monkeypatch):
    """How many signatures were checked."""
    checked = []
    real = ECKey.verify

    def counting(self, *args):
        checked.append(args)
        return real(self, *args)

    monkeypatch.setattr(ECKey, "verify", counting)
    return checked


@pytest.fixture
def lookups_made(monkeypatch):
    """The API keys that were looked up."""
    made = []
    real = ApiKeys.verify

    async def counting(self, presented):
        made.append(presented)
        return await real(self, presented)

    # Before `auth` is built, which keeps the method.
    monkeypatch.setattr(ApiKeys, "verify", counting)
    return made


@pytest.fixture
def token(tokens):
    return tokens.issue(subject="id-1", username=USERNAME, scopes=["llm"], **CLIENT).access_token


@pytest.fixture
def elsewhere(engine, clock):
    """The repository, as another worker or the command line has it."""
    return ApiKeys(Database(engine), clock)


@pytest.fixture
def new_key(elsewhere, ada):
    async def new_key(*scopes, **wanted):
        return await elsewhere.create(ada.id, "laptop", scopes=scopes or ("llm",), by=SYSTEM, **wanted)

    return new_key


class Outage:
    """The database is away while `on`."""

    on = False


@pytest.fixture
def outage(monkeypatch):
    outage, real = Outage(), Database.transaction

    def transaction(self, *audit):
        if outage.on:
            raise DatabaseUnavailable("OSError")
        return real(self, *audit)

    monkeypatch.setattr(Database, "transaction", transaction)
    return outage


def junk(number):
    return f"tbk_aaaaaaaaaaaaaaaa_{number:043d}"


async def refused(auth, credential):
    with pytest.raises(InvalidToken) as caught:
        await auth.authenticate(credential)
    return caught.value.reason


async def unavailable(auth, credential):
    with pytest.raises(TemporarilyUnavailable) as caught:
        await auth.authenticate(credential)
    return caught.value.reason


class TestTokens:
    @pytest.fixture
    def engine(self, sqlite):
        """Which database it is makes no difference here."""
        return sqlite

    async def test_a_token_belongs_to_who_it_was_issued_to(self, auth, tokens, clock, events):
        issued = tokens.issue(
            subject="id-1",
            username=USERNAME,
            scopes=["llm"],
            client_id="app",
            session_id="session-1",
            team="team-1",
        )
        principal = await auth.authenticate(issued.access_token)
        assert principal == Principal(
            subject="id-1",
            username=USERNAME,
            scopes=frozenset({"llm"}),
            auth_method="access_token",
            expires_at=int(clock.now) + TTL_SECONDS,
            issued_at=principal.issued_at,
            credential_id=issued.jti,
            client_id="app",
            session_id="session-1",
            team="team-1",
        )
        assert 0 <= clock.now - principal.issued_at < 0.001
        assert events == []

    async def test_a_machine_s_token_says_so(self, auth, tokens):
        issued = tokens.issue(subject="nightly", username="client:nightly", scopes=["llm"], client_id="nightly")
        assert (await auth.authenticate(issued.access_token)).auth_method == "client_credentials"

    async def test_a_signature_is_checked_once_a_token(self, auth, token, signatures):
        first = await auth.authenticate(token)
        assert await auth.authenticate(token) is first
        assert len(signatures) == 1

    async def test_a_cached_token_expires_when_it_would_have_otherwise(self, auth, token, clock, events):
        await auth.authenticate(token)
        clock.now = int(clock.now) + TTL_SECONDS + LEEWAY_SECONDS - 0.1
        await auth.authenticate(token)
        clock.now += 0.1
        for _ in range(2):
            with pytest.raises(InvalidToken, match="has expired"):
                await auth.authenticate(token)
        assert events == [("authenticate", "refused", "expired")] * 2

    async def test_a_refused_token_is_refused_again_and_not_cached(self, auth, token, signatures, events):
        changed = token[:-4] + "AAAA"
        for _ in range(2):
            assert await refused(auth, changed) == "bad_signature"
        assert events == [("authenticate", "refused", "bad_signature")] * 2
        assert len(signatures) == 2

    async def test_a_revoked_token_is_refused_here_at_once_and_elsewhere_after_the_next_reading(
        self, auth, token, engine, clock, events
    ):
        principal = await auth.authenticate(token)
        other = Revocations(Database(engine), clock)
        await other.refresh()
        await auth.revoke_token(principal, by=SYSTEM)
        assert await refused(auth, token) == "revoked"
        assert events == [("authenticate", "refused", "revoked")]
        assert other.refuses(principal) is None
        await other.refresh()
        assert other.refuses(principal) == "revoked"
        async with auth.database.transaction() as connection:
            (record,) = await read_records(connection, target=principal.credential_id)
        assert (record["action"], record["target_name"]) == ("token.revoke", USERNAME)

    async def test_a_revoked_token_is_of_no_interest_once_it_has_expired(self, auth, token, clock):
        principal = await auth.authenticate(token)
        await auth.revoke_token(principal, by=SYSTEM)
        async with auth.database.transaction() as connection:
            (row,) = (await connection.execute(revocations.select())).all()
        past = row.expires_at.timestamp() - principal.expires_at
        assert LEEWAY_SECONDS < past < TTL_SECONDS

    async def test_a_worker_that_has_no_keys_yet_cannot_say_that_a_token_is_bad(self, auth, token, keys, events):
        there, keys.ring = keys.ring, KeyRing(algorithm="ES256", ttl_seconds=TTL_SECONDS, leeway_seconds=0)
        assert await unavailable(auth, token) == "no_keys"
        assert events == [("authenticate", "error", "no_keys")]
        keys.ring = there
        assert await auth.authenticate(token)

    async def test_a_token_that_cannot_be_written_as_revoked_lives_on(self, auth, token, outage):
        principal = await auth.authenticate(token)
        outage.on = True
        with pytest.raises(DatabaseUnavailable):
            await auth.revoke_token(principal, by=SYSTEM)
        assert await auth.authenticate(token)

    async def test_a_disabled_user_is_refused_with_a_cached_token_and_with_one_never_seen_before(
        self, auth, ada, tokens, events
    ):
        def issue():
            return tokens.issue(subject=ada.id, username=USERNAME, scopes=["llm"], **CLIENT).access_token

        token = issue()
        await auth.authenticate(token)
        await auth.users.set_disabled(ada.id, disabled=True, by=SYSTEM)
        await auth.revocations.refresh()
        with pytest.raises(InvalidToken) as caught:
            await auth.authenticate(token)
        assert caught.value.description == "The access token is not valid."
        assert await refused(auth, issue()) == "disabled"
        assert events == [("authenticate", "refused", "disabled")] * 2

    async def test_a_token_of_a_key_that_was_revoked_elsewhere_is_refused_though_it_is_cached(
        self, auth, token, key, keys
    ):
        """Another worker revoked it; this one finds other keys at its next reading."""
        await auth.authenticate(token)
        keys.ring = KeyRing(
            [RingKey(SigningKey.generate(), 0)],
            algorithm="ES256",
            ttl_seconds=TTL_SECONDS,
            leeway_seconds=LEEWAY_SECONDS,
        )
        assert await refused(auth, token) == "unknown_key"

    async def test_tokens_go_on_when_a_key_is_added(self, auth, token, key, keys, signatures):
        await auth.authenticate(token)
        both = [RingKey(key, 0), RingKey(SigningKey.generate(), 1)]
        keys.ring = KeyRing(both, algorithm="ES256", ttl_seconds=10 * TTL_SECONDS, leeway_seconds=10**10)
        for _ in range(3):
            assert await auth.authenticate(token)
        assert len(signatures) == 2

    async def test_the_cache_is_bounded_and_drops_the_least_recently_used(self, auth, tokens, signatures, monkeypatch):
        monkeypatch.setattr("auth.service.MAX_CACHED", 3)
        a, b, c, d = (
            tokens.issue(subject=f"id-{n}", username=USERNAME, scopes=["llm"], **CLIENT).access_token for n in range(4)
        )
        for token in (a, b, c, a, d):  # b is the one not used for longest
            await auth.authenticate(token)
        assert len(auth._accepted) == 3
        signatures.clear()
        for token in (a, c, d):
            await auth.authenticate(token)
        assert signatures == []
        await auth.authenticate(b)
        assert len(signatures) == 1

    async def test_junk_does_not_push_good_credentials_out(self, auth, token, tokens, signatures, monkeypatch):
        monkeypatch.setattr("auth.service.MAX_CACHED", 1)
        auth.revocations.apply_now("user", "id-2")
        revoked = tokens.issue(subject="id-2", username="bob", scopes=["llm"], **CLIENT).access_token
        await auth.authenticate(token)
        for bad in (*(f"{token}{n}" for n in range(5)), revoked, junk(1), "tbk_"):
            await refused(auth, bad)
        signatures.clear()
        await auth.authenticate(token)
        assert signatures == []

    async def test_serving_does_not_ask_the_database(self, auth, token, outage):
        outage.on = True
        assert await auth.authenticate(token)

    async def test_credentials_are_not_in_the_repr(self, auth, token):
        await auth.authenticate(token)
        assert token not in repr(auth)


class Provider:
    """An outside provider that accepts what it is told to."""

    def __init__(self):
        self.answer = None
        self.asked = []
        self.keys = SimpleNamespace(known=[])

    def issued(self, token):
        return token.startswith("outside")

    async def authenticate(self, token):
        self.asked.append(token)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class TestOutsideTokens:
    @pytest.fixture
    def engine(self, sqlite):
        """Which database it is makes no difference here."""
        return sqlite

    @pytest.fixture
    def provider(self, auth, clock):
        auth.outside = provider = Provider()
        provider.answer = Principal(
            subject="oidc:ada",
            username="oidc:ada",
            scopes=frozenset({"llm"}),
            auth_method=OUTSIDE,
            expires_at=clock.now + 60,
            credential_id="jti-1",
        )
        return provider

    async def test_their_tokens_are_theirs_and_ours_are_ours(self, auth, provider, token):
        assert (await auth.authenticate("outside-1")).username == "oidc:ada"
        assert (await auth.authenticate(token)).username == USERNAME
        assert provider.asked == ["outside-1"]

    async def test_they_are_verified_once_until_they_expire_and_our_keys_are_nothing_to_them(
        self, auth, provider, clock
    ):
        await auth.authenticate("outside-1")
        auth.forget_accepted()
        await auth.authenticate("outside-1")
        assert len(provider.asked) == 1
        clock.now += 60 + LEEWAY_SECONDS
        assert await refused(auth, "outside-1") == "expired"

    async def test_they_are_verified_anew_when_the_provider_has_other_keys(self, auth, provider, token, signatures):
        await auth.authenticate(token)
        await auth.authenticate("outside-1")
        provider.keys.known = []
        await auth.authenticate("outside-1")
        await auth.authenticate(token)
        assert (len(provider.asked), len(signatures)) == (2, 1)
        provider.keys.known, provider.answer = [], InvalidToken(reason="unknown_key")
        assert await refused(auth, "outside-1") == "unknown_key"

    @pytest.mark.parametrize(
        ("error", "event"),
        [
            (InvalidToken(reason="wrong_audience"), ("authenticate", "refused", "wrong_audience")),
            (TemporarilyUnavailable("No keys.", reason="no_keys"), ("authenticate", "error", "no_keys")),
        ],
        ids=["refused", "no keys"],
    )
    async def test_what_they_refuse_is_counted_and_not_kept(self, auth, provider, events, error, event):
        good, provider.answer = provider.answer, error
        with pytest.raises(type(error)):
            await auth.authenticate("outside-1")
        assert events == [event]
        provider.answer = good
        assert await auth.authenticate("outside-1")

    async def test_without_a_provider_nobody_else_is_believed(self, auth):
        assert await refused(auth, "outside-1") == "malformed"


class TestApiKeys:
    async def test_a_key_belongs_to_its_user(self, auth, ada, new_key, clock, events):
        made, key = await new_key("llm", "admin")
        assert await auth.authenticate(key) == Principal(
            subject=ada.id,
            username=USERNAME,
            scopes=frozenset({"llm"}),
            auth_method="api_key",
            expires_at=float("inf"),
            issued_at=clock.now,
            credential_id=made.id,
        )
        assert events == []

    async def test_a_key_is_looked_up_once_and_then_served_without_a_database(
        self, new_key, lookups_made, auth, outage
    ):
        _, key = await new_key()
        first = await auth.authenticate(key)
        outage.on = True
        assert await auth.authenticate(key) is first
        assert lookups_made == [key]

    async def test_a_key_does_not_stand_in_memory_as_it_is(self, auth, new_key):
        _, key = await new_key()
        await auth.authenticate(key)
        assert len(auth._accepted) == 1
        assert key not in repr((auth._accepted, auth._lookups._refused, auth._used, auth))

    async def test_a_key_never_seen_before_needs_the_database(self, auth, new_key, outage, events):
        _, key = await new_key()
        outage.on = True
        assert await unavailable(auth, key) == "database"
        assert events == [("authenticate", "error", "database")]
        outage.on = False
        assert await auth.authenticate(key)

    async def test_a_revoked_key_is_refused_here_at_once(self, auth, new_key):
        made, key = await new_key()
        await auth.authenticate(key)
        await auth.api_keys.revoke(made.id, by=SYSTEM)
        auth.revocations.apply_now("key", made.id)
        assert await refused(auth, key) == "revoked"

    async def test_a_key_that_was_revoked_elsewhere_is_refused_after_the_next_reading(
        self, auth, new_key, elsewhere, events
    ):
        made, key = await new_key()
        await auth.authenticate(key)
        await elsewhere.revoke(made.id, by=SYSTEM)
        assert await auth.authenticate(key)
        await auth.revocations.refresh()
        assert await refused(auth, key) == "revoked"
        assert events == [("authenticate", "refused", "revoked")]

    async def test_a_changed_key_is_not_served_from_memory_without_a_database(
        self, auth, new_key, elsewhere, outage, events
    ):
        made, key = await new_key()
        await auth.authenticate(key)
        await elsewhere.revoke(made.id, by=SYSTEM)
        await auth.revocations.refresh()
        outage.on = True
        for _ in range(2):
            assert await unavailable(auth, key) == "database"
        outage.on = False
        assert await refused(auth, key) == "revoked"

    async def test_a_key_that_was_not_used_until_its_revocation_was_forgotten_is_refused(
        self, auth, new_key, elsewhere, clock
    ):
        made, key = await new_key()
        await auth.authenticate(key)
        await elsewhere.revoke(made.id, by=SYSTEM)
        await auth.revocations.refresh()
        clock.now += 3 * 86400
        await auth.revocations.refresh()
        assert await refused(auth, key) == "revoked"

    async def test_a_change_of_the_user_reaches_their_keys(self, auth, ada, users, new_key):
        _, key = await new_key("llm", "usage:read")
        await auth.authenticate(key)
        await users.update(ada.id, scopes=["llm:small"], by=SYSTEM)
        await auth.revocations.refresh()
        assert (await auth.authenticate(key)).scopes == {"llm:small"}
        await users.update(ada.id, disabled=True, by=SYSTEM)
        await auth.revocations.refresh()
        assert await refused(auth, key) == "disabled"
        await users.update(ada.id, disabled=False, by=SYSTEM)
        await auth.revocations.refresh()
        assert await auth.authenticate(key)

    async def test_a_cached_key_expires_when_it_would_have_otherwise(self, auth, new_key, clock, elsewhere, events):
        made, key = await new_key(expires_at=None)
        await elsewhere.rotate(made.id, overlap_seconds=60, by=SYSTEM)
        expires_at = (await auth.authenticate(key)).expires_at
        clock.now = expires_at - 0.1
        await auth.authenticate(key)
        clock.now = expires_at
        for _ in range(2):
            with pytest.raises(InvalidToken, match="has expired"):
                await auth.authenticate(key)
        assert events == [("authenticate", "refused", "expired")] * 2

    async def test_a_rotated_key_goes_on_for_its_overlap_and_not_longer(self, auth, new_key, elsewhere, clock):
        made, old = await new_key()
        await auth.authenticate(old)
        _, new = await elsewhere.rotate(made.id, overlap_seconds=60, by=SYSTEM)
        await auth.revocations.refresh()
        assert (await auth.authenticate(new)).scopes == (await auth.authenticate(old)).scopes
        end = clock.now + 60
        clock.now = end - 0.1
        assert await auth.authenticate(old)
        clock.now = end + 0.001  # the database has microseconds
        assert await refused(auth, old) == "expired"
        assert await auth.authenticate(new)

    async def test_no_error_and_no_log_line_has_the_key_in_it(self, auth, new_key, elsewhere, clock):
        made, key = await new_key()
        await elsewhere.rotate(made.id, overlap_seconds=0, by=SYSTEM)
        seen = []
        with capture_logs() as logs:
            for presented in (key, key[:-1] + "A", key + "A", junk(1)):
                with pytest.raises(InvalidToken) as caught:
                    await auth.authenticate(presented)
                error: BaseException | None = caught.value
                while error is not None:
                    seen.append(repr((error, error.args, vars(error))))
                    error = error.__cause__ or error.__context__
        assert len(seen) >= 8
        assert key[-43:-1] not in repr((seen, logs))
        assert junk(1)[-43:] not in repr((seen, logs))

    async def test_many_first_uses_at_once_are_one_look_up(self, new_key, lookups_made, auth):
        _, key = await new_key()
        principals = await asyncio.gather(*(auth.authenticate(key) for _ in range(20)))
        assert {principal.username for principal in principals} == {USERNAME}
        assert lookups_made == [key]

    async def test_last_uses_are_written_behind(self, auth, new_key, elsewhere, clock):
        used, key = await new_key()
        unused, _ = await new_key()
        await auth.authenticate(key)
        clock.now += 10
        await auth.authenticate(key)
        assert (await elsewhere.get(used.id)).last_used_at is None
        await auth.flush_last_used()
        assert (await elsewhere.get(used.id)).last_used_at.timestamp() == pytest.approx(clock.now, abs=0.001)
        assert (await elsewhere.get(unused.id)).last_used_at is None

    async def test_a_last_use_that_cannot_be_written_now_is_written_later(
        self, auth, new_key, elsewhere, clock, outage
    ):
        (first, one), (second, two) = await new_key(), await new_key()
        await auth.authenticate(one)
        await auth.authenticate(two)
        began = clock.now
        outage.on = True
        with pytest.raises(DatabaseUnavailable):
            await auth.flush_last_used()
        clock.now += 10
        await auth.authenticate(one)
        outage.on = False
        await auth.flush_last_used()
        times = [(await elsewhere.get(each.id)).last_used_at.timestamp() - began for each in (first, second)]
        assert times == pytest.approx([10, 0], abs=0.001)

    async def test_a_use_while_last_uses_are_being_written_is_the_later_one(
        self, auth, new_key, elsewhere, clock, monkeypatch
    ):
        made, key = await new_key()
        await auth.authenticate(key)
        began = clock.now

        async def meanwhile(_):
            clock.now += 10
            await auth.authenticate(key)
            raise DatabaseUnavailable("OSError")

        with monkeypatch.context() as hanging:
            hanging.setattr(auth.api_keys, "touch", meanwhile)
            with pytest.raises(DatabaseUnavailable):
                await auth.flush_last_used()
        await auth.flush_last_used()
        assert (await elsewhere.get(made.id)).last_used_at.timestamp() - began == pytest.approx(10, abs=0.001)

    async def test_with_nothing_used_nothing_is_written(self, auth, outage):
        outage.on = True
        await auth.flush_last_used()


class TestLookups:
    """What a worker asks the database about API keys, and how often."""

    @pytest.fixture
    def engine(self, sqlite):
        """Which database it is makes no difference here."""
        return sqlite

    @pytest.fixture
    def gate(self, monkeypatch):
        """Holds every look-up after it has read, until it is opened."""
        gate: Any = asyncio.Event()
        real = ApiKeys.verify

        async def held(self, presented):
            try:
                return await real(self, presented)
            finally:
                gate.reading += 1
                gate.most = max(gate.most, gate.reading)
                await gate.wait()
                gate.reading -= 1

        gate.reading = gate.most = 0
        monkeypatch.setattr(ApiKeys, "verify", held)
        return gate

    @staticmethod
    async def until(condition):
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.001)

    async def test_a_client_that_goes_away_does_not_take_the_answer_from_the_others(self, new_key, gate, auth):
        _, key = await new_key()
        first, *others = [asyncio.create_task(auth.authenticate(key)) for _ in range(3)]
        await self.until(lambda: gate.reading)
        first.cancel()
        gate.set()
        assert {principal.username for principal in await asyncio.gather(*others)} == {USERNAME}
        assert gate.most == 1

    async def test_when_all_clients_go_away_nothing_is_left_and_nothing_is_logged(self, gate, auth, caplog):
        waiting = [asyncio.create_task(auth.authenticate(junk(1))) for _ in range(3)]
        await self.until(lambda: gate.reading)
        for each in waiting:
            each.cancel()
        gate.set()
        await self.until(lambda: not auth._lookups._under_way)
        assert await refused(auth, junk(1)) == "unknown_key"
        assert caplog.records == []

    async def test_who_comes_after_a_revocation_does_not_get_an_answer_from_before_it(self, new_key, gate, auth):
        made, key = await new_key()
        before = asyncio.create_task(auth.authenticate(key))
        await self.until(lambda: gate.reading)
        await auth.api_keys.revoke(made.id, by=SYSTEM)
        auth.revocations.apply_now("key", made.id)
        after = asyncio.create_task(refused(auth, key))
        await self.until(lambda: gate.reading == 2)
        gate.set()
        assert await after == "revoked"
        await before  # it had begun before
        assert await refused(auth, key) == "revoked"  # and what it had read is not kept

    async def test_a_few_look_ups_at_a_time_leave_the_database_to_others(self, new_key, gate, auth):
        keys = [(await new_key())[1] for _ in range(3 * lookups.AT_ONCE)]
        waiting = [asyncio.create_task(auth.authenticate(key)) for key in keys]
        await self.until(lambda: gate.reading == lookups.AT_ONCE)
        gate.set()
        assert len(await asyncio.gather(*waiting)) == len(keys)
        assert gate.most == lookups.AT_ONCE
        assert await auth.authenticate(keys[0])

    async def test_a_place_is_not_waited_for_for_ever(self, new_key, gate, auth, monkeypatch, events):
        monkeypatch.setattr(lookups, "PATIENCE_SECONDS", 0.01)
        keys = [(await new_key())[1] for _ in range(lookups.AT_ONCE + 1)]
        waiting = [asyncio.create_task(auth.authenticate(key)) for key in keys[:-1]]
        await self.until(lambda: gate.reading == lookups.AT_ONCE)
        async with asyncio.timeout(10):
            assert await unavailable(auth, keys[-1]) == "busy"
        assert events == [("authenticate", "error", "busy")]
        gate.set()
        await asyncio.gather(*waiting)
        assert await auth.authenticate(keys[-1])

    async def test_a_flood_of_junk_is_not_a_flood_for_the_database(self, lookups_made, auth, clock, events):
        for second in range(2):
            lookups_made.clear()
            events.clear()
            for number in range(100):
                with pytest.raises((InvalidToken, TemporarilyUnavailable)):
                    await auth.authenticate(junk(1000 * second + number), "192.0.2.1")
            assert len(lookups_made) == JUNK_PER_SECOND
            assert events.count(("authenticate", "refused", "unknown_key")) == JUNK_PER_SECOND
            assert events.count(("authenticate", "error", "busy")) == 100 - JUNK_PER_SECOND
            clock.now += 1

    async def test_junk_keeps_no_key_out_but_those_that_come_from_where_it_comes_from(self, new_key, auth, clock):
        (_, known), (_, fresh), (_, fresher) = await new_key(), await new_key(), await new_key()
        await auth.authenticate(known, "192.0.2.1")
        for number in range(JUNK_PER_SECOND):
            with pytest.raises(InvalidToken):
                await auth.authenticate(junk(number), "192.0.2.1")
        assert await auth.authenticate(known, "192.0.2.1")
        assert await auth.authenticate(fresh, "192.0.2.2")
        with pytest.raises(TemporarilyUnavailable):
            await auth.authenticate(fresher, "192.0.2.1")
        clock.now += 1
        assert await auth.authenticate(fresher, "192.0.2.1")

    async def test_a_flood_of_junk_at_once_is_none_either(self, lookups_made, auth):
        await asyncio.gather(*(auth.authenticate(junk(number)) for number in range(500)), return_exceptions=True)
        assert len(lookups_made) < JUNK_PER_SECOND + lookups.AT_ONCE

    async def test_good_keys_are_not_counted_as_junk(self, new_key, lookups_made, auth, events):
        keys = [(await new_key())[1] for _ in range(JUNK_PER_SECOND * 2)]
        for key in keys:
            assert await auth.authenticate(key)
        assert events == []

    async def test_what_does_not_look_like_a_key_is_refused_whatever_comes_beside_it(self, lookups_made, auth):
        for number in range(100):
            assert await refused(auth, f"tbk_{number}") == "malformed"
        assert lookups_made == []
        for number in range(JUNK_PER_SECOND):
            assert await refused(auth, junk(number)) == "unknown_key"
        assert await refused(auth, "tbk_") == "malformed"

    async def test_a_client_that_goes_on_with_a_dead_key_is_refused_without_the_database(
        self, new_key, lookups_made, auth, elsewhere, outage
    ):
        made, key = await new_key()
        await elsewhere.revoke(made.id, by=SYSTEM)
        for _ in range(3):
            assert await refused(auth, key) == "revoked"
            assert await refused(auth, key[:-43] + junk(1)[-43:]) == "wrong_secret"
        assert len(lookups_made) == 2
        auth.revocations.apply_now("user", "somebody")
        outage.on = True
        assert await refused(auth, key) == "revoked"

    async def test_the_key_of_a_disabled_user_works_again_when_they_are_enabled(
        self, new_key, lookups_made, auth, ada, users
    ):
        _, key = await new_key()
        await users.set_disabled(ada.id, disabled=True, by=SYSTEM)
        for _ in range(3):
            assert await refused(auth, key) == "disabled"
        assert len(lookups_made) == 1
        await users.set_disabled(ada.id, disabled=False, by=SYSTEM)
        await auth.revocations.refresh()
        assert await auth.authenticate(key)

    async def test_what_is_remembered_of_junk_is_bounded(self, lookups_made, auth, monkeypatch):
        monkeypatch.setattr(lookups, "MAX_REFUSED", 3)
        for number in (0, 1, 2, 0, 3):  # 1 is the one not presented for longest
            assert await refused(auth, junk(number)) == "unknown_key"
        assert len(auth._lookups._refused) == 3
        lookups_made.clear()
        for number in (0, 2, 3):
            await refused(auth, junk(number))
        assert lookups_made == []
        await refused(auth, junk(1))
        assert lookups_made == [junk(1)]


class TestPlaces:
    """For what strangers have looked up elsewhere: refresh tokens and clients."""

    @pytest.fixture
    def engine(self, sqlite):
        """Which database it is makes no difference here."""
        return sqlite

    async def test_places_are_few_and_not_waited_for_for_ever(self, auth, monkeypatch):
        monkeypatch.setattr("auth.service._PATIENCE_SECONDS", 0.01)
        async with AsyncExitStack() as stack, asyncio.timeout(10):
            for _ in range(4):
                await stack.enter_async_context(auth.place())
            with pytest.raises(TemporarilyUnavailable) as caught:
                await stack.enter_async_context(auth.place())
        assert caught.value.reason == "busy"

    async def test_a_place_is_given_back_whatever_happened_there(self, auth):
        async with asyncio.timeout(10):
            for _ in range(10):
                with pytest.raises(DatabaseUnavailable):
                    async with auth.place():
                        raise DatabaseUnavailable("OSError")
