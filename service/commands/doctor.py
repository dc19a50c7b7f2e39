"""`tollbook doctor`: is everything that the service needs in order, and if not, what to do."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx2
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from auth.database import Database, DatabaseUnavailable
from auth.keyfiles import KeyFileError
from auth.users import Users
from service.bootstrap import load_catalog, prepare_state_dir
from service.database import is_current, make_engine
from service.llm.catalog import Catalog, CatalogError, Upstream
from service.settings import Settings, SettingsError

_UPSTREAM_SECONDS = 10.0


class _Trouble(Exception):  # noqa: N818
    """A check failed: what is wrong, and what to do."""

    def __init__(self, wrong: str, advice: str) -> None:
        super().__init__(wrong)
        self.advice = advice


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    look: Callable[[], Awaitable[str]]


async def examine(settings: Settings) -> int:
    """Run every check and print what was found.

    Returns:
        The exit status: 0 when all is well, else 1.
    """
    catalog: Catalog | None = None
    checks = [
        _Check("state directory and key", lambda: _state(settings)),
        _Check("database", lambda: _database(settings)),
        _Check("catalog", lambda: _catalog(settings)),
    ]
    try:
        catalog = load_catalog(settings)
        checks += [
            _Check(f"upstream {upstream.name}", lambda upstream=upstream: _upstream(upstream))  # type: ignore[misc]
            for upstream in _upstreams(catalog)
        ]
    except (CatalogError, SettingsError):
        pass  # the check of the catalog says it
    table = Table("", "check", "found", "what to do", box=None, pad_edge=False)
    failed = 0
    console = Console(soft_wrap=True)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for check in progress.track(checks, description="Checking"):
            try:
                table.add_row("ok", check.name, await check.look(), "", style="green")
            except _Trouble as trouble:
                failed += 1
                table.add_row("!!", check.name, str(trouble), trouble.advice, style="red")
    console.print(table, markup=False)
    return 1 if failed else 0


async def _state(settings: Settings) -> str:
    try:
        prepare_state_dir(settings)
    except (SettingsError, KeyFileError) as error:
        raise _Trouble(str(error), "Give the service's user that directory, with mode 700.") from None
    return f"{settings.state_dir.absolute()}, key in {settings.key_dir}"


async def _database(settings: Settings) -> str:
    engine = make_engine(settings.effective_database_url)
    try:
        if not await is_current(engine):
            raise _Trouble("the schema is not up to date", "Run: tollbook migrate")
        count = await Users(Database(engine)).count()
    except (SQLAlchemyError, OSError, DatabaseUnavailable) as error:
        raise _Trouble(
            f"cannot be reached ({type(error).__name__})", "Check TOLLBOOK_DATABASE_URL and that the server is up."
        ) from None
    finally:
        await engine.dispose()
    if count == 0:
        raise _Trouble("there are no users", "Run: tollbook users add NAME --scope admin --scope llm")
    return f"{engine.dialect.name}, {count} user(s)"


async def _catalog(settings: Settings) -> str:
    try:
        catalog = load_catalog(settings)
    except CatalogError as error:
        raise _Trouble(str(error), "Mend the file; tollbook.example.yaml shows how.") from None
    except SettingsError as error:
        raise _Trouble("no upstream is set", str(error)) from None
    if catalog.passthrough:
        return "none: every model name is passed on to one upstream"
    unpriced = [model.name for model in catalog.models if model.price is None]
    note = f", without a price: {', '.join(unpriced)}" if unpriced else ""
    return f"{len(catalog.models)} model(s){note}"


def _upstreams(catalog: Catalog) -> list[Upstream]:
    first = {model.upstream.name: model.upstream for model in reversed(catalog.models)}
    passed_on = catalog.resolve("any") if catalog.passthrough else None
    return [passed_on.upstream] if passed_on else list(first.values())


async def _upstream(upstream: Upstream) -> str:
    headers = {"Authorization": f"Bearer {upstream.api_key.get_secret_value()}"} if upstream.api_key else {}
    try:
        async with httpx2.AsyncClient(timeout=_UPSTREAM_SECONDS) as client:
            response = await client.get(f"{upstream.base_url}/models", headers=headers)
    except httpx2.TransportError as error:
        raise _Trouble(
            f"{upstream.base_url} cannot be reached ({type(error).__name__})", "Check base_url, DNS and the firewall."
        ) from None
    if response.status_code in {httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN}:
        raise _Trouble(f"answered {response.status_code}", "The key is refused: check api_key_env or api_key_file.")
    if response.status_code >= httpx2.codes.INTERNAL_SERVER_ERROR:
        raise _Trouble(f"answered {response.status_code}", "The upstream is in trouble itself.")
    return f"{upstream.base_url} answered {response.status_code}"
