"""Objects of a control plane on which neither operators nor agents run, and what somebody tries with them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.users import User
from devtools.stack import NAMESPACE as OURS
from devtools.stack import Stack
from vfio_api.models import device_object_name
from vfio_api.names import API, FINALIZER

Json = dict[str, Any]
NAMESPACE = "default"
OPERATOR = f"--as=system:serviceaccount:{OURS}:vfio-operator"
VERSION = f"{API}/v1alpha1"
TIME = "2026-11-22T10:00:00Z"
CLAIM = {"namespace": NAMESPACE, "name": "m", "uid": "u-claimed"}
OWN, CLAIMED, OTHER = (
    device_object_name(node, address) for node, address in (("node-a", "own"), ("node-a", "taken"), ("node-b", "b"))
)
# Switchovers from node-a to node-b by what is decided of them.
OPEN, COMMITTED, ABORTED = "u-open", "u-committed", "u-aborted"


def device(node: str, address: str, **spec: Any) -> Json:
    return {
        "apiVersion": VERSION,
        "kind": "VFIODevice",
        "metadata": {"name": device_object_name(node, address)},
        "spec": {"nodeName": node, "address": address, "backend": "Simulated", **spec},
    }


def switchover(uid: str, namespace: str = NAMESPACE, **metadata: Any) -> Json:
    return {
        "apiVersion": VERSION,
        "kind": "VFIOSwitchover",
        "metadata": {"name": uid, "namespace": namespace, "finalizers": [FINALIZER], **metadata},
        "spec": {
            "migrationName": "m",
            "migrationUID": uid,
            "epoch": 1,
            "sourceNodes": ["node-a"],
            "targetNodes": ["node-b"],
            "timeoutSeconds": 30,
        },
    }


@dataclass(frozen=True)
class Patch:
    """A patch of an object of ours, by its path in the API."""

    path: str
    change: Any


def device_patch(name: str, change: Any, status: str = "") -> Patch:
    return Patch(f"/apis/{VERSION}/vfiodevices/{name}{status}", change)


def patch(kind: str, name: str, change: Any, status: str = "") -> Patch:
    return Patch(f"/apis/{VERSION}/namespaces/{NAMESPACE}/{kind}/{name}{status}", change)


def decide(uid: str, outcome: str, by: str) -> Patch:
    change = {"status": {"decision": {"outcome": outcome, "by": by, "time": TIME}}}
    return patch("vfioswitchovers", uid, change, "/status")


def abort(uid: str, node: str) -> Patch:
    return decide(uid, "Abort", f"vfio-agent/{node}")


@dataclass(frozen=True)
class Tried:
    """What somebody tries, with kubectl or by a patch, and what they are told; `who` is a node for an agent."""

    what: list[str] | Patch
    said: str
    manifest: Json | None = None
    who: str = "node-a"

    def refused(self, user: User) -> str:
        """Try it, which must fail; what the API server said."""
        if isinstance(self.what, list):
            return user.refused(*self.what, manifest=self.manifest)
        status, body = user.patch(self.what.path, self.what.change)
        assert status in (403, 422), body
        return str(body["message"])


def done(user: User, what: Patch) -> Json:
    """The object after a patch, which must succeed."""
    status, body = user.patch(what.path, what.change)
    assert status == 200, body
    return body


def versions(stack: Stack) -> list[tuple[str, str]]:
    """Every object of ours with its resourceVersion."""
    found = stack.get(f"vfiomigrations.{API},vfioswitchovers.{API},vfiodevices.{API}", "-A")["items"]
    return [(item["metadata"]["uid"], item["metadata"]["resourceVersion"]) for item in found]


def fill(stack: Stack) -> None:
    """Make the objects that are named above."""
    for item in (device("node-a", "own"), device("node-a", "taken", claimRef=CLAIM), device("node-b", "b")):
        stack.kubectl("create", "-f", "-", input=json.dumps(item))
    for uid in (OPEN, COMMITTED, ABORTED):
        stack.kubectl("create", OPERATOR, "-f", "-", input=json.dumps(switchover(uid)))


def operator_token(stack: Stack, folder: Path) -> User:
    """The operator's token; two of the switchovers are decided with it."""
    stack.plane.service_account_kubeconfig(OURS, "vfio-operator", folder / "kubeconfig")
    made = User(stack.plane, folder / "kubeconfig")
    for uid, outcome in ((COMMITTED, "Commit"), (ABORTED, "Abort")):
        assert done(made, decide(uid, outcome, "operator-0"))["status"]["decision"]["outcome"] == outcome
    return made
