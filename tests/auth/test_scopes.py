import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.principal import Principal
from auth.scopes import (
    DESCRIPTIONS,
    InvalidScopeString,
    Scope,
    format_scope,
    grantable,
    is_model_scope,
    model_scope,
    narrow,
    parse_scope,
)

GRAMMAR = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+( [\x21\x23-\x5b\x5d-\x7e]+)*")
scope_tokens = st.text(st.sampled_from([chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"\\']), min_size=1)


@given(st.text() | st.text(st.sampled_from('ab: \t\n\0"\\é')))
def test_a_string_is_parsed_exactly_when_it_follows_the_grammar(text):
    if text == "" or GRAMMAR.fullmatch(text):
        assert parse_scope(text) == (frozenset(text.split(" ")) if text else frozenset())
    else:
        with pytest.raises(InvalidScopeString):
            parse_scope(text)


@given(st.frozensets(scope_tokens))
def test_what_is_written_is_read_back(scopes):
    assert parse_scope(format_scope(scopes)) == scopes


def test_order_and_repetition_do_not_matter():
    assert parse_scope("usage:read llm llm") == parse_scope("llm usage:read")
    assert format_scope(["usage:read", "llm", "llm"]) == "llm usage:read"


def test_a_user_can_be_given_the_scopes_of_this_service_and_of_models_only():
    assert grantable(["llm", "admin", "llm:gpt-5"]) == {"llm", "admin", "llm:gpt-5"}
    for bad in ([], ["llm", "lllm"], ["llm:"], ["llm:a b"], ["llm:\n"], ["usage:write"]):
        with pytest.raises(InvalidScopeString, match=r"admin .* llm .* usage:read .* or llm:<model>"):
            grantable(bad)


@pytest.mark.parametrize("model", ["gpt-5", "acme/large:v1", 'with "quotes" and \\', "größe", "a b", "100%"])
def test_the_scope_of_any_model_is_a_scope_token_and_no_other_model_s(model):
    scope = model_scope(model)
    assert grantable([scope]) == parse_scope(scope) == {scope}
    assert is_model_scope(scope)
    assert scope != model_scope(model + "%")
    principal = Principal("id", "ada", frozenset({scope}), "access_token", 0.0)
    assert (principal.may_call(model), principal.may_call(model + "x"), principal.calls_models) == (True, False, True)


@pytest.mark.parametrize(
    ("asked", "held", "both"),
    [
        ("llm usage:read", "llm", "llm"),
        ("llm:a llm:b", "llm", "llm:a llm:b"),
        ("llm", "llm:a usage:read", "llm:a"),
        ("llm:a llm:b", "llm:b llm:c", "llm:b"),
        ("llm:a", "usage:read", ""),
        ("admin", "users:admin", ""),
    ],
)
def test_narrowing_gives_what_both_have_and_a_model_to_who_may_call_all(asked, held, both):
    assert narrow(parse_scope(asked), parse_scope(held)) == parse_scope(both)


def test_every_scope_is_described():
    assert set(DESCRIPTIONS) == set(Scope)


def test_admin_stands_for_no_other_scope():
    principal = Principal("id", "root", frozenset({"admin"}), "access_token", 0.0)
    assert principal.has(Scope.ADMIN)
    assert not principal.has(Scope.LLM)
    assert not principal.has(Scope.USAGE_READ)
