"""The real service: Gunicorn and its workers, started by the command an operator uses."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
ADMIN = "root-admin"
PASSWORD = "correct horse battery staple"
START_SECONDS = 100.0
STOP_SECONDS = 30.0
OUTSIDE = ("OPENAI_", "OTEL_", "TOLLBOOK_", "PROMETHEUS_", "GUNICORN_", "WEB_CONCURRENCY", "PYTEST_")


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Our environment without the settings of whoever runs the tests, and with `extra`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(OUTSIDE)}
    return {**env, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **extra}


def processes() -> dict[int, int]:
    """The pid of every process that lives, and of its parent; a zombie does not live."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in table.splitlines())
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


class RunningService:
    """One service with a state directory of its own; usable as a context manager.

    `directory` holds the state, the catalog and what the service wrote to its standard streams.
    """

    def __init__(
        self,
        directory: Path,
        *,
        catalog: str | None = None,
        workers: int = 2,
        env: Mapping[str, str] | None = None,
        command: tuple[str, ...] = ("serve",),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.state_dir = directory / "state"
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.stdout = directory / "stdout.txt"
        self.stderr = directory / "stderr.txt"
        settings = {
            "TOLLBOOK_STATE_DIR": str(self.state_dir),
            "TOLLBOOK_HOST": "127.0.0.1",
            "TOLLBOOK_PORT": str(self.port),
            "TOLLBOOK_WORKERS": str(workers),
            "TOLLBOOK_ADMIN_USERNAME": ADMIN,
            "TOLLBOOK_ADMIN_PASSWORD": PASSWORD,
            "TOLLBOOK_LOG_FORMAT": "json",
            "TOLLBOOK_GRACEFUL_TIMEOUT_SECONDS": "5",
        }
        if catalog is not None:
            path = directory / "tollbook.yaml"
            path.write_text(catalog)
            settings["TOLLBOOK_CATALOG"] = str(path)
        self.workers = workers
        self.env = clean_environment({**settings, **(env or {})})
        self._command = [sys.executable, "-m", "service.cli", *command]
        self._process: subprocess.Popen[bytes] | None = None
        self._tokens: dict[str | None, str] = {}
        self._entries: list[dict[str, Any]] = []
        self._read: dict[Path, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # Running

    @property
    def pid(self) -> int:
        """The process that was started: Gunicorn's arbiter for `serve`."""
        assert self._process is not None
        return self._process.pid

    def start(self, timeout: float = START_SECONDS) -> None:
        """Start, and wait until /readyz says 200."""
        with self.stdout.open("ab") as out, self.stderr.open("ab") as err:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.directory,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        try:
            eventually(self._is_ready, "/readyz to say 200", timeout)
        except BaseException as error:
            self.stop()
            error.add_note(self.tail())
            raise

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the service ended with {self._process.returncode} before it was ready")
        try:
            return httpx2.get(f"{self.base_url}/readyz", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        """The exit status, once the service has ended."""
        assert self._process is not None
        return self._process.wait(timeout)

    def stop(self, timeout: float = STOP_SECONDS) -> int:
        """SIGTERM, and SIGKILL to what we started if it takes longer than `timeout` seconds; the exit status."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise

    def children(self) -> list[int]:
        """The pids of the process's children: Gunicorn's workers for `serve`."""
        return sorted(pid for pid, parent in processes().items() if parent == self.pid)

    def descendants(self) -> set[int]:
        """The pids of all that was started, at whatever remove."""
        parents = processes()
        found = {self.pid}
        while new := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= new
        return found

    def wait_stopping(self) -> None:
        """Return once nobody listens any more."""
        eventually(lambda: not self._is_listening(), "the service to stop listening")

    def _is_listening(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    # Calling

    def client(self, scope: str | None = None, **options: Any) -> httpx2.Client:
        """A plain HTTP client with a token; it does not follow redirects."""
        headers = {"Authorization": f"Bearer {self.token(scope)}"}
        return httpx2.Client(base_url=self.base_url, headers=headers, timeout=30, **options)

    def token(self, scope: str | None = None) -> str:
        """An access token of the admin; asked for once for each scope."""
        with self._lock:
            if scope not in self._tokens:
                form = {"grant_type": "password", "username": ADMIN, "password": PASSWORD}
                answer = httpx2.post(f"{self.base_url}/token", data=form | ({"scope": scope} if scope else {}))
                answer.raise_for_status()
                self._tokens[scope] = answer.json()["access_token"]
            return self._tokens[scope]

    def tollbook(self, *args: str, **env: str) -> str:
        """Run another `tollbook` command under the service's settings and `env`; what it wrote to both streams."""
        command = [sys.executable, "-m", "service.cli", *args]
        done = subprocess.run(
            command,
            env={**self.env, **env},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"tollbook {args[0]} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    # Seeing

    def log_lines(self, **fields: Any) -> list[dict[str, Any]]:
        """The JSON log lines that have all of `fields`, in the order of each stream."""
        with self._lock:
            for path in (self.stdout, self.stderr):
                self._read_on(path)
            return [entry for entry in self._entries if all(entry.get(name) == fields[name] for name in fields)]

    def _read_on(self, path: Path) -> None:
        """Add what was written since the last time, up to the last whole line."""
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read[path] = self._read.get(path, 0) + len(whole)
        self._entries += [json.loads(line) for line in whole.split(b"\n") if line.startswith(b"{")]

    def wait_line(self, **fields: Any) -> dict[str, Any]:
        """The first canonical request line that has all of `fields`, once it is written."""
        return eventually(lambda: self.log_lines(event="request", **fields), f"a request line with {fields}")[0]

    def metrics(self) -> list[Sample]:
        """All samples of /metrics as one worker tells them, over a connection of its own."""
        answer = httpx2.get(f"{self.base_url}/metrics", timeout=30)
        answer.raise_for_status()
        return [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples called `name` that have all of `labels`."""
        return float(sum(s.value for s in self.metrics() if s.name == name and labels.items() <= s.labels.items()))

    def usage(self, **params: Any) -> Any:
        """GET /usage as the admin."""
        with self.client() as client:
            answer = client.get("/usage", params=params)
        answer.raise_for_status()
        return answer.json()

    def tail(self, lines: int = 40) -> str:
        """The last lines of both standard streams."""
        parts = []
        for path in (self.stdout, self.stderr):
            text = path.read_text(errors="replace").splitlines() if path.exists() else []
            parts.append("\n".join([f"--- {path.name}", *text[-lines:]]))
        return "\n".join(parts)
