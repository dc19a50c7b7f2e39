"""The pages say what is so: each table of names is compared with the code, and each link leads somewhere."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import typer
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware

from docs.write_configuration import PAGE, render
from observability.attempt import AttemptResult
from observability.entry import Entry, Outcome, UsageSource
from observability.ledger.table import ledger
from observability.metrics import Metrics
from service.app import create_app
from service.cli import app as cli
from service.settings import Settings, all_fields
from tests.support.books import Books, Record
from tests.support.calls import chat
from tests.support.service import OUTSIDE, ROOT, RunningService

NOT_OURS = {"build", "dist", "node_modules", "var"}
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part in NOT_OURS or part.startswith(".") for part in path.relative_to(ROOT).parts)
)
README = ROOT / "README.md"
API = ROOT / "docs" / "api.md"
ADMIN_API = ROOT / "docs" / "admin-api.md"
TELEMETRY = ROOT / "docs" / "telemetry.md"
CODE_BLOCK = re.compile(r"^( *)```.*?^\1```$|^    .*?$", re.MULTILINE | re.DOTALL)


def table(page: Path, first_column: str) -> list[list[str]]:
    """The rows of every table of a page whose first column has this title."""
    found: list[list[str]] = []
    title = None
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            title = None
        elif title is None:
            title = cells[0]
        elif title == first_column and not set(cells[0]) <= {"-", ":"}:
            found.append(cells)
    assert found, f"{page} has no table of {first_column}"
    return found


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def names(page: Path, first_column: str) -> list[str]:
    """What the first column of a table says, which is one name a row."""
    return [name for row in table(page, first_column) for name in code(row[0])]


# Settings, commands, make targets


def test_configuration_is_what_make_docs_writes():
    assert PAGE.read_text() == render(), "run: make docs"


def test_every_setting_is_documented():
    options = ["TOLLBOOK_URL", "TOLLBOOK_USERNAME", "TOLLBOOK_PASSWORD", "TOLLBOOK_NEW_PASSWORD"]
    assert sorted(names(PAGE, "variable")) == sorted([*(name for name, _ in all_fields()), *options])
    assert [name for name, field in all_fields() if not field.description] == []


def test_every_command_is_in_the_readme_and_no_other():
    def walk(command: Any, path: str) -> Iterator[str]:
        for name, inner in getattr(command, "commands", {}).items():
            if hasattr(inner, "commands"):
                yield from walk(inner, f"{path} {name}")
            else:
                yield f"{path} {name}"

    listed = re.findall(r"^    (tollbook(?: [a-z][a-z-]*)+)", README.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(walk(typer.main.get_command(cli), "tollbook"))


def test_every_make_target_is_in_contributing_and_no_other():
    targets = re.findall(r"^([a-z0-9-]+):.*?## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(names(ROOT / "CONTRIBUTING.md", "target")) == sorted(f"make {target}" for target in targets)


# The API


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    """The application as it is by default, under no settings of whoever runs the tests. It is never started."""
    directory = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(OUTSIDE)]:
            patch.delenv(name)
        patch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
        patch.chdir(directory)  # a `.env` is read from where one stands
        patch.setattr("service.app.configure_logging", lambda *_: None)
        yield create_app(Settings(openai_base_url="http://127.0.0.1:9/v1", state_dir=directory))


def endpoints(routes: Iterable[Any]) -> Iterator[str]:
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from endpoints(included.routes)
        for method in getattr(route, "methods", None) or ():
            if method != "HEAD" and route.path != "/docs/oauth2-redirect":  # a part of /docs
                yield f"{method} {route.path.replace(':path}', '}')}"


def test_every_endpoint_is_in_the_readme_or_the_page_of_the_admin_api_and_no_other(app):
    listed = names(README, "endpoint") + names(ADMIN_API, "endpoint")
    assert sorted(listed) == sorted(endpoints(app.routes))
    assert {f"{method.upper()} {path}" for path, item in app.openapi()["paths"].items() for method in item} < {*listed}


def test_every_endpoint_has_a_section_with_an_example(app):
    parts = re.split(r"^## `(.+)`$", API.read_text(), flags=re.MULTILINE)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert sorted(sections) == sorted({*endpoints(app.routes)} - {*names(ADMIN_API, "endpoint")})
    pages = ("GET /docs", "GET /redoc", "GET /openapi.json")
    assert [name for name, text in sections.items() if name not in pages and "    curl " not in text] == []


def test_the_exception_of_each_status_is_the_one_the_sdk_raises(app):
    documented = {int(row[0]): code(row[3]) for row in table(API, "status") if len(row) > 3}
    client = openai.OpenAI(api_key="none")
    for status, exception in documented.items():
        response = httpx2.Response(status, request=httpx2.Request("POST", "http://127.0.0.1:9"))
        raised = client._make_status_error("", body={}, response=response)
        assert exception == [type(raised).__name__], status
    declared = {
        int(status) for item in app.openapi()["paths"].values() for one in item.values() for status in one["responses"]
    }
    assert declared - {200, 201, 204} <= documented.keys()


# Telemetry


def test_every_metric_is_documented_with_its_type_and_labels():
    registry = CollectorRegistry()
    Metrics(registry, model_limit=1, principal_limit=1)
    PrometheusInstrumentatorMiddleware(FastAPI(), registry=registry)
    instruments: list[Any] = list(registry._collector_to_names)
    made = {
        each._name + ("_total" if each._type == "counter" else ""): (each._type, sorted(each._labelnames))
        for each in instruments
    }
    documented = {code(name)[0]: (kind, sorted(code(labels))) for name, kind, labels in table(TELEMETRY, "name")}
    assert documented == made


@pytest.mark.parametrize(
    ("title", "words"), [("outcome", Outcome), ("usage_source", UsageSource), ("result", AttemptResult)]
)
def test_every_word_of_a_closed_set_is_documented(title, words):
    assert sorted(names(TELEMETRY, title)) == sorted(words)


def test_every_column_of_the_ledger_is_documented():
    assert names(TELEMETRY, "column") == list(ledger.columns.keys()) == [field.name for field in fields(Entry)]


@pytest.fixture(scope="module")
def records(service: RunningService, books: Books) -> list[Record]:
    """Calls that have, among them, all that can be said of one."""
    calls: dict[str, dict[str, Any]] = {
        "tools": {},
        "stream-cached-reasoning": {"stream": True},
        "flaky": {},
        "error-500": {},
    }
    for model, more in calls.items():
        chat(service, model, f"docs-{model}", **more)
    return [books.record(f"docs-{model}") for model in calls]


def test_every_field_of_the_log_line_is_documented(records):
    documented = set(names(TELEMETRY, "field"))
    assert [record.line.keys() ^ documented for record in records] == [set()] * len(records)


def test_every_attribute_of_our_spans_is_documented(records, otlp):
    ours = [
        span for record in records for span in otlp.spans(trace_id=record.span.trace_id) if span.scope == "tollbook"
    ]
    assert {span.kind for span in ours} == {"INTERNAL", "CLIENT"}
    assert {name for span in ours for name in span.attributes} == set(names(TELEMETRY, "attribute"))


# Links


def slug(heading: str) -> str:
    """As the common hosts make an anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    text = CODE_BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", CODE_BLOCK.sub("", there.read_text()), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_every_decision_is_listed_in_the_architecture():
    listed = re.findall(r"\]\(adr/([^)]+)\)", (ROOT / "docs" / "architecture.md").read_text())
    assert listed == [path.name for path in sorted((ROOT / "docs" / "adr").glob("*.md"))]
