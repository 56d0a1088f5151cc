"""What is right and what is wrong with an installation, from what was read of it. Pure."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from vfio_api import API_GROUP, API_VERSION
from vfio_api.models import RESOURCES, VFIODevice
from vfio_api.models_evacuation import VFIOEvacuation
from vfio_api.names import (
    ADDRESS_ANNOTATION,
    AGENT_SERVICE_ACCOUNT,
    CA_CONFIGMAP,
    CA_KEY,
    DEVICE_USER_ROLE,
    EPOCH_ANNOTATION,
    LEASE_NAME,
    REQUESTER_POLICY,
)
from vfio_cli.checks_of_moving import of_migration_policies, of_webhook
from vfio_cli.fields import Json, age_text, moment
from vfio_cli.findings import BY_OTHERS, FORBIDDEN, UPGRADE, Finding, Found, Level, unseen
from vfio_cli.lists import is_ready
from vfio_cli.problems import UserError

OPERATOR, AGENT, KEEPER = "vfio-operator", "vfio-agent", "vfio-keeper"
MUTATING_POLICIES = (REQUESTER_POLICY,)
VALIDATING_POLICIES = (
    "vfio-migration-agent-devices",
    "vfio-migration-claimed-devices",
    "vfio-migration-decision",
    "vfio-migration-finalizer",
    REQUESTER_POLICY,
    "vfio-migration-status",
    "vfio-migration-switchovers",
)
ENFORCE = "pod-security.kubernetes.io/enforce"
# A Lease is renewed well within its time; the clocks of operator and API server may differ a little.
_LATE_LEASES = 2
DEVICE_VIEWER_ROLE, FLEET_ADMIN_ROLE = "vfio-device-viewer", "vfio-fleet-admin"  # of the chart
_FEW = 2


@dataclass(frozen=True, slots=True)
class Right:
    """One thing that the caller may do or not; why: what it is needed for. allowed None: the question failed."""

    verb: str
    group: str
    resource: str
    namespace: str
    why: str
    allowed: bool | None = None


@dataclass(frozen=True, slots=True)
class Installation:
    """Everything that was read, by the name of the object."""

    crds: Mapping[str, Found]
    policies: Mapping[str, Found]
    bindings: Mapping[str, Found]
    mutating: Mapping[str, Found]
    mutating_bindings: Mapping[str, Found]
    namespaces: Mapping[str, Found]
    workloads: Mapping[str, Found]
    lease: Found
    ca: Found
    pods: Sequence[Json] | UserError
    nodes: Sequence[Json] | UserError
    devices: Sequence[Json] | UserError
    migration_policies: Sequence[Json] | UserError
    webhook: Found
    rights: Sequence[Right]
    operator_namespace: str
    agent_namespace: str
    now: datetime


def examine(found: Installation) -> list[Finding]:
    """Every check, in the order in which one needs the other; what the caller may not look at is one line."""
    made = _checks(found)
    return [*_folded(made), *_too_little(made), *_rights(found.rights)]


def _checks(found: Installation) -> list[Finding]:
    made: list[Finding] = []
    for name, crd in found.crds.items():
        made.append(_judged(f"CRD {name}", crd, _crd))
    for name, policy in found.mutating.items():
        binding = found.mutating_bindings.get(name)
        made.append(_policy(f"MutatingAdmissionPolicy {name}", name, policy, binding, deny=False))
    for name, policy in found.policies.items():
        made.append(_policy(f"ValidatingAdmissionPolicy {name}", name, policy, found.bindings.get(name), deny=True))
    for name, namespace in found.namespaces.items():
        privileged = name == found.agent_namespace
        made.append(_judged(f"Namespace {name}", namespace, _privileged if privileged else _there))
    operator, agents = f"{found.operator_namespace}/", f"{found.agent_namespace}/"
    made.append(_judged(f"Deployment {operator}{OPERATOR}", found.workloads[OPERATOR], _deployment))
    made.append(_judged(f"Lease {operator}{LEASE_NAME}", found.lease, lambda lease: _lease(lease, found.now)))
    made.append(_judged(f"ConfigMap {operator}{CA_CONFIGMAP}", found.ca, _ca))
    made += [_judged(f"DaemonSet {agents}{name}", found.workloads[name], _daemonset) for name in (KEEPER, AGENT)]
    return [*made, *_agents(found), *of_migration_policies(found.migration_policies), of_webhook(found.webhook)]


def _folded(made: Sequence[Finding]) -> Iterator[Finding]:
    """The findings, those that the caller has no right to look at in one."""
    forbidden = [finding for finding in made if finding.unseen is not None and finding.unseen.status == FORBIDDEN]
    if len(forbidden) < _FEW:
        yield from made
        return
    yield from (finding for finding in made if finding not in forbidden)
    kinds = Counter(finding.subject.split()[0] for finding in forbidden)
    listed = ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in kinds.items())
    text = f"could not be looked at, since you may not read them: {listed}"
    yield Finding(Level.WARNING, f"{len(forbidden)} checks", text, BY_OTHERS)


def _too_little(made: Sequence[Finding]) -> Iterator[Finding]:
    """Who could look at less than half of an installation has not found it sound."""
    seen = sum(1 for finding in made if finding.unseen is None)
    if 2 * seen < len(made):
        text = f"only {seen} of {len(made)} checks could be made: nothing is said of whether the installation is sound"
        yield Finding(Level.FAILED, "the whole", text, BY_OTHERS)


def _judged(subject: str, found: Found, judge: Callable[[Json], Finding]) -> Finding:
    """What there is, judged; or that it is not there, or could not be read."""
    if isinstance(found, UserError):
        return unseen(subject, found)
    if found is None:
        next_step = f"{UPGRADE}, or correct --operator-namespace/--agent-namespace"
        return Finding(Level.FAILED, subject, "is not there", next_step)
    return replace(judge(found), subject=subject)


def _good(text: str) -> Finding:
    return Finding(Level.OK, "", text)


def _bad(text: str, next_step: str, level: Level = Level.FAILED) -> Finding:
    return Finding(level, "", text, next_step)


def _there(_: Json) -> Finding:
    return _good("is there")


def _crd(crd: Json) -> Finding:
    conditions = (crd.get("status") or {}).get("conditions") or []
    if not any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
        return _bad("is not Established", f"look at its conditions: kubectl describe crd {crd['metadata']['name']}")
    served = [version["name"] for version in crd["spec"]["versions"] if version["served"]]
    if API_VERSION not in served:
        return _bad(f"serves {', '.join(served)}, not {API_VERSION}", "use the plugin of the chart's version")
    return _good(f"is Established and serves {API_VERSION}")


def _policy(subject: str, name: str, policy: Found, binding: Found, *, deny: bool) -> Finding:
    def judge(body: Json) -> Finding:
        if isinstance(binding, UserError):
            return unseen("", binding, "is there; its binding could not be looked at")
        if binding is None or binding["spec"].get("policyName") != name:
            return _bad("is bound to nothing, so it has no effect", UPGRADE)
        actions = binding["spec"].get("validationActions", [])
        if deny and "Deny" not in actions:
            return _bad(f"is bound with {', '.join(actions)}, without Deny", UPGRADE)
        warnings = ((body.get("status") or {}).get("typeChecking") or {}).get("expressionWarnings") or []
        if warnings:
            return _bad(f"has a rule that may fail: {warnings[0].get('warning', '')[:120]}", UPGRADE, Level.WARNING)
        return _good("is there and bound")

    return _judged(subject, policy, judge)


def _privileged(namespace: Json) -> Finding:
    level = (namespace["metadata"].get("labels") or {}).get(ENFORCE)
    label = f"kubectl label --overwrite namespace {namespace['metadata']['name']} {ENFORCE}=privileged"
    if level is None:
        text = f"has no label {ENFORCE}: agents start only where privileged pods are the default"
        return _bad(text, label, Level.WARNING)
    if level != "privileged":
        return _bad(f"admits {level} pods, and agents must be privileged to open /dev/vfio", label)
    return _good("admits privileged pods")


def _deployment(found: Json) -> Finding:
    wanted, ready = found["spec"].get("replicas", 1), (found.get("status") or {}).get("readyReplicas", 0)
    metadata = found["metadata"]
    look = f"kubectl describe -n {metadata['namespace']} deployment/{metadata['name']}, and its pods' logs"
    if not ready:
        return _bad(f"has no ready replica of {wanted}", look)
    if ready < wanted:
        return _bad(f"has {ready} ready of {wanted} replicas", look, Level.WARNING)
    return _good(f"has {ready} of {wanted} replicas ready")


def _daemonset(found: Json) -> Finding:
    status = found.get("status") or {}
    wanted, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
    look = f"kubectl get pods -n {found['metadata']['namespace']} -o wide, then their logs"
    if not wanted:
        return _bad("runs on no node", "look at agent.nodeSelector of the chart's values", Level.WARNING)
    if ready < wanted:
        return _bad(f"is ready on {ready} of {wanted} nodes", look)
    return _good(f"is ready on {ready} of {wanted} nodes")


def _lease(lease: Json, now: datetime) -> Finding:
    spec = lease.get("spec") or {}
    look = f"look at the operator's log: kubectl logs -n {lease['metadata']['namespace']} deployment/{OPERATOR}"
    if not spec.get("holderIdentity") or not spec.get("renewTime"):
        return _bad("is held by nobody: no operator leads", look)
    age = (now - moment(spec["renewTime"])).total_seconds()
    if age > _LATE_LEASES * spec.get("leaseDurationSeconds", 15):
        return _bad(f"was renewed last {age_text(age)} ago by {spec['holderIdentity']}: no operator leads", look)
    annotations = lease["metadata"].get("annotations") or {}
    if not annotations.get(ADDRESS_ANNOTATION):
        return _bad(f"is held by {spec['holderIdentity']}, but without an address for the agents", look)
    epoch, address = annotations.get(EPOCH_ANNOTATION, "?"), annotations[ADDRESS_ANNOTATION]
    return _good(f"is held by {spec['holderIdentity']} at {address}, epoch {epoch}, renewed {age_text(age)} ago")


def _ca(found: Json) -> Finding:
    if not (found.get("data") or {}).get(CA_KEY):
        return _bad(f"has no {CA_KEY}: agents cannot check whom they dial", "restart the operator; it publishes it")
    return _good("has the certificate authority that agents check the operator by")


def is_agent(pod: Json) -> bool:
    """Whether a pod is an agent's; its readiness is whether it serves an operator that leads."""
    return bool(pod["spec"].get("serviceAccountName") == AGENT_SERVICE_ACCOUNT)


def _agents(found: Installation) -> Iterator[Finding]:
    """Each node that has an agent or devices: whether its agent is ready and has published."""
    for what in (found.pods, found.nodes, found.devices):
        if isinstance(what, UserError):
            yield unseen("agents", what)
            return
    assert not isinstance(found.pods, UserError)
    assert not isinstance(found.nodes, UserError)
    assert not isinstance(found.devices, UserError)
    ready = {pod["spec"].get("nodeName"): is_ready(pod) for pod in found.pods if is_agent(pod)}
    nodes = {node["metadata"]["name"]: is_ready(node) for node in found.nodes}
    count = dict.fromkeys(ready, 0) | {d["spec"]["nodeName"]: 0 for d in found.devices}
    for device in found.devices:
        count[device["spec"]["nodeName"]] += 1
    for name in sorted(name for name in count if name):
        yield _agent(name, nodes.get(name), ready.get(name), count[name], found.agent_namespace)
    if not count:
        next_step = f"look at the DaemonSet {found.agent_namespace}/{AGENT}"
        yield Finding(Level.FAILED, "agents", "none runs, and no device is published", next_step)


def _agent(name: str, node: bool | None, ready: bool | None, devices: int, namespace: str) -> Finding:
    subject, logs = f"agent on {name}", f"kubectl logs -n {namespace} -l app.kubernetes.io/component=agent"
    published = f"{devices} device{'s' if devices != 1 else ''} published"
    if node is None:
        text = f"{published}, but there is no such node any more"
        return Finding(Level.WARNING, subject, text, "if it is gone for good: kubectl delete vfd (those of it)")
    if ready is None:
        text = f"no agent runs there, so what is published ({devices}) is not kept up to date"
        return Finding(Level.FAILED, subject, text, f"look at the DaemonSet {namespace}/{AGENT} and the node's taints")
    if not ready or not node:
        text = f"{'its pod' if node else 'its node'} is not ready, so it may not be connected; {published}"
        return Finding(Level.FAILED, subject, text, logs)
    if not devices:
        return Finding(Level.WARNING, subject, "is ready, and publishes no device", f"if the node has any: {logs}")
    return Finding(Level.OK, subject, f"is ready: connected to the operator; {published}")


def _rights(rights: Sequence[Right]) -> Iterator[Finding]:
    """One line for all that the caller may do, and one for each thing that the caller may not."""
    for right in rights:
        where = f" in namespace {right.namespace}" if right.namespace else ""
        what = f"{right.verb} {right.resource}{where}"
        if right.allowed is None:
            yield Finding(Level.WARNING, "your rights", f"could not be asked for: {what}", "kubectl auth can-i --list")
        elif not right.allowed:
            where_to = f" in namespace {right.namespace}" if right.namespace else ""
            next_step = f"if you need it, ask an administrator to bind the ClusterRole {_role(right)} to you{where_to}"
            yield Finding(Level.WARNING, "your rights", f"you may not {what}: {right.why}", next_step)
    allowed = sum(1 for right in rights if right.allowed)
    if allowed:
        yield Finding(Level.OK, "your rights", f"{allowed} of {len(rights)} that the plugin's commands need")


def _role(right: Right) -> str:
    """The role that gives a right: of the chart for devices, which belong to no namespace, else one of Kubernetes."""
    if right.resource == VFIODevice.crd.plural:
        return DEVICE_USER_ROLE if right.verb == "use" else DEVICE_VIEWER_ROLE
    if right.resource == VFIOEvacuation.crd.plural:
        return FLEET_ADMIN_ROLE
    return "view" if right.verb in ("get", "list", "watch") else "edit"


def rights_needed(namespace: str) -> list[Right]:
    """What the caller may do or not, to be asked of the API server."""
    ours = API_GROUP
    return [
        Right("get", ours, "vfiomigrations", namespace, "watch, timeline and explain read one"),
        Right("list", ours, "vfiomigrations", namespace, "history lists them"),
        Right("watch", ours, "vfiomigrations", namespace, "watch follows one"),
        Right("create", ours, "vfiomigrations", namespace, "migrate, plan and rehearse create one"),
        Right("patch", ours, "vfiomigrations", namespace, "cancel changes one"),
        Right("delete", ours, "vfiomigrations", namespace, "plan and rehearse delete theirs afterwards"),
        Right("list", ours, "vfiodevices", "", "devices and nodes list them"),
        Right("use", ours, "vfiodevices", "", "a migration needs it on each of its devices; this asks for all"),
        Right("list", "events.k8s.io", "events", namespace, "explain reads them"),
        Right("get", ours, "vfioswitchovers", namespace, "explain reads the decision"),
        Right("create", ours, "vfioevacuations", "", "evacuate creates one"),
        Right("create", "", "pods", namespace, "to move a pod, its counterpart is created"),
        Right("delete", "", "pods", namespace, "to move a pod, the one that was moved is deleted"),
    ]


def crd_names() -> tuple[str, ...]:
    """The CustomResourceDefinitions of this version."""
    return tuple(resource.crd.name for resource in RESOURCES)


def worst(findings: Sequence[Finding]) -> Level:
    """The worst of them."""
    levels = {finding.level for finding in findings}
    return next(level for level in (Level.FAILED, Level.WARNING, Level.OK) if level in levels or level is Level.OK)
