"""SIGTERM: streams may finish within the grace period; what is cut is told, and is in the books with all else."""

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.support.books import Books
from tests.support.calls import chat, open_call, read_until
from tests.support.scripts import BRIEF_CHUNKS, SLOW_CHUNKS
from tests.support.service import RunningService


def with_grace(options: dict[str, Any], seconds: int) -> dict[str, Any]:
    """Options of a service that exports its spans at its end and, the first minute, not before."""
    env = {"TOLLBOOK_GRACEFUL_TIMEOUT_SECONDS": str(seconds), "OTEL_BSP_SCHEDULE_DELAY": "60000"}
    return {**options, "env": {**options["env"], **env}}


@pytest.fixture
def patient(service_options, tmp_path):
    """A service with more grace than `brief-chunks` takes."""
    with RunningService(tmp_path, **with_grace(service_options, 20)) as running:
        yield running


@pytest.fixture
def hasty(service_options, tmp_path):
    """A service with much less grace than `slow-chunks` takes."""
    with RunningService(tmp_path, **with_grace(service_options, 1)) as running:
        yield running


def test_a_stream_may_finish(patient, otlp, upstream, marker):
    with open_call(patient, "brief-chunks", marker, stream=True) as sock:
        read_until(sock, b'"content":"tick "')
        patient.signal(signal.SIGTERM)
        rest = read_until(sock, b"data: [DONE]")
    assert upstream.wait_request(marker).events_sent > BRIEF_CHUNKS
    assert b"error" not in rest
    assert patient.wait() == 0
    assert Books(patient, otlp).record(marker).outcome == "ok"


def test_a_whole_answer_may_finish(patient, otlp, upstream, marker):
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(chat, patient, "slow-first", marker)
        upstream.wait_request(marker)
        patient.signal(signal.SIGTERM)
        assert answer.result().status_code == 200
    assert patient.wait() == 0
    assert Books(patient, otlp).record(marker).outcome == "ok"


def test_a_stream_longer_than_the_grace_is_ended_and_booked(hasty, otlp, upstream, marker):
    with open_call(hasty, "slow-chunks", marker, stream=True) as sock:
        read_until(sock, b'"content":"tick "', 3)
        hasty.signal(signal.SIGTERM)
        rest = b""
        while piece := sock.recv(65536):
            rest += piece
    received = upstream.wait_request(marker)
    assert received.cancelled.wait(10)
    assert received.events_sent < SLOW_CHUNKS
    assert b"[DONE]" not in rest
    assert b'"error"' in rest
    hasty.wait()
    record = Books(hasty, otlp).record(marker)
    assert (record.outcome, record.row["usage_source"]) == ("cancelled_shutdown", "partial")


def test_calls_of_just_before_the_end_are_in_the_ledger_and_in_the_spans(patient, otlp, marker):
    for number in range(20):
        chat(patient, "ok", f"{marker}-{number}")
    assert patient.stop() == 0
    books = Books(patient, otlp)
    assert [books.record(f"{marker}-{number}").outcome for number in range(20)] == ["ok"] * 20


def test_closed_to_newcomers_while_the_last_stream_finishes(patient, marker):
    with open_call(patient, "brief-chunks", marker, stream=True) as sock:
        read_until(sock, b'"content":"tick "')
        patient.signal(signal.SIGTERM)
        patient.wait_stopping()
        read_until(sock, b"data: [DONE]")
    assert patient.wait() == 0


def test_draining_wants_no_traffic_but_serves_what_comes(service, marker):
    """A load balancer reads /readyz; what it still sends meanwhile is answered."""

    def said(path: str) -> set[int]:
        return {httpx2.get(service.base_url + path).status_code for _ in range(10)}

    assert (said("/livez"), said("/readyz")) == ({200}, {200})
    drain = service.state_dir / "draining"
    drain.touch()
    try:
        assert (said("/livez"), said("/readyz")) == ({200}, {503})
        assert chat(service, "ok", marker).status_code == 200
    finally:
        drain.unlink()
    assert said("/readyz") == {200}


def test_users_and_history_outlive_a_restart(service_options, otlp, tmp_path, marker):
    with RunningService(tmp_path, **service_options) as running:
        chat(running, "ok", f"{marker}-1")
        token = running.token()
    with RunningService(tmp_path, **service_options) as again:
        answer = httpx2.get(f"{again.base_url}/users/me", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200
        chat(again, "ok", f"{marker}-2")
        assert again.metric("tollbook_calls_total") == 1
    books = Books(again, otlp)
    assert [len(books.rows(f"{marker}-{number}")) for number in (1, 2)] == [1, 1]
