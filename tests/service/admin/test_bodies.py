"""What a body may hold: nothing that is not meant to be set, and no name that could forge a line."""

from typing import Any

import pytest

from tests.service.admin.kit import NOBODY, PASSWORD, PLAIN, World, without

HOSTILE_NAMES = {
    "empty": "",
    "blank": " ",
    "leading space": " x",
    "trailing space": "x\u00a0",
    "long": "x" * 129,
    "nul": "a\0b",
    "crlf": "a\r\nb",
    "tab": "a\tb",
    "escape": "a\x1b[31mb",
    "c1": "a\u0085b",
    "line separator": "a\u2028b",
    "right-to-left override": "a\u202eb",
    "lone surrogate": "a\ud800b",
    "number": 7,
    "null": None,
    "list": ["x"],
}
# For each route that takes a body: a body that is accepted, and the fields that are names.
BODIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "POST /admin/users": ({"username": "newcomer", "password": PASSWORD, "scopes": ["llm"]}, ["username"]),
    "PATCH /admin/users/{user_id}": ({"scopes": ["llm"]}, []),
    "PUT /admin/users/{user_id}/password": ({"password": "zebra crossing 4711"}, []),
    "POST /admin/teams": ({"name": "new"}, ["name"]),
    "PATCH /admin/teams/{team_id}": ({"name": "renamed"}, ["name"]),
    "POST /admin/clients": ({"name": "c", "grants": ["client_credentials"], "scopes": ["llm"]}, ["name"]),
    "PATCH /admin/clients/{client_id}": ({"name": "renamed"}, []),
    "POST /admin/keys": ({"user_id": "{user_id}", "name": "k", "scopes": ["llm"]}, ["name"]),
    "POST /admin/keys/{key_id}/rotate": ({"overlap_seconds": 1}, []),
    "POST /admin/signing-keys": ({"now": True}, []),
    "PUT /users/me/password": ({"current_password": PASSWORD, "new_password": "zebra crossing 4711"}, []),
    "POST /users/me/keys": ({"name": "k", "scopes": ["llm"]}, ["name"]),
    "POST /users/me/keys/{own_key_id}/rotate": ({"overlap_seconds": 1}, []),
}
# What no body can set, wherever it is known.
FORBIDDEN = {
    "id": NOBODY,
    "user": NOBODY,
    "created_at": "2020-01-01T00:00:00Z",
    "updated_at": "2020-01-01T00:00:00Z",
    "password_hash": "$argon2id$v=19$m=8192,t=1,p=1$c2FsdHNhbHQ$aGFzaA",
    "secret_hash": "0" * 64,
    "secret": "x",
    "client_secret": "x",
    "client_id": "mine",
    "key": "tbk_aaaaaaaaaaaaaaaa_x",
    "revoked_at": None,
    "last_used_at": None,
    "expires_at": "2999-01-01T00:00:00Z",
    "level": "service",
    "admin": True,
    "is_admin": True,
    "__proto__": {"admin": True},
    "scope": "admin",
    "Scopes": ["admin"],
    "scopes ": ["admin"],
}


@pytest.fixture
async def places(world) -> dict[str, str]:
    user, client = await world.user("ada", team=world.team), await world.client("llm")
    key, _ = await world.key(user, "llm")
    root = await world.auth.users.get("root") or await world.user("root", "admin", *PLAIN)
    own, _ = await world.key(root, "llm")
    return {
        "user_id": user.id,
        "team_id": world.team.id,
        "client_id": client.id,
        "key_id": key.id,
        "own_key_id": own.id,
    }


@pytest.fixture
async def headers(world, places):
    return world.token(await world.auth.users.get("root"))


def _filled(body: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    return {name: value.format(**places) if isinstance(value, str) else value for name, value in body.items()}


async def _state(world: World) -> list[Any]:
    """All that a body could have changed; not when a key was last used."""
    auth = world.auth
    return [
        await auth.users.list(),
        await auth.teams.list(),
        await auth.clients.list(),
        [key.id for key in await auth.api_keys.list()],
        len(auth.keys.ring.keys),
        [without(["at"], record) for record in await world.records()],
    ]


async def test_what_is_not_meant_to_be_set_is_refused_wherever_it_is_put(world, places, headers):
    before = await _state(world)
    for route, (body, _) in BODIES.items():
        method, _, path = route.partition(" ")
        for name, value in FORBIDDEN.items():
            wanted = _filled(body, places) | {name: value}
            answer = await world.ask(method, path.format(**places), headers, wanted)
            assert answer.status_code == 422, (route, name, answer.text)
            error = answer.json()["error"]
            assert isinstance(error, str) or error["param"] == name
    assert await _state(world) == before


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("POST /admin/users", {"disabled": False}),
        ("POST /admin/users", {"models": ["small"]}),
        ("PATCH /admin/users/{user_id}", {"username": "root2"}),
        ("PATCH /admin/users/{user_id}", {"password": PASSWORD}),
        ("PUT /admin/users/{user_id}/password", {"scopes": ["admin"]}),
        ("PATCH /admin/clients/{client_id}", {"team_id": None}),
        ("PATCH /admin/clients/{client_id}", {"public": True}),
        ("POST /admin/clients", {"disabled": False}),
        ("POST /admin/keys/{key_id}/rotate", {"scopes": ["admin"]}),
        ("POST /admin/keys/{key_id}/rotate", {"user_id": NOBODY}),
        ("POST /users/me/keys", {"user_id": NOBODY}),
        ("PUT /users/me/password", {"username": "ada"}),
    ],
)
async def test_what_can_be_set_elsewhere_is_not_set_here(sqlite_world, route, fields):
    world = sqlite_world
    places = {"user_id": NOBODY, "client_id": "0123456789abcdef", "key_id": "a" * 16}
    headers = await world.caller("root", "admin", *PLAIN)
    method, _, path = route.partition(" ")
    answer = await world.ask(method, path.format(**places), headers, _filled(BODIES[route][0], places) | fields)
    assert answer.status_code == 422, answer.text


async def test_no_name_forges_a_line_or_hides_in_one(world, places, headers):
    before = await _state(world)
    for route, (body, names) in BODIES.items():
        method, _, path = route.partition(" ")
        for name in names:
            for kind, value in HOSTILE_NAMES.items():
                wanted = _filled(body, places) | {name: value}
                answer = await world.ask(method, path.format(**places), headers, wanted)
                assert answer.status_code == 422, (route, kind, answer.text)
                assert not isinstance(value, str) or len(value.strip()) < 2 or value not in answer.text
    assert await _state(world) == before


async def test_control_characters_are_in_no_field_at_all(world, places, headers):
    before = await _state(world)
    for route, (body, _) in BODIES.items():
        method, _, path = route.partition(" ")
        for name, value in body.items():
            if name in {"password", "new_password", "current_password"}:
                continue  # any text is a password, but for NUL
            hostile: Any = [f"{value[0]}\r\nx"] if isinstance(value, list) else f"{value}\r\nx"
            answer = await world.ask(method, path.format(**places), headers, _filled(body, places) | {name: hostile})
            assert answer.status_code == 422, (route, name, answer.text)
    for field in ("models",):
        wanted = {"name": "k", field: ["a\r\nb"]}
        assert (await world.ask("POST", "/users/me/keys", headers, wanted)).status_code == 422
    assert await _state(world) == before


@pytest.mark.parametrize("name", ["client:nightly", "oidc:ada", "OIDC:ada"])
async def test_no_user_has_a_name_that_is_kept_for_others(sqlite_world, name):
    headers = await sqlite_world.caller("root", "admin")
    body = {"username": name, "password": PASSWORD}
    answer = await sqlite_world.ask("POST", "/admin/users", headers, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "username")


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("POST /admin/users", {"username": "x"}),
    ("POST /admin/users", {"password": PASSWORD}),
    ("POST /admin/users", {"username": "x", "password": "short"}),
    ("POST /admin/users", {"username": "x", "password": "password1234"}),
    ("POST /admin/users", {"username": "x", "password": "nul \0 in the password"}),
    ("POST /admin/users", {"username": "x", "password": "lone surrogate \ud800"}),
    ("POST /admin/users", {"username": "x", "password": "x" * 1025}),
    ("POST /admin/users", {"username": "x", "password": 123456789012}),
    ("POST /admin/users", {"username": "x", "password": PASSWORD, "scopes": []}),
    ("POST /admin/users", {"username": "x", "password": PASSWORD, "scopes": "llm"}),
    ("POST /admin/users", {"username": "x", "password": PASSWORD, "scopes": ["root"]}),
    ("POST /admin/users", {"username": "x", "password": PASSWORD, "scopes": ["llm admin"]}),
    ("POST /admin/users", {"username": "x", "password": PASSWORD, "scopes": ["llm:"]}),
    ("POST /admin/users", {"username": "x", "password": PASSWORD, "scopes": ["llm:a b"]}),
    ("POST /admin/users", {"username": "x", "password": PASSWORD, "scopes": ["llm:\u00e9"]}),
    ("POST /admin/users", {"username": "x", "password": PASSWORD, "scopes": ["llm:m"] * 33}),
    ("POST /admin/users", {"username": "x", "password": PASSWORD, "team_id": "a b"}),
    ("POST /admin/users", {"username": "x", "password": PASSWORD, "team_id": 1}),
    ("PATCH /admin/users/{user_id}", {}),
    ("PATCH /admin/users/{user_id}", {"disabled": "yes"}),
    ("PATCH /admin/users/{user_id}", {"disabled": 1}),
    ("PATCH /admin/clients/{client_id}", {}),
    ("POST /admin/clients", {"name": "c", "grants": ["implicit"], "scopes": ["llm"]}),
    ("POST /admin/clients", {"name": "c", "grants": [], "scopes": ["llm"]}),
    ("POST /admin/clients", {"name": "c", "grants": ["password"], "scopes": []}),
    ("POST /admin/keys/{key_id}/rotate", {"overlap_seconds": -1}),
    ("POST /admin/keys/{key_id}/rotate", {"overlap_seconds": 1e400}),
    ("POST /admin/keys/{key_id}/rotate", {"overlap_seconds": "1"}),
    ("POST /admin/keys/{key_id}/rotate", {"overlap_seconds": True}),
    ("POST /users/me/keys", {"name": "k", "expires_in_days": 0}),
    ("POST /users/me/keys", {"name": "k", "expires_in_days": 1e9}),
    ("POST /users/me/keys", {"name": "k", "models": []}),
    ("POST /users/me/keys", {"name": "k", "models": ["\ud800"]}),
    ("PUT /users/me/password", {"current_password": PASSWORD, "new_password": "password1234"}),
    ("POST /admin/signing-keys", {"now": "true"}),
]


async def test_a_body_that_makes_no_sense_is_refused_and_changes_nothing(world, places, headers):
    before = (await _state(world))[:-1]
    for route, body in WRONG:
        method, _, path = route.partition(" ")
        answer = await world.ask(method, path.format(**places), headers, body)
        assert answer.status_code in ({400, 422} if 1e400 in body.values() else {422}), (route, body, answer.text)
        for value in body.values():
            assert not isinstance(value, str) or len(value) < 8 or value not in answer.text
    assert (await _state(world))[:-1] == before


async def test_a_body_is_json_and_is_looked_at_after_the_caller(world, places, headers):
    before = await _state(world)
    for route in BODIES:
        method, _, path = route.partition(" ")
        path = path.format(**places)
        json_type = {"Content-Type": "application/json"}
        for content, content_type, status in (
            (b"", json_type, 400),
            (b"{", json_type, 400),
            (b"[]", json_type, 400),
            (b'"x"', json_type, 400),
            (b"\xff\xfe", json_type, 400),
            (b'{"\\ud800": 1}', json_type, 422),
            (b"name=x", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
            (b"{}", {}, 415),
        ):
            answer = await world.ask(method, path, headers | content_type, content=content)
            assert answer.status_code == status, (route, content, answer.text)
            stranger = await world.ask(method, path, content_type, content=content)
            assert stranger.status_code == 401, route
    assert await _state(world) == before
