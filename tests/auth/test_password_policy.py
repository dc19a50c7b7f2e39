import asyncio
import threading
import unicodedata

import pytest
from zxcvbn import zxcvbn

from auth.passwords import InvalidPassword, PasswordPolicy
from tests.auth.kit import PASSWORD, USERNAME


@pytest.mark.parametrize("password", ["elevenchars", "e\u0301" * 11, ""])
def test_a_new_password_has_at_least_twelve_characters_however_they_are_written(password):
    with pytest.raises(InvalidPassword, match="at least 12 characters"):
        PasswordPolicy().check(password, USERNAME)
    PasswordPolicy(min_score=0).check(password + "\u00e9" * 12, USERNAME)


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("password1234", "very common password"),
        ("P4$$w0rd1234", "Capitalization"),
        ("qwertyuiop[]", "rows of keys"),
        ("aaaaaaaaaaaaaaaaaa", "Repeats"),
        ("abcdefghijklmnop", "Sequences"),
        ("ada.lovelace", "easy to guess"),
        ("tollbook2026", "easy to guess"),
    ],
)
async def test_a_password_that_is_easy_to_guess_is_refused_with_a_hint(passwords, password, why):
    with pytest.raises(InvalidPassword, match="the password is too easy to guess") as caught:
        await passwords.hash_new(password, "ada.lovelace")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "password", ["short", "hunter2hunter2", "drowssap4321", "Canary-19870612", "canary" * 300, "can\0ary" * 4]
)
@pytest.mark.parametrize("policy", [PasswordPolicy(min_score=4), PasswordPolicy(20, 4)])
def test_a_refusal_never_contains_the_password(policy, password):
    with pytest.raises(InvalidPassword) as caught:
        policy.check(password, "ada")
    said = str(caught.value).lower()
    assert not any(password.lower()[i : i + 5] in said for i in range(len(password) - 4))
    assert caught.value.__context__ is None


@pytest.mark.parametrize("password", ["correct horse battery staple", "another good password", "xK9#mQ2$vL7!"])
def test_a_good_password_is_accepted(password):
    PasswordPolicy().check(password, USERNAME)


def test_the_operator_says_how_strong_a_password_has_to_be():
    PasswordPolicy(min_length=8, min_score=0).check("password", USERNAME)
    PasswordPolicy(min_length=8, min_score=1).check("blue4mint", USERNAME)
    with pytest.raises(InvalidPassword):
        PasswordPolicy(min_length=8, min_score=3).check("blue4mint", USERNAME)


@pytest.fixture
def scored(monkeypatch):
    """Each password that was scored: how long, in which thread, and how many were at it at the same time."""
    calls, at_work = [], []

    def scoring(password, **kwargs):
        at_work.append(1)
        calls.append((len(password), threading.current_thread().name, len(at_work)))
        result = zxcvbn(password, **kwargs)
        at_work.pop()
        return result

    monkeypatch.setattr("auth.passwords.zxcvbn", scoring)
    return calls


async def test_of_a_long_password_only_the_beginning_is_scored(passwords, scored):
    """The whole would take seconds: these characters all stand for letters, in many ways."""
    await passwords.hash_new("4@8({[<369!1|7052+%$" * 51, USERNAME)
    assert [length for length, _, _ in scored] == [32]


async def test_passwords_are_scored_in_the_pool_and_one_at_a_time(passwords, scored):
    await asyncio.gather(*(passwords.hash_new(PASSWORD, f"user-{number}") for number in range(12)))
    assert len(scored) == 12
    assert all(thread.startswith("passwords") and at_work == 1 for _, thread, at_work in scored)


async def test_a_password_is_scored_and_hashed_in_its_normal_form(passwords, monkeypatch):
    seen = []

    def scoring(text, **_):
        seen.append(text)
        return {"score": 4}

    monkeypatch.setattr("auth.passwords.zxcvbn", scoring)
    written = "cafe\u0301 cre\u0300me caf\u00e9"
    stored = await passwords.hash_new(written, USERNAME)
    assert seen == [unicodedata.normalize("NFC", written)]
    assert await passwords.verify(seen[0], stored)
