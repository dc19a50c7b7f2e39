"""What changes while something slow is under way: a password is hashed, a body comes in, a grant is carried out."""

import asyncio

import httpx2
import pytest

from auth import names
from auth import passwords as passwords_module
from auth.audit import SYSTEM
from auth.clients import DEFAULT_CLIENT
from auth.errors import InvalidGrant, SlowDown, TemporarilyUnavailable
from auth.grants import grant
from auth.names import InvalidName, validate_name
from auth.service import principal_of
from auth.throttle import MemoryThrottle, ThrottlePolicy
from auth.users import UserChanged
from tests.auth.kit import PASSWORD, USERNAME

NEW_PASSWORD = "wonderful lemon tree"
FORM = {"username": USERNAME, "password": PASSWORD}


@pytest.fixture
def meanwhile(passwords, monkeypatch):
    """Does something after a password was verified, and before anybody has heard of it."""

    def set_up(something):
        verify = passwords.verify

        async def slowly(*args):
            result = await verify(*args)
            await something()
            return result

        monkeypatch.setattr(passwords, "verify", slowly)

    return set_up


def log_in(auth, client=DEFAULT_CLIENT):
    return grant(auth, "password", client, FORM, "192.0.2.1", auth.clock())


@pytest.mark.parametrize("change", ["password", "scopes", "disabled"])
@pytest.mark.parametrize("session", [True, False])
async def test_a_login_that_a_change_of_the_user_overtakes_is_refused(
    auth, ada, users, passwords, meanwhile, change, session
):
    async def change_user():
        if change == "password":
            await users.set_password(ada.id, NEW_PASSWORD, passwords=passwords, by=SYSTEM)
        elif change == "scopes":
            await users.update(ada.id, scopes=["usage:read"], by=SYSTEM)
        else:
            await users.set_disabled(ada.id, disabled=True, by=SYSTEM)

    meanwhile(change_user)
    client = DEFAULT_CLIENT
    if not session:
        client, _ = await auth.clients.add("x", grants=["password"], scopes=["llm", "usage:read"], by=SYSTEM)
    with pytest.raises(InvalidGrant):
        await log_in(auth, client)
    assert await auth.sessions.list(user_id=ada.id) == ()


async def test_a_token_counts_as_issued_when_its_grant_was_begun(auth, ada, clock):
    began = clock()
    clock.now += 3
    granted = await grant(auth, "password", DEFAULT_CLIENT, FORM, "", began)
    assert principal_of(auth.tokens.verify(granted.token.access_token)).issued_at == began


async def test_a_new_password_is_not_set_for_a_user_who_has_changed_since_it_was_decided(users, ada, passwords):
    await users.update(ada.id, scopes=["admin", "llm"], by=SYSTEM)
    with pytest.raises(UserChanged):
        await users.set_password(ada.id, NEW_PASSWORD, passwords=passwords, seen=ada, by=SYSTEM)
    assert await passwords.verify(PASSWORD, (await users.get(USERNAME)).password_hash)


async def test_a_change_of_password_does_not_undo_one_that_was_faster(users, ada, passwords):
    await users.set_password(ada.id, NEW_PASSWORD, passwords=passwords, by=SYSTEM)
    with pytest.raises(UserChanged):
        await users.set_password(ada.id, "another lemon tree", passwords=passwords, seen=ada, by=SYSTEM)
    assert await passwords.verify(NEW_PASSWORD, (await users.get(USERNAME)).password_hash)


async def test_where_much_has_failed_many_accounts_at_once_are_no_way_around(clock):
    policy = ThrottlePolicy(address_failures=3)
    throttle = MemoryThrottle(policy, clock)
    for number in range(policy.address_failures):
        async with throttle.attempt(f"user-{number}", "192.0.2.9") as attempt:
            await attempt.failed()
    clock.now += policy.max_delay_seconds  # the delay is over, and not forgotten
    gate, inside = asyncio.Event(), []

    async def attempt_one(number):
        async with throttle.attempt(f"other-{number}", "192.0.2.9"):
            inside.append(number)
            await gate.wait()

    tasks = [asyncio.create_task(attempt_one(number)) for number in range(50)]
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert len(inside) == 4
    assert sum(isinstance(result, SlowDown) for result in results) == 46


@pytest.mark.parametrize("length", [513, 1_000_000])
def test_a_name_that_is_too_long_is_refused_before_any_work_is_done_for_it(monkeypatch, length):
    monkeypatch.setattr(names, "unicodedata", None)  # not to be used
    with pytest.raises(InvalidName):
        validate_name("a" + "\u0300" * length)


async def test_a_password_that_is_too_long_is_refused_before_any_work_is_done_for_it(passwords, monkeypatch):
    monkeypatch.setattr(passwords_module, "unicodedata", None)  # not to be used
    assert await passwords.verify("a" + "\u0300" * 1_000_000, None) is False


async def test_strangers_share_a_few_places_for_what_they_have_looked_up(auth, client: httpx2.AsyncClient, monkeypatch):
    most = at_work = 0
    look = auth.sessions.revoke_by_token

    async def counting(*args, **kwargs):
        nonlocal most, at_work
        at_work += 1
        most = max(most, at_work)
        try:
            await asyncio.sleep(0.01)
            return await look(*args, **kwargs)
        finally:
            at_work -= 1

    monkeypatch.setattr(auth.sessions, "revoke_by_token", counting)
    answers = await asyncio.gather(*(client.post("/revoke", data={"token": f"tbr_{n:043}"}) for n in range(30)))
    assert {answer.status_code for answer in answers} == {200}
    assert most == 4


async def test_before_any_signing_key_could_be_read_no_token_is_said_to_be_wrong(auth, ada, keys):
    token = (await log_in(auth)).token.access_token
    keys.ring = type(keys.ring)(algorithm="ES256", ttl_seconds=1, leeway_seconds=1)
    with pytest.raises(TemporarilyUnavailable):
        await auth.authenticate(token)
