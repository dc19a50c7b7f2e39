"""What holds for the pods however they are deployed: by the chart with each of its ci values, or by an overlay."""

from typing import Any

import pytest

from tests.deploy.support import Manifest, container, environment, one


def pod_specs(documents: list[Manifest]) -> list[Manifest]:
    """The Deployment's pod and the chart's test pod."""
    specs = [one(documents, "Deployment")["spec"]["template"]["spec"]]
    return specs + [document["spec"] for document in documents if document["kind"] == "Pod"]


def pod_spec(documents: list[Manifest]) -> Manifest:
    return pod_specs(documents)[0]


def test_every_pod_meets_the_restricted_standard_with_a_read_only_root(rendering: list[Manifest]) -> None:
    for spec in pod_specs(rendering):
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] > 0
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
        for each in spec["containers"]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_no_pod_gets_service_links_which_would_set_tollbook_port(rendering: list[Manifest]) -> None:
    for spec in pod_specs(rendering):
        assert spec["enableServiceLinks"] is False


def test_liveness_asks_of_the_process_and_readiness_of_the_rest(rendering: list[Manifest]) -> None:
    probes = container(rendering)
    assert probes["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert probes["startupProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert probes["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}


def test_the_pod_is_given_longer_than_prestop_and_graceful_timeout_together(rendering: list[Manifest]) -> None:
    program, seconds = container(rendering)["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    graceful = environment(rendering)["TOLLBOOK_GRACEFUL_TIMEOUT_SECONDS"]
    assert pod_spec(rendering)["terminationGracePeriodSeconds"] > int(seconds) + int(graceful)


def test_a_rollout_never_has_fewer_pods_than_asked_for(rendering: list[Manifest]) -> None:
    assert one(rendering, "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_the_service_finds_the_deployments_pods_and_not_the_test_pod(rendering: list[Manifest]) -> None:
    selector = one(rendering, "Service")["spec"]["selector"].items()
    deployment = one(rendering, "Deployment")["spec"]
    assert deployment["selector"]["matchLabels"].items() == selector
    assert selector <= deployment["template"]["metadata"]["labels"].items()
    for document in rendering:
        if document["kind"] == "Pod":
            assert not selector <= document["metadata"]["labels"].items()


def test_every_mount_has_its_volume_and_all_it_writes_is_mounted(rendering: list[Manifest]) -> None:
    volumes = {volume["name"]: volume for volume in pod_spec(rendering)["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container(rendering)["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == volumes.keys()
    for path in (environment(rendering)["TOLLBOOK_STATE_DIR"], "/tmp"):
        assert "emptyDir" in volumes[mounts[path]["name"]]


def test_a_variable_is_set_once(rendering: list[Manifest]) -> None:
    names = [entry["name"] for entry in container(rendering)["env"]]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("name", ["TOLLBOOK_ADMIN_PASSWORD", "TOLLBOOK_DATABASE_URL", "OPENAI_API_KEY"])
def test_what_is_confidential_comes_from_the_secret(rendering: list[Manifest], name: str) -> None:
    source = environment(rendering).get(name)
    if source is None:
        assert name == "TOLLBOOK_DATABASE_URL", "SQLite needs no URL"
        return
    assert source["secretKeyRef"]["key"] == name
    # A pod must not start on SQLite, or without an admin, because a key of the Secret is misspelt.
    assert bool(source["secretKeyRef"].get("optional")) == (name == "OPENAI_API_KEY")


def test_several_pods_share_a_database_and_a_signing_key(rendering: list[Manifest]) -> None:
    if one(rendering, "Deployment")["spec"]["replicas"] == 1:
        return
    variables = environment(rendering)
    assert "TOLLBOOK_DATABASE_URL" in variables
    if "TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY" not in variables:  # then they are not in the database
        assert "secret" in mounted_at(rendering, variables["TOLLBOOK_AUTH_KEY_DIR"])


def test_the_catalog_is_where_the_service_is_told_it_is(rendering: list[Manifest]) -> None:
    path = environment(rendering).get("TOLLBOOK_CATALOG")
    if path is None:
        assert not [document for document in rendering if document["kind"] == "ConfigMap"]
        return
    directory, _, name = path.rpartition("/")
    config = one(rendering, "ConfigMap")
    assert mounted_at(rendering, directory)["configMap"]["name"] == config["metadata"]["name"]
    assert name in config["data"]


def mounted_at(documents: list[Manifest], path: str) -> dict[str, Any]:
    """The volume that is mounted, read-only, at a path."""
    (mount,) = (each for each in container(documents)["volumeMounts"] if each["mountPath"] == path)
    assert mount["readOnly"] is True
    (volume,) = (each for each in pod_spec(documents)["volumes"] if each["name"] == mount["name"])
    return dict(volume)
