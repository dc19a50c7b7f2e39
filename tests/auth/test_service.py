import pytest
from jose.backends import ECKey

from auth.errors import InvalidToken
from auth.principal import Principal
from tests.auth.kit import LEEWAY_SECONDS, TTL_SECONDS, USERNAME


@pytest.fixture
def signatures(monkeypatch):
    """How many signatures were checked."""
    checked = []
    real = ECKey.verify

    def counting(self, *args):
        checked.append(args)
        return real(self, *args)

    monkeypatch.setattr(ECKey, "verify", counting)
    return checked


@pytest.fixture
def token(tokens):
    return tokens.issue("id-1", USERNAME, ["llm"]).access_token


def test_a_token_belongs_to_who_it_was_issued_to(auth, token, clock, events):
    assert auth.authenticate(token) == Principal(
        "id-1", USERNAME, frozenset({"llm"}), "access_token", clock.now + TTL_SECONDS
    )
    assert events == []


def test_a_signature_is_checked_once_a_token(auth, token, signatures):
    first = auth.authenticate(token)
    assert auth.authenticate(token) is first
    assert len(signatures) == 1


def test_a_cached_token_expires_when_it_would_have_otherwise(auth, token, tokens, clock, events):
    auth.authenticate(token)
    clock.now += TTL_SECONDS + LEEWAY_SECONDS - 1
    auth.authenticate(token)
    clock.now += 1
    for _ in range(2):
        with pytest.raises(InvalidToken, match="has expired"):
            auth.authenticate(token)
    assert events == [("authenticate", "refused", "expired")] * 2


def test_a_refused_token_is_refused_again_and_not_cached(auth, token, signatures, events):
    changed = token[:-4] + "AAAA"
    for _ in range(2):
        with pytest.raises(InvalidToken):
            auth.authenticate(changed)
    assert events == [("authenticate", "refused", "bad_signature")] * 2
    assert len(signatures) == 2


async def test_a_disabled_user_is_refused_with_a_live_cached_token(auth, ada, tokens, users, events):
    token = tokens.issue(ada.id, USERNAME, ["llm"]).access_token
    auth.authenticate(token)
    await users.set_disabled(USERNAME, disabled=True)
    await auth.disabled.refresh()
    with pytest.raises(InvalidToken) as caught:
        auth.authenticate(token)
    assert caught.value.description == "The access token is not valid."
    assert events == [("authenticate", "refused", "disabled")]
    await users.set_disabled(USERNAME, disabled=False)
    await auth.disabled.refresh()
    assert auth.authenticate(token)


async def test_a_disabled_user_is_refused_with_a_token_never_seen_before(auth, ada, tokens, users):
    await users.set_disabled(USERNAME, disabled=True)
    await auth.disabled.refresh()
    for _ in range(2):
        with pytest.raises(InvalidToken):
            auth.authenticate(tokens.issue(ada.id, USERNAME, ["llm"]).access_token)


def test_the_cache_is_bounded_and_drops_the_least_recently_used(auth, tokens, signatures, monkeypatch):
    monkeypatch.setattr("auth.service.MAX_CACHED_TOKENS", 3)
    a, b, c, d = (tokens.issue(f"id-{n}", USERNAME, ["llm"]).access_token for n in range(4))
    for token in (a, b, c, a, d):  # b is the one not used for longest
        auth.authenticate(token)
    assert len(auth._verified) == 3
    signatures.clear()
    for token in (a, c, d):
        auth.authenticate(token)
    assert signatures == []
    auth.authenticate(b)
    assert len(signatures) == 1


def test_junk_does_not_push_good_tokens_out(auth, token, signatures, monkeypatch):
    monkeypatch.setattr("auth.service.MAX_CACHED_TOKENS", 1)
    auth.authenticate(token)
    for n in range(5):
        with pytest.raises(InvalidToken):
            auth.authenticate(f"{token}{n}")
    signatures.clear()
    auth.authenticate(token)
    assert signatures == []


def test_tokens_are_not_in_the_repr(auth, token):
    auth.authenticate(token)
    assert token not in repr(auth)
