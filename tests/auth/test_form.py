from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from auth.errors import InvalidRequest
from auth.form import CONTENT_TYPE, MAX_BODY_BYTES, MAX_PARAMETERS, MAX_VALUE_BYTES, parse_form, read_form
from auth.jwt import MAX_TOKEN_BYTES

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@given(st.dictionaries(texts, texts.filter(bool), max_size=MAX_PARAMETERS))
def test_what_a_client_encodes_is_what_is_read(parameters):
    assert parse_form(urlencode(parameters).encode()) == parameters


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([b"a", b"=", b"&", b"%", b"+", b"\xff", b"%ff", b"%41"])).map(b"".join)
)
def test_any_bytes_are_a_form_or_an_invalid_request(body):
    try:
        form = parse_form(body)
    except InvalidRequest:
        return
    assert all(form.values())


def test_a_parameter_without_a_value_is_left_out():
    assert parse_form(b"a=&b&c=1&&") == {"c": "1"}


@pytest.mark.parametrize("body", [b"a=1&a=1", b"a=1&a=2", b"a=1&a=", b"a=1&%61=2", b"unknown=1&unknown=2"])
def test_a_parameter_twice_is_refused(body):
    with pytest.raises(InvalidRequest, match="more than once"):
        parse_form(body)


@pytest.mark.parametrize("body", [b"a=\xff", b"a=%ff", b"a=%ed%a0%80", b"a=%c3", b"\xfe=1"])
def test_what_is_not_utf8_is_refused_rather_than_replaced(body):
    with pytest.raises(InvalidRequest, match="UTF-8"):
        parse_form(body)


def test_utf8_is_read_escaped_or_not():
    assert parse_form("a=\U0001f600".encode()) == parse_form(b"a=%F0%9F%98%80") == {"a": "\U0001f600"}


def test_the_limits_are_what_they_say():
    assert parse_form(b"a=" + b"x" * MAX_VALUE_BYTES)
    with pytest.raises(InvalidRequest, match="longer than 1024 bytes"):
        parse_form(b"a=" + b"x" * (MAX_VALUE_BYTES + 1))
    with pytest.raises(InvalidRequest, match="longer"):
        parse_form(b"a=" + b"%C3%A9" * (MAX_VALUE_BYTES // 2 + 1))
    many = [f"p{i}=1" for i in range(MAX_PARAMETERS + 1)]
    assert len(parse_form("&".join(many[1:]).encode())) == MAX_PARAMETERS
    with pytest.raises(InvalidRequest, match="too many"):
        parse_form("&".join(many).encode())


def test_a_token_may_be_as_long_as_one_that_is_accepted_anywhere():
    assert parse_form(b"token=" + b"x" * MAX_TOKEN_BYTES)["token"] == "x" * MAX_TOKEN_BYTES
    with pytest.raises(InvalidRequest, match="a token, than 8192"):
        parse_form(b"token=" + b"x" * (MAX_TOKEN_BYTES + 1))
    assert MAX_BODY_BYTES > MAX_TOKEN_BYTES + 2 * MAX_VALUE_BYTES  # with the client that sends it


async def test_a_client_that_leaves_in_the_middle_is_no_fault_of_ours():
    messages = iter([{"type": "http.request", "body": b"a=1", "more_body": True}, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    headers = [(b"content-type", CONTENT_TYPE.encode())]
    with pytest.raises(InvalidRequest, match="ended early"):
        await read_form(Request({"type": "http", "headers": headers}, receive))
