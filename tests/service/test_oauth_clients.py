"""OAuth clients that others wrote, over real HTTP: Authlib, joserfc, requests-oauthlib."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import oauthlib.oauth2
import pytest
from authlib.integrations.base_client import OAuthError  # type: ignore[import-untyped]
from authlib.integrations.httpx_client import AsyncOAuth2Client  # type: ignore[import-untyped]
from authlib.integrations.starlette_client import OAuth  # type: ignore[import-untyped]
from authlib.oauth2.rfc6750.errors import InvalidTokenError  # type: ignore[import-untyped]
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata  # type: ignore[import-untyped]
from authlib.oauth2.rfc9068 import JWTBearerTokenValidator  # type: ignore[import-untyped]
from joserfc import jwt
from joserfc.jwk import KeySet
from oauthlib.oauth2 import BackendApplicationClient, LegacyApplicationClient
from requests_oauthlib import OAuth2Session

from auth.audit import SYSTEM
from auth.clients import CLIENT_CREDENTIALS, Clients
from auth.clients import PASSWORD as PASSWORD_GRANT
from auth.clients import REFRESH_TOKEN as REFRESH
from auth.database import Database
from service.database import make_engine
from tests.support.service import ADMIN, PASSWORD, RunningService
from tests.support.waiting import eventually

SCOPE = "llm usage:read"
USER = {"username": ADMIN, "password": PASSWORD}


@dataclass(frozen=True)
class Registered:
    """Ids and secrets of clients."""

    app: tuple[str, str]
    machine: tuple[str, str]
    gateway: tuple[str, str]
    public: str


@pytest.fixture(scope="module")
def registered(service: RunningService) -> Registered:
    async def register() -> Registered:
        engine = make_engine(f"sqlite+aiosqlite:///{service.state_dir / 'tollbook.db'}")
        clients = Clients(Database(engine))

        async def add(name: str, *grants: str, scopes: str = SCOPE, confidential: bool = True) -> tuple[str, str]:
            client, secret = await clients.add(
                name, grants=grants, scopes=scopes.split(), confidential=confidential, by=SYSTEM
            )
            return client.id, secret or ""

        found = Registered(
            app=await add("an app", PASSWORD_GRANT, REFRESH),
            machine=await add("a machine", CLIENT_CREDENTIALS),
            gateway=await add("a gateway", CLIENT_CREDENTIALS, scopes="introspect"),
            public=(await add("a desktop app", PASSWORD_GRANT, REFRESH, confidential=False))[0],
        )
        await engine.dispose()
        return found

    return asyncio.run(register())


@pytest.fixture(autouse=True)
def _over_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both libraries want https unless they are told otherwise."""
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    monkeypatch.setenv("AUTHLIB_INSECURE_TRANSPORT", "1")


@pytest.fixture
def metadata(service: RunningService) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.get(f"{service.base_url}/.well-known/oauth-authorization-server").json()
    return found


def refused_by_every_worker(service: RunningService, token: str) -> None:
    """Wait until no worker accepts it. Each request is a connection of its own, and so comes to either of the two."""

    def refused() -> bool:
        answers = [
            httpx2.get(f"{service.base_url}/users/me", headers={"Authorization": f"Bearer {token}"}) for _ in range(12)
        ]
        return {answer.status_code for answer in answers} == {401}

    eventually(refused, "every worker to refuse the token")


# Authlib


@pytest.fixture
def authlib(metadata: dict[str, Any]) -> Any:
    """Makes clients that know where the endpoints are."""

    @asynccontextmanager
    async def make(client_id: str, secret: str | None = None, **options: Any) -> AsyncIterator[AsyncOAuth2Client]:
        endpoint = metadata["token_endpoint"]
        async with AsyncOAuth2Client(client_id, secret, token_endpoint=endpoint, trust_env=False, **options) as client:
            yield client

    return make


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_authlib_logs_in_calls_and_refreshes(authlib, service, registered, method):
    async with authlib(*registered.app, scope=SCOPE, token_endpoint_auth_method=method) as client:
        first = dict(await client.fetch_token(**USER))
        assert (first["token_type"], first["scope"]) == ("Bearer", SCOPE)
        me = (await client.get(f"{service.base_url}/users/me")).json()
        assert (me["username"], me["scopes"]) == (ADMIN, SCOPE.split())

        second = await client.refresh_token()
        assert second["refresh_token"] != first["refresh_token"]
        assert second["access_token"] != first["access_token"]
        assert (await client.get(f"{service.base_url}/users/me")).status_code == 200


@pytest.mark.parametrize("built_in", [True, False], ids=["built-in", "registered"])
async def test_authlib_logs_in_as_a_public_client(authlib, service, registered, built_in):
    async with authlib("tollbook" if built_in else registered.public) as client:
        await client.fetch_token(**USER)
        await client.refresh_token()
        assert (await client.get(f"{service.base_url}/users/me")).json()["username"] == ADMIN


async def test_authlib_refreshes_by_itself_when_a_token_is_about_to_expire(authlib, service, registered):
    updates = []

    async def update_token(token, refresh_token=None, access_token=None):
        updates.append((token["access_token"], refresh_token))

    async with authlib(*registered.app, update_token=update_token) as client:
        first = dict(await client.fetch_token(**USER))
        client.token = first | {"expires_at": int(time.time()) - 1}
        answers = await asyncio.gather(*(client.get(f"{service.base_url}/users/me") for _ in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        assert updates == [(client.token["access_token"], first["refresh_token"])]
        assert client.token["access_token"] != first["access_token"]


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_authlib_gets_a_token_for_a_machine_and_renews_it_by_itself(authlib, service, registered, method):
    async with authlib(*registered.machine, token_endpoint_auth_method=method) as client:
        token = dict(await client.fetch_token(grant_type=CLIENT_CREDENTIALS, scope="llm admin"))
        assert token["scope"] == "llm"
        assert "refresh_token" not in token
        me = (await client.get(f"{service.base_url}/users/me")).json()
        assert (me["id"], me["username"]) == (registered.machine[0], f"client:{registered.machine[0]}")
    async with authlib(*registered.machine, grant_type=CLIENT_CREDENTIALS) as client:
        first = dict(await client.fetch_token())
        client.token = first | {"expires_at": int(time.time()) - 1}
        assert (await client.get(f"{service.base_url}/users/me")).status_code == 200
        assert client.token["access_token"] != first["access_token"]


async def test_authlib_introspects_and_revokes(authlib, service, metadata, registered):
    async with authlib(*registered.app) as client, authlib(*registered.gateway) as gateway:

        async def ask(asker, token, hint):
            answer = await asker.introspect_token(metadata["introspection_endpoint"], token, hint)
            assert answer.status_code == 200
            return answer.json()

        token = dict(await client.fetch_token(**USER))
        for asker in (client, gateway):
            found = await ask(asker, token["access_token"], "access_token")
            assert (found["active"], found["username"], found["client_id"]) == (True, ADMIN, registered.app[0])
            assert found["exp"] - found["iat"] == token["expires_in"]
            assert (await ask(asker, token["refresh_token"], "refresh_token"))["active"]

        answer = await client.revoke_token(metadata["revocation_endpoint"], token["access_token"], "access_token")
        assert answer.status_code == 200
        refused_by_every_worker(service, token["access_token"])
        assert await ask(gateway, token["access_token"], "access_token") == {"active": False}

        second = dict(await client.refresh_token())
        answer = await client.revoke_token(metadata["revocation_endpoint"], second["refresh_token"], "refresh_token")
        assert answer.status_code == 200
        refused_by_every_worker(service, second["access_token"])
        for hint in ("access_token", "refresh_token"):
            assert await ask(gateway, second[hint], hint) == {"active": False}
        with pytest.raises(OAuthError) as caught:
            await client.refresh_token()
        assert caught.value.error == "invalid_grant"


async def test_authlib_revokes_as_a_public_client(authlib, service, metadata, registered):
    async with authlib(registered.public) as client:
        token = dict(await client.fetch_token(**USER))
        await client.revoke_token(metadata["revocation_endpoint"], token["refresh_token"])
        refused_by_every_worker(service, token["access_token"])


@pytest.mark.parametrize(
    ("who", "asked", "error"),
    [
        ("wrong secret", {"grant_type": CLIENT_CREDENTIALS}, "invalid_client"),
        ("unknown", {"grant_type": CLIENT_CREDENTIALS}, "invalid_client"),
        ("machine", USER | {"grant_type": PASSWORD_GRANT}, "unauthorized_client"),
        ("machine", {"grant_type": CLIENT_CREDENTIALS, "scope": "admin"}, "invalid_scope"),
        ("machine", {"grant_type": "urn:ietf:params:oauth:grant-type:device_code"}, "unsupported_grant_type"),
        ("app", {"grant_type": REFRESH, "refresh_token": "tbr_unknown"}, "invalid_grant"),
        ("app", {"grant_type": PASSWORD_GRANT}, "invalid_request"),
    ],
)
async def test_authlib_is_told_what_is_wrong(authlib, registered, who, asked, error):
    client_id, secret = {"app": registered.app, "unknown": ("unknown", "x")}.get(who, registered.machine)
    async with authlib(client_id, "tbs_wrong" if who == "wrong secret" else secret) as client:
        with pytest.raises(OAuthError) as caught:
            await client.fetch_token(**asked)
    assert caught.value.error == error
    assert caught.value.description


async def test_authlib_finds_all_of_it_by_the_metadata(service, registered):
    oauth = OAuth()
    oauth.register(
        "tollbook",
        client_id=registered.app[0],
        client_secret=registered.app[1],
        server_metadata_url=f"{service.base_url}/.well-known/oauth-authorization-server",
        client_kwargs={"scope": SCOPE, "trust_env": False},
    )
    client = oauth.create_client("tollbook")
    token = await client.fetch_access_token(grant_type=PASSWORD_GRANT, **USER)
    assert token["scope"] == SCOPE
    answer = await client.get(f"{service.base_url}/users/me", token=token)
    assert answer.json()["username"] == ADMIN


def test_authlib_finds_no_fault_with_the_metadata(metadata, service):
    found = AuthorizationServerMetadata(metadata)
    for name in AuthorizationServerMetadata.REGISTRY_KEYS:
        # Required, and a list of what the authorization endpoint answers: there is none, and Authlib asks for one.
        if name != "response_types_supported":
            getattr(found, f"validate_{name}")()
    assert metadata["token_endpoint"] == f"{service.base_url}/token"


@pytest.mark.parametrize("machine", [False, True], ids=["user", "machine"])
async def test_authlib_and_joserfc_verify_our_tokens_by_the_published_keys(authlib, metadata, registered, machine):
    asked = {"grant_type": CLIENT_CREDENTIALS} if machine else USER
    async with authlib(*(registered.machine if machine else registered.app)) as client:
        token = (await client.fetch_token(**asked))["access_token"]
    published = httpx2.get(metadata["jwks_uri"]).json()
    keys = KeySet.import_key_set(published)

    decoded = jwt.decode(token, keys, algorithms=["ES256"])
    registry = jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": metadata["issuer"]},
        aud={"essential": True, "value": "tollbook"},
        exp={"essential": True},
    )
    registry.validate(decoded.claims)
    assert decoded.header["typ"] == "at+jwt"
    assert decoded.header["kid"] in {key["kid"] for key in published["keys"]}

    def validate(resource_server: str) -> Any:
        validator = JWTBearerTokenValidator(issuer=metadata["issuer"], resource_server=resource_server)
        validator.get_jwks = lambda: keys
        claims = validator.authenticate_token(token)
        validator.validate_token(claims, ["llm usage:read"], None)
        return claims

    assert validate("tollbook")["username"] == (f"client:{registered.machine[0]}" if machine else ADMIN)
    with pytest.raises(InvalidTokenError):
        validate("another service")


# requests-oauthlib


@pytest.fixture
def session() -> Iterator[Any]:
    """Makes sessions."""
    made = []

    def make(client: oauthlib.oauth2.Client, **options: Any) -> OAuth2Session:
        made.append(OAuth2Session(client=client, **options))
        made[-1].trust_env = False
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("way", ["basic", "form", "public by basic", "public by form", "built-in"])
def test_requests_oauthlib_logs_in_calls_and_refreshes(session, service, metadata, registered, way):
    client_id, secret = registered.app if way in {"basic", "form"} else (registered.public, None)
    if way == "built-in":
        client_id = "tollbook"
    in_form = way.endswith("form")
    user = session(LegacyApplicationClient(client_id=client_id, scope=SCOPE))
    first = dict(
        user.fetch_token(metadata["token_endpoint"], **USER, client_secret=secret, include_client_id=in_form or None)
    )
    assert set(first["scope"]) == set(SCOPE.split())
    assert user.get(f"{service.base_url}/users/me").json()["username"] == ADMIN

    by_form = {"client_id": client_id} | ({} if secret is None else {"client_secret": secret})
    how = by_form if in_form else {"auth": (client_id, secret or "")}
    second = user.refresh_token(metadata["token_endpoint"], **how)
    assert second["refresh_token"] != first["refresh_token"]
    assert user.get(f"{service.base_url}/users/me").json()["username"] == ADMIN


def test_requests_oauthlib_refreshes_by_itself_when_a_token_has_expired(session, service, metadata, registered):
    updates: list[Any] = []
    user = session(
        LegacyApplicationClient(client_id=registered.public),
        auto_refresh_url=metadata["token_endpoint"],
        auto_refresh_kwargs={"client_id": registered.public},
        token_updater=updates.append,
    )
    first = dict(user.fetch_token(metadata["token_endpoint"], **USER))
    user.token = first | {"expires_in": -1, "expires_at": time.time() - 1}
    assert user.get(f"{service.base_url}/users/me").json()["username"] == ADMIN
    (update,) = updates
    assert update["access_token"] != first["access_token"]
    assert update["refresh_token"] != first["refresh_token"]


@pytest.mark.parametrize("in_form", [False, True], ids=["basic", "form"])
def test_requests_oauthlib_gets_a_token_for_a_machine(session, service, metadata, registered, in_form):
    client_id, secret = registered.machine
    machine = session(BackendApplicationClient(client_id=client_id, scope=["llm"]))
    token = machine.fetch_token(metadata["token_endpoint"], client_secret=secret, include_client_id=in_form or None)
    assert token["scope"] == ["llm"]
    assert machine.get(f"{service.base_url}/users/me").json()["username"] == f"client:{client_id}"


def test_requests_oauthlib_is_told_what_is_wrong(session, metadata, registered):
    endpoint, (client_id, secret) = metadata["token_endpoint"], registered.machine
    machine = session(BackendApplicationClient(client_id=client_id))
    with pytest.raises(oauthlib.oauth2.InvalidClientError):
        machine.fetch_token(endpoint, client_secret="tbs_wrong")
    with pytest.raises(oauthlib.oauth2.InvalidScopeError):
        machine.fetch_token(endpoint, client_secret=secret, scope=["admin"])
    user = session(LegacyApplicationClient(client_id=client_id))
    with pytest.raises(oauthlib.oauth2.UnauthorizedClientError):
        user.fetch_token(endpoint, **USER, client_secret=secret)
    user = session(LegacyApplicationClient(client_id=registered.public))
    with pytest.raises(oauthlib.oauth2.InvalidGrantError):
        user.refresh_token(endpoint, refresh_token="tbr_unknown", client_id=registered.public)
    with pytest.raises(oauthlib.oauth2.OAuth2Error, match="invalid_request"):
        user.refresh_token(endpoint, refresh_token="", client_id=registered.public)


def test_requests_oauthlib_cannot_put_the_password_into_the_address(session, metadata, registered):
    user = session(LegacyApplicationClient(client_id=registered.public))
    with pytest.raises(oauthlib.oauth2.OAuth2Error, match="query string"):
        user.fetch_token(metadata["token_endpoint"], **USER, force_querystring=True)
