"""The load: keep-alive clients, each of which sends the next call when the last is answered, and checks every answer.

`python -m benchmarks.load` reads a `Job` as JSON from standard input (tokens do not belong on a command line) and
writes a `Result` to standard output. One wrong answer ends it with an error: its figures would mean nothing.
"""

import asyncio
import gc
import json
import os
import sys
import time
from array import array
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from benchmarks import wire
from benchmarks.client import Call, Client, WrongAnswerError

_PATIENCE_SECONDS: Final = 30.0  # for the last answers, once nothing more is sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to do. Times are of the monotonic clock, in seconds; what is answered between them is timed."""

    port: int
    stream: bool
    connections: int
    tokens: list[str]  # one call after the other takes the next
    first_number: int  # of the markers
    starts_at: float  # the clients call before that too, as a warm-up
    ends_at: float
    max_calls: int
    watch: dict[str, list[int]]  # processes whose CPU time is to be told


@dataclass(slots=True, kw_only=True)
class Result:
    """What came of it."""

    answered: int = 0  # with the warm-up, and with what was still open at the end
    timed: int = 0
    seconds: float = 0.0
    pieces: int = 0  # reads in which the timed answers arrived
    latencies_us: list[int] = field(default_factory=list)
    cpu_seconds: dict[str, float] = field(default_factory=dict)  # of the watched, and of the "load" itself


class Load:
    """All clients of this process."""

    def __init__(self, job: Job) -> None:
        self.result = Result()
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._job = job
        self._latencies = array("Q")  # nanoseconds
        self._open = self._sent = 0
        self._last = job.starts_at
        body = wire.REQUESTS[job.stream]
        self._requests = [
            b"POST %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n"
            b"Accept: */*\r\nContent-Length: %d\r\n\r\n%b"
            % (wire.PATH.encode(), job.port, token.encode(), len(body), body)
            for token in job.tokens
        ]
        self._answer = wire.ANSWERS[job.stream]

    def next_call(self) -> Call | None:
        """The next call; None when enough were made."""
        if self._sent == self._job.max_calls or time.monotonic() >= self._job.ends_at:
            return None
        mark = wire.marker(self._job.first_number + self._sent)
        request = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        self._open += 1
        return Call(wire.filled(request, mark), wire.filled(self._answer, mark))

    def answered(self, latency_ns: int, pieces: int) -> None:
        """A right answer is complete."""
        self._open -= 1
        self.result.answered += 1
        now = time.monotonic()
        if self._job.starts_at <= now < self._job.ends_at:
            self.result.timed += 1
            self.result.pieces += pieces
            self._latencies.append(latency_ns)
            self._last = now

    def client_done(self) -> None:
        """A client was given no call."""
        if self._open == 0 and not self.finished.done():
            self.finished.set_result(None)

    def fail(self, error: WrongAnswerError) -> None:
        """The run is void."""
        if not self.finished.done():
            self.finished.set_exception(error)

    def settle(self) -> Result:
        """The result, once finished."""
        stopped_early = self._sent == self._job.max_calls
        self.result.seconds = (self._last if stopped_early else self._job.ends_at) - self._job.starts_at
        self.result.latencies_us = [nanoseconds // 1000 for nanoseconds in self._latencies]
        return self.result


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that processes have taken, all their threads together (Linux, to 10 ms)."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])  # utime, stime: proc_pid_stat(5)
    return total / os.sysconf("SC_CLK_TCK")


async def _watch(job: Job, result: Result) -> None:
    watched = {**job.watch, "load": [os.getpid()]}
    await asyncio.sleep(job.starts_at - time.monotonic())
    before = {name: cpu_seconds(pids) for name, pids in watched.items()}
    await asyncio.sleep(job.ends_at - time.monotonic())
    result.cpu_seconds = {name: cpu_seconds(pids) - before[name] for name, pids in watched.items()}


async def carry_out(job: Job) -> Result:
    """Do a job.

    Raises:
        WrongAnswerError, TimeoutError, OSError: the run is void.
    """
    loop = asyncio.get_running_loop()
    load = Load(job)
    clients = []
    for _ in range(job.connections):
        _, client = await loop.create_connection(lambda: Client(load), "127.0.0.1", job.port)
        clients.append(client)
    for client in clients:
        client.send_next()
    watching = asyncio.create_task(_watch(job, load.result))
    async with asyncio.timeout(job.ends_at - time.monotonic() + _PATIENCE_SECONDS):
        await load.finished
        await watching
    for client in clients:
        client.close()
    return load.settle()


def main() -> None:
    job = Job(**json.load(sys.stdin))
    gc.disable()  # a collection here would look like a delay of the service
    try:
        result = uvloop.run(carry_out(job))
    except (WrongAnswerError, TimeoutError, OSError) as error:
        sys.exit(f"the load failed: {type(error).__name__}: {error}")
    json.dump(asdict(result), sys.stdout)


if __name__ == "__main__":
    main()
