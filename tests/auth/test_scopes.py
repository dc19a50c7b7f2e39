import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.principal import Principal
from auth.scopes import DESCRIPTIONS, InvalidScopeString, Scope, format_scope, grantable, parse_scope

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


def test_a_user_can_be_given_the_scopes_of_this_service_only():
    assert grantable(["llm", "admin"]) == {"llm", "admin"}
    for bad in ([], ["llm", "lllm"]):
        with pytest.raises(InvalidScopeString, match="admin llm usage:read"):
            grantable(bad)


def test_every_scope_is_described():
    assert set(DESCRIPTIONS) == set(Scope)


def test_admin_stands_for_no_other_scope():
    principal = Principal("id", "root", frozenset({"admin"}), "access_token", 0.0)
    assert principal.has(Scope.ADMIN)
    assert not principal.has(Scope.LLM)
    assert not principal.has(Scope.USAGE_READ)
