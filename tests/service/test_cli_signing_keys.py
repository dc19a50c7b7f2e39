"""`tollbook signing-keys`: what each command prints, changes and refuses, with keys in files and in the database."""

import base64
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from auth.keys import SigningKey
from service.cli import app
from tests.service.test_http import process_restored

ENCRYPTION_KEY = base64.b64encode(b"k" * 32).decode()
IN_DATABASE = {"TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY": ENCRYPTION_KEY}
Tollbook = Callable[..., Result]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with process_restored():
        os.environ["COLUMNS"] = "400"
        yield


@pytest.fixture(params=["files", "database"])
def where(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def tollbook(tmp_path: Path, where: str) -> Tollbook:
    """Run one command, on a state directory that is ready to serve."""

    def run(*args: str, **env: str) -> Result:
        settings = {"TOLLBOOK_STATE_DIR": str(tmp_path / "state"), "TOLLBOOK_AUTH_ARGON2_MEMORY_KIB": "8192"}
        settings |= IN_DATABASE if where == "database" else {}
        return CliRunner().invoke(app, args, env=settings | env)

    result = run("migrate")
    assert result.exit_code == 0, result.output
    return run


@pytest.fixture
def first(tollbook: Tollbook, where: str) -> str:
    """The name of the key that signs. In files `migrate` has made it; in the database the first worker would."""
    if where == "database":
        rotated(tollbook)
        later = keys_of(tollbook)[-1]["kid"]
        assert tollbook("signing-keys", "revoke", later).exit_code == 0
    (key,) = keys_of(tollbook)
    return key["kid"]


def keys_of(tollbook: Tollbook, **env: str) -> list[dict[str, str]]:
    result = tollbook("signing-keys", "list", "--json", **env)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def rotated(tollbook: Tollbook, *options: str, **env: str) -> str:
    result = tollbook("signing-keys", "rotate", *options, **env)
    assert result.exit_code == 0, result.output
    found = re.fullmatch(r"Made ([\w-]{43})\.\n", result.stdout)
    assert found, result.stdout
    return found[1]


def states(tollbook: Tollbook) -> dict[str, str]:
    return {key["kid"]: key["state"] for key in keys_of(tollbook)}


def test_list_shows_which_key_signs(tollbook, first):
    (key,) = keys_of(tollbook)
    assert key == {"kid": first, "algorithm": "ES256", "signs_from": "the beginning", "state": "signs"}
    table = tollbook("signing-keys", "list").stdout
    assert table.splitlines()[1].split() == [first, "ES256", "the", "beginning", "signs"]


def test_a_narrow_terminal_cuts_no_name(tollbook, first, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert first in tollbook("signing-keys", "list").stdout


def test_list_makes_no_key(tollbook, tmp_path):
    empty = {"TOLLBOOK_AUTH_KEY_DIR": str(tmp_path / "other")}
    assert tollbook("signing-keys", "list", **empty).stdout == "None.\n"
    assert keys_of(tollbook, **empty) == []
    assert not (tmp_path / "other").exists()


def test_rotate_publishes_a_key_that_signs_later(tollbook, first):
    before = time.time()
    made = rotated(tollbook, TOLLBOOK_AUTH_KEY_PUBLISH_SECONDS="500")
    assert states(tollbook) == {first: "signs", made: "published"}
    signs_from = datetime.fromisoformat(keys_of(tollbook)[1]["signs_from"]).timestamp()
    assert before + 499 <= signs_from <= time.time() + 500


def test_rotate_now_is_ten_seconds_and_names_the_key_it_made_though_another_signs_later(tollbook, first):
    later, before = rotated(tollbook), time.time()
    soon = rotated(tollbook, "--now")
    assert list(states(tollbook)) == [first, soon, later]
    signs_from = datetime.fromisoformat(keys_of(tollbook)[1]["signs_from"]).timestamp()
    assert before + 9 <= signs_from <= time.time() + 10


def test_rotate_makes_a_key_for_the_configured_algorithm(tollbook, first):
    made = rotated(tollbook, TOLLBOOK_AUTH_SIGNING_ALGORITHM="RS256")
    assert [(key["kid"], key["algorithm"]) for key in keys_of(tollbook)] == [(first, "ES256"), (made, "RS256")]


def test_a_secret_is_listed_only_where_it_is_of_use(tollbook, first):
    made = rotated(tollbook, TOLLBOOK_AUTH_SIGNING_ALGORITHM="HS256")
    assert list(states(tollbook)) == [first]
    assert [key["kid"] for key in keys_of(tollbook, TOLLBOOK_AUTH_SIGNING_ALGORITHM="HS256")] == [first, made]


def test_revoke_takes_a_key_away_and_leaves_one_that_signs(tollbook, first):
    result = tollbook("signing-keys", "revoke", first)
    assert (result.exit_code, result.stdout) == (0, f"Revoked {first}.\n")
    ((kid, state),) = states(tollbook).items()
    assert kid != first
    assert state == "signs"


@pytest.mark.parametrize("where", ["files"], indirect=True)
def test_a_name_that_begins_with_a_hyphen_is_no_option(tollbook, first, tmp_path):
    """One of 64 does."""
    key = next(key for key in iter(SigningKey.generate, None) if key.kid.startswith("-"))
    path = tmp_path / "state" / "keys" / "20270115T080000Z-vault.pem"
    path.write_bytes(key.to_bytes())
    path.chmod(0o600)
    result = tollbook("signing-keys", "revoke", key.kid)
    assert (result.exit_code, result.stdout) == (0, f"Revoked {key.kid}.\n")
    assert states(tollbook) == {first: "signs"}


@pytest.mark.parametrize("kid", ["x", "-x", "--x", "../signing-key.pem", "' OR 1=1 --", ""])
def test_a_key_that_is_not_there_cannot_be_revoked(tollbook, first, kid):
    result = tollbook("signing-keys", "revoke", kid)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "There is no such signing key." in result.stderr
    assert states(tollbook) == {first: "signs"}


def test_the_audit_log_says_who_did_it_and_holds_no_key(tollbook, first, tmp_path):
    made = rotated(tollbook)
    assert tollbook("signing-keys", "revoke", first).exit_code == 0
    with sqlite3.connect(tmp_path / "state" / "tollbook.db") as connection:
        rows = connection.execute("SELECT actor, action, target FROM audit_log ORDER BY id").fetchall()
    connection.close()
    assert ("cli", "signing_key.rotate", made) in rows
    assert ("cli", "signing_key.revoke", first) in rows


def test_no_command_prints_a_private_key(tollbook, first, tmp_path):
    outputs = [tollbook("signing-keys", *args).output for args in (["list"], ["rotate"], ["revoke", first], ["list"])]
    secrets = [line for path in (tmp_path / "state").glob("keys/*.pem") for line in path.read_text().splitlines()]
    for secret in (*secrets, "PRIVATE KEY", ENCRYPTION_KEY):
        assert not [output for output in outputs if secret in output]


# what is wrong with the place


@pytest.mark.parametrize("where", ["database"], indirect=True)
def test_another_encryption_key_is_an_error_that_names_the_setting(tollbook, first):
    other = {"TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY": base64.b64encode(b"x" * 32).decode()}
    for args in (["list"], ["rotate"]):
        result = tollbook("signing-keys", *args, **other)
        assert result.exit_code == 1
        assert "TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY" in result.stderr
    assert states(tollbook) == {first: "signs"}
    result = tollbook("signing-keys", "list", TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY="hunter2")
    assert result.exit_code == 2  # as of every setting that cannot be right
    assert "TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY" in result.stderr
    assert "hunter2" not in result.output


@pytest.mark.parametrize("where", ["files"], indirect=True)
def test_a_directory_that_cannot_be_written_is_a_clear_error(tollbook, first, tmp_path):
    (tmp_path / "state" / "keys" / ".lock").unlink(missing_ok=True)
    (tmp_path / "state" / "keys" / ".lock").mkdir()  # root may write everywhere, but not this
    for args in (["rotate"], ["revoke", first]):
        result = tollbook("signing-keys", *args)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"{tmp_path / 'state' / 'keys'} cannot be written" in result.stderr
        assert "Traceback" not in result.output
    assert states(tollbook) == {first: "signs"}


@pytest.mark.parametrize("where", ["files"], indirect=True)
def test_a_key_that_others_can_read_is_a_clear_error(tollbook, first, tmp_path):
    (tmp_path / "state" / "keys" / "signing-key.pem").chmod(0o644)
    result = tollbook("signing-keys", "list")
    assert result.exit_code == 1
    assert "chmod 600" in result.stderr


@pytest.mark.parametrize("where", ["database"], indirect=True)
def test_a_database_that_was_not_migrated_is_a_clear_error(tollbook, tmp_path):
    empty = {"TOLLBOOK_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}"}
    for args in (["list"], ["rotate"], ["revoke", "x"]):
        result = tollbook("signing-keys", *args, **empty)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "tollbook migrate" in result.stderr
