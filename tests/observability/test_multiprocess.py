"""Values of several workers, kept by slot: sums are right across restarts and kills, and files do not pile up."""

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from observability import multiprocess
from observability.exposition import render_metrics
from tests.observability.slots import Worker, workers

EVENTS = "tollbook_auth_events_total"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared directory, which this process forgets afterwards."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "not yet")
    path = tmp_path / "metrics"
    multiprocess.prepare_directory(path)
    return path


def value(name: str, body: bytes | None = None) -> float:
    """The sum of a metric's samples, as any process sees it."""
    text = render_metrics(CollectorRegistry(), "")[0] if body is None else body
    families = text_string_to_metric_families(text.decode())
    return float(sum(sample.value for family in families for sample in family.samples if sample.name == name))


def test_every_worker_tells_the_sum_of_all(directory):
    with workers(directory, 3) as (first, second, third):
        first.do("event", 5)
        second.do("event", 7)
        for worker in (first, second, third):
            assert value(EVENTS, worker.do("render")[0]) == 12
        assert value("tollbook_overhead_seconds_count", third.do("render")[0]) == 12
        assert value("tollbook_overhead_seconds_sum", third.do("render")[0]) == pytest.approx(0.036)


def test_the_successor_in_a_slot_goes_on_counting(directory):
    with workers(directory, 2) as (first, second):
        first.do("event", 5)
        second.do("event", 1)
        first.end()
        multiprocess.release_slot(0)
        with Worker(directory, 0, successor=True) as next_one:
            next_one.do("event", 2)
            assert value(EVENTS) == 8
            assert value("tollbook_worker_restarts_total") == 1
            assert value("tollbook_overhead_seconds_count") == 8


def test_a_killed_workers_gauges_go_and_its_counters_stay(directory):
    with workers(directory, 2) as (first, second):
        first.do("event", 5)
        first.do("open", 3)
        second.do("open")
        assert value("tollbook_calls_in_flight") == value("tollbook_streams_in_flight") == 4
        first.kill()
        multiprocess.release_slot(0)
        assert value("tollbook_calls_in_flight") == value("tollbook_streams_in_flight") == 1
        assert value(EVENTS) == 5
        with Worker(directory, 0, successor=True) as next_one:
            next_one.do("open")
            assert value("tollbook_calls_in_flight") == 2


def test_the_number_of_files_does_not_grow_with_generations_of_workers(directory):
    after = []
    for generation in range(20):
        with Worker(directory, 0, successor=generation > 0) as worker:
            worker.do("event")
            worker.do("open")
            after.append({path.name for path in directory.iterdir()})
            worker.kill()
        multiprocess.release_slot(0)
    assert after[0]
    assert all(files == after[0] for files in after)
    assert value(EVENTS) == 20
    assert value("tollbook_worker_restarts_total") == 19
    assert value("tollbook_calls_in_flight") == 0


def test_no_series_is_labelled_with_a_process(directory):
    with workers(directory, 2) as (first, second):
        first.do("open")
        second.do("open")
        body = first.do("render")[0]
    samples = [sample for family in text_string_to_metric_families(body.decode()) for sample in family.samples]
    assert samples
    assert not any("pid" in sample.labels for sample in samples)
    assert value("tollbook_build_info", body) == 1


def test_preparing_empties_the_directory_and_keeps_it_from_others(directory):
    with Worker(directory, 0) as worker:
        worker.do("event")
    multiprocess.prepare_directory(directory)
    assert list(directory.iterdir()) == []
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert multiprocess.directory() == str(directory)
    assert value(EVENTS) == 0


@given(st.sets(st.integers(0, 300), max_size=50))
def test_the_lowest_free_slot_is_free_and_lowest(taken):
    slot = multiprocess.lowest_free_slot(taken)
    assert slot not in taken
    assert set(range(slot)) <= taken


def test_a_single_process_has_no_slots(monkeypatch):
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.delenv("TOLLBOOK_INTERNAL_SLOT_SUCCESSOR", raising=False)
    assert multiprocess.directory() is None
    assert not multiprocess.is_successor()
    multiprocess.release_slot(0)
