"""The keys of an outside provider, over real HTTP and from a file."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from jose.utils import base64url_encode
from structlog.testing import capture_logs

import auth.jwks
from auth.jwks import InvalidKeySet, JwkSet, KeysUnavailable, read_key_set
from auth.jwt import BadSignatureError, parse, verify_signature
from tests.support.oidc import Provider, new_key, public
from tests.support.rawhttp import Exchange

ALGORITHMS = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512")
LIMIT = 256 * 1024


class Monotonic:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def rs_key():
    return new_key("RS256", kid="first")


@pytest.fixture(scope="session")
def next_key():
    return new_key("RS256", kid="second")


@pytest.fixture(scope="session")
def es_key():
    return new_key("ES256", kid="curve")


@pytest.fixture
def provider(rs_key) -> Iterator[Provider]:
    with Provider(rs_key) as provider:
        yield provider


@pytest.fixture
def monotonic():
    return Monotonic()


@pytest.fixture
async def keys(provider, monotonic) -> AsyncIterator[JwkSet]:
    keys = JwkSet(url=provider.jwks_url, file=None, algorithms=ALGORITHMS, clock=monotonic)
    yield keys
    await keys.close()


def key_set(*members: Any) -> bytes:
    return json.dumps({"keys": members}).encode()


def kids(found):
    return [each.kid for each in found]


# What is in a set


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_of_each_algorithm_verifies_what_another_library_has_signed(algorithm):
    key = new_key(algorithm)
    (found,) = read_key_set(key_set(public(key)), ALGORITHMS)
    assert (found.kid, found.algorithm) == (key.kid, algorithm)
    token = Provider(key).token()
    verify_signature(parse(token), found.key, algorithm)
    other = Provider(new_key(algorithm, kid=key.kid)).token()
    with pytest.raises(BadSignatureError):
        verify_signature(parse(other), found.key, algorithm)


def test_a_key_without_alg_and_use_is_for_every_algorithm_of_its_kind(rs_key, es_key):
    members = (public(key, alg=None, use=None) for key in (rs_key, es_key))
    found = read_key_set(key_set(*members), ALGORITHMS)
    assert {(each.kid, each.algorithm) for each in found} == {
        ("first", "RS256"),
        ("first", "RS384"),
        ("first", "RS512"),
        ("curve", "ES256"),
    }


def test_only_accepted_algorithms_get_a_key(rs_key, es_key):
    assert kids(read_key_set(key_set(public(rs_key), public(es_key)), ["ES256"])) == ["curve"]


def short_rsa(padding: int = 0) -> dict[str, Any]:
    number = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key().public_numbers().n
    modulus = bytes(padding) + number.to_bytes(128, "big")
    return {"kty": "RSA", "kid": "short", "n": base64url_encode(modulus).decode(), "e": "AQAB"}


def unusable(rs_key, es_key) -> dict[str, Any]:
    rsa_members, ec_members = public(rs_key), public(es_key)
    return {
        "a secret": {"kty": "oct", "kid": "first", "k": "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3JldA"},
        "a secret that says RS256": {"kty": "oct", "kid": "first", "alg": "RS256", "k": "c2VjcmV0IHNlY3JldCBzZWNy"},
        "Ed25519": {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        "RSA of 1024 bits": short_rsa(),
        "RSA of 1024 bits behind zeros": short_rsa(padding=128),
        "for encryption": {**rsa_members, "use": "enc"},
        "of no use": {**rsa_members, "use": None},
        "of odd use": {**rsa_members, "use": ["sig"]},
        "for another algorithm": {**rsa_members, "alg": "RSA-OAEP"},
        "PS256, which is not verified here": {**rsa_members, "alg": "PS256"},
        "HS256": {**rsa_members, "alg": "HS256"},
        "a kid that is no string": {**rsa_members, "kid": 7},
        "a kty that is no string": {**rsa_members, "kty": ["RSA"]},
        "no kty": {name: value for name, value in rsa_members.items() if name != "kty"},
        "no modulus": {name: value for name, value in rsa_members.items() if name != "n"},
        "no exponent": {name: value for name, value in rsa_members.items() if name != "e"},
        "a modulus that is a number": {**rsa_members, "n": 7},
        "a modulus of nothing": {**rsa_members, "n": ""},
        "a modulus outside ASCII": {**rsa_members, "n": "\u20ac" * 400},
        "an exponent of one": {**rsa_members, "e": "AQ"},
        "an even exponent": {**rsa_members, "e": "Ag"},
        "no curve": {name: value for name, value in ec_members.items() if name != "crv"},
        "a curve that is none": {**ec_members, "crv": "P-512"},
        "a curve for another algorithm": {**ec_members, "alg": "ES384"},
        "a point of another curve": {**ec_members, "crv": "P-384", "alg": "ES384"},
        "a point that is not on the curve": {**ec_members, "x": ec_members["y"]},
        "a point that is a list": {**ec_members, "x": [1, 2]},
        "a string": "key",
        "nothing": None,
    }


@pytest.mark.parametrize("kind", unusable(new_key(), new_key("ES256")))
def test_a_key_that_cannot_be_used_is_passed_over_and_the_others_are_not(kind, rs_key, es_key):
    stranger = unusable(rs_key, es_key)[kind]
    found = read_key_set(key_set(stranger, public(rs_key, kid="good"), stranger), ALGORITHMS)
    assert kids(found) == ["good"]


def test_of_a_private_key_that_was_published_the_public_half_is_taken(rs_key, es_key):
    members = [key.as_dict(private=True) for key in (rs_key, es_key)]
    found: list[Any] = read_key_set(key_set(*members), ALGORITHMS)
    assert kids(found) == ["first", "curve"]
    assert not any(hasattr(each.key.prepared_key, "private_bytes") for each in found)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html></html>",
        b"null",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": null}',
        b'"keys"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"keys": [' + b"1" * 5000 + b"]}",
        key_set(*[{}] * 101),
        key_set() + b" " * LIMIT,
    ],
    ids=lambda data: data[:12].decode("latin-1"),
)
def test_what_is_no_key_set_is_refused(data):
    with pytest.raises(InvalidKeySet):
        read_key_set(data, ALGORITHMS)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
numbers = st.binary(max_size=300).map(lambda data: base64url_encode(data).decode()) | anything
jwk_like = st.fixed_dictionaries(
    {},
    optional={
        "kty": st.sampled_from(["RSA", "EC", "oct", "OKP"]) | anything,
        "alg": st.sampled_from(ALGORITHMS) | anything,
        "use": st.just("sig") | anything,
        "kid": anything,
        "crv": st.sampled_from(["P-256", "P-384", "P-521"]) | anything,
        **dict.fromkeys(("n", "e", "x", "y", "k", "d"), numbers),
    },
)


@given(st.lists(jwk_like | anything, max_size=4))
def test_no_key_in_a_set_can_spoil_it(strangers):
    good = {"kty": "EC", "crv": "P-256", "kid": "good", **POINT}
    assert "good" in kids(read_key_set(key_set(*strangers, good), ALGORITHMS))


POINT = {name: value for name, value in public(new_key("ES256")).items() if name in {"x", "y"}}


@given(anything.map(json.dumps).map(str.encode) | st.binary(max_size=50))
def test_no_answer_of_a_provider_raises_anything_else(data):
    with contextlib.suppress(InvalidKeySet):
        read_key_set(data, ALGORITHMS)


# Where it may be


@pytest.mark.parametrize(
    "url",
    [
        "https://login.example/keys",
        "https://10.0.0.7:8443/keys?tenant=a",
        "http://localhost:8080/keys",
        "http://127.0.0.1/keys",
        "http://[::1]:8080/keys",
    ],
)
def test_an_address_may_be_https_or_on_this_machine(url):
    JwkSet(url=url, file=None, algorithms=["RS256"])


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example/keys",
        "http://10.0.0.7/keys",
        "http://localhost.evil.example/keys",
        "http://localhost@evil.example/keys",
        "http://127.0.0.1@evil.example/keys",
        "http://evil.example/#http://localhost/",
        "http://evil.example\\@localhost/keys",
        "https://user:password@login.example/keys",
        "https://user@login.example/keys",
        "ftp://login.example/keys",
        "file:///etc/keys",
        "//login.example/keys",
        "login.example/keys",
        "https:///keys",
        "https://[::1/keys",
        "https://login.example:99999/keys",
        "",
    ],
)
def test_an_address_that_others_could_answer_for_is_refused(url):
    with pytest.raises(ValueError, match="address of the JWK set") as caught:
        JwkSet(url=url, file=None, algorithms=["RS256"])
    assert "password@" not in str(caught.value)


def test_it_is_in_one_place(tmp_path):
    for url, file in ((None, None), ("https://login.example/keys", tmp_path)):
        with pytest.raises(ValueError, match="one of the two"):
            JwkSet(url=url, file=file, algorithms=["RS256"])


@pytest.mark.parametrize("algorithms", [[], ["HS256"], ["none"], ["RS256", "HS256"], ["EdDSA"], ["PS256"], ["rs256"]])
def test_no_other_algorithm_can_be_configured(algorithms):
    with pytest.raises(ValueError, match="RS256"):
        JwkSet(url="https://login.example/keys", file=None, algorithms=algorithms)


# Looking for a key


async def test_keys_are_found_by_name_and_algorithm(keys, provider, es_key):
    provider.keys.append(es_key)
    await keys.refresh()
    assert kids(await keys.find("first", "RS256")) == ["first"]
    assert kids(await keys.find("curve", "ES256")) == ["curve"]
    assert await keys.find("first", "RS384") == []
    assert await keys.find("curve", "RS256") == []
    assert await keys.find("FIRST", "RS256") == []
    assert len(provider.fetches) == 1


async def test_without_a_name_only_the_one_key_that_fits_is_found(keys, provider, es_key, next_key, monotonic):
    provider.keys.append(es_key)
    assert kids(await keys.find(None, "RS256")) == ["first"]
    assert kids(await keys.find(None, "ES256")) == ["curve"]
    provider.keys.append(next_key)
    monotonic.now += 10
    await keys.refresh()
    assert await keys.find(None, "RS256") == []
    assert kids(await keys.find(None, "ES256")) == ["curve"]


async def test_a_key_without_a_name_is_not_found_by_one(provider, monotonic):
    provider.keys = [new_key("RS256", kid=None)]
    keys = JwkSet(url=provider.jwks_url, file=None, algorithms=["RS256"], clock=monotonic)
    assert await keys.find("first", "RS256") == []
    assert kids(await keys.find(None, "RS256")) == [None]


async def test_of_keys_with_one_name_all_that_fit_are_found(keys, provider, es_key):
    twin = new_key("RS256", kid="first")
    namesake = new_key("ES256", kid="first")
    provider.keys += [twin, namesake, es_key]
    found = await keys.find("first", "RS256")
    assert [each.algorithm for each in found] == ["RS256", "RS256"]
    assert kids(await keys.find("first", "ES256")) == ["first"]


async def test_a_new_key_is_found_when_a_token_names_it(keys, provider, next_key, monotonic):
    await keys.refresh()
    provider.keys = [next_key]
    monotonic.now += 10
    assert kids(await keys.find("second", "RS256")) == ["second"]
    assert await keys.find("first", "RS256") == []
    assert len(provider.fetches) == 2


async def test_a_known_key_is_not_asked_for_again(keys, provider, monotonic):
    await keys.refresh()
    monotonic.now += 100_000
    for _ in range(20):
        await keys.find("first", "RS256")
    assert len(provider.fetches) == 1


async def test_what_is_known_is_another_list_only_when_the_set_is_another(keys, provider, next_key):
    await keys.refresh()
    before = keys.known
    await keys.refresh()
    assert keys.known is before
    provider.handler = FAILURES["500"]
    with capture_logs():
        await keys.refresh()
    assert keys.known is before
    provider.handler = None
    provider.keys = [next_key]
    await keys.refresh()
    assert keys.known is not before
    assert kids(keys.known) == ["second"]


async def test_a_storm_of_made_up_names_is_one_fetch(keys, provider, monotonic):
    await keys.refresh()
    monotonic.now += 10
    found = await asyncio.gather(*(keys.find(f"junk-{number}", "RS256") for number in range(100)))
    assert found == [[]] * 100
    assert len(provider.fetches) == 2


async def test_made_up_names_one_after_the_other_are_a_fetch_each_ten_seconds(keys, provider, monotonic):
    await keys.refresh()
    for _ in range(32):
        monotonic.now += 1
        await keys.find("junk", "RS256")
    assert len(provider.fetches) - 1 == 3


async def test_who_comes_while_it_reads_waits_for_the_answer(keys, provider):
    gate = Gate(provider)
    first = asyncio.create_task(keys.find("first", "RS256"))
    await gate.entered()
    late = asyncio.create_task(keys.find("first", "RS256"))
    refresh = asyncio.create_task(keys.refresh())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not late.done()
    gate.open()
    assert kids(await first) == kids(await late) == ["first"]
    await refresh
    assert len(provider.fetches) == 1


async def test_who_goes_away_does_not_take_the_answer_from_the_others(keys, provider):
    gate = Gate(provider)
    first, second = (asyncio.create_task(keys.find("first", "RS256")) for _ in range(2))
    await gate.entered()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.open()
    assert kids(await second) == ["first"]
    assert len(provider.fetches) == 1


async def test_closing_gives_up_a_look_that_hangs(keys, provider):
    gate = Gate(provider)
    before = asyncio.all_tasks()
    waiting = asyncio.create_task(keys.find("first", "RS256"))
    await gate.entered()
    await keys.close()
    assert not keys._looking()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert asyncio.all_tasks() == before
    await asyncio.to_thread(provider.fetches[0].cancelled.wait, 10)
    assert provider.fetches[0].cancelled.is_set()


class Gate:
    """Holds the provider's answer back."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._entered = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._may_go: asyncio.Future[None] | None = None
        self._provider_loop: asyncio.AbstractEventLoop | None = None
        provider.handler = self._hold

    async def _hold(self, exchange: Exchange) -> None:
        self._provider_loop = asyncio.get_running_loop()
        self._may_go = self._provider_loop.create_future()
        self._loop.call_soon_threadsafe(self._entered.set)
        await self._may_go
        await exchange.respond(200, self._provider.key_set())

    async def entered(self) -> None:
        await asyncio.wait_for(self._entered.wait(), 10)

    def open(self) -> None:
        assert self._provider_loop is not None
        assert self._may_go is not None
        self._provider_loop.call_soon_threadsafe(self._may_go.set_result, None)


# A provider that fails


def answering(status: int, body: bytes, **headers: str) -> Any:
    async def handler(exchange: Exchange) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await exchange.respond(status, body, named)

    return handler


async def cut_short(exchange: Exchange) -> None:
    await exchange.respond(200, b'{"keys": [', {"Content-Length": "1000"})
    exchange.cut()


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def not_http(exchange: Exchange) -> None:
    await exchange._write(b"220 smtp.example ESMTP\r\n\r\n")
    exchange.cut()


async def hanging(exchange: Exchange) -> None:
    await asyncio.sleep(3600)


async def trickling(exchange: Exchange) -> None:
    await exchange.open_stream()
    while True:
        await exchange.send(b" ")
        await asyncio.sleep(0.01)


async def endless(exchange: Exchange) -> None:
    await exchange.open_stream()
    while True:
        await exchange.send(b" " * 2**16)


FAILURES = {
    "404": answering(404, b'{"keys": []}'),
    "500": answering(500, b"oops"),
    "204": answering(204, b""),
    "HTML": answering(200, b"<html></html>", Content_Type="text/html"),
    "no keys": answering(200, b"{}"),
    "cut short": cut_short,
    "reset": reset,
    "not HTTP": not_http,
    "too large": answering(200, key_set() + b" " * LIMIT),
    "without an end": endless,
    "hanging": hanging,
    "trickling": trickling,
}


@contextlib.contextmanager
def impatient(monkeypatch: pytest.MonkeyPatch, failure: str) -> Iterator[None]:
    """Wait for a provider that never answers not as long as the service does."""
    with monkeypatch.context() as patch:
        if failure in {"hanging", "trickling"}:
            patch.setattr(auth.jwks, "_TIMEOUT_SECONDS", 0.3)
        yield


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_provider_that_fails_leaves_the_last_known_keys_and_is_logged_once(
    keys, provider, failure, monkeypatch, monotonic
):
    await keys.refresh()
    provider.handler = FAILURES[failure]
    with capture_logs() as logs, impatient(monkeypatch, failure):
        await keys.refresh()
        monotonic.now += 10
        assert await keys.find("second", "RS256") == []
    assert [each["event"] for each in logs] == ["key_set_unreadable"]
    assert logs[0]["known"] is True
    assert ("over 262144 bytes" in logs[0]["error"]) == (failure in {"too large", "without an end"})
    assert kids(await keys.find("first", "RS256")) == ["first"]
    provider.handler = None
    with capture_logs() as logs:
        await keys.refresh()
        await keys.refresh()
    assert [each["event"] for each in logs] == ["key_set_readable_again"]


@pytest.mark.parametrize("failure", ["500", "hanging", "no keys"])
async def test_as_long_as_no_keys_were_ever_read_that_is_said(keys, provider, failure, monkeypatch, monotonic):
    provider.handler = FAILURES[failure]
    with impatient(monkeypatch, failure):
        for _ in range(3):
            with pytest.raises(KeysUnavailable):
                await keys.find("first", "RS256")
    assert len(provider.fetches) == 1
    provider.handler = None
    monotonic.now += 10
    assert kids(await keys.find("first", "RS256")) == ["first"]


async def test_a_provider_that_is_not_there_is_a_failure_like_others(monotonic, provider):
    provider.stop()
    keys = JwkSet(url=provider.jwks_url, file=None, algorithms=ALGORITHMS, clock=monotonic)
    with capture_logs() as logs, pytest.raises(KeysUnavailable):
        await keys.find("first", "RS256")
    assert [each["event"] for each in logs] == ["key_set_unreadable"]
    assert logs[0]["known"] is False


async def test_an_empty_set_withdraws_all_keys_and_is_logged_as_odd(keys, provider, monotonic):
    await keys.refresh()
    provider.keys = []
    with capture_logs() as logs:
        await keys.refresh()
    assert await keys.find("first", "RS256") == []
    assert [(each["event"], each["log_level"]) for each in logs] == [("key_set_read", "warning")]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(keys, provider, status):
    elsewhere = provider.jwks_url.replace("/jwks", "/elsewhere")

    async def redirect(exchange: Exchange) -> None:
        if exchange.received.path == "/jwks":
            await exchange.respond(status, b"", {"Location": elsewhere})
        else:
            await exchange.respond(200, provider.key_set())

    provider.handler = redirect
    with pytest.raises(KeysUnavailable):
        await keys.find("first", "RS256")
    assert [each.path for each in provider.fetches] == ["/jwks"]


async def test_the_request_carries_nothing_of_ours_and_asks_for_no_compression(keys, provider, monkeypatch, tmp_path):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    provider.handler = answering(200, provider.key_set(), Set_Cookie="a=b")
    await keys.refresh()
    await keys.refresh()
    assert len(provider.fetches) == 2
    for fetch in provider.fetches:
        assert fetch.headers.keys() == {"host", "accept", "accept-encoding", "user-agent"}
        assert fetch.headers["accept-encoding"] == "identity"


async def test_the_largest_set_is_read(keys, provider):
    body = provider.key_set()
    provider.handler = answering(200, body + b" " * (LIMIT - len(body)))
    assert kids(await keys.find("first", "RS256")) == ["first"]


# In a file


@pytest.fixture
def file(tmp_path, provider):
    file = tmp_path / "jwks.json"
    file.write_bytes(provider.key_set())
    return file


async def test_a_file_is_read_again_when_it_changes(file, provider, next_key, monotonic):
    keys = JwkSet(url=None, file=file, algorithms=ALGORITHMS, clock=monotonic)
    await keys.refresh()
    assert kids(await keys.find("first", "RS256")) == ["first"]
    before = file.stat()
    provider.keys = [next_key]
    file.write_bytes(provider.key_set())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # a copy that keeps the time
    await keys.refresh()
    assert kids(await keys.find("second", "RS256")) == ["second"]
    assert await keys.find("first", "RS256") == []


@pytest.mark.parametrize("fault", ["missing", "half written", "too large", "a directory"])
async def test_a_file_that_cannot_be_read_leaves_the_last_known_keys(file, fault, monotonic, next_key):
    keys = JwkSet(url=None, file=file, algorithms=ALGORITHMS, clock=monotonic)
    await keys.refresh()
    good = file.read_bytes()
    file.unlink()
    if fault == "a directory":
        file.mkdir()
    elif fault != "missing":
        file.write_bytes(good[:-20] if fault == "half written" else good + b" " * LIMIT)
    with capture_logs() as logs:
        await keys.refresh()
        await keys.refresh()
    assert [each["event"] for each in logs] == ["key_set_unreadable"]
    assert kids(await keys.find("first", "RS256")) == ["first"]


async def test_a_file_that_comes_later_is_found(tmp_path, provider, monotonic):
    file = tmp_path / "later.json"
    keys = JwkSet(url=None, file=file, algorithms=ALGORITHMS, clock=monotonic)
    with pytest.raises(KeysUnavailable):
        await keys.find("first", "RS256")
    file.write_bytes(provider.key_set())
    monotonic.now += 10
    assert kids(await keys.find("first", "RS256")) == ["first"]


def test_a_file_is_looked_at_more_often_than_a_provider(tmp_path):
    assert JwkSet(url=None, file=tmp_path, algorithms=ALGORITHMS).interval_seconds == 5
    assert JwkSet(url="https://login.example/", file=None, algorithms=ALGORITHMS).interval_seconds == 300
