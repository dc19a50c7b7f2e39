"""`tollbook users`, and what all these commands do with names, long lists, and a database that is not there."""

import json
import os
import pwd
import re
from typing import Any

import pytest

from service.commands import directory
from tests.service.cli_kit import ANY_CONTROL, CONTROLS, PASSWORD, Cli
from tests.support.service import free_port

SECOND = "an entirely different passphrase"
ADMIN = ("--scope", "admin", "--scope", "llm")


def user(cli: Cli, name: str = "ada") -> Any:
    (found,) = (each for each in cli.json("users", "list") if each["username"] == name)
    return found


def test_the_life_of_a_user(cli_on_each):
    cli = cli_on_each
    cli.out("teams", "add", "blue")
    assert cli.out("users", "add", "ada", "--password", PASSWORD) == "Added ada with account llm usage:read.\n"
    assert user(cli) == {
        "username": "ada",
        "scopes": ["account", "llm", "usage:read"],
        "team": None,
        "state": "active",
        "created_at": user(cli)["created_at"],
        "id": user(cli)["id"],
    }
    assert cli.out("users", "scopes", "ada", "--scope", "llm:a/b") == "ada has llm:a/b now.\n"
    assert user(cli)["scopes"] == ["llm:a/b"]
    assert cli.out("users", "team", "ada", "blue") == "ada is in blue now.\n"
    assert [each["username"] for each in cli.json("users", "list", "--team", "blue")] == ["ada"]
    assert cli.out("users", "team", "ada") == "ada is in no team now.\n"
    assert cli.out("users", "list", "--team", "blue") == "None.\n"
    for command, state in (("disable", "disabled"), ("disable", "disabled"), ("enable", "active")):
        cli.out("users", command, "ada")
        assert user(cli)["state"] == state
    cli.out("users", "passwd", "ada", "--password", SECOND)
    actions = [action for action, name in cli.audit() if name == "ada"]
    assert [action.removeprefix("user.") for action in actions] == [
        "create",
        "update",
        "update",
        "update",
        "disable",
        "disable",
        "enable",
        "password",
    ]


def test_the_audit_log_has_whose_process_it_was_and_not_whom_the_environment_names(cli):
    cli.out("users", "add", "ada", "--password", PASSWORD, env={"LOGNAME": "mallory", "USER": "mallory"})
    (record,) = cli.json("audit-log")
    assert (record["actor"], record["actor_name"]) == ("cli", pwd.getpwuid(os.getuid()).pw_name)


def test_a_process_of_a_user_without_a_name_is_known_by_its_number(cli, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 987_654_321)
    cli.out("users", "add", "ada", "--password", PASSWORD)
    (record,) = cli.json("audit-log")
    assert record["actor_name"] == "uid 987654321"


def test_show_has_what_the_list_has_and_counts_what_is_alive(cli):
    cli.out("teams", "add", "blue")
    cli.add_user("ada", "--team", "blue")
    cli.add_user("bob")
    for _ in range(3):
        cli.out("keys", "add", "ada", "laptop")
    cli.out("keys", "add", "bob", "laptop")
    cli.out("keys", "revoke", cli.json("keys", "list", "--user", "ada")[0]["id"])
    cli.login("ada")
    cli.out("sessions", "revoke", cli.login("ada")[0])
    (shown,) = cli.json("users", "show", "ada")
    assert shown == user(cli) | {"keys": 2, "sessions": 1}
    assert shown["team"] == "blue"
    table = cli.table("users", "show", "ada")
    assert ["scopes", "account llm usage:read"] in table
    assert ["keys", "2"] in table


# what is refused


@pytest.mark.parametrize("password", ["short", "", "password1234", "qwertyuiopasdf", "x" * 2000, "nul\0nul nul nul"])
def test_a_weak_password_is_refused_and_the_old_one_stays(cli, password):
    cli.add_user("ada")
    before = cli.sql("SELECT password_hash FROM users")
    for args in (("users", "passwd", "ada"), ("users", "add", "bob")):
        line = cli.refused(*args, "--password", password)
        assert "password" in line.lower()
        assert not password or password not in line
    assert cli.sql("SELECT password_hash FROM users") == before
    assert cli.audit() == [("user.create", "ada")]


@pytest.mark.parametrize("scope", ["root", "LLM", "llm:", "llm:a b", 'llm:"', "llm admin", "llm:\udcff", CONTROLS, ""])
def test_a_scope_that_is_none_is_refused_with_those_there_are(cli, scope):
    cli.add_user("ada")
    for args in (
        ("users", "add", "bob", "--password", PASSWORD),
        ("users", "scopes", "ada", "--scope", "llm"),
        ("clients", "add", "report"),
        ("keys", "add", "ada", "laptop"),
    ):
        line = cli.refused(*args, "--scope", scope)
        assert "llm:<model>" in line
        assert CONTROLS not in line
    assert cli.audit() == [("user.create", "ada")]
    assert user(cli)["scopes"] == ["account", "llm", "usage:read"]


def test_a_user_is_left_with_a_scope(cli):
    cli.add_user("ada")
    assert cli.refused("users", "scopes", "ada").startswith("At least one scope is needed")


@pytest.mark.parametrize("name", ["", " ada", "a\nb", CONTROLS, "client:ada", "OIDC:ada", "x" * 129, "\udcff"])
def test_a_name_that_no_user_can_have_is_refused_without_itself(cli, name):
    line = cli.refused("users", "add", name, "--password", PASSWORD)
    assert not name or name not in line
    assert not ANY_CONTROL.search(line)
    assert cli.audit() == []


def test_a_name_that_is_taken_is_refused_also_in_another_form_of_unicode(cli):
    cli.add_user("Zo\u00eb")
    assert cli.refused("users", "add", "Zoe\u0308", "--password", PASSWORD) == "There is a user of this name."


@pytest.mark.parametrize(
    "args",
    [
        ("users", "show", "ada"),
        ("users", "disable", "ada"),
        ("users", "enable", "ada"),
        ("users", "passwd", "ada", "--password", PASSWORD),
        ("users", "scopes", "ada", "--scope", "llm"),
        ("users", "team", "ada"),
        ("keys", "add", "ada", "laptop"),
        ("keys", "list", "--user", "ada"),
        ("sessions", "list", "--user", "ada"),
        ("sessions", "end", "ada"),
        ("sessions", "end", "\udcff"),
        ("keys", "list", "--user", ""),
    ],
    ids=ascii,
)
def test_a_user_that_is_not_there_is_said_to_be_unknown(cli, args):
    assert cli.refused(*args) == "There is no such user."
    assert cli.audit() == []


def test_the_last_admin_stays_one(cli):
    cli.add_user("root", *ADMIN)
    cli.add_user("ada", "--scope", "users:admin")
    for args in (("disable", "root"), ("scopes", "root", "--scope", "users:admin")):
        assert cli.refused("users", *args).startswith("This is the last admin")
    cli.out("users", "scopes", "ada", "--scope", "admin")
    cli.out("users", "disable", "root")


# names on a terminal


def test_control_characters_in_the_database_never_reach_a_terminal(cli):
    """No name can be given with them here. They may be in a database from elsewhere."""
    cli.out("teams", "add", "blue")
    cli.add_user("ada", "--team", "blue")
    cli.out("clients", "add", "report", "--scope", "llm")
    cli.out("keys", "add", "ada", "laptop")
    cli.login("ada", f"::1{CONTROLS}")
    for table, column in (
        ("teams", "name"),
        ("users", "username"),
        ("clients", "name"),
        ("clients", "grants"),
        ("api_keys", "name"),
    ):
        cli.sql(f"UPDATE {table} SET {column} = {column} || :text", text=f"\n{CONTROLS}")
    cli.sql(
        "INSERT INTO audit_log SELECT 'f', at, actor, :text, :text, target_kind, target, :text, team_id, result, :text,"
        " request_id, :details FROM audit_log LIMIT 1",
        text=f"\n{CONTROLS}",
        details=json.dumps({f"a{CONTROLS}": f"\n{CONTROLS}"}),
    )
    for args in ("teams", "users", "clients", "keys", "sessions"):
        for options in ((), ("--json",)):
            shown = cli.out(args, "list", *options)
            assert len(shown.splitlines()) == (1 if options else 2)
            assert not ANY_CONTROL.search(shown)
            times = 1 if args == "teams" else 2  # each other line has two of them
            assert shown.count(r"\u001b[31m" if options else r"\x1b[31m") == times
    for options in ((), ("--json",)):
        shown = cli.out("audit-log", "--limit", "1", *options)
        assert len(shown.splitlines()) == (1 if options else 2)
        assert not ANY_CONTROL.search(shown)


@pytest.mark.parametrize("name", ["[red]ada[/red]", ":smile:", "[/]", "x" * 128, r"\[b]"])
def test_names_are_shown_whole_and_as_they_are(cli, name):
    cli.add_user(name)
    assert cli.out("users", "list").splitlines()[1].split()[0] == name
    assert cli.table("users", "show", name)[0] == ["username", name]


# long lists


LISTS = ("users", "teams", "clients", "keys", "sessions")


@pytest.mark.parametrize("count", [4, 5, 6])
def test_a_list_of_many_pages_is_shown_whole_and_each_line_once(cli, monkeypatch, count):
    """Pages of two: one list ends at the end of a page, the others within."""
    cli.add_user("ada-1")
    cli.sql("UPDATE users SET username = 'ada'")
    for number in range(count):
        cli.out("teams", "add", f"team {number}")
        cli.out("clients", "add", f"client {number}", "--scope", "llm")
        cli.out("keys", "add", "ada", f"key {number}")
        cli.login("ada")
        if number:
            cli.sql(
                "INSERT INTO users (id, username, password_hash, scopes, disabled, created_at, updated_at)"
                " SELECT :id, :id, password_hash, scopes, disabled, created_at, updated_at FROM users LIMIT 1",
                id=f"u{number}",
            )
    monkeypatch.setattr(directory, "PAGE", 2)
    for name in LISTS:
        found = cli.json(name, "list")
        assert len(found) == len({str(each) for each in found}) == count
        assert len(cli.out(name, "list").splitlines()) == count + 1
    assert [user["username"] for user in cli.json("users", "list")] == ["ada", *(f"u{n}" for n in range(1, count))]
    created = [session["created_at"] for session in cli.json("sessions", "list", "--user", "ada")]
    assert created == sorted(created, reverse=True)


def test_times_in_json_are_iso_8601_with_their_offset(cli):
    cli.add_user("ada")
    created = str(user(cli)["created_at"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00", created)


# the database

EVERY = [
    ("users", "add", "ada", "--password", PASSWORD),
    ("users", "list"),
    ("users", "show", "ada"),
    ("users", "disable", "ada"),
    ("users", "enable", "ada"),
    ("users", "passwd", "ada", "--password", PASSWORD),
    ("users", "scopes", "ada", "--scope", "llm"),
    ("users", "team", "ada", "blue"),
    ("teams", "add", "blue"),
    ("teams", "list"),
    ("teams", "rename", "blue", "amber"),
    ("teams", "remove", "blue"),
    ("clients", "add", "report", "--scope", "llm"),
    ("clients", "list"),
    ("clients", "disable", "report"),
    ("clients", "enable", "report"),
    ("clients", "secret", "report"),
    ("clients", "remove", "report"),
    ("keys", "add", "ada", "laptop"),
    ("keys", "list"),
    ("keys", "rotate", "abc"),
    ("keys", "revoke", "abc"),
    ("sessions", "list"),
    ("sessions", "revoke", "6f1c2a52-3a0b-4b7e-9f0a-0d7a4b1c9e55"),
    ("sessions", "end", "ada"),
    ("audit-log",),
]


@pytest.mark.parametrize("args", EVERY, ids=lambda args: "-".join(args[:2]))
def test_without_its_database_a_command_says_so_in_one_line_and_tells_no_password(cli, args, tmp_path):
    down = {"TOLLBOOK_DATABASE_URL": f"postgresql://ada:hunter2@127.0.0.1:{free_port()}/x"}
    empty = {"TOLLBOOK_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}"}
    for env in (down, empty):
        line = cli.refused(*args, env=env)
        assert line.startswith("The database cannot be used (")
        assert "tollbook migrate" in line
        assert "hunter2" not in line


def test_a_bug_is_not_taken_for_an_answer(cli, monkeypatch):
    """A KeyError is a LookupError, as what is not there is."""

    async def buggy(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("auth.teams.Teams.list", buggy)
    assert isinstance(cli("teams", "list").exception, KeyError)
