"""Label values come from bounded sets: the rest is `other`, is counted, and the books keep the real name."""

from observability.entry import Outcome, Usage
from tests.observability.kit import Desk, attributes


def call(desk: Desk, model: str, principal: str) -> None:
    made = desk.open_call(model=model, principal=principal, cost="0.5")
    made.usage = Usage(1, 1)
    made.response_model = model
    made.close(Outcome.OK, http_status=200)


def test_models_past_the_limit_share_a_series_and_the_overflow_is_told():
    desk = Desk(model_limit=2)
    for model in ("a", "b", "c", "d", "a"):
        call(desk, model, "ada")
    counted = {model: desk.total("tollbook_calls_total", model=model) for model in ("a", "b", "c", "d", "other")}
    assert counted == {"a": 2, "b": 1, "c": 0, "d": 0, "other": 2}
    assert desk.total("tollbook_label_overflow_total", label="model") > 0
    assert desk.total("tollbook_calls_in_flight") == 0
    named = {dict(labels).get("gen_ai_response_model") for _, labels in desk.samples()}
    assert named == {None, "a", "b", "other"}


def test_principals_past_the_limit_share_a_series_and_the_overflow_is_told():
    desk = Desk(principal_limit=1)
    for principal in ("ada", "bob", "cy"):
        call(desk, "m", principal)
    for name in ("tollbook_principal_tokens_total", "tollbook_principal_cost_usd_total"):
        assert desk.total(name) == desk.total(name, principal="ada") + desk.total(name, principal="other")
        assert desk.total(name, principal="other") == 2 * desk.total(name, principal="ada") > 0
    assert desk.total("tollbook_label_overflow_total", label="principal") > 0
    assert desk.total("tollbook_label_overflow_total", label="model") == 0


def test_with_a_limit_of_none_every_principal_is_other():
    desk = Desk(principal_limit=0)
    call(desk, "m", "ada")
    assert desk.total("tollbook_principal_tokens_total", principal="other") == 2


def test_the_other_books_keep_the_real_name():
    desk = Desk(model_limit=1, principal_limit=0)
    call(desk, "a", "ada")
    call(desk, "b", "bob")
    assert [(row.model, row.principal) for row in desk.entries] == [("a", "ada"), ("b", "bob")]
    assert desk.request.fields["model"] == "b"
    assert attributes(desk.exporter.get_finished_spans()[-1])["gen_ai.request.model"] == "b"


def test_a_call_counts_once_as_overflow_for_each_name_that_did_not_fit():
    """Else the counter says more about the code than about the traffic."""
    desk = Desk(model_limit=1, principal_limit=0)
    call(desk, "a", "ada")
    before = desk.total("tollbook_label_overflow_total", label="principal")
    call(desk, "a", "bob")
    assert desk.total("tollbook_label_overflow_total", label="principal") - before == 1
