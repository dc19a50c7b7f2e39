"""Child processes: started, waited for until they answer, brought back when they die, ended without a remainder."""

import asyncio
import contextlib
import http.client
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import structlog

from service.local.tether import tethered

log = structlog.get_logger("service.local")

_PROBE_PAUSE = 0.05
_PROBE_TIMEOUT = 2.0


class ProcessError(RuntimeError):
    """A process could not be started, or ended or stayed silent before it was ready; the message says which."""


@dataclass(frozen=True, slots=True)
class BackOff:
    """Seconds before a restart: `first`, doubled each time up to `longest`; `steady` seconds of life begin anew."""

    first: float = 0.2
    longest: float = 30.0
    steady: float = 60.0

    def delay(self, failures: int) -> float:
        return float(min(self.longest, self.first * 2 ** min(failures, 30)))


class Supervisor:
    """One child process, ready when `health_url` (http) answers with anything but a server error.

    `async with` starts it, which takes until it is ready, and ends it. The child leads a session of its own, so Ctrl-C
    in the terminal reaches only us. It does not outlive us: its standard input is a pipe that closes with us, and on
    Linux it gets SIGTERM. With `restart` it is brought back when it dies; `wait` is for one that is not.
    What it writes goes to the file `output`, emptied first, or else to our own standard streams.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        health_url: str,
        env: Mapping[str, str] | None = None,
        output: Path | None = None,
        restart: bool = False,
        back_off: BackOff | None = None,
        start_seconds: float = 120.0,
        grace_seconds: float = 10.0,
    ) -> None:
        self.name = name
        self._command = list(command)
        self._health_url = health_url
        self._env = env
        self._output = output
        self._restart = restart
        self._back_off = back_off or BackOff()
        self._start_seconds = start_seconds
        self._grace_seconds = grace_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def pid(self) -> int | None:
        """The child's process id; it changes with each restart. None while there is no child."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the child and return when it is ready.

        Raises:
            ProcessError: it was not ready in `start_seconds`. Nothing is left running.
        """
        if self._output:
            self._output.write_bytes(b"")
        await self._launch()
        if self._restart:
            self._keeper = asyncio.create_task(self._keep())

    async def wait(self) -> int:
        """The exit status of a child that is not restarted, once it has ended; negative for a signal."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return await self._process.wait()

    async def stop(self) -> None:
        """End the child: SIGTERM, and after `grace_seconds`, or when hurried, SIGKILL to all it started."""
        if self._keeper:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
            self._keeper = None
        await self._end()

    def hurry(self) -> None:
        """Cut short the grace of a stop that is under way, or is yet to come."""
        self._hurried.set()

    async def _launch(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                output = stack.enter_context(self._output.open("ab")) if self._output else None
                self._process = await asyncio.create_subprocess_exec(
                    *tethered(self._command),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env=self._env,
                    start_new_session=True,
                )
        except OSError as error:
            raise ProcessError(f"{self.name} cannot be started: {error}") from error
        try:
            async with asyncio.timeout(self._start_seconds):
                await self._ready(self._process)
        except TimeoutError:
            await self._end()
            raise ProcessError(f"{self.name} did not answer within {self._start_seconds:g} s{self._hint()}") from None
        except BaseException:
            await self._end()
            raise

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        while True:
            if process.returncode is not None:
                raise ProcessError(f"{self.name} ended while starting ({_ending(process.returncode)}){self._hint()}")
            if await asyncio.to_thread(_answers, self._health_url):
                return
            await asyncio.sleep(_PROBE_PAUSE)

    def _hint(self) -> str:
        return f"; what it wrote is in {self._output}" if self._output else ""

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            since = loop.time()
            ending = _ending(await self.wait())
            await self._end()
            if loop.time() - since > self._back_off.steady:
                failures = 0
            while self._process is None:
                await asyncio.sleep(self._back_off.delay(failures))
                failures += 1
                try:
                    await self._launch()
                except ProcessError as error:
                    log.warning("process_restart_failed", process=self.name, reason=str(error))
            log.warning("process_restarted", process=self.name, ending=ending, pid=self.pid)

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        ended, hurried = asyncio.create_task(process.wait()), asyncio.create_task(self._hurried.wait())
        try:
            await asyncio.wait({ended, hurried}, timeout=self._grace_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()
        if process.returncode is None:
            log.warning("process_killed", process=self.name, pid=process.pid)
        # Also when it has ended by itself: what it had started, such as Gunicorn's workers, may still run.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await ended
        self._process = None


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _answers(url: str) -> bool:
    """Not through a client library: those obey proxy variables, which would send a question to ourselves elsewhere."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PROBE_TIMEOUT)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status < http.HTTPStatus.INTERNAL_SERVER_ERROR
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
