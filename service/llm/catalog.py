"""Which models there are and which upstream answers for each: `tollbook.yaml`, or one upstream for every name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, StringConstraints
from pydantic import ValidationInfo as Info

from service.llm.catalog_file import CatalogError, Problem, read_catalog_file
from service.llm.pricing import Price

__all__ = ["Catalog", "CatalogError", "Model", "Timeouts", "Upstream", "is_model_name"]

OPENAI_BASE_URL = "https://api.openai.com/v1"
_MAX_NAME = 200
_MAX_RETRIES = 10
_MAX_KEY = 8 * 1024  # what servers commonly allow for a header
# Capitals only, though POSIX allows more: some vendors' keys look like a lower-case variable, and a message that names
# the missing variable must not print a key.
_ENVIRONMENT_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


def is_model_name(name: str) -> bool:
    """Whether `name` can name a model: 1 to 200 characters, all printable, so none that breaks a line of a log."""
    return 1 <= len(name) <= _MAX_NAME and name.isprintable()


@dataclass
class _Reading:
    """What the validators of one reading share."""

    environ: Mapping[str, str]
    names: set[str] = field(default_factory=set)


def _printable_name(name: str) -> str:
    if not is_model_name(name):
        raise ValueError(f"must be 1 to {_MAX_NAME} printable characters")
    return name


def _unique_name(name: str, info: Info[_Reading]) -> str:
    if name in info.context.names:
        raise ValueError(f"{name!r} is already the name of an earlier model")
    info.context.names.add(name)
    return name


def _base_url(url: str) -> str:
    """Checked without repeating it in a message: it may hold a password."""
    if not url.isprintable() or " " in url:
        raise ValueError("must be a URL without spaces or control characters")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is not a valid URL") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError("must begin with http:// or https:// and name a host")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or password")
    if "?" in url or "#" in url:
        raise ValueError("must not have a query or fragment: paths are added to its end")
    return url.rstrip("/")


def _key(text: str, source: str) -> SecretStr:
    key = text.rstrip("\r\n")
    if not key:
        raise ValueError(f"{source} is empty")
    if len(key) > _MAX_KEY:
        raise ValueError(f"{source} is too long to be a key")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"{source} has characters that cannot be sent in a header")
    return SecretStr(key)


def _key_from_environment(name: object, info: Info[_Reading]) -> object:
    if not isinstance(name, str):
        return name
    if not _ENVIRONMENT_NAME.fullmatch(name):
        raise ValueError("must be the name of an environment variable in capitals, such as OPENAI_API_KEY")
    if name not in info.context.environ:
        raise ValueError(f"environment variable {name} is not set")
    return _key(info.context.environ[name], f"environment variable {name}")


def _key_from_file(name: object, info: Info[_Reading]) -> object:
    if not isinstance(name, str):
        return name
    # Absent when it was given but could not be read.
    if info.data.get("environment_key", name) is not None:
        raise ValueError("give either api_key_env or api_key_file, not both")
    if not name.startswith("/") or not name.isprintable():
        raise ValueError("must be the full path of a file, such as /run/secrets/openai")
    try:
        with Path(name).open("rb") as file:
            content = file.read(_MAX_KEY + 2)
    except OSError as error:
        raise ValueError(f"key file {name} cannot be read: {error.strerror}") from None
    # A byte that is not ASCII becomes a character that is not, and is refused as such.
    return _key(content.decode("latin-1"), f"key file {name}")


Name = Annotated[str, AfterValidator(_printable_name)]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:\[\]-]{1,64}$")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Timeouts(_Entry):
    """Seconds to connect, of silence between two pieces of the answer, and for the whole call."""

    connect: Seconds = 5.0
    read: Seconds = 60.0
    total: Seconds = 600.0


class _UpstreamEntry(_Entry):
    name: Label | None = None
    provider: Label = "openai"
    base_url: Annotated[str, AfterValidator(_base_url)]
    # The file says where the key is; the validator fetches it from there.
    environment_key: Annotated[SecretStr | None, BeforeValidator(_key_from_environment)] = Field(
        default=None, alias="api_key_env"
    )
    file_key: Annotated[SecretStr | None, BeforeValidator(_key_from_file)] = Field(default=None, alias="api_key_file")
    model: Name | None = None
    timeouts: Timeouts = Timeouts()
    max_retries: Annotated[int, Field(ge=0, le=_MAX_RETRIES)] = 1


class _ModelEntry(_Entry):
    name: Annotated[Name, AfterValidator(_unique_name)]
    upstream: _UpstreamEntry
    price: Price | None = None


def _not_empty(models: tuple[_ModelEntry, ...]) -> tuple[_ModelEntry, ...]:
    if not models:
        raise ValueError("must have at least one model")
    return models


class _CatalogEntry(_Entry):
    # Not by min_length, which counts only the entries that are valid.
    models: Annotated[tuple[_ModelEntry, ...], AfterValidator(_not_empty)]


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a model's calls go. Models may share all of it but `model`, the name that the upstream knows.

    `name` is the label in metrics, `provider` is `gen_ai.provider.name`, `max_retries` counts attempts after the first.
    """

    name: str
    provider: str
    base_url: str
    api_key: SecretStr | None
    model: str
    timeouts: Timeouts
    max_retries: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model as clients know it. `created` is in Unix seconds: the time of the catalog file, 0 when there is none."""

    name: str
    upstream: Upstream
    price: Price | None
    created: int
    owned_by: str


class Catalog:
    """The models on offer, fixed once made. With `passthrough`, any other name goes to that upstream as it is."""

    def __init__(self, models: Iterable[Model] = (), *, passthrough: Upstream | None = None) -> None:
        self.models = tuple(models)
        self._by_name = {model.name: model for model in self.models}
        self._passthrough = passthrough

    @classmethod
    def from_file(cls, path: Path | str, environ: Mapping[str, str]) -> Self:
        """Read the file and the keys it points to. Raises CatalogError with everything that is wrong."""
        path = Path(path)
        entries = read_catalog_file(path, _CatalogEntry, context=_Reading(environ)).models
        created = int(path.stat().st_mtime)
        return cls(_model(entry, created) for entry in entries)

    @classmethod
    def for_openai(cls, api_key: SecretStr | None, base_url: str | None) -> Self:
        """No file: every model name is passed on to OpenAI, or to the compatible service at `base_url`."""
        key_text = api_key.get_secret_value() if api_key is not None else ""
        variable = "OPENAI_BASE_URL"
        try:
            entry = _UpstreamEntry(base_url=_base_url(base_url or OPENAI_BASE_URL))
            variable = "OPENAI_API_KEY"
            key = _key(key_text, "the key") if key_text else None
        except ValueError as error:
            raise CatalogError(variable, [Problem(None, "", str(error))]) from None
        return cls(passthrough=_upstream(entry, api_key=key, model=""))

    @property
    def passthrough(self) -> bool:
        return self._passthrough is not None

    @property
    def default_model(self) -> Model | None:
        """The model for a call that names none: the first of the file."""
        return self.models[0] if self.models else None

    def resolve(self, name: str | None) -> Model | None:
        """The model of that name, the default for None, or None when there is no such model."""
        if name is None:
            return self.default_model
        if self._passthrough is not None and name not in self._by_name and is_model_name(name):
            upstream = replace(self._passthrough, model=name)
            return Model(name=name, upstream=upstream, price=None, created=0, owned_by=upstream.provider)
        return self._by_name.get(name)


def _model(entry: _ModelEntry, created: int) -> Model:
    settings = entry.upstream
    upstream = _upstream(
        settings, api_key=settings.environment_key or settings.file_key, model=settings.model or entry.name
    )
    return Model(name=entry.name, upstream=upstream, price=entry.price, created=created, owned_by=upstream.provider)


def _upstream(entry: _UpstreamEntry, *, api_key: SecretStr | None, model: str) -> Upstream:
    return Upstream(
        name=entry.name or urlsplit(entry.base_url).netloc.lower(),
        provider=entry.provider,
        base_url=entry.base_url,
        api_key=api_key,
        model=model,
        timeouts=entry.timeouts,
        max_retries=entry.max_retries,
    )
