"""compose.yaml: it parses, its parts fit together, and Prometheus asks the service for its metrics."""

import re
from typing import Any

import pytest
import yaml

from tests.deploy.support import ROOT

TEXT = (ROOT / "compose.yaml").read_text()


@pytest.fixture
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load(TEXT))


def test_what_a_service_names_is_there(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for mount in service.get("volumes", []):
            assert mount.partition(":")[0] in compose["volumes"]
        for config in service.get("configs", []):
            assert config["source"] in compose["configs"]
        for other in service.get("depends_on", {}):
            assert "healthcheck" in compose["services"][other]


def test_images_are_named_without_a_registry(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        first, slash, _ = service["image"].partition("/")
        assert not slash or not re.search(r"[.:]", first)


def test_no_secret_is_in_it(compose: dict[str, Any]) -> None:
    secret = re.compile(r"PASSWORD|KEY|SECRET")
    for service in compose["services"].values():
        for name, value in (service.get("environment") or {}).items():
            if secret.search(name):
                assert value is None or re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name


def test_ports_are_open_to_this_machine_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_service_is_given_longer_to_stop_than_its_graceful_timeout(compose: dict[str, Any]) -> None:
    service = compose["services"]["tollbook"]
    graceful = int(service["environment"]["TOLLBOOK_GRACEFUL_TIMEOUT_SECONDS"])
    assert int(service["stop_grace_period"].removesuffix("s")) > graceful


def test_the_service_runs_with_a_read_only_root_and_no_privilege(compose: dict[str, Any]) -> None:
    service = compose["services"]["tollbook"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["tmpfs"] == ["/tmp"]
    assert [mount.partition(":")[2] for mount in service["volumes"]] == ["/var/lib/tollbook"]


def test_prometheus_asks_the_service_on_the_port_it_listens_on(compose: dict[str, Any]) -> None:
    (mount,) = compose["services"]["prometheus"]["configs"]
    assert mount["target"] == "/etc/prometheus/prometheus.yml"
    config = yaml.safe_load(compose["configs"][mount["source"]]["content"])
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["tollbook:8000"]}]
    assert compose["services"]["tollbook"]["ports"] == ["127.0.0.1:8000:8000"]
