"""The doctor's judgements: a sound installation is sound, and each thing that is wrong is found."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from vfio_api.names import ADDRESS_ANNOTATION, EPOCH_ANNOTATION
from vfio_cli.checks import (
    ENFORCE,
    MUTATING_POLICIES,
    VALIDATING_POLICIES,
    Installation,
    crd_names,
    examine,
    rights_needed,
    worst,
)
from vfio_cli.findings import Level
from vfio_cli.problems import UserError
from vfio_cli.rivals import rivals

NOW = datetime(2026, 11, 26, 1, 0, tzinfo=UTC)
READY = {"conditions": [{"type": "Ready", "status": "True"}]}


def named(name: str, namespace: str = "", **rest: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace, "labels": {}}, **rest}


def policy(name: str, namespace: dict[str, str], migration: dict[str, str] | None = None) -> dict[str, Any]:
    """A VFIOMigrationPolicy by what it selects."""
    spec = {"namespaceSelector": namespace, "migrationSelector": migration or {}, "priority": 1}
    return named(name, spec=spec) | {"apiVersion": "vfiomigration.io/v1alpha1", "kind": "VFIOMigrationPolicy"}


def sound() -> dict[str, Any]:
    """What is read of an installation without a fault."""
    established = {"conditions": [{"type": "Established", "status": "True"}]}
    versions = {"versions": [{"name": "v1alpha1", "served": True}]}
    agents = named("vfio-migration-agents")
    agents["metadata"]["labels"][ENFORCE] = "privileged"
    lease = named("vfio-operator", "vfio-migration")
    lease["metadata"]["annotations"] = {EPOCH_ANNOTATION: "4", ADDRESS_ANNOTATION: "10.0.0.1:8443"}
    lease["spec"] = {"holderIdentity": "op-1", "renewTime": "2026-11-26T00:59:58Z", "leaseDurationSeconds": 15}
    daemons = {"desiredNumberScheduled": 1, "numberReady": 1}
    bound = {"validationActions": ["Deny"]}
    found = {
        "crds": {name: named(name, spec=versions, status=established) for name in crd_names()},
        "policies": {name: named(name, spec={}) for name in VALIDATING_POLICIES},
        "bindings": {name: named(name, spec={"policyName": name, **bound}) for name in VALIDATING_POLICIES},
        "mutating": {name: named(name, spec={}) for name in MUTATING_POLICIES},
        "mutating_bindings": {name: named(name, spec={"policyName": name}) for name in MUTATING_POLICIES},
        "namespaces": {"vfio-migration": named("vfio-migration"), "vfio-migration-agents": agents},
        "workloads": {
            "vfio-operator": named(
                "vfio-operator", "vfio-migration", spec={"replicas": 2}, status={"readyReplicas": 2}
            ),
            "vfio-keeper": named("vfio-keeper", "vfio-migration-agents", status=dict(daemons)),
            "vfio-agent": named("vfio-agent", "vfio-migration-agents", status=dict(daemons)),
        },
        "lease": lease,
        "ca": named("vfio-operator-ca", data={"ca.crt": "PEM"}),
        "pods": [{"spec": {"serviceAccountName": "vfio-agent", "nodeName": "node-a"}, "status": READY}],
        "nodes": [named("node-a", status=READY)],
        "devices": [{"spec": {"nodeName": "node-a"}}],
        "migration_policies": [policy("gold", {"team": "a"}), policy("other", {"team": "b"})],
        "webhook": None,
        "rights": [],
    }
    copied: dict[str, Any] = json.loads(json.dumps(found))  # shares nothing: a fault in one is not in another
    return copied


def examined(found: dict[str, Any]) -> dict[str, Any]:
    made = examine(
        Installation(**found, operator_namespace="vfio-migration", agent_namespace="vfio-migration-agents", now=NOW)
    )
    return {finding.subject: finding for finding in made}


def test_a_sound_installation_has_no_fault():
    found = examined(sound())
    assert {finding.level for finding in found.values()} == {Level.OK}
    assert len(found) == len(crd_names()) + len(VALIDATING_POLICIES) + len(MUTATING_POLICIES) + 10
    assert "held by op-1 at 10.0.0.1:8443, epoch 4, renewed 2s ago" in found["Lease vfio-migration/vfio-operator"].text


CRD, POLICY = crd_names()[0], VALIDATING_POLICIES[0]
LEASE, DEPLOYMENT = "Lease vfio-migration/vfio-operator", "Deployment vfio-migration/vfio-operator"
AGENTS, FAILED, WARNING = "Namespace vfio-migration-agents", Level.FAILED, Level.WARNING
FAULTS: list[tuple[tuple[Any, ...], Any, str, Level, str]] = [
    (("crds", CRD), None, f"CRD {CRD}", FAILED, "is not there"),
    (("crds", CRD, "status", "conditions"), [], f"CRD {CRD}", FAILED, "is not Established"),
    (("crds", CRD, "spec", "versions", 0, "name"), "v9", f"CRD {CRD}", FAILED, "serves v9, not v1alpha1"),
    (("crds", CRD, "spec", "versions", 0, "served"), False, f"CRD {CRD}", FAILED, "not v1alpha1"),
    (("policies", POLICY), None, f"ValidatingAdmissionPolicy {POLICY}", FAILED, "is not there"),
    (("bindings", POLICY), None, f"ValidatingAdmissionPolicy {POLICY}", FAILED, "is bound to nothing"),
    (
        ("bindings", POLICY, "spec", "validationActions"),
        ["Audit"],
        f"ValidatingAdmissionPolicy {POLICY}",
        FAILED,
        "is bound with Audit, without Deny",
    ),
    (
        ("policies", POLICY, "status"),
        {"typeChecking": {"expressionWarnings": [{"warning": "no such field"}]}},
        f"ValidatingAdmissionPolicy {POLICY}",
        WARNING,
        "no such field",
    ),
    (
        ("mutating_bindings", MUTATING_POLICIES[0], "spec", "policyName"),
        "another",
        f"MutatingAdmissionPolicy {MUTATING_POLICIES[0]}",
        FAILED,
        "is bound to nothing",
    ),
    (("namespaces", "vfio-migration-agents", "metadata", "labels"), {}, AGENTS, WARNING, "has no label"),
    (
        ("namespaces", "vfio-migration-agents", "metadata", "labels", ENFORCE),
        "restricted",
        AGENTS,
        FAILED,
        "restricted",
    ),
    (("namespaces", "vfio-migration"), None, "Namespace vfio-migration", FAILED, "is not there"),
    (("workloads", "vfio-operator", "status"), {}, DEPLOYMENT, FAILED, "no ready replica of 2"),
    (("workloads", "vfio-operator", "status", "readyReplicas"), 1, DEPLOYMENT, WARNING, "1 ready of 2"),
    (("workloads", "vfio-keeper", "status", "numberReady"), 0, "vfio-keeper", FAILED, "ready on 0 of 1"),
    (("workloads", "vfio-agent", "status", "desiredNumberScheduled"), 0, "vfio-agent", WARNING, "runs on no node"),
    (("lease", "spec"), None, LEASE, FAILED, "no operator leads"),
    (("lease", "spec", "renewTime"), "2026-11-26T00:59:00Z", LEASE, FAILED, "renewed last 1m ago by op-1"),
    (("lease", "metadata", "annotations"), {}, LEASE, FAILED, "without an address"),
    (("ca", "data"), {}, "ConfigMap", FAILED, "has no ca.crt"),
    (("pods",), [], "agent on node-a", FAILED, "no agent runs there"),
    (("pods", 0, "status"), {}, "agent on node-a", FAILED, "its pod is not ready"),
    (("nodes", 0, "status"), {}, "agent on node-a", FAILED, "its node is not ready"),
    (("nodes",), [], "agent on node-a", WARNING, "no such node any more"),
    (("devices",), [], "agent on node-a", WARNING, "publishes no device"),
    (("crds", CRD), UserError("x", "forbidden", "ask", status=403), f"CRD {CRD}", WARNING, "could not be looked at"),
    (("devices",), UserError("x", "forbidden", "ask", status=403), "agents", WARNING, "could not be looked at"),
    (("migration_policies", 0, "spec", "priority"), 5000, "Policy gold", WARNING, "counts for nothing"),
    (
        ("migration_policies", 0, "spec", "namespaceSelector"),
        {"team": "b"},
        "VFIOMigrationPolicies gold and other",
        WARNING,
        "one with the namespace's labels team=b is refused (PolicyConflict)",
    ),
    (
        ("webhook",),
        {"webhooks": [{"failurePolicy": "Fail", "clientConfig": {"caBundle": "x"}}]},
        "eviction webhook",
        FAILED,
        "no pod of the cluster can be evicted",
    ),
    (
        ("webhook",),
        {"webhooks": [{"failurePolicy": "Ignore", "clientConfig": {}}]},
        "eviction webhook",
        WARNING,
        "cannot ask it",
    ),
]


@pytest.mark.parametrize(("path", "value", "subject", "level", "text"), FAULTS, ids=[f"{f[2]}-{f[4]}" for f in FAULTS])
def test_each_fault_is_found_where_it_is_and_nothing_else_is_blamed(path, value, subject, level, text):
    found = sound()
    part: Any = found
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    wrong = [finding for finding in examined(found).values() if finding.level is not Level.OK]
    assert [(finding.level, subject in finding.subject) for finding in wrong] == [(level, True)]
    assert text in wrong[0].text
    assert wrong[0].next_step
    assert worst(wrong) is level


def test_no_agent_and_no_device_at_all():
    found = examined(sound() | {"pods": [], "devices": []})
    assert found["agents"].level is Level.FAILED


def test_rights_that_are_missing_are_warnings_that_say_what_they_are_for():
    rights = [replace(right, allowed=right.verb != "use") for right in rights_needed("lab")]
    made = examine(Installation(**sound() | {"rights": rights}, operator_namespace="o", agent_namespace="a", now=NOW))
    mine = [(finding.level, finding.text) for finding in made if finding.subject == "your rights"]
    assert mine == [
        (Level.WARNING, f"you may not use vfiodevices: {rights[7].why}"),
        (Level.OK, f"{len(rights) - 1} of {len(rights)} that the plugin's commands need"),
    ]


def forbidden(what: str) -> UserError:
    return UserError(what, "found that it is forbidden", "kubectl vfio doctor lists what is needed", status=403)


def test_what_may_not_be_looked_at_is_one_line_that_does_not_lead_back_here():
    found = sound()
    found["policies"] = {name: forbidden(name) for name in VALIDATING_POLICIES}
    found["bindings"] = dict(found["policies"])
    found["lease"] = forbidden("lease")
    made = examined(found)
    line = made[f"{len(VALIDATING_POLICIES) + 1} checks"]
    assert line.level is Level.WARNING
    assert line.text.endswith(f"you may not read them: {len(VALIDATING_POLICIES)} ValidatingAdmissionPolicy, Lease")
    assert line.next_step.startswith("have an administrator run")
    assert not any("Policy" in subject for subject in made if not subject.startswith("MutatingAdmission"))
    assert "the whole" not in made
    assert worst(list(made.values())) is Level.WARNING
    alone = examined(sound() | {"lease": forbidden("lease")})[LEASE]
    assert alone.next_step.startswith("have an administrator run")


def test_who_may_look_at_nearly_nothing_has_found_nothing_sound():
    found = sound()
    for part in ("crds", "policies", "bindings", "mutating", "mutating_bindings", "workloads"):
        found[part] = {name: forbidden(name) for name in found[part]}
    found["pods"] = forbidden("pods")
    made = examined(found)
    assert made["the whole"].level is Level.FAILED
    assert "only 6 of " in made["the whole"].text


def test_a_missing_right_names_the_role_that_gives_it():
    rights = [replace(right, allowed=False) for right in rights_needed("lab")]
    made = examine(Installation(**sound() | {"rights": rights}, operator_namespace="o", agent_namespace="a", now=NOW))
    steps = {f.text.split(":")[0]: f.next_step for f in made if f.subject == "your rights"}
    assert "ClusterRole vfio-device-viewer to you" in steps["you may not list vfiodevices"]
    assert "ClusterRole vfio-device-user to you" in steps["you may not use vfiodevices"]
    assert steps["you may not get vfiomigrations in namespace lab"].endswith("ClusterRole view to you in namespace lab")
    assert steps["you may not create vfiomigrations in namespace lab"].endswith("edit to you in namespace lab")


def test_the_webhook_may_be_on_or_off():
    on = {"webhooks": [{"failurePolicy": "Ignore", "clientConfig": {"caBundle": "x"}}]}
    said = {
        key: examined(sound() | {"webhook": found})["eviction webhook"] for key, found in (("on", on), ("off", None))
    }
    assert {finding.level for finding in said.values()} == {Level.OK}
    assert {key: finding.text.partition(":")[0] for key, finding in said.items()} == {"on": "is on", "off": "is off"}


A, B, GOLD = {"team": "a"}, {"team": "b"}, {"tier": "gold"}


@pytest.mark.parametrize(
    ("policies", "found"),
    [
        ([policy("x", A), policy("y", B)], []),  # no namespace has both
        ([policy("x", A), policy("y", {}, GOLD)], [(("x", "y"), A, GOLD)]),
        ([policy("x", A), policy("y", {"zone": "1"}, GOLD)], []),  # the second names more
        ([policy("x", {}), policy("y", {})], [(("x", "y"), {}, {})]),
        ([policy("x", A), policy("y", {}, GOLD), policy("z", A, GOLD)], []),  # the third is more specific
        ([policy("x", A), policy("y", {}, GOLD), policy("z", B, GOLD)], [(("x", "y"), A, GOLD)]),
    ],
)
def test_policies_are_in_conflict_where_both_select_and_none_counts_more(policies, found):
    assert [(two.names, two.namespace, two.migration) for two in rivals(policies)] == found
