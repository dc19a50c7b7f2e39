"""`tollbook keys`."""

import re
from datetime import datetime, timedelta
from typing import Any

import pytest

from auth.apikeys import ApiKey, ApiKeys, WrongKey
from tests.service.cli_kit import CONTROLS, Cli

ADD = ("keys", "add", "ada", "laptop")


def verify(cli: Cli, key: str) -> ApiKey:
    return cli.on_database(lambda database: ApiKeys(database).verify(key))


def why_wrong(cli: Cli, key: str) -> str:
    with pytest.raises(WrongKey) as caught:
        verify(cli, key)
    return caught.value.reason


def key_of(cli: Cli, key: str) -> Any:
    (found,) = (each for each in cli.json("keys", "list") if f"_{each['id']}_" in key)
    return found


def test_the_life_of_a_key(cli_on_each):
    cli = cli_on_each
    cli.add_user("ada")
    first = cli.last(*ADD)
    key_id = str(key_of(cli, first)["id"])
    assert key_of(cli, first) == {
        "id": key_id,
        "username": "ada",
        "name": "laptop",
        "scopes": ["llm", "usage:read"],
        "state": "active",
        "created_at": key_of(cli, first)["created_at"],
        "expires_at": None,
        "last_used_at": None,
    }
    assert verify(cli, first).username == "ada"
    second = cli.last("keys", "rotate", key_id, "--overlap", "3600")
    assert verify(cli, first).id == key_id
    assert (verify(cli, second).name, verify(cli, second).scopes) == ("laptop", verify(cli, first).scopes)
    assert cli.out("keys", "revoke", key_id) == f"Revoked {key_id}.\n"
    assert why_wrong(cli, first) == "revoked"
    assert key_of(cli, first)["state"] == "revoked"
    assert verify(cli, second)
    assert [action for action, _ in cli.audit()] == ["user.create", "key.create", "key.rotate", "key.revoke"]


def test_a_key_is_alone_on_the_last_line_and_nowhere_afterwards(cli):
    cli.add_user("ada")
    added = re.fullmatch(
        r"Added ([a-z2-7]{16}) with llm usage:read\.\nThe key, shown once:\n(tbk_\1_[\w-]{43})\n", cli.out(*ADD)
    )
    assert added
    rotated = re.fullmatch(
        rf"Added ([a-z2-7]{{16}}), in place of {added[1]}\.\nThe key, shown once:\n(tbk_\1_[\w-]{{43}})\n",
        cli.out("keys", "rotate", added[1]),
    )
    assert rotated
    stored = [cli.out("keys", "list"), cli.out("audit-log", "--json"), str(cli.sql("SELECT * FROM api_keys"))]
    for key in (added[2], rotated[2]):
        assert not [text for text in stored if key.rpartition("_")[2] in text or key in text]


def test_rotating_without_an_overlap_ends_the_old_key_at_once(cli):
    cli.add_user("ada")
    first = cli.last(*ADD)
    second = cli.last("keys", "rotate", verify(cli, first).id)
    assert why_wrong(cli, first) == "expired"
    assert key_of(cli, first)["state"] == "expired"
    assert verify(cli, second)


def test_a_key_expires_after_its_days(cli):
    cli.add_user("ada")
    key = verify(cli, cli.last(*ADD, "--days", "90"))
    assert key.expires_at is not None
    assert key.expires_at - key.created_at == pytest.approx(timedelta(days=90), abs=timedelta(seconds=60))
    (listed,) = cli.json("keys", "list")
    assert datetime.fromisoformat(listed["expires_at"]) == key.expires_at


@pytest.mark.parametrize("days", ["0", "-1", "3661", "nan", "1e12", "soon"])
def test_days_that_are_none_are_a_usage_error(cli, days):
    cli.add_user("ada")
    assert cli(*ADD, "--days", days).exit_code == 2


def test_keys_of_a_disabled_user_are_shown_as_such(cli):
    cli.add_user("ada")
    key = cli.last(*ADD)
    cli.out("users", "disable", "ada")
    assert key_of(cli, key)["state"] == "user disabled"


def test_keys_can_be_listed_for_one_user(cli):
    for name in ("ada", "bob"):
        cli.add_user(name)
        cli.out("keys", "add", name, f"of {name}")
    assert [key["name"] for key in cli.json("keys", "list", "--user", "bob")] == ["of bob"]
    assert len(cli.json("keys", "list")) == 2


# scopes


def scopes_of(cli: Cli, *options: str) -> list[str]:
    return sorted(verify(cli, cli.last(*ADD, *options)).scopes)


def test_a_key_of_an_admin_administers_nothing_unless_it_is_said(cli):
    cli.add_user("ada", "--scope", "admin", "--scope", "account", "--scope", "llm:small")
    assert scopes_of(cli) == ["llm:small"]
    assert scopes_of(cli, "--scope", "admin") == ["admin"]


def test_models_stand_in_place_of_all_models(cli):
    cli.add_user("ada")
    assert scopes_of(cli, "--model", "smollm2", "--model", "a b") == ["llm:a%20b", "llm:smollm2"]
    assert scopes_of(cli, "--model", "smollm2", "--scope", "llm", "--scope", "usage:read") == [
        "llm:smollm2",
        "usage:read",
    ]
    assert scopes_of(cli, "--scope", "llm:smollm2") == ["llm:smollm2"]


def test_a_user_with_all_models_and_a_named_one_may_have_a_key_for_all(cli):
    cli.add_user("ada", "--scope", "llm", "--scope", "llm:smollm2")
    assert scopes_of(cli, "--scope", "llm") == ["llm"]


@pytest.mark.parametrize("options", [("--scope", "admin"), ("--scope", "llm"), ("--model", "other")], ids=" ".join)
def test_a_key_has_no_scope_that_its_user_has_not(cli, options):
    cli.add_user("ada", "--scope", "llm:small", "--scope", "usage:read")
    assert cli.refused(*ADD, *options) == "The user does not have all of these scopes."
    assert cli.json("keys", "list") == []
    assert cli.audit() == [("user.create", "ada")]


def test_a_user_who_may_only_administer_has_no_key_by_default(cli):
    cli.add_user("ada", "--scope", "admin")
    assert cli.refused(*ADD).startswith("At least one scope is needed")


# what is refused


@pytest.mark.parametrize("text", ["", CONTROLS, " x", "\udcff"], ids=ascii)
def test_a_name_or_model_that_there_cannot_be_is_refused_without_itself(cli, text):
    cli.add_user("ada")
    for args in (("keys", "add", "ada", text), (*ADD, "--model", text)):
        line = cli.refused(*args)
        assert line.startswith("A name has ")
        assert not text or text not in line


@pytest.mark.parametrize("command", ["rotate", "revoke"])
def test_a_key_that_is_not_there_or_was_revoked_is_said_to_be_unknown(cli, command):
    cli.add_user("ada")
    key_id = verify(cli, cli.last(*ADD)).id
    cli.out("keys", "revoke", key_id)
    for unknown in (key_id, "x", "", CONTROLS):
        assert cli.refused("keys", command, unknown) == "There is no such key."
    assert len(cli.audit()) == 3


@pytest.mark.parametrize("command", ["rotate", "revoke"])
def test_an_id_that_is_no_text_is_a_usage_error(cli, command):
    result = cli("keys", command, "\udcff")
    assert (result.exit_code, "UTF-8" in result.stderr) == (2, True)


def test_an_overlap_of_more_than_a_year_is_refused(cli):
    cli.add_user("ada")
    key = cli.last(*ADD)
    line = cli.refused("keys", "rotate", verify(cli, key).id, "--overlap", "9" * 30)
    assert line == "An overlap is 0 seconds or more, and at most a year."
    assert verify(cli, key).expires_at is None
