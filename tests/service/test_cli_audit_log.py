"""`tollbook audit-log`."""

import pytest

from service.commands import directory
from tests.service.cli_kit import CONTROLS, Cli


def names(cli: Cli, *options: str) -> list[str]:
    return [record["target_name"] for record in cli.json("audit-log", *options)]


@pytest.fixture
def five(cli_on_each: Cli) -> Cli:
    """Five records."""
    for name in "abcde":
        cli_on_each.out("teams", "add", name)
    return cli_on_each


def test_records_are_shown_the_newest_first_and_can_be_gone_on_from(five):
    assert names(five) == list("edcba")
    assert names(five, "--limit", "2") == ["e", "d"]
    last = five.json("audit-log", "--limit", "2")[-1]["id"]
    assert names(five, "--limit", "2", "--before", last) == ["c", "b"]


@pytest.mark.parametrize("limit", range(1, 7))
def test_a_limit_over_a_page_is_kept_to(five, monkeypatch, limit):
    monkeypatch.setattr(directory, "PAGE", 2)
    assert names(five, "--limit", str(limit)) == list("edcba")[:limit]
    before = five.json("audit-log", "--limit", "1")[0]["id"]
    assert names(five, "--limit", str(limit), "--before", before) == list("dcba")[:limit]


def test_a_record_is_shown_with_all_that_matters(cli):
    cli.add_user("ada")
    cli.out("users", "scopes", "ada", "--scope", "llm:small")
    header, row, _ = cli.out("audit-log").splitlines()
    assert header.split() == ["at", "actor", "action", "target", "result", "address", "details", "id"]
    assert " user.update  ada     ok " in row
    assert "scopes=llm:small" in row
    record = cli.json("audit-log")[0]
    assert row.split()[-1] == record["id"]
    assert set(record) == {
        "id",
        "at",
        "actor",
        "actor_name",
        "action",
        "target_kind",
        "target",
        "target_name",
        "team_id",
        "result",
        "address",
        "request_id",
        "details",
    }
    assert record["details"] == {"scopes": "llm:small"}
    assert record["at"].endswith("+00:00")


def test_records_can_be_asked_for_by_target_and_by_actor(cli):
    cli.add_user("ada")
    cli.out("teams", "add", "blue")
    (team,) = cli.json("teams", "list")
    assert names(cli, "--target", team["id"]) == ["blue"]
    assert names(cli, "--actor", "cli") == ["blue", "ada"]
    assert names(cli, "--actor", "system") == []
    assert cli.out("audit-log", "--target", CONTROLS) == "None.\n"


def test_what_was_not_done_leaves_no_record(cli):
    cli.out("teams", "add", "blue")
    cli.refused("teams", "add", "blue")
    cli.refused("teams", "rename", "amber", "x")
    assert names(cli) == ["blue"]


@pytest.mark.parametrize("option", ["--target", "--actor", "--before"])
def test_an_id_that_is_no_text_is_a_usage_error(cli, option):
    result = cli("audit-log", option, "\udcff")
    assert (result.exit_code, "UTF-8" in result.stderr) == (2, True)


@pytest.mark.parametrize("limit", ["0", "-1", "10001", "all"])
def test_a_limit_that_is_none_is_a_usage_error(cli, limit):
    assert cli("audit-log", "--limit", limit).exit_code == 2
