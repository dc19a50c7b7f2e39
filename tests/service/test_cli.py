"""The command line: what each command prints, and how it ends."""

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from tests.service.test_http import process_restored
from tests.support.rawhttp import Exchange, RawServer
from tests.support.service import free_port
from tests.support.upstream import ScriptedUpstream

PASSWORD = "correct horse battery staple"
SECRET = "sk-0123456789abcdef"
Tollbook = Callable[..., Result]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with process_restored():
        os.environ["COLUMNS"] = "400"
        os.environ["TOLLBOOK_AUTH_ARGON2_MEMORY_KIB"] = "8192"
        yield


@pytest.fixture
def tollbook(tmp_path: Path) -> Tollbook:
    """Run one command in a state directory of the test's own."""

    def run(*args: str, env: dict[str, str] | None = None, stdin: str | None = None) -> Result:
        settings = {"TOLLBOOK_STATE_DIR": str(tmp_path / "state"), **(env or {})}
        return CliRunner().invoke(app, args, env=settings, input=stdin)

    return run


@pytest.fixture
def migrated(tollbook: Tollbook) -> Tollbook:
    result = tollbook("migrate")
    assert result.exit_code == 0, result.output
    return tollbook


def lines(result: Result, word: str) -> list[str]:
    return [line for line in result.stdout.splitlines() if word in line]


# config, and settings that are wrong


def test_config_shows_every_setting_and_masks_what_is_secret(tollbook):
    env = {
        "OPENAI_API_KEY": SECRET,
        "TOLLBOOK_ADMIN_PASSWORD": PASSWORD,
        "TOLLBOOK_DATABASE_URL": "postgresql://ada:hunter2@db.test/tollbook",
        "TOLLBOOK_CORS_ORIGINS": "https://a.test,https://b.test",
    }
    result = tollbook("config", env=env)
    assert result.exit_code == 0
    for secret in (SECRET, PASSWORD, "hunter2"):
        assert secret not in result.output
    (database,) = lines(result, "TOLLBOOK_DATABASE_URL")
    assert "postgresql+asyncpg://ada:***@db.test/tollbook" in database
    (key,) = lines(result, "OPENAI_API_KEY")
    assert key.split() == ["OPENAI_API_KEY", "set", "********"]
    (origins,) = lines(result, "TOLLBOOK_CORS_ORIGINS")
    assert origins.split() == ["TOLLBOOK_CORS_ORIGINS", "set", "https://a.test,https://b.test"]
    (port,) = lines(result, "TOLLBOOK_PORT")
    assert port.split() == ["TOLLBOOK_PORT", "default", "8000"]


def test_a_secret_that_is_not_set_is_not_shown_as_if_it_were(tollbook):
    (key,) = lines(tollbook("config"), "OPENAI_API_KEY")
    assert key.split() == ["OPENAI_API_KEY", "default"]


@pytest.mark.parametrize("query", ["password=hunter2", "user=ada&password=hunter2"])
def test_a_password_in_the_query_of_the_database_url_is_masked_too(tollbook, query):
    result = tollbook("config", env={"TOLLBOOK_DATABASE_URL": f"postgresql://db.test/tollbook?{query}"})
    assert result.exit_code == 0
    assert "hunter2" not in result.output


def test_credentials_in_the_address_of_the_upstream_are_masked(tollbook):
    result = tollbook("config", env={"OPENAI_BASE_URL": "https://ada:hunter2@llm.test/v1"})
    assert "hunter2" not in result.output


@pytest.mark.parametrize("command", ["config", "migrate", "serve", "doctor", "run"])
def test_bad_settings_end_a_command_with_2_and_the_names_of_the_variables(tollbook, command, tmp_path):
    env = {"TOLLBOOK_PORT": "http", "TOLLBOOK_DATABASE_URL": "mysql://ada:hunter2@h/db"}
    result = tollbook(command, env=env)
    assert result.exit_code == 2
    assert "TOLLBOOK_PORT: " in result.stderr
    assert "TOLLBOOK_DATABASE_URL: " in result.stderr
    assert "hunter2" not in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "state").exists()


def test_bad_settings_end_users_as_they_end_the_rest(tollbook):
    result = tollbook("users", "list", env={"TOLLBOOK_PORT": "http"})
    assert result.exit_code == 2
    assert "TOLLBOOK_PORT: " in result.stderr


def test_a_variable_that_is_no_setting_is_warned_of_and_no_more(tollbook):
    result = tollbook("config", env={"TOLLBOOK_PROT": "1"})
    assert result.exit_code == 0
    assert "TOLLBOOK_PROT is not a setting. Did you mean TOLLBOOK_PORT?" in result.stderr
    assert "Warning" not in tollbook("config").stderr


# users


def test_a_user_is_added_listed_disabled_enabled_and_given_a_password(migrated, tmp_path):
    def state() -> str:
        (line,) = lines(migrated("users", "list"), "ada")
        return line

    def stored() -> str:
        with sqlite3.connect(tmp_path / "state" / "tollbook.db") as connection:
            found: str = connection.execute("select password_hash from users where username = 'ada'").fetchone()[0]
        connection.close()
        return found

    result = migrated("users", "add", "ada", "--scope", "usage:read", "--scope", "llm", "--password", PASSWORD)
    assert (result.exit_code, result.stdout) == (0, "Added ada with llm usage:read.\n")
    assert "llm usage:read" in state()
    assert "active" in state()
    for command, expected in (("disable", "disabled"), ("disable", "disabled"), ("enable", "active")):
        assert migrated("users", command, "ada").exit_code == 0
        assert expected in state()
    before = stored()
    assert migrated("users", "passwd", "ada", "--password", f"{PASSWORD} 2").exit_code == 0
    assert stored() != before
    assert "$argon2id$" in stored()


def test_without_a_scope_a_user_may_call_and_manage_their_own_account(migrated):
    result = migrated("users", "add", "ada", env={"TOLLBOOK_NEW_PASSWORD": PASSWORD})
    assert result.stdout == "Added ada with account llm usage:read.\n"


def test_a_password_is_asked_for_twice_and_not_shown(migrated):
    result = migrated("users", "add", "ada", stdin=f"{PASSWORD}\n{PASSWORD}\n")
    assert result.exit_code == 0
    assert PASSWORD not in result.output
    assert migrated("users", "passwd", "ada", stdin=f"{PASSWORD}\nsomething else\n").exit_code != 0


@pytest.mark.parametrize("command", ["disable", "enable", "passwd"])
def test_a_user_that_is_not_there_is_said_to_be_unknown(migrated, command):
    result = migrated("users", command, "nobody", env={"TOLLBOOK_NEW_PASSWORD": PASSWORD})
    assert result.exit_code == 1
    assert "There is no such user." in result.stderr


@pytest.mark.parametrize(
    ("name", "password"), [("ada", "short"), ("ada", ""), ("", PASSWORD), (" ada", PASSWORD), ("a\nb", PASSWORD)]
)
def test_a_bad_name_or_password_is_refused_without_a_traceback_and_without_itself(migrated, name, password):
    result = migrated("users", "add", "--password", password, "--", name)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.output
    assert password == "" or password not in result.output
    assert len(migrated("users", "list").stdout.splitlines()) == 1


def test_a_name_that_is_taken_is_refused(migrated):
    assert migrated("users", "add", "ada", "--password", PASSWORD).exit_code == 0
    result = migrated("users", "add", "ada", "--password", PASSWORD)
    assert (result.exit_code, "There is a user of this name" in result.stderr) == (1, True)


def test_a_scope_that_is_none_is_refused_with_those_there_are(migrated):
    result = migrated("users", "add", "ada", "--password", PASSWORD, "--scope", "root")
    assert result.exit_code == 1
    assert "usage:read" in result.stderr


def test_users_of_a_database_that_was_not_migrated_says_what_to_run(tollbook, tmp_path):
    (tmp_path / "state").mkdir()
    result = tollbook("users", "list")
    assert result.exit_code == 1
    assert "tollbook migrate" in result.stderr


def test_names_are_shown_as_they_are_not_as_markup(migrated):
    assert migrated("users", "add", "[red]ada[/red]", "--password", PASSWORD).exit_code == 0
    assert lines(migrated("users", "list"), "[red]ada[/red]")


# migrate


def test_migrate_makes_the_first_admin_when_one_is_set_and_says_no_password(tollbook):
    result = tollbook("migrate", env={"TOLLBOOK_ADMIN_USERNAME": "root", "TOLLBOOK_ADMIN_PASSWORD": PASSWORD})
    assert result.exit_code == 0
    assert PASSWORD not in result.output
    assert len(lines(tollbook("users", "list"), "root")) == 1


@pytest.mark.parametrize(("name", "password"), [("admin", "short"), (" ", PASSWORD)])
def test_an_admin_that_is_not_good_enough_is_refused_by_the_names_of_the_variables(tollbook, name, password):
    result = tollbook("migrate", env={"TOLLBOOK_ADMIN_USERNAME": name, "TOLLBOOK_ADMIN_PASSWORD": password})
    assert result.exit_code == 2
    assert "TOLLBOOK_ADMIN_" in result.stderr
    assert "Traceback" not in result.output


def test_migrate_without_its_database_fails_and_does_not_tell_the_password(tollbook):
    url = f"postgresql://ada:hunter2@127.0.0.1:{free_port()}/x"
    result = tollbook("migrate", env={"TOLLBOOK_DATABASE_URL": url})
    assert result.exit_code == 2
    assert "The database cannot be used" in result.stderr
    assert "hunter2" not in result.output


# doctor


def _wrong(result: Result) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith("!!")]


@pytest.fixture
def well(migrated: Tollbook) -> Tollbook:
    """With a schema and a user."""
    assert migrated("users", "add", "ada", "--password", PASSWORD).exit_code == 0
    return migrated


def test_the_doctor_finds_all_well(well, upstream: ScriptedUpstream):
    result = well("doctor", env={"OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": SECRET})
    assert (result.exit_code, _wrong(result)) == (0, [])
    assert "sqlite, 1 user(s)" in result.stdout
    assert f"{upstream.base_url} answered 200" in result.stdout
    assert SECRET not in result.output


def test_the_doctor_finds_that_there_is_no_upstream(well):
    result = well("doctor")
    assert result.exit_code == 1
    (line,) = _wrong(result)
    assert "no upstream is set" in line
    assert "OPENAI_BASE_URL" in line


def test_the_doctor_finds_an_upstream_that_cannot_be_reached(well):
    url = f"http://127.0.0.1:{free_port()}/v1"
    result = well("doctor", env={"OPENAI_BASE_URL": url})
    assert result.exit_code == 1
    (line,) = _wrong(result)
    assert f"{url} cannot be reached" in line


@pytest.mark.parametrize(("status", "advice"), [(401, "key is refused"), (403, "key is refused"), (500, "in trouble")])
def test_the_doctor_finds_a_key_that_is_refused_and_an_upstream_in_trouble(well, status, advice):
    async def answer(exchange: Exchange) -> None:
        await exchange.respond(status, b"{}")

    with RawServer(answer) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        result = well("doctor", env={"OPENAI_BASE_URL": url, "OPENAI_API_KEY": SECRET})
        (asked,) = server.received
    assert (asked.path, asked.headers["authorization"]) == ("/v1/models", f"Bearer {SECRET}")
    assert result.exit_code == 1
    (line,) = _wrong(result)
    assert f"answered {status}" in line
    assert advice in line
    assert SECRET not in result.output


def test_the_doctor_looks_at_each_upstream_of_a_catalog_once(well, tmp_path, upstream: ScriptedUpstream):
    def model(name: str, where: str, base_url: str) -> dict[str, object]:
        return {"name": name, "upstream": {"name": where, "base_url": base_url, "model": name}}

    down = f"http://127.0.0.1:{free_port()}/v1"
    models = [model("a", "up", upstream.base_url), model("b", "up", upstream.base_url), model("c", "down", down)]
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(json.dumps({"models": models}))
    result = well("doctor", env={"TOLLBOOK_CATALOG": str(catalog)})
    assert len(lines(result, "upstream up")) == 1
    assert "3 model(s), without a price: a, b, c" in result.stdout
    (line,) = _wrong(result)
    assert "upstream down" in line


def test_the_doctor_shows_what_is_wrong_with_a_catalog(well, tmp_path):
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("models:\n  - nom: x\n")
    result = well("doctor", env={"TOLLBOOK_CATALOG": str(catalog)})
    assert result.exit_code == 1
    assert "catalog.yaml:2" in result.stdout


def test_the_doctor_finds_a_schema_that_was_not_migrated(tollbook, upstream: ScriptedUpstream):
    result = tollbook("doctor", env={"OPENAI_BASE_URL": upstream.base_url})
    assert result.exit_code == 1
    (line,) = _wrong(result)
    assert "the schema is not up to date" in line
    assert "tollbook migrate" in line


def test_the_doctor_finds_that_there_are_no_users(migrated, upstream: ScriptedUpstream):
    result = migrated("doctor", env={"OPENAI_BASE_URL": upstream.base_url})
    assert result.exit_code == 1
    (line,) = _wrong(result)
    assert "there are no users" in line
    assert "tollbook users add" in line


def test_the_doctor_finds_a_database_that_is_down(tollbook, upstream: ScriptedUpstream):
    url = f"postgresql://ada:hunter2@127.0.0.1:{free_port()}/x"
    result = tollbook("doctor", env={"OPENAI_BASE_URL": upstream.base_url, "TOLLBOOK_DATABASE_URL": url})
    assert result.exit_code == 1
    (line,) = _wrong(result)
    assert "cannot be reached" in line
    assert "hunter2" not in result.output


def test_the_doctor_finds_a_key_that_others_may_read(well, tmp_path, upstream: ScriptedUpstream):
    key_files = [path for path in (tmp_path / "state" / "keys").iterdir() if path.is_file()]
    for path in key_files:
        path.chmod(0o644)
    result = well("doctor", env={"OPENAI_BASE_URL": upstream.base_url})
    assert key_files
    assert result.exit_code == 1
    (line,) = _wrong(result)
    assert "state directory and key" in line


# serve


class _BecameGunicorn(Exception):  # noqa: N818
    """What would have been the end of this process."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The programs that a command wanted to become. The two are what every other `exec` of Python ends in."""
    found: list[list[str]] = []

    def execute(_path: str, args: list[str], _environment: object = None) -> None:
        found.append(args)
        raise _BecameGunicorn

    monkeypatch.setattr(os, "execv", execute)
    monkeypatch.setattr(os, "execve", execute)
    return found


LOCAL_UPSTREAM = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}


def test_serve_prepares_and_becomes_gunicorn(tollbook, executed, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "draining").touch()
    result = tollbook("serve", env={**LOCAL_UPSTREAM, "TOLLBOOK_ADMIN_PASSWORD": PASSWORD})
    assert isinstance(result.exception, _BecameGunicorn)
    (args,) = executed
    assert args[1:3] == ["-m", "gunicorn"]
    assert not (tmp_path / "state" / "draining").exists()
    assert len(lines(tollbook("users", "list"), "admin")) == 1


def test_serve_refuses_a_second_service_in_one_state_directory(tollbook, executed, tmp_path):
    (tmp_path / "state").mkdir()
    drain_file = tmp_path / "state" / "draining"
    drain_file.touch()
    with (tmp_path / "state" / "service.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = tollbook("serve", env=LOCAL_UPSTREAM)
    assert (result.exit_code, executed) == (2, [])
    assert "another service runs in" in result.stderr
    assert drain_file.exists()  # it is the other's


def test_serve_without_an_upstream_says_so_and_writes_nothing(tollbook, executed, tmp_path):
    result = tollbook("serve")
    assert (result.exit_code, executed) == (2, [])
    assert "No upstream" in result.stderr
    assert not (tmp_path / "state").exists()


def test_serve_goes_on_without_its_database(tollbook, executed):
    url = f"postgresql://ada:hunter2@127.0.0.1:{free_port()}/x"
    result = tollbook("serve", env={**LOCAL_UPSTREAM, "TOLLBOOK_DATABASE_URL": url})
    assert isinstance(result.exception, _BecameGunicorn)
    assert len(executed) == 1
    assert "hunter2" not in result.output


@pytest.mark.parametrize("command", ["serve", "migrate", "doctor", "users list"])
def test_a_schema_of_a_newer_version_is_told_and_is_no_traceback(migrated, executed, tmp_path, command):
    with sqlite3.connect(tmp_path / "state" / "tollbook.db") as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    connection.close()
    result = migrated(*command.split(), env=LOCAL_UPSTREAM)
    assert result.exception is None or isinstance(result.exception, (SystemExit, _BecameGunicorn))
    assert "Traceback" not in result.output


def test_the_command_without_arguments_shows_what_there_is(tollbook):
    result = tollbook()
    for name in ("run", "serve", "users", "migrate", "config", "doctor", "chat"):
        assert name in result.output
