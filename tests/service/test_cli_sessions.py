"""`tollbook sessions`."""

import pytest

from auth.errors import InvalidGrant
from tests.service.cli_kit import CONTROLS, Cli, sessions


def refresh(cli: Cli, token: str) -> str:
    """The next refresh token."""
    found = cli.on_database(lambda database: sessions(database).refresh(token, client_id="tollbook"))
    return found.refresh_token


def ids(cli: Cli, *options: str) -> list[str]:
    return [session["id"] for session in cli.json("sessions", "list", *options)]


def test_sessions_are_listed_the_newest_first_and_end_one_by_one(cli_on_each):
    cli = cli_on_each
    cli.add_user("ada")
    first, token = cli.login("ada", "192.0.2.1")
    second, other = cli.login("ada", "192.0.2.2")
    assert ids(cli) == [second, first]
    listed = cli.json("sessions", "list")[1]
    assert {name: value for name, value in listed.items() if not name.endswith("_at")} == {
        "id": first,
        "username": "ada",
        "client_id": "tollbook",
        "scopes": ["account", "llm", "usage:read"],
        "address": "192.0.2.1",
    }
    assert listed["created_at"] == listed["last_used_at"] < listed["expires_at"]
    assert cli.out("sessions", "revoke", first) == f"Ended {first}.\n"
    assert ids(cli) == [second]
    with pytest.raises(InvalidGrant):
        refresh(cli, token)
    assert refresh(cli, other)
    assert cli.audit() == [("user.create", "ada"), ("session.revoke", "ada")]


def test_end_logs_a_user_out_everywhere_and_nobody_else(cli_on_each):
    cli = cli_on_each
    for name in ("ada", "bob"):
        cli.add_user(name)
    tokens = [cli.login("ada")[1], cli.login("ada")[1]]
    other, token = cli.login("bob")
    assert cli.out("sessions", "end", "ada") == "Ended all sessions of ada.\n"
    assert ids(cli) == [other]
    for each in tokens:
        with pytest.raises(InvalidGrant):
            refresh(cli, each)
    assert refresh(cli, token)
    # The access tokens that are out are told to every worker.
    ((user_id,),) = cli.sql("SELECT id FROM users WHERE username = 'ada'")
    assert ("user", user_id) in cli.sql("SELECT kind, value FROM revocations")


def test_sessions_can_be_listed_for_one_user(cli):
    for name in ("ada", "bob"):
        cli.add_user(name)
        cli.login(name)
    assert [each["username"] for each in cli.json("sessions", "list", "--user", "bob")] == ["bob"]
    assert cli.table("sessions", "list", "--user", "bob")[1][1:3] == ["bob", "tollbook"]


def test_disabling_a_user_ends_their_sessions(cli):
    cli.add_user("ada")
    cli.login("ada")
    cli.out("users", "disable", "ada")
    assert ids(cli) == []


@pytest.mark.parametrize("unknown", ["6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55", "x", "", CONTROLS, "\udcff"], ids=ascii)
def test_a_session_that_is_not_there_is_said_to_be_unknown(cli, unknown):
    assert cli.refused("sessions", "revoke", unknown) == "There is no such session."


def test_a_session_ends_once(cli):
    cli.add_user("ada")
    session_id, _ = cli.login("ada")
    cli.out("sessions", "revoke", session_id)
    assert cli.refused("sessions", "revoke", session_id) == "There is no such session."
    assert len(cli.audit()) == 2
