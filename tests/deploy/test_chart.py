"""The chart: what it accepts, what it refuses and why, and what a value changes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.support import CHART, CI_VALUES, Kube, container, environment, one

MINIMAL = ("--values", CHART / "ci" / "minimal-values.yaml")
POSTGRESQL = ("--set", "database.type=postgresql")


@pytest.mark.parametrize("values", CI_VALUES, ids=lambda path: path.stem)
def test_the_chart_is_lint_free_with_each_ci_values_file(kube: Kube, values: Path) -> None:
    kube.ok("helm", "lint", "--strict", CHART, "--values", values)


@pytest.mark.parametrize(
    "misspelt",
    [
        "replicas=2",
        "image.tags=x",
        "logging.levle=info",
        "secret.password=x",
        "resources.request.cpu=1",
        "extraEnv[0].nam=X",
    ],
)
def test_a_misspelt_value_is_refused(kube: Kube, misspelt: str) -> None:
    assert "additional properties" in kube.refusal(*MINIMAL, "--set", misspelt)


@pytest.mark.parametrize(
    "wrong", ["workers=0", "logging.format=xml", "database.type=mysql", "upstream.baseUrl=vllm:8000"]
)
def test_a_value_that_the_service_would_refuse_is_refused_before(kube: Kube, wrong: str) -> None:
    assert f"at '/{wrong.partition('=')[0].replace('.', '/')}'" in kube.refusal(*MINIMAL, "--set", wrong)


def test_two_replicas_on_sqlite_are_refused_and_told_why(kube: Kube) -> None:
    reason = kube.refusal(*MINIMAL, "--set", "replicaCount=2", "--set", "signingKey.existingSecret=key")
    assert "needs database.type=postgresql: with SQLite each pod would have users and a ledger of its own" in reason


def test_two_replicas_without_a_shared_signing_key_are_refused_and_told_why(kube: Kube) -> None:
    reason = kube.refusal(*MINIMAL, *POSTGRESQL, "--set", "replicaCount=2")
    assert "existingSecret: with a signing key of its own, a pod refuses the tokens" in reason


def test_signing_keys_in_the_database_are_shared_by_all_replicas(kube: Kube) -> None:
    values = ("--set", "replicaCount=2,signingKey.inDatabase=true")
    documents = kube.template(*MINIMAL, *POSTGRESQL, *values)
    reference = environment(documents)["TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY"]["secretKeyRef"]
    assert (reference["key"], reference["optional"]) == ("TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY", False)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["database.type=sqlite"], "the first admin needs a password"),
        (["secret.adminPassword=x", "database.type=postgresql"], "database.type=postgresql needs its URL"),
        (["secret.adminPassword=x", "secret.databaseUrl=postgresql+asyncpg://h/d"], "but database.type is sqlite"),
        (["secret.existingSecret=s", "secret.openaiApiKey=x"], "would be ignored: remove them"),
        (["secret.adminPassword=x", "signingKey.inDatabase=true"], "needs a key to encrypt with"),
        (["secret.existingSecret=s", "signingKey.inDatabase=true,signingKey.existingSecret=k"], "exclude each other"),
    ],
)
def test_values_that_contradict_each_other_are_refused(kube: Kube, values: list[str], reason: str) -> None:
    assert reason in kube.refusal(*(part for value in values for part in ("--set", value)))


def test_the_schema_and_the_values_name_the_same_values() -> None:
    def names(node: Any, prefix: str = "") -> set[str]:
        below = [names(value, f"{prefix}{key}.") for key, value in node.items() if isinstance(value, dict) and value]
        return {prefix + key for key in node}.union(*below)

    def schema_names(node: Any, prefix: str = "") -> set[str]:
        inner = node.get("properties", {})
        return {prefix + key for key in inner}.union(
            *(schema_names(each, f"{prefix}{key}.") for key, each in inner.items())
        )

    values = names(yaml.safe_load((CHART / "values.yaml").read_text()))
    schema = schema_names(json.loads((CHART / "values.schema.json").read_text()))
    free = {"resources.requests.cpu", "resources.requests.memory", "resources.limits.memory"}
    assert values - free == schema - {"global"}


def test_the_charts_own_secret_holds_what_was_given_and_no_more(kube: Kube) -> None:
    url = "postgresql+asyncpg://u:p@h/d"
    documents = kube.template(*POSTGRESQL, "--set", f"secret.adminPassword=a b'c,secret.databaseUrl={url}")
    assert one(documents, "Secret")["stringData"] == {"TOLLBOOK_ADMIN_PASSWORD": "a b'c", "TOLLBOOK_DATABASE_URL": url}
    assert environment(documents)["TOLLBOOK_DATABASE_URL"]["secretKeyRef"]["name"] == "tollbook"


def test_with_an_existing_secret_none_is_made(kube: Kube) -> None:
    assert [each["kind"] for each in kube.template(*MINIMAL, "--skip-tests")] == [
        "ServiceAccount",
        "Service",
        "Deployment",
    ]


def test_a_changed_catalog_rolls_the_pods(kube: Kube) -> None:
    def annotations(catalog: str) -> Any:
        documents = kube.template(*MINIMAL, "--set", f"catalog={catalog}")
        return one(documents, "Deployment")["spec"]["template"]["metadata"]["annotations"]

    assert annotations("models: []") == annotations("models: []")
    assert annotations("models: []") != annotations("models: [x]")


def test_a_catalog_file_reaches_the_pod_as_it_is(kube: Kube, tmp_path: Path) -> None:
    text = 'models:\n  # a comment\n  - name: "{{ x }}"\n    price: {input: 0.10}\n'
    file = tmp_path / "tollbook.yaml"
    file.write_text(text)
    documents = kube.template(*MINIMAL, "--set-file", f"catalog={file}")
    assert one(documents, "ConfigMap")["data"] == {"tollbook.yaml": text}


def test_a_digest_wins_over_a_tag_and_the_version_is_the_default(kube: Kube) -> None:
    def image(*values: str) -> Any:
        return container(kube.template(*MINIMAL, *(part for value in values for part in ("--set", value))))["image"]

    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    digest = f"sha256:{'a' * 64}"
    assert image() == f"tollbook:{version}"
    assert image("image.tag=1.2") == "tollbook:1.2"
    assert image("image.tag=1.2", f"image.digest={digest}") == f"tollbook@{digest}"


def test_further_variables_reach_the_container(kube: Kube) -> None:
    documents = kube.template(
        *MINIMAL,
        "--set",
        "extraEnv[0].name=TOLLBOOK_HSTS_SECONDS,extraEnv[0].value=60",
        "--set-string",
        "extraEnv[0].value=60",
    )
    assert environment(documents)["TOLLBOOK_HSTS_SECONDS"] == "60"


def test_templates_are_small() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in (CHART / "templates").rglob("*.*")}
    assert {name: length for name, length in lengths.items() if length > 50} == {}
