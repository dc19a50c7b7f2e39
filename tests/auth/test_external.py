"""Tokens of an outside provider: what is accepted, and what they are made into."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from auth.errors import InvalidToken, TemporarilyUnavailable
from auth.external import OutsideProvider
from auth.principal import OUTSIDE, Principal
from auth.scopes import Scope
from tests.auth.kit import Clock, forge, open_token
from tests.support.oidc import OUR_AUDIENCE, PROVIDER, Provider, new_key, signer
from tests.support.waiting import eventually

LEEWAY = 5


@pytest.fixture(scope="session")
def rs_key():
    return new_key("RS256", kid="first")


@pytest.fixture(scope="session")
def next_key():
    return new_key("RS256", kid="second")


@pytest.fixture
def provider(rs_key, clock: Clock) -> Provider:
    """Makes tokens; its keys are in a file."""
    return Provider(rs_key, clock=clock)


Make = Callable[..., OutsideProvider]


@pytest.fixture
def make(provider, clock, tmp_path) -> Make:
    def make(**changes: Any) -> OutsideProvider:
        file = tmp_path / "jwks.json"
        file.write_bytes(provider.key_set())
        options: dict[str, Any] = {"jwks_file": file, "leeway_seconds": LEEWAY, "clock": clock, **changes}
        return OutsideProvider(issuer=PROVIDER, audience=OUR_AUDIENCE, **options)

    return make


@pytest.fixture
def outside(make: Make) -> OutsideProvider:
    return make()


async def refused(outside: OutsideProvider, token: str) -> str:
    """The reason a token is refused for."""
    with pytest.raises(InvalidToken) as caught:
        await outside.authenticate(token)
    return caught.value.reason


# What comes out


async def test_a_token_becomes_a_principal(outside, provider, clock):
    assert await outside.authenticate(provider.token()) == Principal(
        subject="oidc:f3a1",
        username="oidc:f3a1",
        scopes=frozenset({"llm", "usage:read"}),
        auth_method=OUTSIDE,
        expires_at=clock.now + 300,
        issued_at=clock.now,
        credential_id="token-1",
        client_id="",
        session_id="",
        team="",
    )


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"])
async def test_each_algorithm_that_is_configured_is_accepted(make, provider, algorithm):
    provider.keys = [new_key(algorithm)]
    outside = make(algorithms=[algorithm])
    assert (await outside.authenticate(provider.token())).subject == "oidc:f3a1"
    assert await refused(make(algorithms=["ES256" if algorithm != "ES256" else "RS256"]), provider.token()) == (
        "wrong_algorithm"
    )


async def test_settings_may_be_given_as_an_iterator(make, provider):
    assert await make(algorithms=iter(["RS256"])).authenticate(provider.token())


@pytest.mark.parametrize("kind", ["at+jwt", "JWT", "application/at+jwt", "AT+JWT", "jwt"])
async def test_the_type_may_be_that_of_an_access_token_or_of_any_jwt(outside, provider, kind):
    assert await outside.authenticate(provider.token(header={"typ": kind}))


async def test_a_token_may_have_no_type(outside, provider):
    token = forge({"alg": "RS256", "kid": "first"}, provider.claims(), signer(provider.keys[0]))  # joserfc adds one
    assert "typ" not in open_token(token)[0]
    assert await outside.authenticate(token)


@pytest.mark.parametrize(
    "kind", ["", "id_token", "logout+jwt", "dpop+jwt", "secevent+jwt", "application/jwt", "at+jwt "]
)
async def test_another_type_is_refused(outside, provider, kind):
    assert await refused(outside, provider.token(header={"typ": kind})) == "malformed"


async def test_without_a_kid_the_only_key_is_taken(make, provider, next_key):
    token = provider.token(header={"kid": None})
    assert await make().authenticate(token)
    provider.keys.append(next_key)
    assert await refused(make(), token) == "unknown_key"


async def test_of_keys_with_one_name_the_one_that_fits_is_taken(make, provider):
    twin = new_key("RS256", kid="first")
    stranger = new_key("RS256", kid="first")
    provider.keys.insert(0, twin)
    outside = make()
    for key in provider.keys:
        assert await outside.authenticate(provider.token(key))
    assert await refused(outside, provider.token(stranger)) == "bad_signature"


@pytest.mark.parametrize("audience", [OUR_AUDIENCE, [OUR_AUDIENCE], ["account", OUR_AUDIENCE]])
async def test_the_audience_may_be_one_of_several(outside, provider, audience):
    assert await outside.authenticate(provider.token(aud=audience))


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"aud": None}, "missing_claim"),
        ({"aud": "another"}, "wrong_audience"),
        ({"aud": []}, "wrong_audience"),
        ({"aud": ["another", OUR_AUDIENCE + "/"]}, "wrong_audience"),
        ({"aud": OUR_AUDIENCE.upper()}, "wrong_audience"),
        ({"aud": f"account {OUR_AUDIENCE}"}, "wrong_audience"),
        ({"aud": {OUR_AUDIENCE: 1}}, "wrong_audience"),
        ({"aud": [[OUR_AUDIENCE]]}, "wrong_audience"),
        ({"iss": None}, "missing_claim"),
        ({"iss": PROVIDER + "/"}, "wrong_issuer"),
        ({"iss": PROVIDER.upper()}, "wrong_issuer"),
        ({"iss": [PROVIDER]}, "malformed"),
        ({"exp": None}, "missing_claim"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": True}, "malformed"),
        ({"exp": -1}, "malformed"),
        ({"exp": 10**15}, "malformed"),
        ({"exp": float("inf")}, "malformed"),
        ({"exp": float("nan")}, "malformed"),
        ({"nbf": "soon"}, "malformed"),
        ({"iat": [1]}, "malformed"),
        ({"iat": 10**15}, "malformed"),
        ({"sub": None}, "missing_claim"),
        ({"sub": ""}, "malformed"),
        ({"sub": 7}, "malformed"),
        ({"sub": " f3a1"}, "malformed"),
        ({"sub": "f3\na1"}, "malformed"),
        ({"sub": "f3\x00a1"}, "malformed"),
        ({"sub": "f" * 129}, "malformed"),
        ({"sub": "f" * 124}, "malformed"),  # it is the username too, and longer than one by the prefix
    ],
)
async def test_a_claim_that_is_not_as_it_must_be_is_refused(outside, provider, claims, reason):
    assert await refused(outside, provider.token(**claims)) == reason


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": 1}, None),
        ({"exp": -LEEWAY + 1}, None),
        ({"exp": -LEEWAY}, "expired"),
        ({"nbf": LEEWAY}, None),
        ({"nbf": LEEWAY + 1}, "not_yet_valid"),
        ({"iat": LEEWAY}, None),
        ({"iat": LEEWAY + 1}, "not_yet_valid"),
        ({"nbf": 1000, "exp": 2000}, "not_yet_valid"),
        ({"nbf": -1000, "iat": -1000}, None),
    ],
)
async def test_times_are_compared_with_the_leeway(outside, provider, clock, claims, reason):
    token = provider.token(**{name: int(clock.now) + offset for name, offset in claims.items()})
    if reason is None:
        assert await outside.authenticate(token)
    else:
        assert await refused(outside, token) == reason


async def test_without_iat_the_time_of_issue_is_not_known(outside, provider):
    assert (await outside.authenticate(provider.token(iat=None))).issued_at == 0


# Who it is


async def test_the_name_is_that_of_the_principal_claim(make, provider):
    token = provider.token(sub="f3a1", preferred_username="Ada Lovelace")
    principal = await make(principal_claim="preferred_username").authenticate(token)
    assert (principal.username, principal.subject) == ("oidc:Ada Lovelace", "oidc:f3a1")


async def test_a_name_has_128_characters_in_all(make, provider):
    outside = make(principal_claim="name")
    assert (await outside.authenticate(provider.token(name="n" * 123))).username == "oidc:" + "n" * 123
    assert await refused(outside, provider.token(name="n" * 124)) == "malformed"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (None, "missing_claim"),
        ("", "malformed"),
        (" ada", "malformed"),
        ("ada ", "malformed"),
        ("ada\r\nX-Forged: 1", "malformed"),
        ("ada\u202egnp", "malformed"),
        ("ada\u2028", "malformed"),
        ("\x00", "malformed"),
        (["ada"], "malformed"),
        ({"name": "ada"}, "malformed"),
        (7, "malformed"),
        (True, "malformed"),
    ],
)
async def test_a_name_that_no_user_could_have_is_refused(make, provider, name, reason):
    assert await refused(make(principal_claim="name"), provider.token(name=name)) == reason


@pytest.mark.parametrize("claim", ["sub", "name", "team"])
async def test_half_a_character_is_in_no_name(make, provider, claim):
    claims = provider.claims(**{"name": "ada", claim: "a\ud83d"})  # which joserfc would not write
    token = forge({"alg": "RS256", "kid": "first"}, claims, signer(provider.keys[0]))
    assert await refused(make(principal_claim="name", team_claim="team"), token) == "malformed"


async def test_a_name_is_stored_in_the_form_that_users_names_have_but_the_subject_as_it_is(make, provider):
    principal = await make().authenticate(provider.token(sub="Jose\u0301"))
    assert (principal.username, principal.subject) == ("oidc:Jos\u00e9", "oidc:Jose\u0301")


@pytest.mark.parametrize("name", ["client:robot", "oidc:ada", "ada"])
async def test_no_name_can_be_taken_for_one_of_ours(make, provider, name):
    principal = await make(principal_claim="name").authenticate(provider.token(name=name, sub=name))
    assert principal.username == principal.subject == f"oidc:{name}"


@pytest.mark.parametrize(
    ("claims", "team"),
    [
        ({"team": "research"}, "research"),
        ({}, ""),
        ({"team": ""}, ""),
        ({"team": "Cafe\u0301"}, "Caf\u00e9"),
    ],
)
async def test_the_team_is_that_of_its_claim(make, provider, claims, team):
    assert (await make(team_claim="team").authenticate(provider.token(**claims))).team == team


@pytest.mark.parametrize("team", [["research"], {"name": "research"}, 7, "a\nb", " a", "t" * 129])
async def test_a_team_that_is_no_name_is_refused(make, provider, team):
    assert await refused(make(team_claim="team"), provider.token(team=team)) == "malformed"


async def test_no_team_is_read_where_none_is_configured(make, provider):
    assert (await make().authenticate(provider.token(team="research"))).team == ""


@pytest.mark.parametrize("jti", [None, 7, "", "a b", "a\r\nb", "\u20ac", "j" * 65, ["a"]])
async def test_a_token_without_a_plain_id_is_known_by_its_hash(outside, provider, jti):
    token = provider.token(jti=jti)
    expected = hashlib.sha256(token.encode()).hexdigest()
    assert (await outside.authenticate(token)).credential_id == expected


async def test_a_plain_id_is_taken_as_it_is(outside, provider):
    assert (await outside.authenticate(provider.token(jti="j" * 64))).credential_id == "j" * 64


# What they may


@pytest.mark.parametrize(
    ("value", "scopes"),
    [
        ("llm", {"llm"}),
        ("openid profile llm usage:read account", {"llm", "usage:read", "account"}),
        ("llm:gpt-5 llm:a/b", {"llm:gpt-5", "llm:a/b"}),
        (["llm", "usage:read"], {"llm", "usage:read"}),
        (["llm usage:read"], set()),
        (["llm", 7, None, ["usage:read"], {"account": 1}], {"llm"}),
        ("LLM llm: llm:a\\b  \u20ac", set()),
        ("", set()),
        ([], set()),
        (None, set()),
        (7, set()),
        ({"llm": True}, set()),
        ("llm  usage:read", {"llm", "usage:read"}),
    ],
)
async def test_without_a_map_scopes_are_those_we_know(outside, provider, value, scopes):
    assert (await outside.authenticate(provider.token(scope=value))).scopes == scopes


@pytest.mark.parametrize("scope", ["admin", "users:admin", "team:admin", "introspect"])
async def test_a_scope_that_administers_is_given_by_the_map_only(make, provider, scope):
    for value in (f"llm {scope}", ["llm", scope]):
        token = provider.token(scope=value)
        assert (await make().authenticate(token)).scopes == {"llm"}
        assert (await make(scope_map={"llm": "llm"}).authenticate(token)).scopes == {"llm"}
        assert (await make(scope_map={"llm": f"llm {scope}"}).authenticate(token)).scopes == {"llm", scope}
        assert (await make(scope_map={scope: scope}).authenticate(token)).scopes == {scope}


def test_every_scope_that_there_is_was_thought_of():
    harmless = {Scope.LLM, Scope.USAGE_READ, Scope.ACCOUNT}
    assert set(Scope) - harmless == {Scope.ADMIN, Scope.USERS_ADMIN, Scope.TEAM_ADMIN, Scope.INTROSPECT}


async def test_with_a_map_a_value_is_what_the_map_says_and_nothing_else(make, provider):
    outside = make(
        scope_claim="roles",
        scope_map={"ai-user": "llm usage:read", "ai-small": "llm:small", "ai-operator": "admin users:admin"},
    )
    for roles, scopes in (
        (["ai-user"], {"llm", "usage:read"}),
        (["ai-small", "ai-operator", "other"], {"llm:small", "admin", "users:admin"}),
        ("ai-user ai-small", {"llm", "usage:read", "llm:small"}),
        (["llm", "admin"], set()),
        (["AI-USER"], set()),
        (None, set()),
    ):
        assert (await outside.authenticate(provider.token(roles=roles))).scopes == scopes


@pytest.mark.parametrize("scopes", ["llm superuser", "", "llm  admin", 'a"b'])
def test_a_map_to_scopes_that_there_are_not_is_refused_and_named(make, scopes):
    with pytest.raises(ValueError, match=r"scope map.*'ai-user'"):
        make(scope_map={"ai-user": scopes})


async def test_a_claim_may_be_inside_others(make, provider):
    outside = make(
        scope_claim="realm_access.roles",
        scope_map={"ai-user": "llm"},
        principal_claim="profile.name",
        team_claim="a.b.c",
    )
    token = provider.token(
        realm_access={"roles": ["ai-user"]}, profile={"name": "ada"}, a={"b": {"c": "research"}}, scope="admin"
    )
    principal = await outside.authenticate(token)
    assert (principal.scopes, principal.username, principal.team) == ({"llm"}, "oidc:ada", "research")


@pytest.mark.parametrize("around", [{"realm_access": 7}, {"realm_access": ["roles"]}, {"realm_access": {}}, {}])
async def test_a_path_that_leads_nowhere_is_a_claim_that_is_not_there(make, provider, around):
    token = provider.token(**around)
    assert (await make(scope_claim="realm_access.roles").authenticate(token)).scopes == frozenset()
    assert await refused(make(principal_claim="realm_access.roles"), token) == "missing_claim"


async def test_a_claim_of_the_very_name_goes_before_a_path(make, provider):
    outside = make(scope_claim="https://acme.example/roles", principal_claim="acme.name")
    token = provider.token(
        **{"https://acme.example/roles": ["llm"], "acme.name": "ada", "acme": {"name": "eve"}, "scope": None}
    )
    principal = await outside.authenticate(token)
    assert (principal.scopes, principal.username) == ({"llm"}, "oidc:ada")


# Which verifier


async def test_a_token_is_the_providers_if_it_says_so(outside, provider, rs_key):
    assert outside.issued(provider.token())
    assert outside.issued(provider.token(new_key()))
    for issuer in (PROVIDER + "/", "tollbook", None, [PROVIDER], 7):
        assert not outside.issued(provider.token(iss=issuer))


@given(st.text(max_size=80))
def test_no_text_makes_the_choice_of_the_verifier_fail(text):
    outside = OutsideProvider(issuer=PROVIDER, audience=OUR_AUDIENCE, jwks_url="https://login.example/keys")
    assert not outside.issued(text)
    assert not outside.issued(f"{text}.{text}.{text}")


# Its keys


@pytest.fixture
async def remote(rs_key, clock) -> AsyncIterator[tuple[OutsideProvider, Provider]]:
    """A provider on loopback, and what verifies its tokens."""
    with Provider(rs_key, clock=clock) as provider:
        outside = OutsideProvider(
            issuer=PROVIDER, audience=OUR_AUDIENCE, jwks_url=provider.jwks_url, leeway_seconds=LEEWAY, clock=clock
        )
        await outside.start()
        yield outside, provider
        await outside.stop()


async def test_the_keys_are_read_at_the_start_and_kept(remote):
    outside, provider = remote
    assert len(provider.fetches) == 1
    for number in range(20):
        assert await outside.authenticate(provider.token(jti=str(number)))
    assert len(provider.fetches) == 1


async def test_a_token_of_a_new_key_has_the_keys_fetched_again(remote, next_key):
    outside, provider = remote
    provider.keys = [next_key]
    outside.keys._looked_at -= 10
    assert await outside.authenticate(provider.token())
    assert len(provider.fetches) == 2


async def test_a_hundred_tokens_of_made_up_keys_are_one_fetch(remote):
    outside, provider = remote
    tokens = [provider.token(header={"kid": f"junk-{number}"}) for number in range(100)]
    outside.keys._looked_at -= 10
    reasons = await asyncio.gather(*(refused(outside, token) for token in tokens))
    assert set(reasons) == {"unknown_key"}
    assert len(provider.fetches) == 2


async def test_a_token_of_another_issuer_is_no_reason_to_fetch(remote):
    outside, provider = remote
    outside.keys._looked_at -= 10
    token = provider.token(header={"kid": "junk"}, iss="https://evil.example")
    assert await refused(outside, token) == "wrong_issuer"
    assert len(provider.fetches) == 1


async def test_a_provider_that_goes_down_stops_nobody_with_a_known_key(remote, next_key):
    outside, provider = remote
    provider.stop()
    outside.keys._looked_at -= 10
    with capture_logs() as logs:
        await outside.keys.refresh()
        assert await outside.authenticate(provider.token())
        assert await refused(outside, provider.token(next_key)) == "unknown_key"
    assert [each["event"] for each in logs] == ["key_set_unreadable"]


async def test_a_provider_that_was_never_up_makes_tokens_unverifiable_for_now(rs_key, clock):
    with Provider(rs_key, clock=clock) as provider:
        url = provider.jwks_url
    outside = OutsideProvider(issuer=PROVIDER, audience=OUR_AUDIENCE, jwks_url=url, clock=clock)
    with capture_logs():
        await outside.start()
        for _ in range(3):
            with pytest.raises(TemporarilyUnavailable) as caught:
                await outside.authenticate(provider.token())
            assert caught.value.reason == "no_keys"
        await outside.stop()


async def test_the_keys_are_read_again_in_the_background(provider, next_key, clock, tmp_path, monkeypatch):
    file = tmp_path / "jwks.json"
    file.write_bytes(provider.key_set())
    monkeypatch.setattr("auth.jwks._REFRESH_FILE_SECONDS", 0.01)
    outside = OutsideProvider(issuer=PROVIDER, audience=OUR_AUDIENCE, jwks_file=file, clock=clock)
    await outside.start()
    withdrawn = provider.token()
    assert await outside.authenticate(withdrawn)
    provider.keys = [next_key]
    file.write_bytes(provider.key_set())
    deadline = time.monotonic() + 15
    while await accepted(outside, withdrawn) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert not await accepted(outside, withdrawn)
    assert await accepted(outside, provider.token())
    await outside.stop()


async def accepted(outside, token) -> bool:
    try:
        return bool(await outside.authenticate(token))
    except InvalidToken:
        return False


async def test_stopping_leaves_nothing_behind(remote):
    outside, provider = remote

    async def hanging(exchange):
        await asyncio.sleep(3600)

    provider.handler = hanging
    outside.keys._looked_at -= 10
    waiting = asyncio.create_task(outside.authenticate(provider.token(header={"kid": "junk"})))
    await asyncio.to_thread(eventually, lambda: len(provider.fetches) == 2, "the fetch")
    assert {"outside_keys", "jwk_set"} <= names_of_tasks()
    await outside.stop()
    assert not {"outside_keys", "jwk_set"} & names_of_tasks()
    await asyncio.wait([waiting])


def names_of_tasks() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks()}


# Whatever the claims


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["llm", "admin", "ada"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = ["aud", "sub", "exp", "nbf", "iat", "jti", "scope", "name", "team", "realm", "realm.roles"]
KNOWN = frozenset(Scope) - {Scope.ADMIN, Scope.USERS_ADMIN, Scope.TEAM_ADMIN, Scope.INTROSPECT}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=10), anything, max_size=4))
async def test_any_claims_give_a_principal_or_a_refusal(es_setup, changes):
    outside, provider = es_setup
    (key,) = provider.keys
    claims = {**provider.claims(name="ada"), **changes}
    try:
        principal = await outside.authenticate(forge({"alg": "ES256", "kid": "curve"}, claims, signer(key)))
    except InvalidToken:
        return
    assert principal.username.startswith("oidc:")
    assert principal.subject.startswith("oidc:")
    assert len(principal.username) <= 128
    assert 1 <= len(principal.credential_id) <= 64
    assert all(scope in KNOWN or scope.startswith("llm:") for scope in principal.scopes)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "jwk", "x"]), anything, max_size=4))
async def test_any_header_gives_a_principal_or_a_refusal(es_setup, header):
    outside, provider = es_setup
    (key,) = provider.keys
    token = forge({"alg": "ES256", "kid": "curve", **header}, provider.claims(name="ada"), signer(key))
    with contextlib.suppress(InvalidToken):
        assert (await outside.authenticate(token)).subject == "oidc:f3a1"


@pytest.fixture
def es_setup(make, provider) -> tuple[OutsideProvider, Provider]:
    """With a key that signs fast."""
    provider.keys = [new_key("ES256", kid="curve")]
    return make(principal_claim="name", team_claim="team", scope_claim="realm.roles"), provider
