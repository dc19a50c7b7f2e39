"""helm and kubectl are unpacked once a session."""

from collections.abc import Iterator

import pytest

from tests.deploy.support import CHART, CI_VALUES, K8S, Kube, Manifest, kube_tools, manifests

OVERLAYS = sorted(path.parent for path in (K8S / "overlays").glob("*/kustomization.yaml"))


@pytest.fixture(scope="session")
def kube() -> Iterator[Kube]:
    with kube_tools() as tools:
        yield tools


@pytest.fixture(params=[*CI_VALUES, *OVERLAYS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def rendering(request: pytest.FixtureRequest, kube: Kube) -> list[Manifest]:
    """What would be sent to a cluster, by the chart with each of its ci values, and by each overlay."""
    if request.param.suffix == ".yaml":
        return manifests(kube.ok("helm", "template", "tollbook", CHART, "--values", request.param))
    return manifests(kube.ok("kubectl", "kustomize", request.param))
