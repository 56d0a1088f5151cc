"""The product in a cluster: installed by helm, used by kubectl, with workloads that mark their devices."""

import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from devtools.cluster.cluster import Cluster, Json
from devtools.cluster.guest_node import GuestNode
from devtools.guest import WORKLOAD
from devtools.images import AGENT, ROOT
from devtools.stack import migration
from vfio_api.device import DeviceState

RELEASE, NAMESPACE, AGENTS = "vfio", "vfio-migration", "vfio-migration-agents"
CHART = str(ROOT / "charts/vfio-migration")
SOCKETS = "/run/vfio-agent"
MARKERS = "markers"
MARKER_FILES = (Path(__file__).with_name("marker.py"), WORKLOAD)


# Simulated devices of each node: two that take a while to move, and one for each pod of many.
LARGE, SMALL = ("sim0", "sim1"), tuple(f"small{number}" for number in range(8))
BIG = {"model": "sim-vf", "size_bytes": 64 << 20, "dirty_rate_bytes_per_second": 1 << 20}
LITTLE = {"model": "sim-small", "size_bytes": 2 << 20, "dirty_rate_bytes_per_second": 64 << 10}


class Devices(Protocol):
    """What the nodes of a stage have. values: for helm."""

    values: Sequence[str]

    def of(self, cluster: Cluster, node: str) -> Sequence[str]:
        """Addresses of a node's devices."""

    def slow(self) -> Mapping[str, object]:
        """A strategy with which a migration takes several seconds before its switchover."""

    def hold(self, cluster: Cluster, node: str) -> Callable[[], None]:
        """Make the next migration from a node stay where it is to stop; returns what lets it go on."""


class SimulatedDevices:
    """Devices of the simulator that the chart can install."""

    values = (
        "agent.simulator.enabled=true",
        "evictionWebhook.enabled=true",
        *(
            f"agent.simulator.devices[{number}].{key}={value}"
            for number, address in enumerate((*LARGE, *SMALL))
            for key, value in {"address": address, **(BIG if address in LARGE else LITTLE)}.items()
        ),
    )

    def of(self, cluster: Cluster, node: str) -> Sequence[str]:
        """See Devices."""
        return LARGE

    def slow(self) -> Mapping[str, object]:
        """See Devices: 2 x 64 MiB by 16 MiB/s."""
        return {"bandwidthLimitBytesPerSecond": "16Mi", "downtimeLimitMilliseconds": 2000}

    def hold(self, cluster: Cluster, node: str) -> Callable[[], None]:
        """See Devices: nothing is held, the transfer takes its time."""
        return lambda: None


class GuestDevices:
    """The kernel's mtty devices."""

    values = ()

    def of(self, cluster: Cluster, node: str) -> Sequence[str]:
        """See Devices."""
        found = cluster.nodes[node]
        assert isinstance(found, GuestNode)
        return found.devices

    def slow(self) -> Mapping[str, object]:
        """See Devices: their state is a few bytes; what takes its time is the arc that `hold` holds."""
        return {"downtimeLimitMilliseconds": 30_000, "switchoverTimeoutSeconds": 120}

    def hold(self, cluster: Cluster, node: str) -> Callable[[], None]:
        """See Devices: the driver keeps the arc PRE_COPY_P2P to STOP_COPY."""
        program = [sys.executable, "-E", "-S", str(WORKLOAD)]
        arc = (str(int(DeviceState.PRE_COPY_P2P)), str(int(DeviceState.STOP_COPY)))
        cluster.nodes[node].exec([*program, "fault", *arc, "hold"])
        return lambda: cluster.nodes[node].exec([*program, "disarm"]) and None


class Installation:
    """A cluster and what its administrator and its users do with it."""

    def __init__(self, cluster: Cluster, devices: Devices):
        self.cluster, self.devices = cluster, devices
        self._number = 0
        self._pool = ThreadPoolExecutor(1, "background")
        self._background: list[Future[str]] = []

    # what the administrator does

    def helm(self, action: str, *arguments: str, **values: str) -> str:
        """`helm install` or `upgrade` of this chart, waited for, with the stage's values and these."""
        settings = [*self.devices.values, *(f"{key.replace('__', '.')}={value}" for key, value in values.items())]
        chosen = [word for setting in settings for word in ("--set", setting)]
        timeout = f"{240 * self.cluster.patience:.0f}s"
        return self.cluster.helm(
            action, RELEASE, CHART, "--namespace", NAMESPACE, "--wait", "--timeout", timeout, *chosen, *arguments
        )

    def ready(self) -> None:
        """Install the chart unless it is, and wait for the devices."""
        if RELEASE not in self.cluster.helm("list", "--namespace", NAMESPACE, "--short"):
            self.helm("install", "--create-namespace")
        self.devices_free()
        self.allow_markers()

    def helm_in_background(self, action: str, **values: str) -> None:
        """`helm`, by another thread; `background_done` waits for it."""
        self._background.append(self._pool.submit(self.helm, action, **values))

    def background_done(self) -> None:
        """Wait for what was begun in the background. Raises what it raised."""
        while self._background:
            self._background.pop().result()

    def pods_of_release(self) -> list[Json]:
        """All pods of operator and agents."""
        return [pod for namespace in (NAMESPACE, AGENTS) for pod in self.cluster.get("pods", "-n", namespace)["items"]]

    def devices_free(self) -> None:
        """Wait until each node has published its devices, with what their driver can do."""
        wanted = {(node, device) for node in self.cluster.nodes for device in self.devices.of(self.cluster, node)}

        def published() -> bool:
            found = self.cluster.get("vfd")["items"]
            known = [d for d in found if d.get("status", {}).get("migrationFlags")]
            return {(d["spec"]["nodeName"], d["spec"]["address"]) for d in known} >= wanted

        self.cluster.wait_until(published, f"VFIODevices {sorted(wanted)} with their flags", 60)

    def leader(self) -> str:
        """The name of the pod that leads."""
        lease = self.cluster.get("lease", "-n", NAMESPACE, "vfio-operator")
        return str(lease["spec"]["holderIdentity"])

    def agent(self, node: str) -> str:
        """The name of a node's agent pod."""
        (pod,) = [p for p in self.cluster.pods(AGENTS, "agent") if p["spec"]["nodeName"] == node]
        return str(pod["metadata"]["name"])

    # what users do

    def mark(self, node: str) -> Mapping[str, str]:
        """A workload pod opens the node's devices and marks them; returns address -> mark, hexadecimal."""
        marks = {address: secrets.token_hex(16) for address in self.devices.of(self.cluster, node)}
        assert self._marker(node, "mark", [f"{address}={mark}" for address, mark in marks.items()]) == marks
        return marks

    def read(self, node: str) -> Mapping[str, str]:
        """A workload pod takes the marks out of the devices that are held on a node."""
        return self._marker(node, "read", self.devices.of(self.cluster, node))

    def close(self, node: str, *addresses: str) -> None:
        """A workload pod gives devices up, whoever had them."""
        self._marker(node, "close", addresses)

    def _marker(self, node: str, action: str, arguments: Sequence[str]) -> Mapping[str, str]:
        self._number += 1
        name = f"marker-{self._number}"
        self.apply(_marker_pod(name, node, [action, "marker", *arguments]))
        self.cluster.wait_until(
            lambda: self.cluster.get("pod", "-n", MARKERS, name)["status"].get("phase") in ("Succeeded", "Failed"),
            f"pod {name} ended",
            150,
        )
        log = self.cluster.kubectl("logs", "-n", MARKERS, name)
        assert log.startswith("{"), f"{name} on {node}: {log}"
        self.cluster.kubectl("delete", "pod", "-n", MARKERS, name, "--wait=false")
        found: Mapping[str, str] = json.loads(log.splitlines()[-1])
        return found

    def allow_markers(self) -> None:
        """A namespace in which workloads may reach the agent's socket on their node."""
        labels = {"pod-security.kubernetes.io/enforce": "privileged"}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": MARKERS, "labels": labels}})
        files = {file.name: file.read_text() for file in MARKER_FILES}
        meta = {"name": "marker", "namespace": MARKERS}
        self.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": files})
        account = ["get", "serviceaccount", "default", "-n", MARKERS]
        self.cluster.wait_until(lambda: "default" in self.cluster.kubectl(*account, check=False), "account", 30)

    def migrate(self, name: str, source: str, target: str, **strategy: object) -> None:
        """kubectl apply of a VFIOMigration of all devices of a node to those of another."""
        pairs = zip(self.devices.of(self.cluster, source), self.devices.of(self.cluster, target), strict=True)
        named = [(f"dev{number}", source, there, target, to) for number, (there, to) in enumerate(pairs)]
        self.apply(migration(name, named, strategy=strategy) if strategy else migration(name, named))

    def finished(self, name: str, timeout: float = 90) -> Json:
        """The migration, once it has ended; fails unless it succeeded."""
        self.cluster.wait_until(
            lambda: self._condition(name, "Finished") == "True", f"VFIOMigration {name} finished", timeout
        )
        found = self.cluster.get("vfm", name)
        status = found["status"]
        assert self._condition(name, "Succeeded") == "True", f"{name}: {status['phase']}: {status.get('message')}"
        return found

    def phase(self, name: str) -> str:
        """A migration's phase."""
        return str(self.cluster.get("vfm", name).get("status", {}).get("phase", ""))

    def await_phase(self, name: str, *phases: str, timeout: float = 60) -> None:
        """Wait until it is in one of these. Fails if it ends before."""

        def there() -> bool:
            phase = self.phase(name)
            assert phase in phases or phase not in ("Succeeded", "Failed", "Cancelled"), f"{name} is {phase} already"
            return phase in phases

        self.cluster.wait_until(there, f"VFIOMigration {name} in phase {' or '.join(phases)}", timeout)

    def _condition(self, name: str, kind: str) -> str:
        conditions = self.cluster.get("vfm", name).get("status", {}).get("conditions", ())
        return next((c["status"] for c in conditions if c["type"] == kind), "")

    def carried(self, name: str, source: str, target: str, during: Callable[[], None] | None = None) -> Json:
        """Mark the devices of `source`, migrate them, do something `during` it, and find the marks at `target`."""
        marks = self.mark(source)
        go_on = self.devices.hold(self.cluster, source) if during else None
        self.migrate(name, source, target, **(self.devices.slow() if during else {}))
        if during and go_on:
            self.await_phase(name, "PreCopy", "Switchover")
            during()
            go_on()
        ended = self.finished(name, 180)
        there = zip(self.devices.of(self.cluster, target), marks.values(), strict=True)
        assert self.read(target) == dict(there), f"{name}: the marks of {source} are not on {target}"
        return ended

    def apply(self, thing: Json) -> None:
        """kubectl apply."""
        self.cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(thing))

    def describe(self) -> str:
        """What the cluster shows, for a failure's report."""
        error = RuntimeError()
        self.cluster.explain(error)
        pods = [("operator", NAMESPACE), ("agent", AGENTS), ("keeper", AGENTS), ("simulator", AGENTS)]
        for component, namespace in pods:
            for pod in self.cluster.pods(namespace, component):
                name = pod["metadata"]["name"]
                log = self.cluster.kubectl("logs", "-n", namespace, name, "--tail=40", check=False)
                error.add_note(f"==== log of {name} on {pod['spec'].get('nodeName')}\n{log}")
        return "\n".join(error.__notes__)


def _marker_pod(name: str, node: str, arguments: Sequence[str]) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": MARKERS},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "marker",
                    "image": AGENT.config().reference.rpartition("/")[2],
                    "imagePullPolicy": "Never",
                    "command": ["python3", "/marker/marker.py", SOCKETS, *arguments],
                    "volumeMounts": [
                        {"name": "sockets", "mountPath": SOCKETS},
                        {"name": "marker", "mountPath": "/marker"},
                    ],
                }
            ],
            "volumes": [
                {"name": "sockets", "hostPath": {"path": SOCKETS, "type": "Directory"}},
                {"name": "marker", "configMap": {"name": "marker"}},
            ],
        },
    }


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __str__(self) -> str:
        return f"{time.monotonic() - self._began:.1f} s"
