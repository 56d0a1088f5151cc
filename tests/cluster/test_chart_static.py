"""What the chart renders, looked at by schemas and by a policy scanner; what is generated from it is current."""

import json
import tomllib
from typing import Any

import pytest
import yaml

from cluster.rendering import APIS, CHART, EVERYTHING, ROOT, VALUE_SETS, Object, of_kind, render
from devtools.chart_tools import conform, foreign_crds, scan
from draw_chart_readme import TARGET, readme
from vfio_api.crd import custom_resource_definition
from vfio_api.models import RESOURCES
from vfio_api.names import TLS_NAME

ANNOTATIONS = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]
OWN_CRDS = [custom_resource_definition(kind) for kind in RESOURCES]
DIGESTS = [f"--set={name}.image.digest=sha256:{'0' * 64}" for name in ("operator", "agent")]


@pytest.mark.parametrize("flags", VALUE_SETS.values(), ids=VALUE_SETS)
def test_schemas(flags: tuple[str, ...]) -> None:
    assert conform(render(*flags), foreign_crds()) == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", "spec.template.spec.containers.0.imagePullPolice", "Always"),
        ("Deployment", "spec.replicas", "two"),
        ("DaemonSet", "spec.template.spec.hostPid", True),
        ("NetworkPolicy", "spec.ingres", []),
        ("ClusterRole", "rules.0.verb", ["get"]),
        ("ValidatingAdmissionPolicy", "spec.validations.0.expresion", "true"),
        ("CustomResourceDefinition", "spec.scop", "Cluster"),
        ("ServiceMonitor", "spec.endpoints.0.intervall", "15s"),
        ("PodMonitor", "spec.podMetricsEndpoints.0.interval", "often"),
        ("Certificate", "spec.dnsName", "x"),
        ("Issuer", "spec.ca.secret", "x"),
        ("Issuer", "apiVersion", "cert-manager.io/v2"),
    ],
)
def test_schemas_are_strict(kind: str, path: str, value: object) -> None:
    """The check of the schemas could find what it is there for."""
    item = of_kind(render(*EVERYTHING), kind)[-1]
    _set(item, path, value)
    assert len(conform([item], foreign_crds())) == 1


def _set(item: Any, path: str, value: object) -> None:
    *parents, last = path.split(".")
    for key in parents:
        item = item[int(key) if key.isdecimal() else key]
    item[last] = value


EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples(path: Any) -> None:
    assert conform(list(yaml.safe_load_all(path.read_text())), OWN_CRDS) == []


# What the scanner may find, and why that is as it should be.
OPERATOR = {
    "CKV_K8S_11": "no CPU limit: being throttled in a switchover is downtime",
    "CKV_K8S_38": "it is a client of the API server",
}
ON_NODES = {
    "CKV_K8S_11": OPERATOR["CKV_K8S_11"],
    "CKV_K8S_23": "root: the journal, the devices and the sockets on the node are root's",
    "CKV_K8S_40": "root: see above",
}
PROBELESS = {
    "CKV_K8S_8": "it has no liveness probe, since killing it is what must not happen: it holds the devices",
    "CKV_K8S_9": "it has no readiness probe, since nothing is routed to it",
}
PRIVILEGED = {
    "CKV_K8S_16": "privileged: /dev/vfio and the device cgroup",
    "CKV_K8S_17": "the node's processes: whose a device is",
    "CKV_K8S_20": "follows from privileged",
    "CKV_K8S_28": "follows from privileged",
    "CKV_K8S_29": "follows from privileged",
    "CKV_K8S_31": "a privileged container has no seccomp profile",
    "CKV_K8S_37": "follows from privileged",
    "CKV_K8S_38": OPERATOR["CKV_K8S_38"],
}
ONCE = {
    "CKV_K8S_8": "a task that is done once needs no probes",
    "CKV_K8S_9": "a task that is done once needs no probes",
}
EXCUSED = {
    "Deployment.vfio-migration.vfio-operator": OPERATOR,
    "Job.vfio-migration.vfio-uninstall": OPERATOR,
    "Pod.vfio-migration.vfio-doctor": OPERATOR | ONCE,
    "DaemonSet.vfio-migration-agents.vfio-agent": ON_NODES | PRIVILEGED,
    "DaemonSet.vfio-migration-agents.vfio-keeper": ON_NODES | PROBELESS,
    "DaemonSet.vfio-migration-agents.vfio-simulator": ON_NODES | PROBELESS,
}


def test_policy_scan() -> None:
    """Exactly what is excused is found: an excuse that is needed no more goes."""
    found = set(scan(render(*EVERYTHING, *DIGESTS, "--set=image.pullPolicy=Always")))
    assert found == {(check, resource) for resource, excuses in EXCUSED.items() for check in excuses}


def test_policies_and_evacuations_are_for_who_runs_the_cluster() -> None:
    """What is aggregated into view, edit and admin says nothing of them; one role sees them, one may change them."""
    given: dict[str, set[str]] = {}
    for role in of_kind(render(), "ClusterRole"):
        for rule in role["rules"]:
            if {"vfiomigrationpolicies", "vfioevacuations"} & set(rule["resources"]):
                given.setdefault(role["metadata"]["name"], set()).update(rule["verbs"])
                assert not any("aggregate-to" in label for label in role["metadata"]["labels"])
    assert set(given) == {"vfio-operator", "vfio-doctor", "vfio-fleet-viewer", "vfio-fleet-admin"}
    assert given["vfio-doctor"] == {"list"}
    assert given["vfio-fleet-viewer"] == {"get", "list", "watch"}
    assert "create" not in given["vfio-operator"]


def test_readme_is_current() -> None:
    assert TARGET.read_text() == readme(), "run make generate"


def _annotation(name: str) -> Any:
    return yaml.safe_load(ANNOTATIONS[f"artifacthub.io/{name}"])


def test_annotation_images() -> None:
    pods = [item for item in render() if item["kind"] in {"Deployment", "DaemonSet", "Job", "Pod"}]
    specs = [item["spec"].get("template", item)["spec"] for item in pods]
    rendered = {container["image"] for spec in specs for container in spec["containers"]}
    assert {each["image"] for each in _annotation("images")} == rendered
    assert len(rendered) == 2


def test_annotation_crds() -> None:
    def described(crd: Object) -> tuple[str, ...]:
        return crd["spec"]["names"]["kind"], crd["spec"]["versions"][-1]["name"], crd["metadata"]["name"]

    told = [(each["kind"], each["version"], each["name"]) for each in _annotation("crds")]
    assert sorted(told) == sorted(described(crd) for crd in OWN_CRDS)


def test_annotation_examples() -> None:
    examples = _annotation("crdsExamples")
    assert examples
    assert conform(examples, OWN_CRDS) == []


def test_annotations_say_what_it_is() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
    assert ANNOTATIONS["artifacthub.io/license"] == project["license"]
    assert ANNOTATIONS["artifacthub.io/operator"] == "true"
    levels = {"Basic Install", "Seamless Upgrades", "Full Lifecycle", "Deep Insights", "Auto Pilot"}
    assert ANNOTATIONS["artifacthub.io/operatorCapabilities"] in levels
    kinds = {each["kind"] for each in _annotation("changes")}
    assert kinds <= {"added", "changed", "deprecated", "removed", "fixed", "security"}
    assert all(each["description"] for each in _annotation("changes"))


def test_certificates_are_for_the_fixed_name() -> None:
    found = of_kind(render(*EVERYTHING), "Certificate")
    certificates = [each for each in found if each["metadata"]["name"] != "vfio-operator-evictions"]
    assert [each["spec"].get("dnsNames") for each in certificates] == [None, [TLS_NAME]]
    (operator,) = of_kind(render(*EVERYTHING), "Deployment")
    spec = operator["spec"]["template"]["spec"]
    (folder,) = [each["value"] for each in spec["containers"][0]["env"] if each["name"] == "VFIO_OPERATOR_TLS_DIR"]
    (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["mountPath"] == folder]
    (volume,) = [each for each in spec["volumes"] if each["name"] == mount["name"]]
    assert volume["secret"]["secretName"] == certificates[-1]["spec"]["secretName"]


def test_an_issuer_of_the_cluster_is_used() -> None:
    flags = (*APIS, "--set=tls.certManager.enabled=true,tls.certManager.issuerRef.name=internal")
    items = render(*flags, "--set=tls.certManager.issuerRef.kind=ClusterIssuer")
    assert of_kind(items, "Issuer") == []
    (certificate,) = of_kind(items, "Certificate")
    assert certificate["spec"]["issuerRef"] == {"name": "internal", "kind": "ClusterIssuer"}


@pytest.mark.parametrize("flags", [(), EVERYTHING], ids=["default", "everything"])
def test_no_certificate_and_no_secret_is_rendered(flags: tuple[str, ...]) -> None:
    """Helm would render them anew at each upgrade."""
    assert of_kind(render(*flags), "Secret") == []
    assert "BEGIN CERTIFICATE" not in json.dumps(render(*flags))


def test_every_workload_has_a_network_policy() -> None:
    items = render(*EVERYTHING)
    policies = [policy["spec"]["podSelector"]["matchLabels"] for policy in of_kind(items, "NetworkPolicy")]
    workloads = [item for item in items if item["kind"] in {"Deployment", "DaemonSet", "Job", "Pod"}]
    assert len(workloads) == 6
    for item in workloads:
        labels = item["spec"].get("template", item)["metadata"]["labels"]
        assert [selector for selector in policies if selector.items() <= labels.items()], item["metadata"]["name"]
