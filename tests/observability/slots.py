"""Worker processes for the tests of the slots: forked, with the metrics of a slot, and obedient."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from prometheus_client import CollectorRegistry

from observability import multiprocess
from observability.exposition import render_metrics
from observability.metrics import Metrics

# Children come from a server process without threads, which the process of the tests is not.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.observability.slots"])


def _work(pipe: Connection, directory: str, slot: int, successor: bool) -> None:  # noqa: FBT001 - pickled by position
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    multiprocess.use_slot(slot, successor=successor)
    registry = CollectorRegistry()
    metrics = Metrics(registry, model_limit=10, principal_limit=10)
    metrics.record_start(version="1", restarted=multiprocess.is_successor())
    while True:
        match pipe.recv():
            case "open":
                metrics.record_call_opened("m", stream=True)
                pipe.send(None)
            case "event":
                metrics.record_auth_event("login", "success", "")
                metrics.record_overhead("auth", 0.003)
                pipe.send(None)
            case "render":
                pipe.send(render_metrics(registry, ""))
            case _:
                return


class Worker:
    """One process in a slot."""

    def __init__(self, directory: Path, slot: int, *, successor: bool = False) -> None:
        self._pipe, far = _FORKS.Pipe()
        self._process = _FORKS.Process(target=_work, args=(far, str(directory), slot, successor))
        self._process.start()
        far.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._pipe.close()

    def do(self, what: str, times: int = 1) -> Any:
        """Have it done; what came back the last time."""
        answer = None
        for _ in range(times):
            self._pipe.send(what)
            answer = self._pipe.recv()
        return answer

    def end(self) -> None:
        """In good order."""
        self._pipe.send("end")
        self._process.join(30)
        assert self._process.exitcode == 0

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join(30)


@contextmanager
def workers(directory: Path, count: int) -> Iterator[list[Worker]]:
    """Workers in the first `count` slots."""
    with ExitStack() as stack:
        yield [stack.enter_context(Worker(directory, slot)) for slot in range(count)]
