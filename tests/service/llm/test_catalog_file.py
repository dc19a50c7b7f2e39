"""What is said of a file that cannot be used: each fault by its line and field, all at once, and no secret."""

import logging
import traceback
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.llm.catalog import Catalog
from service.llm.catalog_file import CatalogError

SECRET = "sk-proj-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGH"
VALID = """\
models:
  - name: small
    upstream:
      base_url: http://127.0.0.1:8080/v1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tollbook.yaml"


def problems(path: Path, content: str | bytes, environ: dict[str, str] | None = None) -> list[str]:
    """The lines of the error that `content` gives, without the path in front."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CatalogError) as caught:
        Catalog.from_file(path, environ or {})
    return [line.removeprefix(str(path)) for line in str(caught.value).split("\n")]


def upstream(*lines: str) -> str:
    return "models:\n  - name: m\n    upstream:\n" + "".join(f"      {line}\n" for line in lines)


def priced(price: str) -> str:
    return VALID + f"    price: {price}\n"


def test_every_problem_is_reported_at_once_in_order_with_its_line_and_field(path):
    content = """\
# A comment does not shift the lines.
models:
  - name: a
    upstream:
      base_ulr: http://host/v1
      api_key_env: MISSING_KEY
      timeouts: {connect: 0, read: .inf,
        total: soon}
      max_retries: 11

  - name: a
    upstream:
      base_url: ftp://host
    price:
      version: v1
      input: 0.12345
      output: 1
      output: 2
  - upstream: http://host
modles: 1
"""
    assert problems(path, content) == [
        ":4: models[0].upstream.base_url: this field is required (model 'a')",
        ":5: models[0].upstream.base_ulr: unknown field; did you mean 'base_url'? (model 'a')",
        ":6: models[0].upstream.api_key_env: environment variable MISSING_KEY is not set (model 'a')",
        ":7: models[0].upstream.timeouts.connect: must be greater than 0 (model 'a')",
        ":7: models[0].upstream.timeouts.read: must be a valid number, unable to parse string as a number (model 'a')",
        ":8: models[0].upstream.timeouts.total: must be a valid number, unable to parse string as a number (model 'a')",
        ":9: models[0].upstream.max_retries: must be less than or equal to 10 (model 'a')",
        ":11: models[1].name: 'a' is already the name of an earlier model",
        ":13: models[1].upstream.base_url: must begin with http:// or https:// and name a host (model 'a')",
        ":16: models[1].price.input: must have no more than 4 decimal places (model 'a')",
        ":18: models[1].price.output: given twice, first on line 17",
        ":19: models[2].name: this field is required",
        ":19: models[2].upstream: must be a mapping of fields",
        ":20: modles: unknown field; did you mean 'models'?",
    ]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CatalogError) as caught:
        Catalog.from_file(tmp_path / "none.yaml", {})
    assert str(caught.value) == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"


def test_a_directory_is_not_a_catalog(tmp_path):
    with pytest.raises(CatalogError) as caught:
        Catalog.from_file(tmp_path, {})
    assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ": is empty; it must have the field 'models'"),
        ("# only a comment\n", ": is empty; it must have the field 'models'"),
        (b"models:\n  - name: \xff\n", ":2: is not UTF-8 text"),
        (VALID.encode("utf-16"), ":1: is not UTF-8 text"),
        ("models:\n  - name: a\0b\n", ":2: has a character that YAML does not allow (U+0000)"),
        ("models:\n\t- name: a\n", ":2: is not valid YAML: found character '\\t' that cannot start any token"),
        ("models: a: b\n", ":1: is not valid YAML: mapping values are not allowed here"),
        ("models: [\n", ":2: is not valid YAML: expected the node content, but found '<stream end>'"),
        (VALID + "---\nmodels: []\n", ":5: is not valid YAML: found another document"),
        ("models: " + "[" * 100_000, ":1: is not valid YAML: nested too deeply"),
        ("models: " + "{a: " * 100_000, ":1: is not valid YAML: nested too deeply"),
        ("- models\n", ":1: must be a mapping of fields"),
        ("just text\n", ":1: must be a mapping of fields"),
        ("models:\n", ":1: models: must not be empty"),
        ("models: []\n", ":1: models: must have at least one model"),
        ("models: {a: b}\n", ":1: models: must be a list"),
        ("models: [a]\n", ":1: models[0]: must be a mapping of fields"),
        (VALID + "? [a, b]\n: 1\n", ":5: the name of a field must be plain text"),
    ],
)
def test_a_file_of_the_wrong_shape_says_what_is_wrong_with_it(path, content, expected):
    assert problems(path, content) == [expected]


def test_an_alias_bomb_is_refused_before_it_grows(path):
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    content = "a0: &a0 [x]\n" + "\n".join(levels)
    assert problems(path, content) == [
        ":2: is not valid YAML: aliases (*name) are not allowed here: write the value out"
    ]


def test_a_list_that_contains_itself_is_refused(path):
    assert "aliases (*name) are not allowed" in problems(path, "models: &m [*m]\n")[0]


def test_yaml_tags_build_nothing_and_are_refused(path, tmp_path):
    target = tmp_path / "made"
    content = VALID + f"    price: !!python/object/apply:pathlib.Path.touch ['{target}']\n"
    assert problems(path, content)[0] == ":5: models[0].price: YAML tags (!name) are not allowed here"
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "models:\n  - name: a\n    upstream: {base_url: 'http://h'}\n    name: b\n",
            ":4: models[0].name: given twice, first on line 2",
        ),
        (VALID + "models: []\n", ":5: models: given twice, first on line 1"),
        (
            upstream("base_url: http://a", "base_url: http://b"),
            ":5: models[0].upstream.base_url: given twice, first on line 4",
        ),
    ],
)
def test_a_field_given_twice_is_refused(path, content, expected):
    assert problems(path, content) == [expected]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (upstream("base_url: http://h", "timeout: {}"), "timeout: unknown field; did you mean 'timeouts'?"),
        (upstream("base_url: http://h", "max-retries: 1"), "max-retries: unknown field; did you mean 'max_retries'?"),
        (upstream("base_url: http://h", "Provider: x"), "Provider: unknown field; did you mean 'provider'?"),
        (
            upstream("base_url: http://h", "timeouts: {conect: 1}"),
            "timeouts.conect: unknown field; did you mean 'connect'?",
        ),
        (
            upstream("base_url: http://h", "timeouts: {zzz: 1}"),
            "timeouts.zzz: unknown field; known here: connect, read, total",
        ),
        (upstream("base_url: http://h", "environment_key: X"), "environment_key: unknown field; known here: "),
        (upstream("base_url: http://h", "<<: {model: x}"), "?: unknown field; known here: "),
    ],
)
def test_a_misspelt_field_is_told_the_nearest_that_exists_there(path, content, expected):
    (line,) = problems(path, content)
    assert line.startswith(f":5: models[0].upstream.{expected}")


def test_a_misspelt_field_of_a_price_is_told_the_nearest_one(path):
    (line,) = problems(path, priced("{version: v1, input: 1, output: 1, cached: 1}"))
    assert line == ":5: models[0].price.cached: unknown field; did you mean 'cached_input'? (model 'small')"


@pytest.mark.parametrize("name", ["api_key", "apiKey", "api-key", "API_KEY", "key", "token", "secret", "password"])
def test_a_field_for_a_secret_is_refused_and_told_where_keys_go(path, name):
    (line,) = problems(path, upstream("base_url: http://h", f"{name}: {SECRET}"))
    assert line.startswith(f":5: models[0].upstream.{name}: secrets are not kept in this file: use api_key_env or ")


@pytest.mark.parametrize(
    "content",
    [
        upstream("base_url: http://h", f"api_key: {SECRET}"),
        upstream("base_url: http://h", f"api_key_env: {SECRET}"),
        upstream("base_url: http://h", f"api_key_env: {SECRET.replace('-', '_')}"),
        upstream("base_url: http://h", f"api_key_file: {SECRET}"),
        upstream("base_url: http://h", f"max_retries: {SECRET}"),
        upstream("base_url: http://h", f"timeouts: {SECRET}"),
        upstream("base_url: http://h", f"timeouts: {{read: {SECRET}}}"),
        upstream("base_url: http://h", f"name: '{SECRET}!'"),
        upstream("base_url: http://h", f"{SECRET}: 1"),
        upstream("base_url: http://h", f"api_key_env:{SECRET[:20]}: x"),
        upstream("base_url: http://h", f"name: *{SECRET}"),
        upstream("base_url: http://h", f"name: !{SECRET} x"),
        upstream("base_url: http://h", f"name: 'a' {SECRET}"),
        upstream("base_url: http://h", f"{SECRET}"),
        upstream("base_url: http://h", f'model: "{SECRET}\\0"'),
        upstream(f"base_url: http://user:{SECRET}@h"),
        upstream(f"base_url: http://{SECRET}@h"),
        upstream(f"base_url: http://h/v1?key={SECRET}"),
        upstream(f"base_url: http://h:{SECRET}/v1"),
        upstream(f"base_url: {SECRET}"),
        priced(f"{{version: '{SECRET}!', input: 1, output: 1}}"),
        priced(f"{{version: v1, input: {SECRET}, output: 1}}"),
        f"models: {SECRET}\n",
        f"{SECRET}\n",
    ],
)
def test_a_secret_in_the_wrong_place_is_in_no_message_and_no_traceback(path, content, caplog):
    path.write_text(content)
    with pytest.raises(CatalogError) as caught:
        Catalog.from_file(path, {})
    with caplog.at_level(logging.ERROR):
        logging.getLogger("test").error("load failed", exc_info=caught.value)
    # The source lines that a traceback shows are this file's; the parameter's text is not among them.
    told = [str(caught.value), repr(caught.value), repr(caught.value.problems), caplog.text]
    told += traceback.format_exception(caught.value)
    hidden = SECRET[3:20].replace("-", "_")
    assert hidden not in "".join(told).replace("-", "_")
    assert caught.value.__context__ is None


def test_no_name_in_the_file_can_forge_a_line_of_the_error(path):
    content = VALID + '    "x\\ny: z\\r": 1\n  - name: "a\\nb"\n    upstream: {}\n'
    assert problems(path, content) == [
        ":5: models[0].?: unknown field; known here: name, upstream, price (model 'small')",
        ":6: models[1].name: must be 1 to 200 printable characters",
        ":7: models[1].upstream.base_url: this field is required",
    ]


@pytest.mark.parametrize("amount", ["0.1", "0.15", "0.1500", "3", "1e-2", "0.0001", "'0.15'", '"0.15"', "0.15000000"])
def test_a_price_is_read_exactly_as_written_quoted_or_not(path, amount):
    path.write_text(priced(f"{{version: 1.10, input: {amount}, output: {amount}}}"))
    (model,) = Catalog.from_file(path, {}).models
    assert model.price is not None
    assert str(model.price.input) == str(type(model.price.input)(amount.strip("'\"")))
    assert model.price.version == "1.10"


@pytest.mark.parametrize("amount", ["0.12345", "-1", ".nan", ".inf", "1:30", "true", "one", "0x10", "10000000", "[1]"])
def test_an_amount_that_is_not_a_price_is_refused(path, amount):
    (line,) = problems(path, priced(f"{{version: v1, input: {amount}, output: 1}}"))
    assert line.startswith(":5: models[0].price.input: ")


@pytest.mark.parametrize("word", ["no", "true", "123", "1.10", "2026-11-01", "0o7", "1_000"])
def test_a_word_that_yaml_would_turn_into_something_else_stays_text(path, word):
    path.write_text(VALID.replace("small", word))
    assert Catalog.from_file(path, {}).models[0].name == word


@pytest.mark.parametrize("change", [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n")])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(path, change):
    path.write_bytes(change(VALID).encode())
    assert [model.name for model in Catalog.from_file(path, {}).models] == ["small"]
    assert problems(path, change(VALID + "x: 1\n"))[0].startswith(":5: x: ")


def error_of(path: Path) -> CatalogError | None:
    try:
        Catalog.from_file(path, {})
    except CatalogError as error:
        return error
    return None


names = st.sampled_from(["models", "name", "upstream", "base_url", "price", "timeouts", "api_key_env", "api_key_file"])
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(), inner, max_size=4),
)
entries = st.fixed_dictionaries({}, optional={"name": documents, "upstream": documents, "price": documents})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_give_a_catalog_or_a_catalog_error(path, content):
    path.write_bytes(content)
    with pytest.raises(CatalogError):
        Catalog.from_file(path, {})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(documents | st.fixed_dictionaries({"models": st.lists(entries, max_size=3)}))
def test_any_document_gives_a_catalog_or_errors_that_each_name_a_line(path, document):
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    error = error_of(path)
    if error is not None:
        assert len(str(error).split("\n")) == len(error.problems)
        assert all(problem.line for problem in error.problems)
