import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from service.llm.catalog import Catalog, CatalogError, Model, Timeouts, is_model_name

SECRET = "sk-proj-0123456789"
EXAMPLE = Path(__file__).parents[3] / "tollbook.example.yaml"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tollbook.yaml"


def load(path: Path, *lines: str, environ: dict[str, str] | None = None) -> Model:
    """The one model of a catalog whose upstream has these lines."""
    text = "".join(f"      {line}\n" for line in lines)
    path.write_text(f"models:\n  - name: m\n    upstream:\n{text}", encoding="utf-8")
    (model,) = Catalog.from_file(path, environ or {}).models
    return model


def refusal(path: Path, *lines: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(CatalogError) as caught:
        load(path, *lines, environ=environ)
    (problem,) = caught.value.problems
    return f"{problem.line}: {problem.message}"


def test_the_example_file_loads_and_has_a_model_with_a_key_and_one_without():
    catalog = Catalog.from_file(EXAMPLE, {"OPENAI_API_KEY": SECRET})
    hosted, local = catalog.models
    assert catalog.default_model is hosted
    assert not catalog.passthrough
    assert (hosted.name, hosted.upstream.model) == ("gpt-4o-mini", "gpt-4o-mini-2024-07-18")
    assert hosted.upstream.api_key == SecretStr(SECRET)
    assert hosted.upstream.name == "api.openai.com"
    assert hosted.price is not None
    assert str(hosted.price.cached_input) == "0.075"
    assert (local.upstream.api_key, local.upstream.name, local.upstream.provider) == (None, "local", "llama.cpp")


def test_what_the_example_calls_defaults_are_the_defaults(path):
    hosted = Catalog.from_file(EXAMPLE, {"OPENAI_API_KEY": SECRET}).models[0].upstream
    plain = load(path, "base_url: http://127.0.0.1:8080/v1").upstream
    assert plain.timeouts == hosted.timeouts == Timeouts(connect=5, read=60, total=600)
    assert plain.max_retries == hosted.max_retries == 1


def test_what_is_left_out_has_its_default(path):
    model = load(path, "base_url: http://127.0.0.1:8080/v1/")
    assert model.price is None
    assert model.owned_by == model.upstream.provider == "openai"
    assert model.upstream.model == "m"
    assert model.upstream.api_key is None
    assert model.upstream.base_url == "http://127.0.0.1:8080/v1"
    assert model.upstream.name == "127.0.0.1:8080"


def test_the_label_of_an_upstream_does_not_depend_on_how_its_host_is_written(path):
    assert load(path, "base_url: https://API.Example:8443/v1").upstream.name == "api.example:8443"


def test_created_is_the_time_of_the_file_so_that_every_worker_says_the_same(path):
    load(path, "base_url: http://h")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    assert Catalog.from_file(path, {}).models[0].created == 1_700_000_000


def test_the_key_is_read_from_the_environment_without_its_line_end(path):
    model = load(path, "base_url: http://h", "api_key_env: MY_KEY", environ={"MY_KEY": SECRET + "\n"})
    assert model.upstream.api_key == SecretStr(SECRET)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_key_is_read_from_a_file_without_its_line_end(path, tmp_path, end):
    (tmp_path / "key").write_bytes(f"{SECRET}{end}".encode())
    model = load(path, "base_url: http://h", f"api_key_file: {tmp_path}/key")
    assert model.upstream.api_key == SecretStr(SECRET)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "5: environment variable MY_KEY is not set (model 'm')"),
        ({"MY_KEY": ""}, "5: environment variable MY_KEY is empty (model 'm')"),
        ({"MY_KEY": "\n"}, "5: environment variable MY_KEY is empty (model 'm')"),
        ({"MY_KEY": "a\r\nb"}, "5: environment variable MY_KEY has characters that cannot be sent in a header"),
        ({"MY_KEY": "clé"}, "5: environment variable MY_KEY has characters that cannot be sent in a header"),
        ({"MY_KEY": "a b"}, "5: environment variable MY_KEY has characters that cannot be sent in a header"),
        ({"MY_KEY": "k" * 8193}, "5: environment variable MY_KEY is too long to be a key"),
    ],
)
def test_a_key_that_is_not_in_the_environment_names_the_model_and_the_variable(path, environ, expected):
    assert refusal(path, "base_url: http://h", "api_key_env: MY_KEY", environ=environ).startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read: No such file or directory (model 'm')"),
        (b"", "is empty (model 'm')"),
        (b"\n", "is empty (model 'm')"),
        (b"\xff\xfe", "has characters that cannot be sent in a header (model 'm')"),
        (b"one\ntwo", "has characters that cannot be sent in a header (model 'm')"),
        (b"k" * 100_000, "is too long to be a key (model 'm')"),
    ],
)
def test_a_key_file_that_cannot_be_used_names_the_model_and_the_file(path, tmp_path, content, expected):
    key_file = tmp_path / "key"
    if content is not None:
        key_file.write_bytes(content)
    assert refusal(path, "base_url: http://h", f"api_key_file: {key_file}") == f"5: key file {key_file} {expected}"


def test_a_directory_is_not_a_key_file(path, tmp_path):
    assert "cannot be read: Is a directory" in refusal(path, "base_url: http://h", f"api_key_file: {tmp_path}")


@pytest.mark.parametrize("name", ["openai_key", "1KEY", "MY-KEY", "$MY_KEY", "MY KEY", "''"])
def test_what_is_not_the_name_of_a_variable_is_refused_even_if_it_is_set(path, name):
    found = refusal(path, "base_url: http://h", f"api_key_env: {name}", environ={name: SECRET})
    assert "must be the name of an environment variable in capitals, such as OPENAI_API_KEY" in found


@pytest.mark.parametrize("name", ["keys/openai", "~/openai", "''", '"/run/a\\nb"', '"/run/a\\0b"'])
def test_a_key_file_needs_its_full_path_because_the_service_may_start_anywhere(path, name):
    assert "must be the full path of a file" in refusal(path, "base_url: http://h", f"api_key_file: {name}")


@pytest.mark.parametrize("environ", [{}, {"MY_KEY": SECRET}])
def test_two_places_for_one_key_are_refused(path, tmp_path, environ):
    (tmp_path / "key").write_text(SECRET)
    with pytest.raises(CatalogError, match="give either api_key_env or api_key_file, not both"):
        load(path, "base_url: http://h", "api_key_env: MY_KEY", f"api_key_file: {tmp_path}/key", environ=environ)


def test_a_key_is_in_no_representation_of_the_catalog(path):
    model = load(path, "base_url: http://h", "api_key_env: MY_KEY", environ={"MY_KEY": SECRET})
    passing = Catalog.for_openai(SecretStr(SECRET), None)
    shown = [repr(model), str(model), repr(model.upstream), f"{model.upstream}", repr(passing), repr(vars(passing))]
    assert not [text for text in shown if SECRET in text]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ftp://h", "must begin with http:// or https:// and name a host"),
        ("h/v1", "must begin with http:// or https:// and name a host"),
        ("http://", "must begin with http:// or https:// and name a host"),
        ("http:///v1", "must begin with http:// or https:// and name a host"),
        ("file:///etc/passwd", "must begin with http:// or https:// and name a host"),
        ("http://user:pass@h/v1", "must not hold a user name or password"),
        ("http://user@h/v1", "must not hold a user name or password"),
        ("http://h/v1?api-version=1", "must not have a query or fragment"),
        ("http://h/v1#x", "must not have a query or fragment"),
        ("http://h:99999", "is not a valid URL"),
        ("http://h:port", "is not a valid URL"),
        ("http://[::1", "is not a valid URL"),
        ("http://a b", "must be a URL without spaces or control characters"),
        ("http://h\\r\\nX: y", "must be a URL without spaces or control characters"),
        ("http://h\\0", "must be a URL without spaces or control characters"),
        ("", "must begin with http:// or https:// and name a host"),
    ],
)
def test_a_base_url_that_cannot_be_used_is_refused(path, url, expected):
    assert refusal(path, f'base_url: "{url}"').startswith(f"4: {expected}")


@pytest.mark.parametrize("url", ["https://h", "http://127.0.0.1:8080/v1", "http://[::1]:8080/v1", "https://h/a/b/v1"])
def test_a_base_url_may_have_any_host_port_and_path(path, url):
    assert load(path, f"base_url: '{url}'").upstream.base_url == url


@pytest.mark.parametrize(
    "line",
    [
        "name: a b",
        "name: ''",
        "name: " + "x" * 65,
        "provider: open ai",
        "model: ''",
        'model: "a\\tb"',
        "model: [a]",
        "max_retries: -1",
        "max_retries: 11",
        "max_retries: 1.5",
        "max_retries: true",
        "timeouts: 5",
        "timeouts: {connect: 0}",
        "timeouts: {read: -1}",
        "timeouts: {total: nan}",
        "timeouts: {total: .inf}",
        "timeouts: {total: inf}",
        "timeouts: {total: ten}",
        "provider:",
        "api_key_env: [A]",
        "api_key_file: {a: b}",
    ],
)
def test_a_value_out_of_its_bounds_is_refused_on_its_line(path, line):
    assert refusal(path, "base_url: http://h", line).startswith("5: ")


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "a\u202eb", "a\x7f", "\u200b", "n" * 201, "\ud800"])
def test_an_unprintable_or_overlong_name_is_no_model_name(name):
    assert not is_model_name(name)
    assert Catalog.for_openai(None, None).resolve(name) is None


@pytest.mark.parametrize("name", ["a", "n" * 200, "org/model:7b@main", "模型", "\U0001f600", "two words"])
def test_a_printable_name_is_a_model_name(path, name):
    assert is_model_name(name)
    path.write_text(f"models: [{{name: '{name}', upstream: {{base_url: 'http://h'}}}}]", encoding="utf-8")
    assert Catalog.from_file(path, {}).models[0].name == name


def test_a_catalog_resolves_its_names_its_default_and_nothing_else(path):
    path.write_text(
        "models:\n"
        "  - {name: first, upstream: {base_url: 'http://h'}}\n"
        "  - {name: second, upstream: {base_url: 'http://h', model: other}}\n"
    )
    catalog = Catalog.from_file(str(path), {})
    first, second = catalog.models
    assert catalog.resolve(None) is catalog.default_model is first
    assert catalog.resolve("first") is first
    assert catalog.resolve("second") is second
    assert [catalog.resolve(name) for name in ["other", "First", "", "first "]] == [None] * 4


def test_without_a_file_any_name_is_passed_on_to_openai():
    catalog = Catalog.for_openai(SecretStr(SECRET + "\n"), None)
    assert catalog.passthrough
    assert catalog.models == ()
    assert catalog.default_model is catalog.resolve(None) is None
    model = catalog.resolve("gpt-next")
    assert model is not None
    assert (model.name, model.upstream.model, model.price, model.owned_by) == ("gpt-next", "gpt-next", None, "openai")
    assert model.upstream.base_url == "https://api.openai.com/v1"
    assert model.upstream.api_key == SecretStr(SECRET)


@pytest.mark.parametrize("key", [None, SecretStr("")])
def test_a_compatible_service_may_need_no_key(key):
    model = Catalog.for_openai(key, "http://127.0.0.1:11434/v1").resolve("m")
    assert model is not None
    assert (model.upstream.name, model.upstream.api_key) == ("127.0.0.1:11434", None)


@pytest.mark.parametrize(
    ("key", "url", "expected"),
    [
        (None, f"http://user:{SECRET}@h", "OPENAI_BASE_URL: must not hold a user name or password"),
        (None, "h:80", "OPENAI_BASE_URL: must begin with http:// or https:// and name a host"),
        (SecretStr(SECRET + "\n\nx"), None, "OPENAI_API_KEY: the key has characters that cannot be sent in a header"),
    ],
)
def test_a_wrong_setting_is_named_and_its_value_is_not_repeated(key, url, expected):
    with pytest.raises(CatalogError) as caught:
        Catalog.for_openai(key, url)
    assert str(caught.value) == expected


@given(st.text(max_size=300))
def test_passing_on_keeps_the_name_as_it_is_or_refuses_it(name):
    model = Catalog.for_openai(None, None).resolve(name)
    assert model is None if not is_model_name(name) else model is not None and model.upstream.model == name


def test_models_cannot_be_changed_once_made(path):
    model = load(path, "base_url: http://h")
    with pytest.raises(AttributeError):
        model.upstream.base_url = "http://other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        model.upstream.timeouts.read = 1  # type: ignore[misc]
