"""/metrics in the format that the scraper asks for."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from observability.entry import Outcome, Usage
from observability.exposition import render_metrics

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.fixture(autouse=True)
def counted(desk, monkeypatch):
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    call = desk.open_call(cost="0.5")
    call.record_chunks(2, 2)
    call.usage = Usage(7, 5)
    call.close(Outcome.OK, http_status=200)


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain", "text/plain;version=0.0.4", "text/html"])
def test_text_unless_openmetrics_is_asked_for(desk, accept):
    body, content_type = render_metrics(desk.registry, accept)
    assert content_type.startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in parse_text(body.decode())}
    assert {"tollbook_calls", "tollbook_tokens", "gen_ai_client_operation_duration_seconds"} <= set(families)
    assert families["tollbook_calls"].type == "counter"


@pytest.mark.parametrize("accept", [PROMETHEUS, "application/openmetrics-text; version=1.0.0"])
def test_openmetrics_when_it_is_asked_for(desk, accept):
    body, content_type = render_metrics(desk.registry, accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert body.endswith(b"# EOF\n")
    families = {family.name: family for family in parse_openmetrics(body.decode())}
    assert families["tollbook_calls"].type == "counter"
    assert families["gen_ai_client_token_usage"].type == "histogram"


def test_both_formats_say_the_same(desk):
    def values(families):
        found = (sample for family in families for sample in family.samples)
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for s in found if not s.name.endswith("_created")}

    text = values(parse_text(render_metrics(desk.registry, "")[0].decode()))
    assert values(parse_openmetrics(render_metrics(desk.registry, PROMETHEUS)[0].decode())) == text


def test_every_name_of_the_contract_is_there_from_the_start(desk):
    names = {family.name for family in desk.registry.collect()}
    contract = {
        "gen_ai_client_operation_duration_seconds",
        "gen_ai_client_token_usage",
        "gen_ai_client_operation_time_to_first_chunk_seconds",
        "gen_ai_client_operation_time_per_output_chunk_seconds",
        "tollbook_calls",
        "tollbook_tokens",
        "tollbook_cost_usd",
        "tollbook_overhead_seconds",
        "tollbook_calls_in_flight",
        "tollbook_streams_in_flight",
        "tollbook_stream_stalls",
        "tollbook_upstream_attempts",
        "tollbook_auth_events",
        "tollbook_principal_cost_usd",
        "tollbook_principal_tokens",
        "tollbook_label_overflow",
        "tollbook_ledger_lag_seconds",
        "tollbook_worker_restarts",
        "tollbook_event_loop_lag_seconds",
        "tollbook_build_info",
    }
    assert contract <= names
