"""Nothing tells who exists: not the answer, and not the work behind it, which is counted here and not timed."""

import argon2.low_level
import pytest
from sqlalchemy import event

from auth.audit import SYSTEM
from auth.login import Login
from auth.throttle import DatabaseThrottle, ThrottlePolicy
from auth.users import Users
from tests.auth.conftest import make_auth
from tests.auth.kit import PASSWORD, USERNAME

NOBODY = "bob"
DISABLED = "eve"
WRONG = "wrong password"
HASHING = "m=8,t=1,p=1"
"""One verification, by its parameters."""


@pytest.fixture
def auth(database, passwords, keys, tokens, record, clock):
    """As the service has it: the throttle is in the database."""
    auth = make_auth(database, passwords, keys, tokens, record, clock)
    auth.login = Login(Users(database), passwords, DatabaseThrottle(database, ThrottlePolicy(), clock), record)
    return auth


@pytest.fixture
async def eve(users, passwords):
    user = await users.add(DISABLED, PASSWORD, ["llm"], passwords=passwords)
    return await users.set_disabled(user.id, disabled=True, by=SYSTEM)


@pytest.fixture
def work(sqlite, monkeypatch):
    """What is done: each Argon2 run with its parameters, and each statement with its table's name."""
    done = []
    verify, make = argon2.low_level.verify_secret, argon2.low_level.hash_secret

    def verifying(stored, *args):
        done.append(stored.split(b"$")[3].decode())
        return verify(stored, *args)

    def hashing(**kwargs):
        done.append("hash")
        return make(**kwargs)

    monkeypatch.setattr(argon2.low_level, "verify_secret", verifying)
    monkeypatch.setattr(argon2.low_level, "hash_secret", hashing)
    event.listen(sqlite.sync_engine, "before_cursor_execute", lambda *args: done.append(args[2]))
    return done


async def ask(client, username, password):
    """Status, headers and body of the answer."""
    answer = await client.post("/token", data={"grant_type": "password", "username": username, "password": password})
    return answer.status_code, sorted(answer.headers.items()), answer.content


async def answers(client, work, username, password, times):
    """Each answer, and the work it took."""
    given = []
    for _ in range(times):
        work.clear()
        answer = await ask(client, username, password)
        given.append((answer, list(work)))
    return given


async def test_an_unknown_and_a_disabled_user_are_answered_like_a_known_one_up_to_the_delay_and_in_it(
    client, ada, eve, work
):
    expected = await answers(client, work, USERNAME, WRONG, times=8)
    assert [answer[0] for answer, _ in expected] == [400] * 5 + [429] * 3
    assert await answers(client, work, NOBODY, WRONG, times=8) == expected
    assert await answers(client, work, DISABLED, WRONG, times=8) == expected


async def test_the_right_password_of_a_disabled_user_is_answered_like_a_wrong_one(client, eve, work):
    assert await answers(client, work, DISABLED, PASSWORD, times=8) == await answers(
        client, work, NOBODY, PASSWORD, times=8
    )


async def test_a_refused_login_takes_one_hash_and_a_throttled_one_none(client, ada, work):
    for username in (USERNAME, NOBODY, "x" * 500, "ada\r\n"):
        done = [taken for _, taken in await answers(client, work, username, WRONG, times=7)]
        assert [taken.count(HASHING) for taken in done] == [1] * 5 + [0] * 2
        assert all(len(taken) == 1 and "login_failures" in taken[0] for taken in done[5:])


async def test_a_password_nobody_can_have_is_no_hash_for_whoever_it_is_for(client, ada, work):
    expected = await answers(client, work, USERNAME, PASSWORD + "\0", times=1)
    assert await answers(client, work, NOBODY, PASSWORD + "\0", times=1) == expected
    assert HASHING not in expected[0][1]


async def test_too_many_at_once_are_told_so_at_once_and_all_alike(client, auth, ada, eve, work):
    auth.passwords.close()
    status, headers, body = await ask(client, USERNAME, PASSWORD)
    assert (status, dict(headers)["retry-after"]) == (503, "1")
    for username in (NOBODY, DISABLED):
        assert await ask(client, username, PASSWORD) == (status, headers, body)
    assert HASHING not in work


async def test_a_stored_hash_that_cannot_be_read_costs_as_much_as_any(passwords, work):
    assert not await passwords.verify(PASSWORD, "$2b$12$abc")
    assert work == [HASHING]


async def test_a_login_that_succeeds_takes_one_hash(client, ada, work):
    work.clear()
    assert (await ask(client, USERNAME, PASSWORD))[0] == 200
    assert [item for item in work if item in {"hash", HASHING}] == [HASHING]
