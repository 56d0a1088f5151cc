"""What the token of an agent is good for, at the real API server: tokens bound to pods on nodes.

No operator and no agent runs here, so that what changes was changed by the test.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.guarded import (
    ABORTED,
    CLAIM,
    CLAIMED,
    COMMITTED,
    NAMESPACE,
    OPEN,
    OPERATOR,
    OTHER,
    OWN,
    Patch,
    Tried,
    abort,
    decide,
    device,
    device_patch,
    done,
    patch,
    switchover,
    versions,
)
from cluster.users import User
from devtools.stack import AGENT_NAMESPACE, Stack, migration
from devtools.stack import NAMESPACE as OURS
from vfio_agent.kube import AgentApi, Decided
from vfio_api.names import ADDRESS_ANNOTATION, CA_CONFIGMAP, CA_KEY, FINALIZER, LEASE_NAME
from vfio_api.types import MigrationKey, Outcome


@pytest.fixture(scope="module")
def agents(guarded: Stack, operator_user: User, tmp_path_factory: pytest.TempPathFactory) -> dict[str, User]:
    """The agents by their node; "" has the ServiceAccount's token, but for no pod."""
    found = {}
    for node in ("node-a", "node-b", "node-c"):
        _, kubeconfig = guarded.agent_credentials(node, tmp_path_factory.mktemp(node))
        found[node] = User(guarded.plane, kubeconfig)
    nowhere = tmp_path_factory.mktemp("nowhere") / "kubeconfig"
    guarded.plane.service_account_kubeconfig(AGENT_NAMESPACE, "vfio-agent", nowhere)
    return {**found, "": User(guarded.plane, nowhere)}


APPLY = ["apply", "--server-side", "--force-conflicts", "-f", "-"]
ITS_OWN = "the agent of node node-a may write the VFIODevices of its own node only; this one is of node node-b"
NO_NODE = "the agent's token is bound to no node, so it may "
NOT_CLAIMS = "an agent may not set, change or remove spec.claimRef; the operator reserves devices and gives them free"
ONCE = "status.decision is written once: read it back and obey it; found "


def cannot(verb: str, resource: str) -> str:
    return f'cannot {verb} resource "{resource}"'


DEVICES = {
    "create a device of another node": Tried(["create", "-f", "-"], ITS_OWN, device("node-b", "new")),
    "apply a device of another node": Tried(APPLY, ITS_OWN, device("node-b", "new")),
    "apply over a device of another node": Tried(APPLY, ITS_OWN, device("node-b", "b")),
    "label a device of another node": Tried(device_patch(OTHER, {"metadata": {"labels": {"a": "b"}}}), ITS_OWN),
    "take a device of another node for its own": Tried(
        device_patch(OTHER, {"spec": {"nodeName": "node-a"}}), "spec.nodeName cannot be changed after creation"
    ),
    "give a device of its own to another node": Tried(
        device_patch(OWN, {"spec": {"nodeName": "node-b"}}), "spec.nodeName cannot be changed after creation"
    ),
    "write the status of another node's device": Tried(
        device_patch(OTHER, {"status": {"holder": "", "state": "STOP"}}, "/status"), ITS_OWN
    ),
    "create without a node": Tried(["create", "-f", "-"], NO_NODE + "write", device("node-a", "new"), who=""),
    "write a status without a node": Tried(
        device_patch(OWN, {"status": {"holder": "x"}}, "/status"), NO_NODE + "write", who=""
    ),
    "create a claimed device": Tried(["create", "-f", "-"], NOT_CLAIMS, device("node-a", "new", claimRef=CLAIM)),
    "claim": Tried(device_patch(OWN, {"spec": {"claimRef": CLAIM}}), NOT_CLAIMS),
    "claim by server-side apply": Tried(APPLY, NOT_CLAIMS, device("node-a", "own", claimRef=CLAIM)),
    "remove a claim": Tried(device_patch(CLAIMED, {"spec": {"claimRef": None}}), NOT_CLAIMS),
    "remove a claim by replacing the device": Tried(
        ["replace", "-f", "-"], cannot("update", "vfiodevices"), device("node-a", "taken")
    ),
    "take the name of another node's device": Tried(
        APPLY,
        f"the name of a VFIODevice begins with its node, node-a-; found {device('node-b', 'new')['metadata']['name']}",
        {**device("node-a", "new"), "metadata": device("node-b", "new")["metadata"]},
    ),
    "read a device": Tried(["get", "vfd", OWN], cannot("get", "vfiodevices")),
    "list devices": Tried(["get", "vfd"], cannot("list", "vfiodevices")),
    "change a claim": Tried(device_patch(CLAIMED, {"spec": {"claimRef": {"uid": "u-2"}}}), "claimed by another"),
    "delete a device": Tried(["delete", "vfd", OWN], cannot("delete", "vfiodevices")),
    "delete a claimed device": Tried(["delete", "vfd", CLAIMED], cannot("delete", "vfiodevices")),
    "delete another node's device": Tried(["delete", "vfd", OTHER], cannot("delete", "vfiodevices")),
}
ONLY_ABORT = "an agent may write no decision but Abort"
NO_PART = "has no source device in this switchover, so its agent may decide nothing of it; source nodes are node-a"
SWITCHOVERS = {
    "Commit": Tried(decide(OPEN, "Commit", "vfio-agent/node-a"), ONLY_ABORT),
    "Commit as the operator": Tried(decide(OPEN, "Commit", "operator-0"), ONLY_ABORT),
    "Commit without a node": Tried(decide(OPEN, "Commit", "vfio-agent/"), NO_NODE + "decide", who=""),
    "Abort without a node": Tried(abort(OPEN, ""), NO_NODE + "decide nothing", who=""),
    "Abort of a target only": Tried(abort(OPEN, "node-b"), f"node node-b {NO_PART}", who="node-b"),
    "Commit of a target": Tried(decide(OPEN, "Commit", "vfio-agent/node-b"), f"node node-b {NO_PART}", who="node-b"),
    "Abort of who has no part": Tried(abort(OPEN, "node-c"), f"node node-c {NO_PART}", who="node-c"),
    "Abort of who has no part in another's name": Tried(abort(OPEN, "node-a"), f"node-c {NO_PART}", who="node-c"),
    "Abort in another's name": Tried(
        abort(OPEN, "node-b"), "status.decision.by must say who decides, vfio-agent/node-a; found vfio-agent/node-b"
    ),
    "no decision": Tried(patch("vfioswitchovers", OPEN, {"status": {}}, "/status"), ONLY_ABORT),
    "Abort after Commit": Tried(abort(COMMITTED, "node-a"), ONCE + "Commit"),
    "Abort after Abort": Tried(abort(ABORTED, "node-a"), ONCE + "Abort"),
    "Commit after Abort": Tried(decide(ABORTED, "Commit", "vfio-agent/node-a"), ONCE + "Abort"),
    "remove the decision": Tried(
        patch("vfioswitchovers", COMMITTED, {"status": {"decision": None}}, "/status"), ONCE + "Commit"
    ),
    "remove the status": Tried(patch("vfioswitchovers", COMMITTED, {"status": None}, "/status"), ONCE + "Commit"),
    "the same decision again": Tried(
        decide(COMMITTED, "Commit", "operator-0"), "the decision is Commit already: read it back and obey it"
    ),
    "create one": Tried(["create", "-f", "-"], cannot("create", "vfioswitchovers"), switchover("u-new")),
    "delete one": Tried(["delete", "vfs", OPEN, "--wait=false"], cannot("delete", "vfioswitchovers")),
    "strip its finalizer": Tried(
        patch("vfioswitchovers", OPEN, {"metadata": {"finalizers": None}}), cannot("patch", "vfioswitchovers")
    ),
    "make itself a source": Tried(
        patch("vfioswitchovers", OPEN, {"spec": {"sourceNodes": ["node-a", "node-b"]}}),
        cannot("patch", "vfioswitchovers"),
    ),
    "list them": Tried(["get", "vfs"], cannot("list", "vfioswitchovers")),
}
MIGRATION = migration("m", [("gpu0", "node-a", "own", "node-b", "b")])
ELSEWHERE = {
    "read secrets": Tried(["get", "secrets", "-n", OURS], cannot("list", "secrets")),
    "read a secret": Tried(["get", "secret", "a", "-n", OURS], cannot("get", "secrets")),
    "read secrets of all": Tried(["get", "secrets", "-A"], cannot("list", "secrets")),
    "list migrations": Tried(["get", "vfm", "-A"], cannot("list", "vfiomigrations")),
    "read a migration": Tried(["get", "vfm", "m"], cannot("get", "vfiomigrations")),
    "create a migration": Tried(["create", "-f", "-"], cannot("create", "vfiomigrations"), MIGRATION),
    "cancel a migration": Tried(APPLY, cannot("patch", "vfiomigrations"), MIGRATION),
    "delete migrations": Tried(["delete", "vfm", "m"], cannot("delete", "vfiomigrations")),
    "read pods": Tried(["get", "pods", "-n", OURS], cannot("list", "pods")),
    "read pods of all": Tried(["get", "pods", "-A"], cannot("list", "pods")),
    "read nodes": Tried(["get", "nodes"], cannot("list", "nodes")),
    "read another ConfigMap": Tried(["get", "cm", "kube-root-ca.crt", "-n", OURS], cannot("get", "configmaps")),
    "write the leader's certificate": Tried(
        ["patch", "cm", CA_CONFIGMAP, "-n", OURS, "--type=merge", "-p", "{}"], cannot("patch", "configmaps")
    ),
    "take the Lease": Tried(
        ["patch", "lease", LEASE_NAME, "-n", OURS, "--type=merge", "-p", "{}"], cannot("patch", "leases")
    ),
    "make tokens": Tried(["create", "token", "vfio-operator", "-n", OURS], cannot("create", "serviceaccounts/token")),
    "be the operator": Tried(["get", "vfm", OPERATOR], "cannot impersonate"),
    "remove the policies": Tried(
        ["delete", "validatingadmissionpolicy", "vfio-migration-decision"],
        cannot("delete", "validatingadmissionpolicies"),
    ),
}
REFUSALS = {**DEVICES, **SWITCHOVERS, **ELSEWHERE}


@pytest.fixture(scope="module")
def lead(guarded: Stack) -> Iterator[None]:
    """What a leader publishes for agents."""
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CA_CONFIGMAP, "namespace": OURS}}
    guarded.kubectl("create", "-f", "-", input=json.dumps({**made, "data": {CA_KEY: "a certificate"}}))
    lease = {"metadata": {"annotations": {ADDRESS_ANNOTATION: "127.0.0.1:1"}}, "spec": {"holderIdentity": "operator-0"}}
    guarded.kubectl("patch", "lease", LEASE_NAME, "-n", OURS, "--type=merge", "-p", json.dumps(lease))
    yield
    guarded.kubectl("delete", "cm", CA_CONFIGMAP, "-n", OURS)


@pytest.mark.parametrize("tried", REFUSALS.values(), ids=REFUSALS)
def test_an_agent_may_not(guarded: Stack, agents: dict[str, User], lead: None, tried: Tried) -> None:
    before = versions(guarded)
    assert tried.said in tried.refused(agents[tried.who])
    assert versions(guarded) == before


async def _as_the_agent_does(kubeconfig: Path, uid: str) -> tuple[str, Decided, Decided]:
    api = await AgentApi.connect(kubeconfig, OURS)
    try:
        leader = await api.leader()
        for address in ("fresh", "fresh", "taken"):  # created, applied again; one that is claimed
            made = device("node-a", address)
            await api.apply_device(made["metadata"]["name"], made["spec"], {"holder": "workload x", "driver": "sim"})
        key = MigrationKey(uid, NAMESPACE, "m")
        before = await api.switchover(key)
        await api.ask_abort(key, "node-a")
        return leader.address if leader else "", before, await api.switchover(key)
    finally:
        await api.close()


def test_an_agent_may_do_what_it_needs(guarded: Stack, agents: dict[str, User], lead: None) -> None:
    """Its own code, its own token: the leader, its devices also while they are claimed, and Abort."""
    guarded.kubectl("create", OPERATOR, "-f", "-", input=json.dumps(switchover("u-needed")))
    address, before, after = asyncio.run(_as_the_agent_does(agents["node-a"].kubeconfig, "u-needed"))
    assert address == "127.0.0.1:1"
    assert (before.decision, after.decision) == (None, Outcome.ABORT)
    found = {item["spec"]["address"]: item for item in guarded.get("vfd")["items"]}
    assert found["fresh"]["status"]["holder"] == found["taken"]["status"]["holder"] == "workload x"
    assert found["taken"]["spec"]["claimRef"] == CLAIM
    stored = guarded.get("vfs", "u-needed")["status"]["decision"]
    assert (stored["outcome"], stored["by"]) == ("Abort", "vfio-agent/node-a")


def test_abort_takes_no_finalizer_along(guarded: Stack, agents: dict[str, User]) -> None:
    """A status is written without metadata, whatever the request says of it."""
    guarded.kubectl("create", OPERATOR, "-f", "-", input=json.dumps(switchover("u-strip")))
    wanted = abort("u-strip", "node-a")
    done(agents["node-a"], Patch(wanted.path, {"metadata": {"finalizers": None}, **wanted.change}))
    found = guarded.get("vfs", "u-strip")
    assert found["metadata"]["finalizers"] == [FINALIZER]
    assert found["status"]["decision"]["outcome"] == "Abort"
