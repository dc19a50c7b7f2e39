"""Nothing that a client can put into a value makes a line of its own, or speaks to the terminal."""

import json
import logging
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observability.logging import get_logger

FORGED = '{"event":"login_succeeded","principal":"root"}'
NASTY = [
    f"ada\n{FORGED}",
    f"ada\r{FORGED}",
    f"ada\r\n{FORGED}",
    "ada\0",
    f"ada\u2028{FORGED}",
    f"ada\u2029{FORGED}",
    f"ada\x85{FORGED}",
    f"ada\x0b{FORGED}",
    f"ada\x1c{FORGED}",
    "\x1b[2J\x1b[1;1Hada",
    "\x1b]0;title\x07ada",
    "\x9b31mada",
    "ada\x7f\x08\x08\x08",
    'ada","event":"login_succeeded',
    "ada\ud800",  # JSON of a client can hold half of a surrogate pair
]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")  # all but the end of a line


def by_keyword(text: str) -> None:
    get_logger("service.room").info("event", name=text)


def inside_a_value(text: str) -> None:
    get_logger("service.room").info("event", names=[text], more={"name": text, text: 1})


def in_a_message(text: str) -> None:
    logging.getLogger("some.library").warning("hello %s", text)


def in_a_message_of_the_server(text: str) -> None:
    logging.getLogger("uvicorn.error").warning(f"hello {text}")  # noqa: G004 - it formats so itself


WAYS = [by_keyword, inside_a_value, in_a_message, in_a_message_of_the_server]


def raised(text: str) -> None:
    """The way an exception takes its text along."""

    def refuse() -> None:
        raise ValueError(text)

    try:
        refuse()
    except ValueError:
        get_logger("service.room").exception("event")


@pytest.mark.parametrize("way", [*WAYS, raised])
@pytest.mark.parametrize("text", NASTY)
def test_json_is_one_line_and_holds_the_very_text(logged, way, text):
    way(text)
    (line,) = logged().splitlines()  # at every boundary that any reader may take for one
    assert not CONTROL.search(line)
    found = json.loads(line)
    assert found["event"] == ("log" if "message" in found else "event")
    assert "principal" not in found
    said = found.get("name") or found.get("message") or found.get("exception") or found["names"][0]
    assert said.endswith(text)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", NASTY)
def test_pretty_is_one_line_without_a_control_character(pipeline, capsys, way, text):
    pipeline.configure("pretty")
    way(text)
    (line,) = pipeline.read().splitlines()
    assert not CONTROL.search(line)
    assert "ada" in line
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", NASTY)
def test_a_pretty_exception_keeps_its_text_to_itself(pipeline, capsys, text):
    pipeline.configure("pretty")
    raised(text)
    written = pipeline.read()
    assert "ValueError" in written
    assert not CONTROL.search(written)
    assert not any(line.startswith((FORGED, "ada")) for line in written.splitlines())
    assert capsys.readouterr().err == ""


def test_a_pretty_exception_does_not_show_local_variables(pipeline):
    """They are passwords, tokens, prompts and answers."""
    pipeline.configure("pretty")
    secret = "hunter".upper()  # so that no line of the source that is shown holds it

    def log_in(password: str) -> None:
        raise ValueError(len(password))

    try:
        log_in(secret)
    except ValueError:
        get_logger("service.room").exception("event")
    written = pipeline.read()
    assert "ValueError" in written
    assert secret not in written


@given(st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_stays_on_its_line_and_comes_back_whole(logged, text):
    logged()
    by_keyword(text)
    (line,) = logged().splitlines()
    assert json.loads(line)["name"] == text
