"""Values of the chart: what is documented is accepted, what makes no sense is refused with a reason."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from cluster.rendering import APIS, CHART, EXAMPLES, ROOT, VALUE_SETS, of_kind, render, template
from devtools.tools import helm
from vfio_operator.settings import OperatorSettings

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


@pytest.mark.parametrize("flags", VALUE_SETS.values(), ids=VALUE_SETS)
def test_lint(flags: tuple[str, ...]) -> None:
    chosen = [flag for flag in flags if flag not in APIS and "certManager" not in flag and "cert-manager" not in flag]
    command = [str(helm()), "lint", "--strict", str(CHART), "--namespace=vfio-migration", *chosen]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# what is set, and what helm says of it
REFUSED = [
    ("operator.replica=3", "at '/operator': additional properties 'replica' not allowed"),
    ("operators.replicas=3", "at '': additional properties 'operators' not allowed"),
    ("operator.replicas=0", "at '/operator/replicas': minimum: got 0, want 1"),
    ("operator.replicas=two", "at '/operator/replicas': got string, want integer"),
    ("operator.logLevel=loud", "at '/operator/logLevel': value must be one of 'debug', 'info', 'warning', 'error'"),
    ("operator.port=443", "at '/operator/port': minimum: got 443, want 1,024"),
    ("operator.image.digest=sha256:abc", "at '/operator/image/digest': 'sha256:abc' does not match pattern"),
    ("operator.image.tag=a:b", "at '/operator/image/tag': 'a:b' does not match pattern"),
    ("operator.image.repository=Vfio", "at '/operator/image/repository': 'Vfio' does not match pattern"),
    ("operator.resources.limit.cpu=1", "at '/operator/resources': additional properties 'limit' not allowed"),
    ("operator.resources.limits.memory=1GB", "at '/operator/resources/limits/memory'"),
    ("operator.podLabels.team=1", "at '/operator/podLabels/team': got number, want string"),
    ("operator.lease.seconds=1", "at '/operator/lease/seconds': minimum: got 1, want 3"),
    ("operator.migrations.parallel=-1", "at '/operator/migrations/parallel': minimum: got -1, want 0"),
    ("operator.migrations.parallelPerNode=two", "at '/operator/migrations/parallelPerNode': got string, want integer"),
    ("operator.migrations.targetPodSeconds=0", "at '/operator/migrations/targetPodSeconds': minimum: got 0, want 1"),
    ("operator.migrations.perNode=1", "at '/operator/migrations': additional properties 'perNode' not allowed"),
    ("image.registry=https://mirror", "at '/image/registry': 'https://mirror' does not match pattern"),
    ("image.pullPolicy=Sometimes", "at '/image/pullPolicy': value must be one of"),
    ("image.pullSecrets[0]=mirror", "at '/image/pullSecrets/0': got string, want object"),
    ("image.pullSecrets[0].secret=mirror", "missing property 'name'"),
    ("agent.namespace.name=Agents", "at '/agent/namespace/name': 'Agents' does not match pattern"),
    ("agent.namespace.name=", "at '/agent/namespace/name': '' does not match pattern"),
    ("agent.kernelPath=iommu", "at '/agent/kernelPath': value must be one of 'auto', 'cdev', 'group'"),
    ("agent.inventorySeconds=0", "at '/agent/inventorySeconds': minimum: got 0, want 1"),
    ("agent.maxUnavailable=0", "at '/agent/maxUnavailable'"),
    ("agent.maxUnavailable=0%", "at '/agent/maxUnavailable'"),
    ("agent.terminationGracePeriodSeconds=5", "at '/agent/terminationGracePeriodSeconds': minimum: got 5, want 30"),
    ("agent.stateDir=var", "at '/agent/stateDir': 'var' does not match pattern"),
    ("agent.runtimeDir=/run/", "at '/agent/runtimeDir': '/run/' does not match pattern"),
    ("agent.dataPort=70000", "at '/agent/dataPort': maximum: got 70,000, want 65,535"),
    ("agent.tolerations[0].effect=Never", "at '/agent/tolerations/0/effect': value must be one of"),
    ("agent.affinity.nodes.a=b", "at '/agent/affinity': additional properties 'nodes' not allowed"),
    ("agent.simulator.devices[0].address=sim0", "missing properties 'model', 'size_bytes'"),
    ("agent.simulator.devices={}", "at '/agent/simulator/devices/0': got string, want object"),
    ("tls.certManager.duration=90d", "at '/tls/certManager/duration': '90d' does not match pattern"),
    ("tls.certManager.issuerRef.kind=Issuer", "missing property 'name'"),
    ("networkPolicies.apiServerPorts=null", "at '/networkPolicies': missing property 'apiServerPorts'"),
    ("operator.image.repository=null", "at '/operator/image': missing property 'repository'"),
    ("networkPolicies.metricsFrom[0].pods=all", "additional properties 'pods' not allowed"),
    ("monitoring.interval=15", "at '/monitoring/interval': got number, want string"),
    ("monitoring.interval=quarterly", "at '/monitoring/interval': 'quarterly' does not match pattern"),
    ("monitoring.runbooks=docs/runbooks", "at '/monitoring/runbooks': 'docs/runbooks' does not match pattern"),
    ("monitoring.runbooks=https://docs.test/", "at '/monitoring/runbooks': 'https://docs.test/' does not match"),
    ("monitoring.runbooksSuffix=html", "at '/monitoring/runbooksSuffix': value must be one of '.md', '.html', '/', ''"),
    ("monitoring.dashboards.labels.x=null,monitoring.dashboards.label=a", "additional properties 'label' not allowed"),
    ("tracing.endpoint=http://collector/v1/traces", "at '/tracing/endpoint'"),
    ("tracing.env[0].value=x", "at '/tracing/env/0': missing property 'name'"),
    ("tracing.enabled=true", "tracing.enabled needs tracing.endpoint"),
    ("uninstall.force=perhaps", "at '/uninstall/force': got string, want boolean"),
    # what a schema cannot say
    ("agent.namespace.name=vfio-migration", "agent.namespace.name is vfio-migration, the release's own namespace"),
    (
        "operator.lease.renewDeadlineSeconds=15",
        "operator.lease.renewDeadlineSeconds is 15, expected less than operator.lease.seconds (15)",
    ),
    (
        "operator.lease.retrySeconds=10",
        "operator.lease.retrySeconds is 10, expected less than operator.lease.renewDeadlineSeconds (10)",
    ),
    ("operator.metricsPort=8443", "are 8443, 8443 and 8081: expected three different ports"),
    ("agent.metricsPort=8444", "agent.dataPort and agent.metricsPort are both 8444: expected two different ports"),
    ("agent.stateDir=/run/vfio-agent/state", "the journal must survive a reboot, which a tmpfs does not"),
    ("agent.stateDir=/run/vfio-agent", "the journal must survive a reboot, which a tmpfs does not"),
    ("agent.simulator.devices[1].address=sim0", "agent.simulator.devices has two devices with one address"),
    ("tls.certManager.enabled=true", "the cluster has no API cert-manager.io/v1: install cert-manager first"),
]


@pytest.mark.parametrize(("setting", "message"), REFUSED, ids=[setting for setting, _ in REFUSED])
def test_refused(setting: str, message: str) -> None:
    extra = ["--set=agent.simulator.devices[1].model=sim-vf,agent.simulator.devices[1].size_bytes=1"]
    extra += ["--set=agent.simulator.devices[0].address=sim0,agent.simulator.devices[0].model=sim-vf"]
    extra += ["--set=agent.simulator.devices[0].size_bytes=1"]
    done = template(*(extra if "devices[1]" in setting else []), f"--set={setting}")
    assert done.returncode != 0
    assert message in done.stderr, done.stderr


def test_everything_wrong_is_said_at_once() -> None:
    said = template("--set=operator.metricsPort=8443,agent.metricsPort=8444,agent.namespace.name=vfio-migration").stderr
    assert said.count("\n- ") == 3, said


def _paths(schema: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Every value that the schema knows, down to what is free."""
    while "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    inner = schema.get("properties") if schema.get("additionalProperties") is False else None
    if not inner or at.endswith(("resources", "affinity", "issuerRef")):
        yield at
        return
    for name, each in inner.items():
        yield from _paths(each, f"{at}.{name}".lstrip("."))


def _defaults(values: Mapping[str, Any], known: set[str], at: str = "") -> Iterator[str]:
    for name, value in values.items():
        path = f"{at}.{name}".lstrip(".")
        if isinstance(value, dict) and path not in known:
            yield from _defaults(value, known, path)
        else:
            yield path


def test_schema_and_values_know_the_same() -> None:
    known = set(_paths(SCHEMA)) - {"global"}
    assert set(_defaults(VALUES, known)) == known


def test_every_value_is_documented() -> None:
    """helm-docs leaves out what has no comment of its own, and what has one ends as a row of the README."""
    rows = {line.split("|")[1].strip() for line in (CHART / "README.md").read_text().splitlines() if "| `" in line}
    assert set(_defaults(VALUES, set(_paths(SCHEMA)))) <= rows


@pytest.mark.parametrize("flags", VALUE_SETS.values(), ids=VALUE_SETS)
def test_valid(flags: tuple[str, ...]) -> None:
    assert render(*flags)


def test_limits_on_migrations_reach_the_operator() -> None:
    def limits(*flags: str) -> tuple[float, ...]:
        (operator,) = of_kind(render(*flags), "Deployment")
        env = {
            each["name"]: each.get("value", "") for each in operator["spec"]["template"]["spec"]["containers"][0]["env"]
        }
        names = ("PARALLEL_MIGRATIONS", "PARALLEL_MIGRATIONS_PER_NODE", "TARGET_POD_SECONDS")
        return tuple(float(env[f"VFIO_OPERATOR_{name}"]) for name in names)

    fields = OperatorSettings.model_fields
    names = ("parallel_migrations", "parallel_migrations_per_node", "target_pod_seconds")
    assert limits() == tuple(fields[name].default for name in names), "the chart's defaults are the operator's"
    chosen = "--set=operator.migrations.parallel=9,operator.migrations.parallelPerNode=0"
    assert limits(chosen, "--set=operator.migrations.targetPodSeconds=30") == (9, 0, 30)


def test_one_replica_is_always_up() -> None:
    for replicas, unavailable in ((1, 0), (2, 1), (3, 1)):
        items = render(f"--set=operator.replicas={replicas}")
        (operator,) = of_kind(items, "Deployment")
        assert operator["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == unavailable
        assert len(of_kind(items, "PodDisruptionBudget")) == (replicas > 1)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), True),
        (("--set-string=agent.nodeSelector.example\\.com/vfio=true",), False),
        ((f"--values={ROOT / 'examples/values/arm64.yaml'}",), False),
    ],
)
def test_who_chose_no_nodes_is_told_that_agents_are_on_all(flags: tuple[str, ...], told: bool) -> None:
    command = [str(helm()), "install", "release", str(CHART), "--namespace=vfio-migration", "--dry-run=client", *flags]
    notes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\nNOTES:")[2]
    assert "kubectl get vfd" in notes
    assert ("Agents are on EVERY Linux node" in notes) is told


def test_images_of_a_mirror_go_by_digest() -> None:
    example = next(path for path in EXAMPLES if path.stem == "airgapped")
    text = template(*APIS, f"--values={example}").stdout
    images = {line.split("image:", 1)[1].strip() for line in text.splitlines() if line.strip().startswith("image:")}
    assert images == {
        f"registry.example.internal:5000/vfio/vfio-operator@sha256:{'0' * 64}",
        f"registry.example.internal:5000/vfio/vfio-agent@sha256:{'1' * 64}",
    }
    pods = [item for item in render(*APIS, f"--values={example}") if item["kind"] in {"Deployment", "DaemonSet", "Job"}]
    assert pods
    for item in pods:
        assert item["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "mirror"}]
