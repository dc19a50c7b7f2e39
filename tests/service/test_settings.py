"""Settings: every problem named with its variable, all of them at once, and nothing unsafe let through."""

import os
from pathlib import Path

import pytest

from service.authorization import check_settings
from service.settings import (
    AuthSettings,
    HttpSettings,
    Settings,
    SettingsError,
    all_fields,
    load_settings,
    unknown_variables,
    variable_of,
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None of the settings of whoever runs the tests, nor their `.env`."""
    for name in [*os.environ]:
        if name.startswith(("TOLLBOOK_", "OPENAI_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def problems() -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return str(caught.value).splitlines()


BAD = {
    "TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY": ["short", "A" * 43, "A" * 45, "!" * 44],
    "TOLLBOOK_AUTH_SIGNING_ALGORITHM": ["none", "HS512"],
    "TOLLBOOK_AUTH_REFRESH_OVERLAP_SECONDS": ["-1", "61"],
    "TOLLBOOK_AUTH_PASSWORD_MIN_LENGTH": ["7"],
    "TOLLBOOK_OIDC_SCOPE_MAP": ["admin", '["admin"]'],
    "TOLLBOOK_PORT": ["0", "65536", "http", "-1", "8000.5"],
    "TOLLBOOK_WORKERS": ["0", "257", "two"],
    "TOLLBOOK_GRACEFUL_TIMEOUT_SECONDS": ["0", "90000", "1m"],
    "TOLLBOOK_KEEPALIVE_SECONDS": ["0"],
    "TOLLBOOK_WORKER_MAX_REQUESTS": ["-1"],
    "TOLLBOOK_MIGRATE_ON_START": ["maybe"],
    "TOLLBOOK_DATABASE_URL": [
        "mysql://h/db",
        "postgresql+psycopg://h/db",
        "tollbook.db",
        "postgresql+asyncpg://h:port/db",
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///",
        "sqlite+aiosqlite:///:memory:",
        "sqlite://",
        "sqlite+aiosqlite:///file:x?mode=memory&cache=shared&uri=true",
    ],
    "TOLLBOOK_LOG_FORMAT": ["xml"],
    "TOLLBOOK_LOG_LEVEL": ["loud", "trace"],
    "TOLLBOOK_METRICS_ENABLED": ["perhaps"],
    "TOLLBOOK_TRACING_ENABLED": ["2"],
    "TOLLBOOK_STREAM_STALL_SECONDS": ["0", "-1", "nan", "inf"],
    "TOLLBOOK_PRINCIPAL_LABEL_LIMIT": ["-1", "10001"],
    "TOLLBOOK_MODEL_LABEL_LIMIT": ["0"],
    "TOLLBOOK_AUTH_TOKEN_TTL_SECONDS": ["59", "86401"],
    "TOLLBOOK_AUTH_LEEWAY_SECONDS": ["-1", "121"],
    "TOLLBOOK_AUTH_ARGON2_TIME_COST": ["0"],
    "TOLLBOOK_AUTH_ARGON2_MEMORY_KIB": ["8191"],
    "TOLLBOOK_AUTH_HASH_THREADS": ["0", "65"],
    "TOLLBOOK_AUTH_REVOCATION_INTERVAL_SECONDS": ["0", "5.1", "nan"],
    "TOLLBOOK_HSTS_SECONDS": ["-1"],
    "TOLLBOOK_MAX_BODY_BYTES": ["1023", "10MB"],
    "TOLLBOOK_BODY_TIMEOUT_SECONDS": ["0"],
    "TOLLBOOK_REQUEST_TIMEOUT_SECONDS": ["0", "nan"],
    "TOLLBOOK_TRUSTED_PROXIES": ["*", "10.0.0.1,*", "0.0.0.0/0", "::/0"],
}


@pytest.mark.parametrize(("variable", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_refused_by_the_name_of_its_variable(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    (line,) = problems()
    assert line.startswith(f"{variable}: ")
    assert "Value error" not in line


@pytest.mark.parametrize("variable", ["TOLLBOOK_AUTH", "TOLLBOOK_HTTP", "TOLLBOOK_OBSERVABILITY"])
@pytest.mark.parametrize("value", ["x", "{}", '{"auth_issuer": "x", "hsts_seconds": 1}'])
def test_a_variable_named_like_a_group_of_the_code_is_a_stranger_like_any_other(monkeypatch, variable, value):
    without = load_settings()
    monkeypatch.setenv(variable, value)
    assert load_settings() == without
    assert variable in unknown_variables(os.environ)


def test_all_problems_are_told_at_once(monkeypatch):
    bad = {name: values[0] for name, values in BAD.items() if values and name.count("_") > 1}
    for variable, value in bad.items():
        monkeypatch.setenv(variable, value)
    told = {line.partition(":")[0] for line in problems()}
    assert told == set(bad)


def test_a_secret_is_in_no_message(monkeypatch):
    monkeypatch.setenv("TOLLBOOK_DATABASE_URL", "mysql://ada:hunter2@h/db")
    monkeypatch.setenv("TOLLBOOK_ADMIN_PASSWORD", "hunter2")
    monkeypatch.setenv("TOLLBOOK_PORT", "0")
    assert "hunter2" not in "\n".join(problems())


def test_settings_that_contradict_each_other_are_told_by_both_names(monkeypatch):
    monkeypatch.setenv("TOLLBOOK_BODY_TIMEOUT_SECONDS", "60")
    monkeypatch.setenv("TOLLBOOK_REQUEST_TIMEOUT_SECONDS", "30")
    (line,) = problems()
    assert "TOLLBOOK_BODY_TIMEOUT_SECONDS" in line
    assert "TOLLBOOK_REQUEST_TIMEOUT_SECONDS" in line


OIDC = {
    "TOLLBOOK_OIDC_ISSUER": "https://login.example.com",
    "TOLLBOOK_OIDC_AUDIENCE": "tollbook",
    "TOLLBOOK_OIDC_JWKS_URL": "https://login.example.com/keys",
}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"TOLLBOOK_OIDC_AUDIENCE": ""}, "TOLLBOOK_OIDC_AUDIENCE"),
        ({"TOLLBOOK_OIDC_JWKS_URL": ""}, "TOLLBOOK_OIDC_JWKS_FILE"),
        ({"TOLLBOOK_OIDC_JWKS_FILE": "keys.json"}, "TOLLBOOK_OIDC_JWKS_URL"),
        ({"TOLLBOOK_AUTH_ISSUER": OIDC["TOLLBOOK_OIDC_ISSUER"]}, "TOLLBOOK_AUTH_ISSUER"),
    ],
)
def test_half_an_outside_provider_or_one_that_is_us_is_refused(monkeypatch, changes, named):
    for name, value in (OIDC | changes).items():
        monkeypatch.setenv(name, value)
    assert any(named in problem for problem in problems())


@pytest.mark.parametrize(
    "changes",
    [
        {"TOLLBOOK_OIDC_JWKS_URL": "http://login.example.com/keys"},
        {"TOLLBOOK_OIDC_ALGORITHMS": "HS256"},
        {"TOLLBOOK_OIDC_SCOPE_MAP": '{"operator": "root"}'},
    ],
)
def test_an_outside_provider_that_no_worker_could_use_is_refused_before_there_is_one(monkeypatch, changes):
    for name, value in (OIDC | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="TOLLBOOK_OIDC"):
        check_settings(load_settings())


def test_a_complete_outside_provider_is_accepted(monkeypatch):
    for name, value in OIDC.items():
        monkeypatch.setenv(name, value)
    check_settings(load_settings())


def test_without_any_setting_the_defaults_stand_and_are_closed():
    settings = load_settings()
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 2)
    assert settings.effective_database_url == f"sqlite+aiosqlite:///{Path.cwd() / 'var' / 'tollbook.db'}"
    assert settings.key_dir == Path("var/keys")
    assert settings.http == HttpSettings()
    assert (settings.http.cors_origins, settings.http.trusted_proxies) == ([], [])
    assert settings.admin_password is None


def test_each_group_reads_the_same_flat_environment(monkeypatch):
    monkeypatch.setenv("TOLLBOOK_STATE_DIR", "/srv/tollbook")
    monkeypatch.setenv("TOLLBOOK_AUTH_ISSUER", "https://issuer.test")
    monkeypatch.setenv("TOLLBOOK_LOG_LEVEL", "WARNING")
    monkeypatch.setenv("TOLLBOOK_HSTS_SECONDS", "60")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    settings = load_settings()
    assert settings.state_dir == Path("/srv/tollbook")
    assert settings.auth.auth_issuer == "https://issuer.test"
    assert settings.observability.log_level == "warning"
    assert settings.http.hsts_seconds == 60
    assert settings.openai_api_key is not None
    assert settings.openai_api_key.get_secret_value() == "sk-1"
    assert "sk-1" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.1", ["10.0.0.1"]),
        ("10.0.0.1,10.1.0.0/16", ["10.0.0.1", "10.1.0.0/16"]),
        (" 10.0.0.1 , ::1 ,", ["10.0.0.1", "::1"]),
        (",", []),
    ],
)
@pytest.mark.parametrize("variable", ["TOLLBOOK_CORS_ORIGINS", "TOLLBOOK_ALLOWED_HOSTS", "TOLLBOOK_TRUSTED_PROXIES"])
def test_lists_are_separated_by_commas(monkeypatch, variable, text, found):
    monkeypatch.setenv(variable, text)
    assert getattr(load_settings().http, variable.removeprefix("TOLLBOOK_").lower()) == found


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://ada@db/tollbook", "postgresql+asyncpg://ada@db/tollbook"),
        ("postgresql://ada@db/tollbook", "postgresql+asyncpg://ada@db/tollbook"),
        ("postgresql+asyncpg://ada@db/tollbook", "postgresql+asyncpg://ada@db/tollbook"),
        ("sqlite:///data/t.db", "sqlite+aiosqlite:///data/t.db"),
        ("sqlite+aiosqlite:////data/t.db", "sqlite+aiosqlite:////data/t.db"),
    ],
)
def test_database_urls_in_the_usual_spellings_get_the_async_driver(monkeypatch, given, used):
    monkeypatch.setenv("TOLLBOOK_DATABASE_URL", given)
    assert load_settings().effective_database_url == used


def test_an_empty_variable_is_as_good_as_none(monkeypatch):
    for variable in ("TOLLBOOK_DATABASE_URL", "TOLLBOOK_PORT", "TOLLBOOK_CATALOG", "TOLLBOOK_CORS_ORIGINS"):
        monkeypatch.setenv(variable, "")
    assert load_settings() == Settings()


def test_a_dot_env_file_is_read_and_the_environment_goes_before_it(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("TOLLBOOK_PORT=9001\nTOLLBOOK_HSTS_SECONDS=5\nOTHER=1\n")
    monkeypatch.setenv("TOLLBOOK_PORT", "9002")
    settings = load_settings()
    assert (settings.port, settings.http.hsts_seconds) == (9002, 5)


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("TOLLBOOK_PROT", "TOLLBOOK_PORT"),
        ("TOLLBOOK_LOGLEVEL", "TOLLBOOK_LOG_LEVEL"),
        ("TOLLBOOK_OBSERVABILITY__LOG_LEVEL", "TOLLBOOK_LOG_LEVEL"),
        ("TOLLBOOK_CORS_ORIGIN", "TOLLBOOK_CORS_ORIGINS"),
        ("TOLLBOOK_XYZZY", None),
    ],
)
def test_a_variable_that_is_no_setting_is_told_with_a_guess(name, guess):
    assert unknown_variables({name: "x", "OTHER": "y", "TOLLBOOK_PORT": "1"}) == {name: guess}


@pytest.mark.parametrize(
    "name",
    [
        "TOLLBOOK_SERVICE_HOST",
        "TOLLBOOK_SERVICE_PORT",
        "TOLLBOOK_SERVICE_PORT_HTTP",
        "TOLLBOOK_PORT_8000_TCP",
        "TOLLBOOK_PORT_8000_TCP_ADDR",
        "TOLLBOOK_PORT_8000_TCP_PROTO",
        "TOLLBOOK_DB_SERVICE_HOST",
        "TOLLBOOK_DB_PORT",
        "TOLLBOOK_DB_PORT_5432_TCP_ADDR",
    ],
)
def test_service_links_of_kubernetes_are_not_misspelt_settings(name):
    assert unknown_variables({name: "tcp://10.0.0.1:8000"}) == {}


@pytest.mark.parametrize("name", ["TOLLBOOK_URL", "TOLLBOOK_USERNAME", "TOLLBOOK_PASSWORD", "TOLLBOOK_NEW_PASSWORD"])
def test_variables_of_the_command_line_are_not_misspelt_settings(name):
    """`tollbook chat --help` and `tollbook users --help` document them."""
    assert unknown_variables({name: "x"}) == {}


def test_the_service_link_that_collides_with_a_setting_says_what_happened(monkeypatch):
    monkeypatch.setenv("TOLLBOOK_PORT", "tcp://10.0.0.1:8000")
    (line,) = problems()
    assert line.startswith("TOLLBOOK_PORT: ")
    assert "enableServiceLinks" in line


def test_every_setting_is_described_and_named_once():
    fields = list(all_fields())
    names = [name for name, _ in fields]
    assert len(set(names)) == len(names)
    assert all(field.description for _, field in fields)
    assert all(name.startswith(("TOLLBOOK_", "OPENAI_")) for name in names)
    assert variable_of(AuthSettings, "auth_issuer") == "TOLLBOOK_AUTH_ISSUER"
    assert variable_of(Settings, "openai_api_key") == "OPENAI_API_KEY"


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        setattr(load_settings(), "port", 1)  # noqa: B010 - mypy knows it too
