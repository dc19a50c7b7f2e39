"""The Dockerfile: what it promises, and that its parts do what they say. Nothing here needs a container engine."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.deploy.support import ROOT, beside_python
from tests.support.service import free_port

PACKAGES = ("auth", "observability", "service")


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of each, continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", "")
    return [(words[0], " ".join(words[1:])) for line in text.splitlines() if (words := line.split(maxsplit=1))]


def values_of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def test_hadolint_has_no_complaint() -> None:
    done = subprocess.run([beside_python("hadolint"), ROOT / "Dockerfile"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_it_names_no_registry_and_no_address_but_the_base_image() -> None:
    assert [each.split()[0] for each in values_of("FROM")] == ["python:3.11-slim", "base", "base"]
    assert not re.search(r"https?://|--index-url|--extra-index-url|--trusted-host", (ROOT / "Dockerfile").read_text())


def test_what_comes_from_outside_is_checked_against_the_locked_hashes() -> None:
    parts = [part for run in values_of("RUN") for part in run.split("&&")]
    commands = [part for part in parts if re.search(r"\bpip\b.* (install|wheel)\s+--", part)]
    assert len(commands) == 4
    for command in commands:
        assert "--no-deps" in command
        assert "--require-hashes" in command or "--no-index" in command


def test_the_build_is_given_what_it_copies_and_nothing_else() -> None:
    copied = {source for rest in values_of("COPY") if "--from" not in rest for source in rest.split()[:-1]}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert copied == {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_the_last_stage_runs_as_a_numeric_user_without_a_shell_in_between() -> None:
    (user,) = values_of("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert json.loads(values_of("ENTRYPOINT")[0]) == ["tollbook"]
    assert json.loads(values_of("CMD")[0]) == ["serve"]
    assert values_of("STOPSIGNAL") == ["SIGTERM"]


class _Live(BaseHTTPRequestHandler):
    """Answers what the server's `answers` say for a path, else 404."""

    def do_GET(self) -> None:
        self.send_response(self.server.answers.get(self.path, 404))  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Not on the terminal."""


@pytest.fixture
def answering() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Live)
    server.answers = {}  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def health(port: int) -> int:
    """The exit status of the image's health check for a service on a port."""
    (rest,) = values_of("HEALTHCHECK")
    command = json.loads(rest[rest.index("[") :])
    # The proxy must not be asked: nobody listens there.
    env = {"TOLLBOOK_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, *command[1:]], env=env, check=False, capture_output=True)
    assert command[0] == "python"
    return done.returncode


@pytest.mark.parametrize(("status", "exit_status"), [(200, 0), (503, 1)])
def test_the_health_check_tells_a_live_process_from_one_that_is_not(
    answering: ThreadingHTTPServer, status: int, exit_status: int
) -> None:
    answering.answers = {"/livez": status}  # type: ignore[attr-defined]
    assert health(answering.server_port) == exit_status


def test_the_health_check_fails_when_nobody_listens() -> None:
    assert health(free_port()) != 0


def test_the_wheel_carries_every_file_of_the_packages(tmp_path: Path) -> None:
    """Also those that are not Python, such as the migrations' template."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    expected = {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}
    assert expected <= set(zipfile.ZipFile(wheel).namelist())
