import argon2.low_level
import pytest
from structlog.testing import capture_logs

from auth.errors import InvalidGrant, InvalidScope, TemporarilyUnavailable
from auth.login import Login
from auth.passwords import Passwords, PasswordsBusy
from auth.users import Users, UsersUnavailable
from tests.auth.kit import PASSWORD, USERNAME


@pytest.fixture
def login(auth):
    return auth.login


@pytest.fixture
def argon2_work(monkeypatch):
    """Each Argon2 run: its kind, and the parameters of the hash where there is one."""
    work = []
    verify, make = argon2.low_level.verify_secret, argon2.low_level.hash_secret

    def verifying(stored, *args):
        work.append(("verify", stored.split(b"$")[3]))
        return verify(stored, *args)

    def hashing(**kwargs):
        work.append(("hash", kwargs["memory_cost"]))
        return make(**kwargs)

    monkeypatch.setattr(argon2.low_level, "verify_secret", verifying)
    monkeypatch.setattr(argon2.low_level, "hash_secret", hashing)
    return work


async def test_the_right_password_gives_a_token_of_that_user(login, ada, tokens, events):
    issued = await login.with_password(USERNAME, PASSWORD)
    claims = tokens.verify(issued.access_token)
    assert (claims.subject, claims.username, claims.scopes) == (ada.id, USERNAME, ada.scopes)
    assert events == [("login", "ok", "none")]


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ("", "llm usage:read"),
        ("llm", "llm"),
        ("usage:read llm", "llm usage:read"),
        ("llm admin", "llm"),
        ("llm something:else", "llm"),
    ],
)
async def test_what_is_asked_for_is_narrowed_to_what_the_user_has(login, ada, tokens, asked, granted):
    issued = await login.with_password(USERNAME, PASSWORD, asked)
    assert issued.scope == granted
    assert tokens.verify(issued.access_token).scopes == set(granted.split())


@pytest.mark.parametrize(
    "asked", ["admin", "admin something:else", "llm  usage:read", " llm", "llm\n", 'llm"', "llm\0"]
)
async def test_a_scope_of_which_nothing_can_be_granted_is_refused(login, ada, events, asked):
    with pytest.raises(InvalidScope):
        await login.with_password(USERNAME, PASSWORD, asked)
    assert events == [("login", "refused", "invalid_scope")]


@pytest.mark.parametrize(
    ("username", "password", "reason"),
    [
        (USERNAME, "wrong password", "wrong_password"),
        (USERNAME, "", "wrong_password"),
        (USERNAME, PASSWORD + "\0", "wrong_password"),
        (USERNAME, "x" * 2000, "wrong_password"),
        ("bob", PASSWORD, "unknown_user"),
        ("", PASSWORD, "unknown_user"),
        ("ada\0", PASSWORD, "unknown_user"),
        ("ada\r\nroot", PASSWORD, "unknown_user"),
        ("ada\u2028", PASSWORD, "unknown_user"),
        ("\U0001f600", "\U0001f600" * 12, "unknown_user"),
        ("a" * 2000, PASSWORD, "unknown_user"),
        ("ADA", PASSWORD, "unknown_user"),
    ],
)
async def test_all_ways_to_fail_read_the_same_and_are_counted_apart(login, ada, events, username, password, reason):
    with capture_logs() as logs, pytest.raises(InvalidGrant) as caught:
        await login.with_password(username, password)
    assert caught.value.description == "The username or the password is wrong."
    assert events == [("login", "refused", reason)]
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("login_failed", reason)]


async def test_a_disabled_user_is_refused_like_a_wrong_password(login, ada, users, events):
    await users.set_disabled(USERNAME, disabled=True)
    with pytest.raises(InvalidGrant) as caught:
        await login.with_password(USERNAME, PASSWORD)
    assert caught.value.description == "The username or the password is wrong."
    with pytest.raises(InvalidGrant):
        await login.with_password(USERNAME, "wrong password")
    assert events == [("login", "refused", "disabled"), ("login", "refused", "wrong_password")]


async def test_an_unknown_user_costs_the_same_argon2_work_as_a_known_one(login, ada, argon2_work):
    work = []
    for username in (USERNAME, "bob", "ada\0", "x" * 500):
        with pytest.raises(InvalidGrant):
            await login.with_password(username, "wrong password")
        work.append(list(argon2_work))
        argon2_work.clear()
    assert work == [[("verify", b"m=8,t=1,p=1")]] * 4


async def test_neither_the_password_nor_a_name_as_typed_is_logged(login, ada):
    with capture_logs() as logs:
        await login.with_password(USERNAME, PASSWORD)
        for username, password in [(USERNAME, "Secret-1"), ("Secret-2", "Secret-3"), (PASSWORD, "Secret-4")]:
            with pytest.raises(InvalidGrant):
                await login.with_password(username, password)
    assert len(logs) == 4
    assert "Secret" not in str(logs)
    assert PASSWORD not in str(logs)
    assert [entry["subject"] for entry in logs] == [ada.id, ada.id, None, None]


async def test_the_token_itself_is_not_logged(login, ada):
    with capture_logs() as logs:
        issued = await login.with_password(USERNAME, PASSWORD)
    assert issued.access_token not in str(logs)
    assert issued.access_token.split(".")[2] not in str(logs)


@pytest.fixture
def stronger(users, tokens, auth):
    """The same login after the operator raised the cost of a hash."""
    passwords = Passwords(time_cost=2, memory_cost_kib=16, parallelism=1, threads=1, max_waiting=1)
    yield Login(users, passwords, tokens, auth.record_event)
    passwords.close()


async def test_a_hash_of_old_parameters_is_replaced_at_login_once(stronger, ada, users, argon2_work):
    await stronger.with_password(USERNAME, PASSWORD)
    stored = (await users.get(USERNAME)).password_hash
    assert stored.startswith("$argon2id$v=19$m=16,t=2,p=1$")
    await stronger.with_password(USERNAME, PASSWORD)
    assert argon2_work == [("verify", b"m=8,t=1,p=1"), ("hash", 16), ("verify", b"m=16,t=2,p=1")]


async def test_a_wrong_password_does_not_replace_the_hash(stronger, ada, users):
    with pytest.raises(InvalidGrant):
        await stronger.with_password(USERNAME, "wrong password")
    assert (await users.get(USERNAME)).password_hash == ada.password_hash


@pytest.mark.parametrize("failure", [UsersUnavailable("OperationalError"), PasswordsBusy()])
async def test_a_rehash_that_fails_does_not_fail_the_login(stronger, ada, users, events, monkeypatch, failure):
    async def failing(*_, **__):
        raise failure

    monkeypatch.setattr(Users, "set_password_hash", failing)
    with capture_logs() as logs:
        assert await stronger.with_password(USERNAME, PASSWORD)
    assert [entry["event"] for entry in logs] == ["rehash_failed", "login"]
    assert events == [("login", "ok", "none")]


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite:///{missing}/users.db", "postgresql+asyncpg://tollbook@/postgres?host={missing}"]
)
async def test_without_its_database_a_login_is_unavailable_and_not_refused(
    connect, tmp_path, passwords, tokens, auth, events, url
):
    users = Users(connect(url.format(missing=tmp_path / "missing")))
    login = Login(users, passwords, tokens, auth.record_event)
    with capture_logs() as logs, pytest.raises(TemporarilyUnavailable):
        await login.with_password(USERNAME, PASSWORD)
    assert events == [("login", "error", "database")]
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("login_failed", "database")]


async def test_when_every_thread_hashes_a_login_is_unavailable(login, ada, events, monkeypatch):
    async def busy(*_):
        raise PasswordsBusy

    monkeypatch.setattr(Passwords, "verify", busy)
    with pytest.raises(TemporarilyUnavailable):
        await login.with_password(USERNAME, PASSWORD)
    assert events == [("login", "error", "busy")]
