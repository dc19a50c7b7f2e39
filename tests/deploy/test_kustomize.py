"""k8s/: the base is what the chart renders, and the overlays stand on it."""

import shlex
from pathlib import Path

import pytest

from tests.deploy.support import K8S, ROOT, Kube, environment, manifests, one


def documented_command() -> list[str]:
    """The command in the base's kustomization, without `helm` and without the redirection."""
    (line,) = (
        line for line in (K8S / "base" / "kustomization.yaml").read_text().splitlines() if "helm template" in line
    )
    program, *args, arrow, target = shlex.split(line.lstrip("# "))
    assert (program, arrow, ROOT / target) == ("helm", ">", K8S / "base" / "tollbook.yaml")
    return args


def test_the_base_is_what_its_documented_command_renders_from_the_chart(kube: Kube) -> None:
    assert (K8S / "base" / "tollbook.yaml").read_text() == kube.ok("helm", *documented_command())


@pytest.mark.parametrize(
    "directory", [K8S / "base", K8S / "overlays" / "dev", K8S / "overlays" / "production"], ids=lambda path: path.name
)
def test_kustomize_builds_it_without_a_secret_in_it(kube: Kube, directory: Path) -> None:
    kinds = {document["kind"] for document in manifests(kube.ok("kubectl", "kustomize", directory))}
    assert (
        {"Deployment", "Service", "ServiceAccount"} <= kinds <= {"Deployment", "Service", "ServiceAccount", "ConfigMap"}
    )


def test_production_has_several_pods_and_an_image_of_a_fixed_version(kube: Kube) -> None:
    documents = manifests(kube.ok("kubectl", "kustomize", K8S / "overlays" / "production"))
    deployment = one(documents, "Deployment")["spec"]
    assert deployment["replicas"] > 1
    assert not deployment["template"]["spec"]["containers"][0]["image"].endswith((":latest", ":dev"))


def test_dev_is_one_talkative_pod(kube: Kube) -> None:
    documents = manifests(kube.ok("kubectl", "kustomize", K8S / "overlays" / "dev"))
    assert one(documents, "Deployment")["spec"]["replicas"] == 1
    assert environment(documents)["TOLLBOOK_LOG_LEVEL"] == "debug"
