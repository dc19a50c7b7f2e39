"""Every knob, its default and its unit. Read from the environment (prefix TOLLBOOK_) and from `.env`.

The names are flat (TOLLBOOK_LOG_LEVEL, not TOLLBOOK_OBSERVABILITY__LOG_LEVEL); the groups are for the code, which hands
each room only its own. docs/configuration.md is generated from this file: `make docs`.
"""

import difflib
import json
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

PREFIX = "TOLLBOOK_"

# Options of `chat` and `users` that may come from the environment.
_COMMAND_VARIABLES = {PREFIX + name for name in ("URL", "USERNAME", "PASSWORD", "NEW_PASSWORD")}
# Variables that Kubernetes sets for a Service called "tollbook" (service links): not misspelt settings of ours.
_SERVICE_LINK = re.compile(r"^TOLLBOOK_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP|SCTP)\w*)?)$")


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("is not a JSON object") from None


JsonObject = Annotated[dict[str, str], NoDecode, BeforeValidator(_object)]
CommaSeparated = Annotated[list[str], NoDecode, BeforeValidator(_split)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Group(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True, populate_by_name=True, env_ignore_empty=True
    )


class AuthSettings(_Group):
    """Tokens, keys, passwords, logins."""

    auth_issuer: str = Field(
        "tollbook", min_length=1, description="`iss` of the access tokens. In production the public https address."
    )
    auth_audience: str = Field("tollbook", min_length=1, description="`aud` of the access tokens.")
    auth_token_ttl_seconds: int = Field(3600, ge=60, le=86400, description="Life of an access token, in seconds.")
    auth_leeway_seconds: int = Field(5, ge=0, le=120, description="Clock skew allowed when a token is checked.")
    auth_refresh_ttl_seconds: int = Field(
        14 * 86400, ge=60, description="Life of a refresh token that is not used, in seconds."
    )
    auth_session_ttl_seconds: int = Field(
        90 * 86400, ge=60, description="Longest time until a user has to log in again, in seconds."
    )
    auth_refresh_overlap_seconds: int = Field(
        10, ge=0, le=60, description="How long a client that lost the answer may send a spent refresh token again."
    )
    auth_default_client: bool = Field(
        True, description="Allow users to log in without a `client_id`, as the built-in public client `tollbook`."
    )
    auth_key_dir: Path | None = Field(
        None, description="Directory of the signing keys. Default: `keys` in the state directory."
    )
    auth_key_encryption_key: SecretStr | None = Field(
        None,
        description="32 bytes in base64. Set it to keep the signing keys in the database, encrypted by it: for several "
        "replicas.",
    )
    auth_signing_algorithm: Literal["ES256", "RS256", "HS256"] = Field(
        "ES256", description="Algorithm of new signing keys. `HS256` keys are accepted only while this says so."
    )
    auth_key_rotation_days: float = Field(
        30,
        ge=0,
        allow_inf_nan=False,
        description="Age of a signing key at which it is replaced, in days; 0: never.",
    )
    auth_key_publish_seconds: int = Field(
        600, ge=10, le=86400, description="How long a new signing key is published before it signs, in seconds."
    )
    auth_argon2_time_cost: int = Field(1, ge=1, description="Argon2id passes.")
    auth_argon2_memory_kib: int = Field(
        47104, ge=8192, description="Argon2id memory, KiB. Default: OWASP's 46 MiB with one pass."
    )
    auth_argon2_parallelism: int = Field(1, ge=1, description="Argon2id lanes.")
    auth_hash_threads: int = Field(2, ge=1, le=64, description="Threads that hash passwords, in each worker.")
    auth_hash_max_waiting: int = Field(
        32, ge=1, description="Logins that may wait for a hashing thread, in each worker; past it the answer is 503."
    )
    auth_password_min_length: int = Field(12, ge=8, le=64, description="Fewest characters of a new password.")
    auth_password_min_score: int = Field(
        2, ge=0, le=4, description="Least strength of a new password, as zxcvbn scores it; 0 does not ask."
    )
    auth_login_free_failures: int = Field(
        5, ge=1, description="Failed logins of one account from one address before there is a delay."
    )
    auth_login_address_failures: int = Field(
        50, ge=1, description="Failed logins from one address, of any account, before there is a delay."
    )
    auth_login_account_failures: int = Field(
        100, ge=1, description="Failed logins of one account from anywhere before strange addresses are delayed."
    )
    auth_login_max_delay_seconds: int = Field(
        900, ge=1, le=86400, description="Longest delay after failed logins, in seconds."
    )
    auth_revocation_interval_seconds: Positive = Field(
        2.0, le=5, description="How often a worker reads what was revoked, in seconds."
    )

    @field_validator("auth_key_encryption_key")
    @classmethod
    def _thirty_two_bytes(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                key = b64decode(value.get_secret_value().translate(str.maketrans("-_", "+/")), validate=True)
            except ValueError:
                key = b""
            if len(key) != 32:  # noqa: PLR2004  # AES-256
                raise ValueError("32 bytes in base64 are expected; make them by: openssl rand -base64 32")
        return value


class OidcSettings(_Group):
    """An outside identity provider whose access tokens are accepted too. Off unless an issuer is set."""

    oidc_issuer: str | None = Field(None, description="`iss` of its tokens.")
    oidc_audience: str | None = Field(None, description="`aud` its tokens must have. Required with an issuer.")
    oidc_jwks_url: str | None = Field(None, description="Address of its JWK set. One of this and the file is required.")
    oidc_jwks_file: Path | None = Field(None, description="File with its JWK set.")
    oidc_algorithms: CommaSeparated = Field(
        ["RS256", "ES256"],
        description="Signature algorithms accepted, comma separated: `RS256`, `ES256` and the like.",
    )
    oidc_principal_claim: str = Field("sub", min_length=1, description="Claim that names the principal.")
    oidc_team_claim: str | None = Field(None, description="Claim that names the team.")
    oidc_scope_claim: str = Field(
        "scope", min_length=1, description="Claim with scopes, roles or groups: a string with spaces, or a list."
    )
    oidc_scope_map: JsonObject = Field(
        {},
        description="JSON object: from a value of that claim to scopes. Empty: values are scopes themselves.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.oidc_issuer is None:
            return self
        if self.oidc_audience is None:
            raise ValueError("TOLLBOOK_OIDC_AUDIENCE is required with TOLLBOOK_OIDC_ISSUER")
        if (self.oidc_jwks_url is None) == (self.oidc_jwks_file is None):
            raise ValueError("set one of TOLLBOOK_OIDC_JWKS_URL and TOLLBOOK_OIDC_JWKS_FILE with TOLLBOOK_OIDC_ISSUER")
        return self


class ObservabilitySettings(_Group):
    """Logs, metrics, traces."""

    log_format: Literal["json", "pretty"] = Field("json", description="`json` for machines, `pretty` for a terminal.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level written.")
    metrics_enabled: bool = Field(True, description="Serve Prometheus metrics at `/metrics`.")
    tracing_enabled: bool = Field(
        True, description="Make OpenTelemetry spans. They are exported when an OTLP endpoint is set (`OTEL_*`)."
    )
    trust_traceparent: bool = Field(True, description="Continue the trace of a client's `traceparent` header.")
    stream_stall_seconds: Positive = Field(5.0, description="A gap between chunks over this is counted as a stall.")
    principal_label_limit: int = Field(
        100, ge=0, le=10000, description="Principals with a metric series of their own; the rest share `other`."
    )
    model_label_limit: int = Field(
        200, ge=1, le=10000, description="Model names with a metric series of their own; the rest share `other`."
    )

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


class HttpSettings(_Group):
    """The HTTP surface."""

    allowed_hosts: CommaSeparated = Field(["*"], description="Host names answered to, comma separated; `*.x` allowed.")
    trusted_proxies: CommaSeparated = Field(
        [], description="Addresses or networks whose `X-Forwarded-*` headers are believed, comma separated."
    )
    cors_origins: CommaSeparated = Field([], description="Origins that browsers may call from. Empty: CORS is closed.")
    hsts_seconds: int = Field(0, ge=0, description="`Strict-Transport-Security` max-age; 0 sends none.")
    max_body_bytes: int = Field(10 * 2**20, ge=1024, description="Largest request body, in bytes; past it: 413.")
    body_timeout_seconds: Positive = Field(30.0, description="Time a client has to send its body, in seconds.")
    request_timeout_seconds: Positive = Field(
        900.0, description="Longest life of one model call, stream included, in seconds."
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _not_everybody(cls, value: list[str]) -> list[str]:
        for proxy in value:
            if proxy == "*" or ip_network(proxy, strict=False).prefixlen == 0:
                raise ValueError(f"{proxy!r} would let every client forge its address; name the proxies' networks")
        return value

    @model_validator(mode="after")
    def _body_within_request(self) -> Self:
        if self.body_timeout_seconds > self.request_timeout_seconds:
            raise ValueError("TOLLBOOK_BODY_TIMEOUT_SECONDS must not be above TOLLBOOK_REQUEST_TIMEOUT_SECONDS")
        return self


class Settings(_Group):
    """The service. Groups are read from the same flat environment."""

    state_dir: Path = Field(Path("var"), description="All it writes: SQLite file, keys, worker slots.")
    database_url: str = Field(
        "",
        description="`sqlite+aiosqlite:///file` or `postgresql+asyncpg://...`. Default: `tollbook.db` in the state "
        "directory.",
    )
    migrate_on_start: bool = Field(True, description="`serve` and `run` bring the database schema up to date.")
    catalog: Path | None = Field(None, description="Catalog file: which models, which upstreams, which prices.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    workers: int = Field(2, ge=1, le=256, description="Worker processes.")
    worker_max_requests: int = Field(
        0, ge=0, description="A worker is replaced after this many requests; 0 keeps it for ever."
    )
    graceful_timeout_seconds: int = Field(
        30, ge=1, le=86400, description="At shutdown, how long open requests and streams may go on, in seconds."
    )
    keepalive_seconds: int = Field(65, ge=1, description="How long an idle client connection is kept, in seconds.")
    admin_username: str = Field("admin", description="Name of the first admin, made at start if there is no user.")
    admin_password: SecretStr | None = Field(None, description="Password of the first admin.")
    openai_api_key: SecretStr | None = Field(
        None, validation_alias="OPENAI_API_KEY", description="Key for the upstream when there is no catalog."
    )
    openai_base_url: str | None = Field(
        None, validation_alias="OPENAI_BASE_URL", description="Upstream when there is no catalog. Default: OpenAI."
    )
    # NoDecode: a stray TOLLBOOK_AUTH is not read as JSON for the whole group; `load_settings` puts the groups in.
    auth: Annotated[AuthSettings, NoDecode] = Field(default_factory=AuthSettings)
    oidc: Annotated[OidcSettings, NoDecode] = Field(default_factory=OidcSettings)
    observability: Annotated[ObservabilitySettings, NoDecode] = Field(default_factory=ObservabilitySettings)
    http: Annotated[HttpSettings, NoDecode] = Field(default_factory=HttpSettings)

    @field_validator("database_url")
    @classmethod
    def _driver(cls, value: str) -> str:
        if value == "":
            return value
        url = re.sub(r"^postgres(ql)?://", "postgresql+asyncpg://", value)
        url = re.sub(r"^sqlite://", "sqlite+aiosqlite://", url)
        if not url.startswith(("postgresql+asyncpg://", "sqlite+aiosqlite://")):
            raise ValueError("must start with sqlite+aiosqlite:/// or postgresql+asyncpg://")
        try:
            parts = make_url(url)
        except (ArgumentError, ValueError):
            raise ValueError("is not a database URL") from None
        in_memory = not parts.database or ":memory:" in parts.database or parts.query.get("mode") == "memory"
        if parts.get_backend_name() == "sqlite" and in_memory:
            raise ValueError("an in-memory database is not shared by the workers; name a file")
        return url

    @field_validator("port", mode="before")
    @classmethod
    def _no_service_link(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith(("tcp://", "udp://")):
            raise ValueError(
                "Kubernetes set this variable for a Service called 'tollbook'; set enableServiceLinks: false on the pod"
            )
        return value

    @model_validator(mode="after")
    def _two_issuers(self) -> Self:
        if self.oidc.oidc_issuer == self.auth.auth_issuer:
            raise ValueError("TOLLBOOK_OIDC_ISSUER must be another than TOLLBOOK_AUTH_ISSUER, which is our own")
        return self

    @property
    def effective_database_url(self) -> str:
        """The database to use: the one that was set, else the SQLite file in the state directory."""
        return self.database_url or f"sqlite+aiosqlite:///{self.state_dir.absolute() / 'tollbook.db'}"

    @property
    def drain_file(self) -> Path:
        """While it exists, /readyz says that no traffic is wanted."""
        return self.state_dir / "draining"

    @property
    def key_dir(self) -> Path:
        """Where the signing keys are, unless they are in the database."""
        return self.auth.auth_key_dir or self.state_dir / "keys"


GROUPS: dict[str, type[BaseSettings]] = {
    "auth": AuthSettings,
    "oidc": OidcSettings,
    "observability": ObservabilitySettings,
    "http": HttpSettings,
}


class SettingsError(ValueError):
    """The environment holds a bad or unsafe setting; the message has a line for each, naming the variable."""


def variable_of(group: type[BaseSettings], field: str) -> str:
    """The environment variable that sets a field."""
    alias = group.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else (PREFIX + field).upper()


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        SettingsError: with one line for each bad setting.
    """
    problems: list[str] = []
    parts: dict[str, BaseSettings] = {}
    for name, group in GROUPS.items():
        try:
            parts[name] = group()
        except ValidationError as error:
            problems += _describe(error)
            parts[name] = group.model_construct()
    try:
        settings = Settings.model_validate(parts)
    except ValidationError as error:
        problems += _describe(error)
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def _describe(error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors(include_url=False, include_input=False):
        where = str(detail["loc"][0]) if detail["loc"] else ""
        name = where if where.isupper() else (PREFIX + where).upper()
        message = detail["msg"].removeprefix("Value error, ")
        lines.append(f"{name}: {message}" if where else message)
    return lines


def all_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Every setting: the variable that sets it, and its description and default."""
    groups: list[type[BaseSettings]] = [Settings, *GROUPS.values()]
    for group in groups:
        for name, field in group.model_fields.items():
            if name not in GROUPS:
                yield variable_of(group, name), field


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """TOLLBOOK_ variables that are no setting, each with the setting it may be a misspelling of."""
    known = [name for name, _ in all_fields()]
    strangers = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
    return {
        # Above 0.6, the usual: the common prefix alone makes two short names that similar.
        name: next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.7)), None)
        for name in strangers
        if name not in _COMMAND_VARIABLES and not _SERVICE_LINK.match(name)
    }
