"""`tollbook teams`."""

import pytest

from tests.service.cli_kit import CONTROLS, PASSWORD, Cli


def names(cli: Cli) -> list[str]:
    return [team["name"] for team in cli.json("teams", "list")]


def test_a_team_is_added_listed_renamed_and_removed(cli_on_each):
    cli = cli_on_each
    assert cli.out("teams", "list") == "None.\n"
    assert cli.out("teams", "add", "blue") == "Added blue.\n"
    cli.out("teams", "add", "amber")
    assert names(cli) == ["amber", "blue"]
    assert [row[0] for row in cli.table("teams", "list")] == ["name", "amber", "blue"]
    assert cli.out("teams", "rename", "blue", "deep blue") == "The team is deep blue now.\n"
    assert cli.out("teams", "remove", "amber") == "Removed amber.\n"
    assert names(cli) == ["deep blue"]
    assert cli.audit() == [
        ("team.create", "blue"),
        ("team.create", "amber"),
        ("team.update", "blue"),
        ("team.delete", "amber"),
    ]


def test_a_list_gives_the_id_that_the_audit_log_can_be_asked_for(cli):
    cli.out("teams", "add", "blue")
    (team,) = cli.json("teams", "list")
    assert set(team) == {"name", "created_at", "id"}
    (record,) = cli.json("audit-log", "--target", team["id"])
    assert record["action"] == "team.create"


def test_a_name_that_is_taken_is_refused_for_a_new_team_and_for_an_old_one(cli):
    cli.out("teams", "add", "blue")
    cli.out("teams", "add", "amber")
    assert cli.refused("teams", "add", "blue") == "There is a team of this name."
    assert cli.refused("teams", "rename", "amber", "blue") == "There is a team of this name."
    assert names(cli) == ["amber", "blue"]


@pytest.mark.parametrize("user", [True, False], ids=["user", "client"])
def test_a_team_that_somebody_is_in_is_not_removed(cli, user):
    cli.out("teams", "add", "blue")
    if user:
        cli.add_user("ada", "--team", "blue")
    else:
        cli.out("clients", "add", "report", "--scope", "llm", "--team", "blue")
    assert cli.refused("teams", "remove", "blue") == "The team has members or clients."
    assert names(cli) == ["blue"]


@pytest.mark.parametrize(
    "args",
    [
        ("teams", "rename", "x", "y"),
        ("teams", "remove", "x"),
        ("users", "list", "--team", "x"),
        ("users", "add", "ada", "--team", "x", "--password", PASSWORD),
        ("clients", "list", "--team", "x"),
        ("clients", "add", "report", "--scope", "llm", "--team", "x"),
        ("users", "list", "--team", ""),
    ],
    ids=" ".join,
)
def test_a_team_that_is_not_there_is_said_to_be_unknown(cli, args):
    assert cli.refused(*args) == "There is no such team."
    assert cli.audit() == []


@pytest.mark.parametrize("name", ["", " blue", "x" * 129, CONTROLS, "\u202eblue", "\udcff"], ids=ascii)
def test_a_name_that_no_team_can_have_is_refused_without_itself(cli, name):
    cli.out("teams", "add", "amber")
    for args in (("teams", "add", name), ("teams", "rename", "amber", name)):
        line = cli.refused(*args)
        assert line.startswith("A name has ")
        assert len(name) < 2 or name not in line
    assert names(cli) == ["amber"]
