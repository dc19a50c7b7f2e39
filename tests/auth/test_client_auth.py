import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from auth.audit import SYSTEM
from auth.client_auth import parse_basic
from auth.clients import CLIENT_CREDENTIALS, Clients
from auth.database import DatabaseUnavailable
from auth.errors import InvalidClient
from tests.auth.kit import open_token
from tests.auth.oauth_kit import FORM, basic, check_refused, granted, register

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
MACHINE = {"grant_type": CLIENT_CREDENTIALS}


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


# The header by itself


@given(texts, texts)
@example("a:b", "c:d")
@example("a b+%20", "\0\r\n\U0001f600")
def test_what_a_client_encodes_is_what_is_read(client_id, secret):
    assert parse_basic(basic(client_id, secret)["Authorization"]) == (client_id, secret)


@given(st.text(st.sampled_from("abcXYZ019._-"), max_size=64), st.text(st.sampled_from("abcXYZ019_-:"), max_size=64))
def test_ids_and_secrets_of_ours_read_the_same_from_clients_that_do_not_encode_them(client_id, secret):
    assert parse_basic(f"Basic {encoded(f'{client_id}:{secret}')}") == (client_id, secret)


headers = st.text(max_size=60) | st.binary(max_size=60).map(lambda data: f"Basic {encoded(data)}")


@given(headers | st.text(max_size=40).map("Basic {}".format))
def test_any_header_is_a_pair_or_an_invalid_client(header):
    try:
        pair = parse_basic(header)
    except InvalidClient:
        return
    assert [type(part) for part in pair] == [str, str]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic ",
        f"Bearer {encoded('a:b')}",
        f"Basic  x {encoded('a:b')}",
        f"Basic {encoded('no colon')}",
        f"Basic {encoded('a:b')[:-1]}",
        f"Basic {encoded('a:b')}\u00e9",
        f"Basic {encoded('a:b')[:2]}*{encoded('a:b')[2:]}",
        f"Basic {encoded(b'a:' + bytes([0xFF]))}",
        f"Basic {encoded('a:%ff')}",
        f"Basic {encoded('%ed%a0%80:b')}",
        f"Basic, {encoded('a:b')}",
        "Basic a:b",
    ],
)
def test_what_is_not_http_basic_is_an_invalid_client(header):
    with pytest.raises(InvalidClient):
        parse_basic(header)


def test_the_scheme_may_be_in_any_case():
    assert parse_basic(f"bASIC {encoded('a:b')}") == ("a", "b")


# Over HTTP


@pytest.fixture
async def machine(auth):
    return await register(auth, CLIENT_CREDENTIALS)


@pytest.mark.parametrize("way", ["basic", "form", "basic and the id in the form too"])
async def test_a_confidential_client_says_who_it_is_in_either_way(client, machine, way):
    sent = {"data": MACHINE} | (machine.by_basic if "basic" in way else {})
    if way == "form":
        sent["data"] = MACHINE | machine.fields
    elif "form" in way:
        sent["data"] = MACHINE | {"client_id": machine.id}
    body = granted(await client.post("/token", **sent))
    assert open_token(body["access_token"])[1]["client_id"] == machine.id


async def test_both_ways_at_once_are_an_invalid_request_even_if_they_agree(client, machine):
    for fields in (machine.fields, {"client_secret": machine.secret}, {"client_secret": "other"}):
        check_refused(await client.post("/token", data=MACHINE | fields, **machine.by_basic), "invalid_request")


async def test_a_header_and_a_form_that_name_two_clients_are_an_invalid_request(auth, client, machine):
    other = await register(auth, CLIENT_CREDENTIALS)
    answer = await client.post("/token", data=MACHINE | {"client_id": other.id}, **machine.by_basic)
    check_refused(answer, "invalid_request")


async def test_two_headers_are_an_invalid_request(client, machine):
    header = ("Authorization", machine.by_basic["headers"]["Authorization"])
    answer = await client.post("/token", data=MACHINE, headers=[header, header])
    check_refused(answer, "invalid_request")


@pytest.mark.parametrize("header", ["Bearer x", "Digest x", "Basic ?", f"Basic {encoded('no colon')}", ""])
async def test_a_header_that_is_no_use_is_an_invalid_client_and_no_login_without_one(client, ada, header):
    check_refused(await client.post("/token", data=FORM, headers={"Authorization": header}), "invalid_client", 401)


async def test_every_way_to_fail_gets_the_very_same_answer(auth, client, machine, events):
    public = await register(auth, confidential=False)
    disabled = await register(auth, CLIENT_CREDENTIALS)
    await auth.clients.update(disabled.id, disabled=True, by=SYSTEM)
    answers = [
        await client.post("/token", data=MACHINE | fields)
        for fields in (
            {},
            {"client_id": "unknown"},
            {"client_id": "unknown", "client_secret": "x"},
            {"client_id": "no\0client\r\n", "client_secret": "x"},
            {"client_id": machine.id},
            {"client_id": machine.id, "client_secret": "wrong"},
            {"client_id": machine.id, "client_secret": f"{machine.secret} "},
            {"client_secret": machine.secret},
            {"client_id": public.id, "client_secret": "x"},
            {"client_id": "tollbook"},
            {"client_id": "tollbook", "client_secret": "x"},
            disabled.fields,
        )
    ]
    for answer in answers:
        check_refused(answer, "invalid_client", 401)
        assert (answer.content, answer.headers) == (answers[0].content, answers[0].headers)
    assert [(event, result) for event, result, _ in events] == [("client_credentials", "refused")] * len(answers)
    assert {reason for _, _, reason in events} == {
        "no_client",
        "unknown_client",
        "no_secret",
        "wrong_secret",
        "disabled",
    }


async def test_a_secret_that_was_replaced_is_not_accepted(auth, client, machine):
    secret = await auth.clients.new_secret(machine.id, by=SYSTEM)
    check_refused(await client.post("/token", data=MACHINE, **machine.by_basic), "invalid_client", 401)
    granted(await client.post("/token", data=MACHINE, headers=basic(machine.id, secret)))


@pytest.mark.parametrize("way", ["form", "form with an empty secret", "basic with an empty secret"])
async def test_a_public_client_needs_its_id_alone(auth, client, ada, way):
    public = await register(auth, confidential=False)
    sent = {"data": FORM, **public.by_basic} if "basic" in way else {"data": FORM | public.fields}
    if way == "form with an empty secret":
        sent["data"]["client_secret"] = ""
    assert open_token(granted(await client.post("/token", **sent))["access_token"])[1]["client_id"] == public.id


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({}, {}),
        ({"client_id": "tollbook"}, {}),
        ({"client_id": "", "client_secret": ""}, {}),
        ({}, basic("", "")),  # what Swagger UI sends when nothing was filled in
        ({"client_id": "", "client_secret": ""}, basic("", "")),
        ({}, basic("tollbook", "")),
    ],
    ids=str,
)
async def test_without_a_client_it_is_our_own(client, ada, fields, headers):
    answer = await client.post("/token", data=FORM | fields, headers=headers)
    assert open_token(granted(answer)["access_token"])[1]["client_id"] == "tollbook"


@pytest.mark.parametrize("sent", [{"data": FORM | {"client_secret": "x"}}, {"data": FORM, "headers": basic("", "x")}])
async def test_a_secret_without_a_client_is_not_passed_over(client, ada, sent):
    check_refused(await client.post("/token", **sent), "invalid_client", 401)


async def test_an_empty_header_leaves_it_to_the_form(client, machine):
    granted(await client.post("/token", data=MACHINE | machine.fields, headers=basic("", "")))


async def test_our_own_client_can_be_switched_off(auth, client, ada, machine):
    refresh = granted(await client.post("/token", data=FORM))["refresh_token"]
    auth.default_client = False
    for form in (FORM, FORM | {"client_id": "tollbook"}, {"grant_type": "refresh_token", "refresh_token": refresh}):
        check_refused(await client.post("/token", data=form), "invalid_client", 401)
    check_refused(await client.post("/revoke", data={"token": refresh}), "invalid_client", 401)
    granted(await client.post("/token", data=MACHINE, **machine.by_basic))


@pytest.mark.parametrize(
    ("path", "form", "event"),
    [
        ("/token", MACHINE, "client_credentials"),
        ("/token", FORM, "login"),
        ("/revoke", {"token": "x"}, "revoke"),
        ("/introspect", {"token": "x"}, "introspect"),
    ],
)
async def test_a_client_that_cannot_be_looked_up_is_told_to_come_again(
    client, machine, monkeypatch, events, path, form, event
):
    async def failing(*_):
        raise DatabaseUnavailable("OperationalError")

    monkeypatch.setattr(Clients, "get", failing)
    answer = await client.post(path, data=form, **machine.by_basic)
    check_refused(answer, "temporarily_unavailable", 503)
    assert answer.headers["retry-after"] == "1"
    assert events == [(event, "error", "database")]
