"""The OpenAPI document against the running service, by Schemathesis: every check, and no answer of 5xx."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.catalog import KEY_VARIABLE, UPSTREAM_KEY
from tests.support.service import ADMIN, RunningService, clean_environment
from tests.support.tools import require_package
from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.slow
CONFIG = Path(__file__).with_name("schemathesis.toml")
SCOPES = ("admin", "users:admin", "llm", "usage:read", "account")


@pytest.fixture(scope="module")
def attacked(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service of its own: it is full of strange users afterwards. Its one model is the one of the examples."""
    model = {
        "name": "smollm2-135m-instruct",
        "upstream": {"base_url": upstream.base_url, "api_key_env": KEY_VARIABLE, "model": "ok"},
    }
    directory = tmp_path_factory.mktemp("schemathesis")
    with RunningService(
        directory, catalog=yaml.safe_dump({"models": [model]}), env={KEY_VARIABLE: UPSTREAM_KEY}
    ) as running:
        yield running


def test_every_route_keeps_to_the_document_whatever_it_is_sent(attacked: RunningService, tmp_path: Path) -> None:
    require_package("schemathesis")
    # An API key, because some of the routes end sessions.
    scopes = [part for scope in SCOPES for part in ("--scope", scope)]
    key = attacked.tollbook("keys", "add", ADMIN, "schemathesis", *scopes).splitlines()[-1]
    url = f"{attacked.base_url}/openapi.json"
    command = ["--config-file", str(CONFIG), "run", url, "--checks", "all", "--max-examples", "10", "--seed", "7"]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *command, "--phases", "examples,coverage,fuzzing"],
        env=clean_environment({"API_KEY": key}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    assert attacked.log_lines(event="unexpected_error") == []
