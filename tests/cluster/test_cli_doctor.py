"""`kubectl vfio doctor` on the real chart: a sound installation passes, a fault is found, names are the chart's."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.cli_world import Plugin
from cluster.users import grant, rule, service_account, wait_until
from cluster.world import World
from devtools.stack import AGENT_NAMESPACE, NAMESPACE, chart_objects
from vfio_api.names import DEVICE_USER_ROLE
from vfio_cli.checks import (
    AGENT,
    DEVICE_VIEWER_ROLE,
    FLEET_ADMIN_ROLE,
    KEEPER,
    MUTATING_POLICIES,
    OPERATOR,
    VALIDATING_POLICIES,
    crd_names,
)
from vfio_cli.run_lists import AGENTS_IN, OPERATOR_IN

Json = dict[str, Any]
WORKLOADS = ("Deployment", "DaemonSet")


@pytest.fixture(scope="module")
def plugin(world: World) -> Iterator[Plugin]:
    """The chart's workloads beside the processes; their pods only seem to run."""
    items = [item for item in chart_objects(NAMESPACE) if item["kind"] in WORKLOADS and not _hook(item)]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    world.stack.kubectl("apply", "-f", "-", input=listed)

    def ready() -> bool:
        deployment = world.stack.get("deployment", OPERATOR, "-n", NAMESPACE)["status"]
        daemons = [item["status"] for item in world.stack.get("daemonsets", "-n", AGENT_NAMESPACE)["items"]]
        return deployment.get("readyReplicas") == 2 and all(status.get("numberReady") == 3 for status in daemons)

    world.stack.wait_until(ready, "every pod of the chart seems to run", 60)
    yield Plugin(world.stack.plane.kubeconfig)
    world.stack.kubectl("delete", "-f", "-", input=listed)


def _hook(item: Json) -> bool:
    return "helm.sh/hook" in item["metadata"].get("annotations", {})


def findings(plugin: Plugin, code: int, *arguments: str) -> dict[str, Json]:
    ran = plugin.run("doctor", "-o", "json", *arguments)
    assert ran.code == code, ran
    return {row["subject"]: row for row in json.loads(ran.out)["findings"]}


def test_the_names_that_the_doctor_looks_for_are_the_charts() -> None:
    names: dict[str, set[str]] = {}
    for item in chart_objects(NAMESPACE):
        names.setdefault(item["kind"], set()).add(item["metadata"]["name"])
    assert names["ValidatingAdmissionPolicy"] == set(VALIDATING_POLICIES)
    assert names["MutatingAdmissionPolicy"] == set(MUTATING_POLICIES)
    assert names["CustomResourceDefinition"] == set(crd_names())
    assert names["Deployment"] == {OPERATOR}
    assert {AGENT, KEEPER} <= names["DaemonSet"]
    assert {DEVICE_USER_ROLE, DEVICE_VIEWER_ROLE, FLEET_ADMIN_ROLE} <= names["ClusterRole"]
    assert (OPERATOR_IN, AGENTS_IN) == (NAMESPACE, AGENT_NAMESPACE)


def test_a_sound_installation_has_no_failed_line(plugin: Plugin) -> None:
    ran = plugin.run("doctor")
    assert ran.code == 0, ran.out
    assert " ✓ Deployment vfio-migration/vfio-operator: has 2 of 2 replicas ready\n" in ran.out
    assert " ✓ Lease vfio-migration/vfio-operator: is held by operator-0 at 127.0.0.1:" in ran.out
    assert " ✓ DaemonSet vfio-migration-agents/vfio-agent: is ready on 3 of 3 nodes\n" in ran.out
    assert " ✓ agent on node-a: is ready: connected to the operator; 8 devices published\n" in ran.out
    assert " ! agent on node-c: is ready, and publishes no device" in ran.out
    assert ran.out.splitlines()[-1].endswith(", 0 failed")


def test_what_is_broken_is_found(world: World, plugin: Plugin) -> None:
    def label(level: str) -> None:
        world.stack.kubectl(
            "label", "--overwrite", "namespace", AGENT_NAMESPACE, f"pod-security.kubernetes.io/enforce={level}"
        )

    label("baseline")
    try:
        found = findings(plugin, 1)[f"Namespace {AGENT_NAMESPACE}"]
    finally:
        label("privileged")
    assert found["result"] == "failed"
    assert found["next"].startswith("kubectl label --overwrite namespace")
    wrong = findings(plugin, 1, "--operator-namespace", "default")
    assert wrong["Lease default/vfio-operator"]["result"] == "failed"
    assert "correct --operator-namespace" in wrong["Deployment default/vfio-operator"]["next"]


def test_it_passes_as_a_service_account_with_rights_to_read_only(world: World, plugin: Plugin, tmp_path: Any) -> None:
    doctor = service_account(world.stack.plane, NAMESPACE, "cli-doctor", tmp_path)
    rules = [rule("", kind, "get", "list") for kind in ("nodes", "namespaces", "pods", "configmaps")] + [
        rule("vfiomigration.io", "*", "get", "list"),
        rule("apiextensions.k8s.io", "customresourcedefinitions", "get"),
        rule("admissionregistration.k8s.io", "*", "get"),
        rule("apps", "*", "get"),
        rule("coordination.k8s.io", "leases", "get"),
    ]
    grant(world.stack.plane, "cli-doctor", rules, user=doctor.me().username)
    reader = Plugin(doctor.kubeconfig)
    wait_until(lambda: reader.run("doctor").code == 0, "the grant is known")
    others = [row for subject, row in findings(reader, 0).items() if subject not in ("your rights", "agent on node-c")]
    assert {row["result"] for row in others} == {"ok"}
