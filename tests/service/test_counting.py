"""Counters with several workers: exact from whichever worker answers, across kills and restarts, and nobody else's."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
import pytest

from tests.support.books import Books
from tests.support.calls import chat, open_call, read_until
from tests.support.service import RunningService
from tests.support.waiting import eventually

CALLS = 200
COUNTED = ("tollbook_calls_total", "gen_ai_client_operation_duration_seconds_count")


@pytest.fixture(scope="module")
def counted(service_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service of our own, which nobody else calls."""
    with RunningService(tmp_path_factory.mktemp("counted"), **service_options) as running:
        yield running


@contextmanager
def only(service: RunningService, worker: int) -> Iterator[None]:
    """While this lasts, one worker answers and the others stand still."""
    others = [pid for pid in service.children() if pid != worker]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)


def call_each_worker(service: RunningService, count: int, tag: str) -> None:
    """Spread calls evenly over the workers, each over a connection of its own."""
    workers = service.children()

    def call(marker: str) -> int:
        return chat(service, "ok", marker, stream=marker.endswith("0")).status_code

    for worker in workers:
        markers = [f"{tag}-{worker}-{number}" for number in range(count // len(workers))]
        with only(service, worker), ThreadPoolExecutor(8) as pool:
            assert set(pool.map(call, markers)) == {200}


def say_all_workers(service: RunningService, name: str = "tollbook_calls_total", **labels: str) -> list[float]:
    """What each of the workers says a counter is at."""
    values = []
    for worker in service.children():
        with only(service, worker):
            values.append(service.metric(name, **labels))
    return values


def kill_a_worker(service: RunningService) -> None:
    """SIGKILL to one; returns when another has taken its place."""
    workers, started = service.children(), len(service.log_lines(event="worker_started"))
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: len(service.log_lines(event="worker_started")) > started, "a worker to start", 30)
    assert len(service.children()) == len(workers)
    assert workers[0] not in service.children()


def value_files(service: RunningService) -> set[str]:
    """The files in which the workers keep their values."""
    return {
        str(path.relative_to(service.state_dir)) for path in service.state_dir.rglob("*.db") if path.stem != "tollbook"
    }


def test_200_calls_are_200_from_whichever_worker_answers(counted):
    call_each_worker(counted, CALLS, "first")
    for name in COUNTED:
        assert say_all_workers(counted, name) == [CALLS, CALLS]
    assert say_all_workers(counted, outcome="ok", model="ok") == [CALLS, CALLS]
    assert say_all_workers(counted, "http_requests_total", handler="/v1/chat/completions") == [CALLS, CALLS]


def test_a_killed_workers_calls_stay_counted(counted):
    before = counted.metric("tollbook_calls_total")
    call_each_worker(counted, 20, "before-kill")
    kill_a_worker(counted)
    call_each_worker(counted, 20, "after-kill")
    assert say_all_workers(counted) == [before + 40, before + 40]
    assert say_all_workers(counted, "tollbook_calls_in_flight") == [0, 0]


def test_calls_in_flight_in_a_killed_worker_are_not_in_flight_for_ever(counted, upstream, marker):
    with open_call(counted, "slow-chunks", marker, stream=True) as sock:
        read_until(sock, b'"content":"tick "')
        assert counted.metric("tollbook_calls_in_flight") == 1
        for _ in counted.children():
            kill_a_worker(counted)
    assert upstream.wait_request(marker).cancelled.wait(10)
    assert say_all_workers(counted, "tollbook_calls_in_flight") == [0, 0]


def test_value_files_do_not_grow_with_workers_that_come_and_go(counted):
    kill_a_worker(counted)
    call_each_worker(counted, 4, "settle")
    before = value_files(counted)
    assert before
    for round_ in range(3):
        kill_a_worker(counted)
        call_each_worker(counted, 4, f"round-{round_}")
    assert value_files(counted) == before


def test_nothing_is_lost_when_workers_are_recycled(service_options, otlp, tmp_path):
    """Each worker serves ten requests and makes room for another: counters, rows and spans of all of them are there."""
    env = {**service_options["env"], "TOLLBOOK_WORKER_MAX_REQUESTS": "10"}

    def call(marker: str) -> int:
        # A worker that leaves closes connections on which no request has come yet: clients are to try again.
        for _ in range(100):
            with suppress(httpx2.RemoteProtocolError, httpx2.ReadError):
                return chat(running, "ok", marker, stream=marker.endswith("0")).status_code
        raise AssertionError("never answered")

    with RunningService(tmp_path, **{**service_options, "env": env}) as running, ThreadPoolExecutor(4) as pool:
        markers = [f"recycled-{number}" for number in range(60)]
        assert list(pool.map(call, markers)) == [200] * 60
        assert len(running.log_lines(event="worker_started")) > 4
        books = Books(running, otlp)
        assert {books.record(marker).outcome for marker in markers} == {"ok"}
        assert running.metric("tollbook_calls_total") == 60
        assert len(value_files(running)) <= 2 * len({name.rsplit("_", 1)[0] for name in value_files(running)})


def test_no_series_names_a_process(counted):
    """One series for each pid would be one more for each worker that ever lived."""
    assert {sample.name for sample in counted.metrics() if "pid" in sample.labels} == set()


def test_two_services_on_one_machine_do_not_share(counted, service_options, tmp_path):
    before = counted.metric("tollbook_calls_total")
    with RunningService(tmp_path, **service_options) as other:
        assert say_all_workers(other) == [0, 0]
        call_each_worker(other, 4, "other")
        assert say_all_workers(other) == [4, 4]
    assert say_all_workers(counted) == [before, before]


def test_a_second_start_on_the_same_state_leaves_the_first_alone(counted, service_options, tmp_path):
    before = counted.metric("tollbook_calls_total")
    second = RunningService(tmp_path, **service_options)
    second.env["TOLLBOOK_STATE_DIR"] = str(counted.state_dir)
    try:
        with pytest.raises(RuntimeError, match="ended with"):
            second.start()
    finally:
        second.stop()
    call_each_worker(counted, 2, "still-here")
    assert say_all_workers(counted) == [before + 2, before + 2]
