"""Starts what a benchmark needs, each process on its core, and ends all of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, Self

import httpx2

from benchmarks.load import Job, Result

ROOT: Final = Path(__file__).parents[1]
_OUTSIDE: Final = ("TOLLBOOK_", "OTEL_", "OPENAI_", "PROMETHEUS_", "GUNICORN_", "WEB_CONCURRENCY", "UVICORN_")
_STOP_SECONDS: Final = 60.0


class VoidRunError(Exception):
    """The figures of this run mean nothing; the message says why."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core is whose."""

    service: int
    upstream: int
    load: int

    @classmethod
    def choose(cls) -> Self:
        """The last core for the service alone; upstream and load share one when there are but two."""
        *others, service = sorted(os.sched_getaffinity(0))
        if not others:
            sys.exit("The benchmark needs two cores: one for the service, one for the upstream and the load.")
        return cls(service=service, upstream=others[0], load=others[-1])


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes that are started inside run on this core, with all that they start."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Our environment without what would change a setting of the service, and with `extra`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OUTSIDE)} | dict(extra)


class Started:
    """A process in a group of its own. A context manager: at the end it is told to stop, and killed if it does not."""

    def __init__(self, command: Sequence[str], core: int, **options: Any) -> None:
        with pinned(core):
            self.process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, **options)
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it. Does nothing the second time."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
            raise


class Helper(Started):
    """A module of this folder that serves on a port which it writes first."""

    def __init__(self, module: str, core: int) -> None:
        super().__init__([sys.executable, "-m", module], core, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self._output: IO[str] = self.process.stdout  # type: ignore[assignment]  # a pipe was asked for
        self.port = int(self._output.readline())

    def stop(self) -> None:
        """End it."""
        super().stop()
        self._output.close()

    def counts(self, path: bytes) -> dict[str, int]:
        """What it counted."""
        found: dict[str, int] = httpx2.get(f"http://127.0.0.1:{self.port}{path.decode()}", timeout=30).json()
        return found

    def move(self, core: int) -> None:
        """Go on on another core."""
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


def apply_load(job: Job, core: int) -> Result:
    """Have a process of its own do a job; it must not take much longer than the job says.

    Raises:
        VoidRunError: an answer was wrong, or did not come.
    """
    command = [sys.executable, "-m", "benchmarks.load"]
    with (
        pinned(core),
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        try:
            output, _ = process.communicate(json.dumps(asdict(job)), job.ends_at - time.monotonic() + 60)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise VoidRunError("an answer was wrong or did not come, see above")
    return Result(**json.loads(output))
