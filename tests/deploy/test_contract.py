"""What the deployment files say of the service is so: its settings, its catalog, its signing key, its smoke test."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from auth.keyfiles import KEY_FILE, load_or_create
from auth.keys import SigningKey
from service.llm.catalog import Catalog
from service.settings import all_fields
from tests.deploy.support import CHART, K8S, ROOT, Manifest, environment
from tests.support.service import ADMIN, PASSWORD, RunningService

FILES = [ROOT / "Dockerfile", ROOT / "compose.yaml", ROOT / "docs" / "deploy.md"]
FILES += [path for tree in (CHART, K8S) for path in sorted(tree.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_that_is_named_is_a_setting(path: Path) -> None:
    settings = {name for name, _ in all_fields()}
    assert set(re.findall(r"\b(?:TOLLBOOK|OPENAI)_[A-Z0-9_]+\b", path.read_text())) <= settings


def test_the_service_accepts_each_catalog(rendering: list[Manifest], tmp_path: Path) -> None:
    for document in rendering:
        if document["kind"] == "ConfigMap":
            path = tmp_path / "tollbook.yaml"
            path.write_text(document["data"]["tollbook.yaml"])
            keys = dict.fromkeys(environment(rendering), "key")
            assert Catalog.from_file(path, keys).models


@contextmanager
def as_user(number: int) -> Iterator[None]:
    """Be another user and group for a while; only root can."""
    groups = os.getgroups()
    os.setgroups([number])
    os.setegid(number)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that belongs to root")
def test_a_signing_key_is_read_from_a_secret_as_kubernetes_mounts_it() -> None:
    """Root owns the file, the pod's fsGroup may read it, the directory is sticky, and the name is a link."""
    key = SigningKey.generate()
    # Not tmp_path, whose parents are closed to other users.
    with TemporaryDirectory() as name:
        directory = Path(name)
        data = directory / "..data"
        data.mkdir()
        (data / KEY_FILE).write_bytes(key.to_bytes())
        (data / KEY_FILE).chmod(0o440)
        os.chown(data / KEY_FILE, 0, 10001)
        (directory / KEY_FILE).symlink_to(f"..data/{KEY_FILE}")
        directory.chmod(0o3777)
        with as_user(10001):
            assert [each.key.kid for each in load_or_create(directory)] == [key.kid]


def smoke(url: str, password: str) -> subprocess.CompletedProcess[str]:
    env = {
        "SMOKE_URL": url,
        "SMOKE_METRICS": "true",
        "TOLLBOOK_ADMIN_USERNAME": ADMIN,
        "TOLLBOOK_ADMIN_PASSWORD": password,
    }
    return subprocess.run(
        [sys.executable, CHART / "files" / "smoke.py"], env=env, check=False, capture_output=True, text=True
    )


def test_helm_test_passes_on_the_real_service_and_fails_on_a_wrong_password(tmp_path: Path) -> None:
    with RunningService(
        tmp_path, env={"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "none"}
    ) as service:
        passed = smoke(service.base_url, PASSWORD)
        assert (passed.returncode, passed.stdout) == (0, "ready, logged in, counted\n"), passed.stderr
        failed = smoke(service.base_url, "wrong")
        assert failed.returncode != 0
        assert "POST /token: 400" in failed.stderr
