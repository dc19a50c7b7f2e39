"""The OpenAPI document: complete in itself, with examples, the login flow and the errors."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from auth.scopes import Scope
from service.api.chat import ChatCompletionRequest
from service.api.generate import Question
from service.app import create_app
from service.settings import Settings
from tests.service.test_http import UPSTREAM, process_restored, serving

CALLS = ["/generate", "/stream", "/v1/chat/completions"]
ENVELOPE = {"$ref": "#/components/schemas/ErrorEnvelope"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    with process_restored():
        return create_app(Settings.model_validate({"openai_base_url": UPSTREAM})).openapi()


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_every_reference_leads_somewhere(document):
    found = set(references(document))
    assert found
    for reference in found:
        node: Any = document
        assert reference.startswith("#/")
        for part in reference[2:].split("/"):
            assert part in node, reference
            node = node[part]


def test_every_route_that_clients_use_is_there_under_a_name_of_its_own(document):
    listed = {name for name, _ in operations(document) if not re.search(r" /(admin|users/me)/", name)}
    assert listed == {
        "POST /token",
        "POST /revoke",
        "POST /introspect",
        "GET /.well-known/oauth-authorization-server",
        "GET /.well-known/jwks.json",
        "GET /users/me",
        "POST /generate",
        "POST /stream",
        "POST /v1/chat/completions",
        "GET /v1/models",
        "GET /v1/models/{model_id}",
        "GET /usage",
        "GET /livez",
        "GET /readyz",
    }
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    assert all(operation.get("description") or operation.get("summary") for _, operation in operations(document))


@pytest.mark.parametrize("path", CALLS)
def test_a_call_has_examples_that_its_schema_describes(document, path):
    body = document["paths"][path]["post"]["requestBody"]
    content = body["content"]["application/json"]
    schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    assert body["required"] is True
    assert content["examples"]
    for example in content["examples"].values():
        assert set(schema["required"]) <= set(example["value"])
        assert set(example["value"]) <= set(schema["properties"])


def test_the_examples_are_accepted_by_the_models_they_are_of(document):
    models: dict[str, type[BaseModel]] = {
        "/generate": Question,
        "/stream": Question,
        "/v1/chat/completions": ChatCompletionRequest,
    }
    for path, model in models.items():
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for example in content["examples"].values():
            model.model_validate(example["value"])


def test_a_login_is_a_form_with_an_example(document):
    content = document["paths"]["/token"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/x-www-form-urlencoded"}
    form = content["application/x-www-form-urlencoded"]
    assert set(form["schema"]["required"]) <= set(form["example"]) <= set(form["schema"]["properties"])


def test_one_logs_in_by_the_flows_of_oauth2_at_the_token_endpoint_or_brings_an_api_key(document):
    oauth2, api_key = document["components"]["securitySchemes"].values()
    assert oauth2["type"] == "oauth2"
    assert set(oauth2["flows"]) == {"password", "clientCredentials"}
    for flow in oauth2["flows"].values():
        assert flow["tokenUrl"] == "token"
        assert set(flow["scopes"]) == set(Scope)
    assert api_key == {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": api_key["description"]}


def test_each_route_says_which_scope_it_needs(document):
    needs = {
        route: {scope for item in operation["security"] for scopes in item.values() for scope in scopes}
        for route, operation in operations(document)
        if "security" in operation and not re.search(r" /(admin|users/me)/", route)
    }
    llm = {"POST /generate", "POST /stream", "POST /v1/chat/completions", "GET /v1/models", "GET /v1/models/{model_id}"}
    assert needs == {"GET /users/me": set(), "GET /usage": {"usage:read"}} | {route: {"llm"} for route in llm}


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("status", ["400", "401", "403", "404", "408", "413", "415", "422", "429", "502", "503", "504"])
def test_the_errors_of_a_call_are_in_openai_s_envelope(document, path, status):
    answer = document["paths"][path]["post"]["responses"][status]
    assert answer["content"]["application/json"]["schema"] == ENVELOPE


def test_an_error_that_is_documented_is_in_the_shape_that_is_sent(document):
    for route, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status >= "400" and not route.endswith("/readyz"):
                oauth = re.search(r" /(token|revoke|introspect|\.well-known|users/me)", route)
                schema = "#/components/schemas/AuthErrorBody" if oauth else ENVELOPE["$ref"]
                found = set(references(answer))
                assert found == {schema}, (route, status)


async def test_the_document_is_served(tmp_path, document):
    async with serving(tmp_path) as served:
        answer = await served.client.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.json() == document
