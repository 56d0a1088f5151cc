"""doctor: is the project installed as it should be?"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from vfio_api.names import CA_CONFIGMAP, LEASE_NAME
from vfio_cli.checks import (
    AGENT,
    KEEPER,
    MUTATING_POLICIES,
    OPERATOR,
    VALIDATING_POLICIES,
    Installation,
    Right,
    crd_names,
    examine,
    rights_needed,
    worst,
)
from vfio_cli.checks_of_moving import EVICTION_WEBHOOK
from vfio_cli.cluster import (
    BINDINGS,
    CONFIGMAPS,
    CRDS,
    DAEMONSETS,
    DEPLOYMENTS,
    DEVICES,
    LEASES,
    MIGRATION_POLICIES,
    MUTATION_BINDINGS,
    MUTATIONS,
    NAMESPACES,
    NODES,
    PODS,
    POLICIES,
    REVIEWS,
    WEBHOOKS,
    Cluster,
    Kind,
)
from vfio_cli.findings import Finding, Found, Level
from vfio_cli.naming import check_namespace
from vfio_cli.options import Access, Output, emit
from vfio_cli.problems import FAILED, UserError
from vfio_cli.run_lists import AGENTS_IN, OPERATOR_IN, AgentNamespace, OperatorNamespace
from vfio_cli.terminal import View

T = TypeVar("T")


def doctor(
    operator_namespace: OperatorNamespace = OPERATOR_IN,
    agent_namespace: AgentNamespace = AGENTS_IN,
    output: Output = None,
    *,
    access: Access,
) -> int:
    """Check an installation: what is right, what is wrong, and what to do.

    The exit code is 1 if anything failed, or if less than half of it could be looked at; warnings alone are 0.
    """
    check_namespace(operator_namespace, "--operator-namespace")
    check_namespace(agent_namespace, "--agent-namespace")
    cluster = access.connect()
    version = str(cluster.raw("/version")["gitVersion"])  # nobody answers: no use to go on
    first = Finding(Level.OK, f"API server {cluster.server}", f"answers, Kubernetes {version}")
    findings = [first, *examine(_installation(cluster, operator_namespace, agent_namespace))]
    if output is not None:
        rows = [{"result": f.level.value, "subject": f.subject, "found": f.text, "next": f.next_step} for f in findings]
        emit(output, {"result": worst(findings).value, "findings": rows})
    else:
        _print(View(), findings)
    return FAILED if worst(findings) is Level.FAILED else 0


def _print(view: View, findings: list[Finding]) -> None:
    for finding in findings:
        good = {Level.OK: True, Level.WARNING: None, Level.FAILED: False}[finding.level]
        view.result(good, finding.subject, finding.text + (f"; next: {finding.next_step}" if finding.next_step else ""))
    counts = {level: sum(1 for f in findings if f.level is level) for level in Level}
    view.line(f"{counts[Level.OK]} ok, {counts[Level.WARNING]} warnings, {counts[Level.FAILED]} failed", "bold")


def _try(ask: Callable[[], T]) -> T | UserError:
    """What was asked for, or why it could not be read; a server that does not answer ends the whole."""
    try:
        return ask()
    except UserError as problem:
        if not problem.status or problem.status == 401:
            raise
        return problem


def _each(cluster: Cluster, kind: Kind, names: Iterable[str], namespace: str = "") -> dict[str, Found]:
    return {name: _one(cluster, kind, name, namespace) for name in names}


def _one(cluster: Cluster, kind: Kind, name: str, namespace: str = "") -> Found:
    return _try(lambda: cluster.find(kind, name, namespace))


def _installation(cluster: Cluster, operator_in: str, agents_in: str) -> Installation:
    """Read everything that is checked."""
    rights = [_asked(cluster, right) for right in rights_needed(cluster.namespace)]
    workloads = _each(cluster, DEPLOYMENTS, (OPERATOR,), operator_in)
    workloads |= _each(cluster, DAEMONSETS, (KEEPER, AGENT), agents_in)
    lease = _one(cluster, LEASES, LEASE_NAME, operator_in)
    now = cluster.now()  # not later: what is read in between must not make the Lease look older
    return Installation(
        crds=_each(cluster, CRDS, crd_names()),
        policies=_each(cluster, POLICIES, VALIDATING_POLICIES),
        bindings=_each(cluster, BINDINGS, VALIDATING_POLICIES),
        mutating=_each(cluster, MUTATIONS, MUTATING_POLICIES),
        mutating_bindings=_each(cluster, MUTATION_BINDINGS, MUTATING_POLICIES),
        namespaces=_each(cluster, NAMESPACES, dict.fromkeys((operator_in, agents_in))),
        workloads=workloads,
        lease=lease,
        ca=_one(cluster, CONFIGMAPS, CA_CONFIGMAP, operator_in),
        pods=_try(lambda: cluster.list(PODS, agents_in)),
        nodes=_try(lambda: cluster.list(NODES)),
        devices=_try(lambda: cluster.list(DEVICES)),
        migration_policies=_try(lambda: cluster.list(MIGRATION_POLICIES)),
        webhook=_one(cluster, WEBHOOKS, EVICTION_WEBHOOK),
        rights=rights,
        operator_namespace=operator_in,
        agent_namespace=agents_in,
        now=now,
    )


def _asked(cluster: Cluster, right: Right) -> Right:
    attributes = {"verb": right.verb, "group": right.group, "resource": right.resource, "namespace": right.namespace}
    kind = "SelfSubjectAccessReview"
    review: dict[str, Any] = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": kind,
        "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
    }
    answer = _try(lambda: cluster.create(REVIEWS, review))
    return right if isinstance(answer, UserError) else replace(right, allowed=bool(answer["status"]["allowed"]))
