"""The chart: rendered by helm, accepted by a real API server, and no right too many."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.users import wait_until
from devtools.plane import Plane
from devtools.stack import AGENT_NAMESPACE, SWITCHOVER_OF_NOBODY
from devtools.tools import helm
from vfio_api.crd import custom_resource_definition
from vfio_api.models import RESOURCES
from vfio_api.names import AGENT_SERVICE_ACCOUNT, CA_CONFIGMAP, LEASE_NAME

CHART = Path(__file__).resolve().parents[2] / "charts" / "vfio-migration"
NAMESPACE = "test-chart"

Object = dict[str, Any]


def render(*flags: str) -> list[Object]:
    """Return the chart's objects as helm renders them."""
    command = [str(helm()), "template", "release", str(CHART), "--namespace", NAMESPACE, *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [item for item in yaml.safe_load_all(result.stdout) if item]


def crds_in(items: list[Object]) -> list[Object]:
    return [item for item in items if item["kind"] == "CustomResourceDefinition"]


@pytest.fixture(scope="module")
def chart(crds: Plane) -> Iterator[Plane]:
    """The control plane with the chart's objects."""
    crds.kubectl("create", "namespace", NAMESPACE)
    items = json.dumps({"apiVersion": "v1", "kind": "List", "items": render("--set=crds.enabled=false")})
    crds.kubectl("apply", "-f", "-", input=items)
    yield crds
    crds.kubectl("delete", "--wait=false", "-f", "-", input=items)
    crds.kubectl("delete", "--wait=false", "namespace", NAMESPACE)
    wait_until(lambda: _anyone_may_create_a_switchover(crds), "the policies are no longer in force")


def _anyone_may_create_a_switchover(plane: Plane) -> bool:
    probe = json.dumps(SWITCHOVER_OF_NOBODY)
    return bool(plane.kubectl("create", "--dry-run=server", "-f", "-", "-o", "name", input=probe, check=False))


def test_lint() -> None:
    result = subprocess.run([helm(), "lint", "--strict", CHART], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_crds_are_the_generated_ones_and_kept() -> None:
    rendered = crds_in(render())
    made = [custom_resource_definition(kind) for kind in RESOURCES]
    assert {item["metadata"]["name"]: item["spec"] for item in rendered} == {
        item["metadata"]["name"]: item["spec"] for item in made
    }
    assert len(rendered) == len(made)
    for item in rendered:
        assert item["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_crds_need_not_be_kept() -> None:
    for item in crds_in(render("--set=crds.keep=false")):
        assert "annotations" not in item["metadata"]


def test_crds_as_rendered_are_accepted(crds: Plane) -> None:
    for item in crds_in(render()):
        crds.kubectl(
            "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", input=json.dumps(item)
        )


def test_lease_has_no_spec(chart: Plane) -> None:
    """The leader writes it; an upgrade must not take it from the leader."""
    lease = json.loads(chart.kubectl("get", "lease", LEASE_NAME, "-n", NAMESPACE, "-o", "json"))
    assert lease["spec"] == {}


def may(plane: Plane, account: str, verb: str, resource: str, namespace: str) -> bool:
    """Return whether a service account of the chart may do something to "resource", ".../name" or ".../status"."""
    resource, slash, rest = resource.partition("/")
    target = [resource, "--subresource=status"] if rest == "status" else [f"{resource}{slash}{rest}"]
    home = AGENT_NAMESPACE if account == AGENT_SERVICE_ACCOUNT else NAMESPACE
    who = f"--as=system:serviceaccount:{home}:{account}"
    answer = plane.kubectl("auth", "can-i", verb, *target, who, "-n", namespace, check=False)
    assert answer.strip() in {"yes", "no"}
    return answer.strip() == "yes"


@pytest.mark.parametrize(
    ("account", "verb", "resource", "namespace"),
    [
        ("vfio-operator", "patch", "vfiomigrations.vfiomigration.io", "default"),
        ("vfio-operator", "patch", "vfiomigrations.vfiomigration.io/status", "default"),
        ("vfio-operator", "patch", "vfiodevices.vfiomigration.io", "default"),
        ("vfio-operator", "create", "vfioswitchovers.vfiomigration.io", "default"),
        ("vfio-operator", "patch", "vfioswitchovers.vfiomigration.io", "default"),
        ("vfio-operator", "patch", "vfioswitchovers.vfiomigration.io/status", "default"),
        ("vfio-operator", "create", "events.events.k8s.io", "default"),
        ("vfio-operator", "create", "tokenreviews.authentication.k8s.io", "default"),
        ("vfio-operator", "create", "subjectaccessreviews.authorization.k8s.io", "default"),
        ("vfio-operator", "get", "nodes", "default"),
        ("vfio-operator", "list", "vfiomigrationpolicies.vfiomigration.io", "default"),
        ("vfio-operator", "patch", "vfioevacuations.vfiomigration.io/status", "default"),
        ("vfio-operator", "create", "pods", "default"),
        ("vfio-operator", "delete", "pods", "default"),
        ("vfio-operator", "get", "persistentvolumeclaims", "default"),
        ("vfio-operator", "get", "namespaces", "default"),
        ("vfio-operator", "update", f"leases.coordination.k8s.io/{LEASE_NAME}", NAMESPACE),
        ("vfio-operator", "patch", f"configmaps/{CA_CONFIGMAP}", NAMESPACE),
        ("vfio-operator", "create", "configmaps", NAMESPACE),
        (AGENT_SERVICE_ACCOUNT, "create", "vfiodevices.vfiomigration.io", "default"),
        (AGENT_SERVICE_ACCOUNT, "patch", "vfiodevices.vfiomigration.io", "default"),
        (AGENT_SERVICE_ACCOUNT, "patch", "vfiodevices.vfiomigration.io/status", "default"),
        (AGENT_SERVICE_ACCOUNT, "get", "vfioswitchovers.vfiomigration.io", "default"),
        (AGENT_SERVICE_ACCOUNT, "patch", "vfioswitchovers.vfiomigration.io/status", "default"),
        (AGENT_SERVICE_ACCOUNT, "get", f"leases.coordination.k8s.io/{LEASE_NAME}", NAMESPACE),
        (AGENT_SERVICE_ACCOUNT, "get", f"configmaps/{CA_CONFIGMAP}", NAMESPACE),
    ],
)
def test_rights(chart: Plane, account: str, verb: str, resource: str, namespace: str) -> None:
    assert may(chart, account, verb, resource, namespace)


@pytest.mark.parametrize(
    ("account", "verb", "resource", "namespace"),
    [
        ("vfio-operator", "get", "secrets", NAMESPACE),
        # what nothing in it asks for
        ("vfio-operator", "list", "customresourcedefinitions.apiextensions.k8s.io", "default"),
        ("vfio-operator", "list", "namespaces", "default"),
        ("vfio-operator", "list", "persistentvolumeclaims", "default"),
        ("vfio-operator", "patch", "pods/status", "default"),
        ("vfio-operator", "create", "vfioevacuations.vfiomigration.io", "default"),
        ("vfio-operator", "patch", "vfiomigrationpolicies.vfiomigration.io", "default"),
        ("vfio-operator", "watch", "vfioswitchovers.vfiomigration.io", "default"),
        ("vfio-operator", "delete", "vfioswitchovers.vfiomigration.io", "default"),
        ("vfio-operator", "patch", "events.events.k8s.io", "default"),
        ("vfio-operator", "patch", f"leases.coordination.k8s.io/{LEASE_NAME}", NAMESPACE),
        ("vfio-operator", "update", f"configmaps/{CA_CONFIGMAP}", NAMESPACE),
        ("vfio-operator", "update", "leases.coordination.k8s.io/another", NAMESPACE),
        ("vfio-operator", "get", "configmaps/another", NAMESPACE),
        ("vfio-operator", "get", f"configmaps/{CA_CONFIGMAP}", "default"),
        ("vfio-operator", "patch", "vfiodevices.vfiomigration.io/status", "default"),
        ("vfio-operator", "patch", "nodes", "default"),
        ("vfio-operator", "use", "vfiodevices.vfiomigration.io", "default"),
        (AGENT_SERVICE_ACCOUNT, "get", "vfiomigrations.vfiomigration.io", "default"),
        (AGENT_SERVICE_ACCOUNT, "patch", "vfiomigrations.vfiomigration.io/status", "default"),
        (AGENT_SERVICE_ACCOUNT, "create", "vfioswitchovers.vfiomigration.io", "default"),
        (AGENT_SERVICE_ACCOUNT, "list", "vfioswitchovers.vfiomigration.io", "default"),
        (AGENT_SERVICE_ACCOUNT, "get", "vfiodevices.vfiomigration.io", "default"),
        (AGENT_SERVICE_ACCOUNT, "list", "vfiodevices.vfiomigration.io", "default"),
        (AGENT_SERVICE_ACCOUNT, "update", "vfiodevices.vfiomigration.io", "default"),
        (AGENT_SERVICE_ACCOUNT, "update", "vfiodevices.vfiomigration.io/status", "default"),
        (AGENT_SERVICE_ACCOUNT, "delete", "vfiodevices.vfiomigration.io", "default"),
        (AGENT_SERVICE_ACCOUNT, "use", "vfiodevices.vfiomigration.io", "default"),
        (AGENT_SERVICE_ACCOUNT, "update", f"leases.coordination.k8s.io/{LEASE_NAME}", NAMESPACE),
        (AGENT_SERVICE_ACCOUNT, "get", "secrets", NAMESPACE),
        (AGENT_SERVICE_ACCOUNT, "get", "pods", "default"),
    ],
)
def test_rights_that_are_not_given(chart: Plane, account: str, verb: str, resource: str, namespace: str) -> None:
    assert not may(chart, account, verb, resource, namespace)


def test_policies_deny_and_are_type_checked_without_a_warning(chart: Plane) -> None:
    names = [item["metadata"]["name"] for item in render() if item["kind"] == "ValidatingAdmissionPolicy"]
    assert len(names) >= 7

    def policy(name: str) -> Object:
        found: Object = json.loads(chart.kubectl("get", "validatingadmissionpolicy", name, "-o", "json"))
        return found

    for name in names:
        wait_until(lambda n=name: "typeChecking" in policy(n).get("status", {}), f"the type check of {name}")
        assert policy(name)["status"]["typeChecking"] == {}
        assert policy(name)["spec"]["failurePolicy"] == "Fail"
        binding = json.loads(chart.kubectl("get", "validatingadmissionpolicybinding", name, "-o", "json"))
        assert binding["spec"]["policyName"] == name
        assert binding["spec"]["validationActions"] == ["Deny"]
