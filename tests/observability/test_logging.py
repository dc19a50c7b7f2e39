"""One pipeline for every logger of the process; one JSON object a line."""

import logging
import warnings

import pytest
from opentelemetry.sdk.trace import TracerProvider

from observability.logging import get_logger
from tests.observability.kit import json_lines


def test_an_event_is_one_line_with_what_a_person_looks_for_first(logged):
    get_logger("service.room").info("something_happened", count=3, name="ada")
    (line,) = json_lines(logged())
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line["timestamp"].endswith("Z")
    assert {name: line[name] for name in ("level", "event", "logger", "count", "name")} == {
        "level": "info",
        "event": "something_happened",
        "logger": "service.room",
        "count": 3,
        "name": "ada",
    }


def test_lines_of_libraries_go_through_with_their_sentence_as_message(logged):
    logging.getLogger("some.library").warning("it is %s o'clock", 12)
    (line,) = json_lines(logged())
    assert (line["event"], line["logger"], line["level"]) == ("log", "some.library", "warning")
    assert line["message"] == "it is 12 o'clock"


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn.error", "uvicorn.asgi", "gunicorn.error", "gunicorn.access"])
def test_loggers_that_a_server_set_up_for_itself_go_through_once(pipeline, capsys, name):
    logger = logging.getLogger(name)
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)
    pipeline.configure()
    logger.info("Booting worker with pid: %s", 12)
    (line,) = json_lines(pipeline.read())
    assert (line["logger"], line["message"]) == (name, "Booting worker with pid: 12")
    assert capsys.readouterr().err == ""


def test_the_access_log_of_uvicorn_is_silent_because_the_canonical_line_stands_for_it(logged):
    logging.getLogger("uvicorn.access").info('127.0.0.1 - "GET / HTTP/1.1" 200')
    assert logged() == ""


@pytest.mark.parametrize("level", ["debug", "info"])
@pytest.mark.parametrize("name", ["aiosqlite", "openai", "sqlalchemy.engine", "some.library"])
def test_libraries_are_heard_from_warning_on_because_below_they_may_write_what_they_handle(pipeline, name, level):
    pipeline.configure("json", level)
    logger = logging.getLogger(name)
    logger.debug("INSERT ... '$argon2id$...'")
    logger.info("chatter")
    logger.warning("trouble")
    assert [line["message"] for line in json_lines(pipeline.read())] == ["trouble"]


def test_an_exception_is_in_the_one_line_of_its_event(logged):
    try:
        int("not\na number")
    except ValueError:
        get_logger("service.room").exception("it_failed", step=1)
        logging.getLogger("some.library").exception("it failed too")
    ours, theirs = json_lines(logged())
    assert (ours["event"], ours["step"], ours["level"]) == ("it_failed", 1, "error")
    assert ours["exception"].startswith("Traceback")
    assert ours["exception"].endswith(r"ValueError: invalid literal for int() with base 10: 'not\na number'")
    assert theirs["exception"].endswith(r"ValueError: invalid literal for int() with base 10: 'not\na number'")


def test_warnings_of_python_go_through(logged):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = json_lines(logged())
    assert line["logger"] == "py.warnings"
    assert "DeprecationWarning: old" in line["message"]


def test_a_line_written_inside_a_span_says_which(logged):
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("work") as span:
        get_logger("service.room").info("inside")
        logging.getLogger("some.library").warning("inside")
    get_logger("service.room").info("outside")
    *inside, outside = json_lines(logged())
    context = span.get_span_context()
    for line in inside:
        assert (line["trace_id"], line["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert not {"trace_id", "span_id"} & set(outside)


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_nothing_below_the_level_is_written(pipeline, level, heard):
    pipeline.configure("json", level)
    for name in ("debug", "info", "warning", "error"):
        getattr(get_logger("service.room"), name)("event")
        getattr(logging.getLogger("uvicorn.error"), name)("event")
    assert [line["level"] for line in json_lines(pipeline.read())] == [each for each in heard for _ in "12"]


def test_setting_it_up_again_does_not_write_twice(pipeline):
    for _ in range(3):
        pipeline.configure()
    get_logger("service.room").info("once")
    assert len(json_lines(pipeline.read())) == 1


def test_a_value_of_any_kind_can_be_logged(logged):
    class Odd:
        def __str__(self) -> str:
            return "odd"

    get_logger("service.room").info("event", odd=Odd(), several={"a": (1, None)}, raw=b"\xff")
    (line,) = json_lines(logged())
    assert (line["odd"], line["several"], line["raw"]) == ("odd", {"a": [1, None]}, "b'\\xff'")


def test_the_pretty_format_says_the_same_for_a_person(pipeline):
    pipeline.configure("pretty")
    get_logger("service.room").info("something_happened", count=3)
    logging.getLogger("some.library").warning("it is late")
    ours, theirs = pipeline.read().splitlines()
    assert "something_happened" in ours
    assert "count=3" in ours
    assert "it is late" in theirs
    assert "some.library" in theirs
