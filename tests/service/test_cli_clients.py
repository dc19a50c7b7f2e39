"""`tollbook clients`."""

import re
import uuid

import pytest

from auth.clients import Client, Clients
from auth.errors import InvalidClient
from tests.service.cli_kit import CONTROLS, Cli, sessions

ADD = ("clients", "add", "nightly report", "--scope", "llm", "--scope", "usage:read")


def authenticate(cli: Cli, client_id: str, secret: str | None) -> Client:
    return cli.on_database(lambda database: Clients(database).authenticate(client_id, secret))


def the_only(cli: Cli) -> dict[str, object]:
    (client,) = cli.json("clients", "list")
    assert isinstance(client, dict)
    return client


def test_the_life_of_a_client(cli_on_each):
    cli = cli_on_each
    secret = cli.last(*ADD, "--id", "report")
    assert the_only(cli) == {
        "client_id": "report",
        "name": "nightly report",
        "kind": "confidential",
        "grants": ["client_credentials"],
        "scopes": ["llm", "usage:read"],
        "team": None,
        "state": "active",
        "created_at": the_only(cli)["created_at"],
    }
    assert authenticate(cli, "report", secret).name == "nightly report"
    assert cli.out("clients", "disable", "report") == "Disabled report.\n"
    assert the_only(cli)["state"] == "disabled"
    with pytest.raises(InvalidClient):
        authenticate(cli, "report", secret)
    assert cli.out("clients", "enable", "report") == "Enabled report.\n"
    newer = cli.last("clients", "secret", "report")
    assert authenticate(cli, "report", newer).id == "report"
    with pytest.raises(InvalidClient):
        authenticate(cli, "report", secret)
    assert cli.out("clients", "remove", "report") == "Removed report.\n"
    assert cli.out("clients", "list") == "None.\n"
    assert [action for action, _ in cli.audit()] == [
        "client.create",
        "client.disable",
        "client.enable",
        "client.secret",
        "client.delete",
    ]


def test_a_secret_is_alone_on_the_last_line_and_nowhere_afterwards(cli):
    shown = cli.out(*ADD, "--id", "report")
    first = re.fullmatch(
        r"Added nightly report with the client id report\.\nIts secret, shown once:\n(tbs_[\w-]{43})\n", shown
    )
    second = re.fullmatch(r"Its secret, shown once:\n(tbs_[\w-]{43})\n", cli.out("clients", "secret", "report"))
    assert first
    assert second
    assert first[1] != second[1]
    stored = [cli.out("clients", "list"), cli.out("audit-log", "--json"), str(cli.sql("SELECT * FROM clients"))]
    for secret in (first[1], second[1]):
        assert not [text for text in stored if secret in text]


def test_an_id_is_made_up_when_none_is_given(cli):
    secret = cli.last(*ADD)
    client_id = str(the_only(cli)["client_id"])
    assert re.fullmatch(r"[0-9a-f]{16}", client_id)
    assert authenticate(cli, client_id, secret)


def test_a_public_client_has_no_secret(cli):
    assert cli.out(*ADD, "--public", "--id", "app") == "Added nightly report with the client id app.\n"
    assert the_only(cli)["kind"] == "public"
    assert the_only(cli)["grants"] == ["password", "refresh_token"]
    assert authenticate(cli, "app", None).public
    assert cli.refused("clients", "secret", "app") == "A public client has no secret."


def test_grants_are_those_that_are_named(cli):
    cli.out(*ADD, "--grant", "password", "--grant", "client_credentials")
    assert the_only(cli)["grants"] == ["client_credentials", "password"]


def test_clients_of_a_team_are_listed_with_its_name(cli):
    cli.out("teams", "add", "blue")
    cli.out(*ADD, "--id", "one", "--team", "blue")
    cli.out(*ADD, "--id", "two")
    assert [(each["client_id"], each["team"]) for each in cli.json("clients", "list")] == [
        ("one", "blue"),
        ("two", None),
    ]
    assert [each["client_id"] for each in cli.json("clients", "list", "--team", "blue")] == ["one"]
    assert cli.table("clients", "list", "--team", "blue")[1][:3] == ["one", "nightly report", "confidential"]


def test_removing_a_client_ends_the_sessions_that_began_with_it(cli):
    cli.out(*ADD, "--public", "--id", "app")
    cli.add_user("ada")
    ((user_id,),) = cli.sql("SELECT id FROM users")
    cli.on_database(lambda database: sessions(database).open(user_id, "app", ["llm"], ""))
    assert len(cli.json("sessions", "list")) == 1
    cli.out("clients", "remove", "app")
    assert cli.json("sessions", "list") == []


# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--grant", "implicit"), "A client has one or more of the grants: password refresh_token client_credentials."),
        (("--public", "--grant", "client_credentials"), "A public client cannot use client_credentials"),
        (("--id", "a b"), "A client id has 1 to 64 letters"),
        (("--id", ""), "A client id has 1 to 64 letters"),
        (("--id", CONTROLS), "A client id has 1 to 64 letters"),
        (("--id", "\udcff"), "A client id has 1 to 64 letters"),
        (("--id", "tollbook"), "A client id is neither that of Tollbook itself nor what could be the id of a user."),
        (("--id", str(uuid.UUID(int=1))), "A client id is neither that of Tollbook"),
        (("--id", "report"), "There is a client of this id."),
    ],
    ids=ascii,
)
def test_a_client_that_there_cannot_be_is_refused(cli, options, message):
    cli.out(*ADD, "--id", "report")
    assert cli.refused(*ADD, *options).startswith(message)
    assert len(cli.audit()) == 1


@pytest.mark.parametrize("client_id", ["cli", "system"])
def test_an_id_that_the_audit_log_has_for_others_is_refused(cli, client_id):
    assert cli.refused(*ADD, "--id", client_id) == "A client id is none of: cli system."
    assert cli.audit() == []


@pytest.mark.parametrize("command", ["disable", "enable", "secret", "remove"])
@pytest.mark.parametrize("client_id", ["x", "tollbook", CONTROLS, "\udcff", ""], ids=ascii)
def test_a_client_that_is_not_there_is_said_to_be_unknown(cli, command, client_id):
    assert cli.refused("clients", command, client_id) == "There is no client of this id."


def test_a_client_without_a_scope_is_a_usage_error(cli):
    result = cli("clients", "add", "report")
    assert result.exit_code == 2
    assert "--scope" in result.stderr
