"""Pods with devices on a real API server, scheduler and controllers; their kubelet only says that they run.

The tests' process plays each pod's process: an agent takes who asks its socket for the pod that the node's folders
say, and those are folders of its own here (/proc, cgroups, the kubelet's logs of pods). Whether a pod is frozen is read
from its cgroup, which stays as the agent leaves it.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.world import World, condition
from devtools.processes import Child
from devtools.stack import Node, Stack
from vfio_agent.broker import request_device
from vfio_agent.devices.simulated import SimulatedBackend
from vfio_api.names import API, INCOMING_ANNOTATION, MIGRATION_LABEL

Json = dict[str, Any]
NAMESPACE = "default"
SLOW = {"bandwidthLimitBytesPerSecond": 2 << 20}  # pre-copy lasts for seconds
FROZEN, RUNS = "1", "0"
TARGET_POD_SECONDS = "8"  # in which a counterpart runs, or never will
SETTINGS = {"TARGET_POD_SECONDS": TARGET_POD_SECONDS}
# Nothing here is about who leads: a machine that is busy for some seconds is to change no leader.
PATIENT = {"LEASE_SECONDS": "30", "RENEW_DEADLINE_SECONDS": "20"}


def pod(name: str, node: str = "node-a", *, labels: Json | None = None, **spec: Any) -> Json:
    """A pod on a node, past the scheduler."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name} | (labels or {})},
        "spec": {"nodeName": node, "containers": [container()], "terminationGracePeriodSeconds": 0} | spec,
    }


def container(**more: Any) -> Json:
    """The container of every pod here."""
    return {"name": "main", "image": "workload", **more}


def move(name: str, source: str, target: str = "node-b", **spec: Any) -> Json:
    """A VFIOMigration of a pod to a node; target may be a pod: `pod/NAME`."""
    kind, _, target_pod = target.partition("/")
    to = {"podName": target_pod} if kind == "pod" and target_pod else {"nodeName": target}
    return {
        "apiVersion": f"{API}/v1alpha1",
        "kind": "VFIOMigration",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"source": {"podName": source}, "target": to, **spec},
    }


class Folders:
    """What an agent sees of its host: processes, cgroups and the kubelet's folders of pods."""

    def __init__(self, node: Node):
        self.proc, self.cgroups, self.logs = (node.dir / name for name in ("proc", "cgroups", "logs"))
        for folder in (self.proc, self.cgroups, self.logs):
            folder.mkdir()
        self.leave()

    @property
    def settings(self) -> dict[str, str]:
        """Of the agent."""
        return {"PROC_DIR": str(self.proc), "CGROUP_DIR": str(self.cgroups), "POD_LOGS_DIR": str(self.logs)}

    def cgroup(self, uid: str) -> Path:
        """The folder of a pod's cgroup."""
        return self.cgroups / "kubepods" / f"pod{uid}"

    def admit(self, body: Json) -> None:
        """The pod has come to this node; from now on the tests' process is its process."""
        metadata, uid = body["metadata"], body["metadata"]["uid"]
        self.cgroup(uid).mkdir(parents=True, exist_ok=True)
        (self.cgroup(uid) / "cgroup.freeze").write_text(RUNS)
        (self.cgroup(uid) / "cgroup.events").write_text("populated 1\nfrozen 1\n")  # as soon as it is asked for
        (self.cgroup(uid) / "cgroup.kill").write_text("")
        (self.logs / f"{metadata['namespace']}_{metadata['name']}_{uid}").mkdir(exist_ok=True)
        self._cgroup_of_tests(f"0::/kubepods/pod{uid}/main\n")

    def leave(self) -> None:
        """The tests' process is no pod's any more."""
        self._cgroup_of_tests("0::/system.slice/tests.service\n")

    def _cgroup_of_tests(self, line: str) -> None:
        process = self.proc / str(os.getpid())
        process.mkdir(exist_ok=True)
        (process / "cgroup").write_text(line)


class PodsWorld(World):
    """A world whose pods have devices."""

    def __init__(self, stack: Stack, operator: Child):
        super().__init__(stack, operator)
        self.folders: dict[str, Folders] = {}

    def start(self, name: str, devices: Sequence[Any]) -> None:
        """A node, with an agent that sees folders of its own."""
        node = self.stack.add_node(name, devices)
        self.folders[name] = Folders(node)
        node.start_agent(**self.folders[name].settings)

    def get_pod(self, name: str) -> Json | None:
        """A pod; None if there is none."""
        found = self.stack.kubectl("get", "pod", name, "-o", "json", "--ignore-not-found")
        body: Json | None = json.loads(found) if found else None
        return body

    def there(self, name: str) -> Json:
        """A pod that must be there."""
        body = self.get_pod(name)
        assert body is not None, f"pod {name} is not there"
        return body

    def create(self, body: Json) -> Json:
        """Create a pod and wait until it runs."""
        self.stack.kubectl("create", "-f", "-", input=json.dumps(body))
        name = body["metadata"]["name"]
        self.stack.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=30s")
        return self.there(name)

    def opens(self, body: Json, addresses: Sequence[str]) -> Json:
        """The pod opens devices of its node, and marks them; the inventory shows them as its own."""
        node, uid = self.stack.nodes[body["spec"]["nodeName"]], body["metadata"]["uid"]
        self.folders[node.name].admit(body)
        backend = SimulatedBackend(node.simulator_socket)
        for address in addresses:
            _, fds = request_device(node.broker_socket, address, "test")
            with backend.adopt(address, fds) as device:
                device.write_region(0, mark_of(body, address))
        self.folders[node.name].leave()
        self.await_owner(node.name, addresses, uid)
        return body

    def await_owner(self, node: str, addresses: Sequence[str], uid: str) -> None:
        """Wait until the inventory shows these devices as the pod's ("": nobody's)."""

        def there() -> bool:
            shown = {
                d["spec"]["address"]: (d.get("status", {}).get("pod") or {}).get("uid", "")
                for d in self.stack.get("vfd")["items"]
                if d["spec"]["nodeName"] == node
            }
            return all(shown.get(address) == uid for address in addresses)

        self.stack.wait_until(there, f"{addresses} on {node} are those of pod {uid}")

    def with_devices(self, name: str, addresses: Sequence[str] = ("sim0", "sim1"), **spec: Any) -> Json:
        """A pod that runs and has devices of its node."""
        return self.opens(self.create(pod(name, **spec)), addresses)

    def counterpart(self, migration: str) -> Json | None:
        """The pod that the operator made for a migration; None if there is none."""
        uid = self.stack.get("vfm", migration)["metadata"]["uid"]
        found: list[Json] = self.stack.get("pods", "-l", f"{MIGRATION_LABEL}={uid}")["items"]
        return next((p for p in found if INCOMING_ANNOTATION in p["metadata"].get("annotations", {})), None)

    def await_counterpart(self, migration: str) -> Json:
        """Wait until the operator has made the counterpart."""
        self.stack.wait_until(lambda: self.counterpart(migration) is not None, f"the counterpart of {migration}")
        found = self.counterpart(migration)
        assert found is not None
        return found

    def say(self, name: str, status: Json) -> None:
        """As its kubelet says it of a pod."""
        change = json.dumps({"status": status})
        self.stack.kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", change)

    def has_marks(self, body: Json, node: str, addresses: Sequence[str]) -> bool:
        """Whether these devices of a node have what the pod has written into its own."""
        there = self.stack.nodes[node]
        backend, found = SimulatedBackend(there.simulator_socket), []
        for address in addresses:
            _, fds = request_device(there.broker_socket, address, "test")
            with backend.adopt(address, fds) as device:
                found.append(device.read_region(0, 16) == mark_of(body, address))
        return all(found)

    def frozen(self, body: Json) -> bool:
        """Whether the agent has left the pod frozen."""
        folder = self.folders[body["spec"]["nodeName"]].cgroup(body["metadata"]["uid"])
        return (folder / "cgroup.freeze").read_text() == FROZEN

    def clean(self) -> None:
        """Nothing of a test is left."""
        self.stack.kubectl("delete", "vfm", "--all", "--timeout=60s")
        self.stack.kubectl("delete", "deployments,statefulsets,daemonsets,jobs,replicasets", "--all")
        self.stack.kubectl("delete", "pods", "--all", "--timeout=30s", "--grace-period=0", "--force")
        self.stack.kubectl("delete", "pvc", "--all", "--wait=false")
        self.stack.kubectl("delete", "vfp,vfe", "--all")
        self.free()


def mark_of(body: Json, address: str) -> bytes:
    """What a pod writes into a device of its own."""
    return f"{body['metadata']['uid'][:8]} {address}".encode().ljust(16, b".")


def untouched(world: PodsWorld, body: Json, addresses: Sequence[str]) -> None:
    """The pod is as it was before the migration, its devices run and are its own, and no other pod was made."""
    name, node = body["metadata"]["name"], body["spec"]["nodeName"]
    found = world.there(name)
    assert "deletionTimestamp" not in found["metadata"]
    for field in ("uid", "labels", "annotations", "ownerReferences"):
        assert found["metadata"].get(field) == body["metadata"].get(field), field
    assert found["status"]["phase"] == "Running"
    assert not world.frozen(body)
    assert world.states(node, list(addresses)) == ["RUNNING"] * len(addresses)
    world.await_owner(node, addresses, body["metadata"]["uid"])
    assert world.has_marks(body, node, addresses)
    assert all("claimRef" not in d["spec"] for d in world.stack.get("vfd")["items"])
    made = [p for p in world.stack.get("pods")["items"] if INCOMING_ANNOTATION in p["metadata"].get("annotations", {})]
    assert [p["metadata"]["name"] for p in made if "deletionTimestamp" not in p["metadata"]] == []


def failed(found: Json, reason: str) -> str:
    """It has failed with this reason; what it says."""
    succeeded = condition(found, "Succeeded")
    ended = found["status"]["phase"], succeeded["status"], succeeded["reason"]
    assert ended == ("Failed", "False", reason), succeeded
    message: str = found["status"]["message"]
    assert succeeded["message"].startswith(message)
    return message


def claim(world: PodsWorld, name: str, mode: str) -> Json:
    """A volume for a pod, with its claim, of this access mode."""
    spec = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "none"}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}
    world.stack.kubectl("create", "-f", "-", input=json.dumps(body))
    return {"name": "data", "persistentVolumeClaim": {"claimName": name}}
