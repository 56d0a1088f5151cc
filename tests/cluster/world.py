"""What the tests of whole migrations use: a stack with four-device nodes, workloads, and what they read back."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devtools.processes import Child
from devtools.stack import Node, SimulatedDevice, Stack, migration
from vfio_agent.broker import close_device, request_device
from vfio_agent.devices.simulated import SimulatedBackend, SimulatorControl
from vfio_api.errors import DeviceError

Json = dict[str, Any]
AUDIT_POLICY = """apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: ["system:serviceaccount:vfio-migration:vfio-operator"]
- level: None
"""
SETS = [f"sim{i}" for i in range(4)]


def devices() -> list[SimulatedDevice]:
    """A node's devices: a P2P set of four, one without P2P, without PRE_COPY, not migratable, other."""
    return [
        *(SimulatedDevice(address, dirty_rate_bytes_per_second=1 << 20) for address in SETS),
        SimulatedDevice("nop2p", flags=("STOP_COPY", "PRE_COPY")),
        SimulatedDevice("plain", flags=("STOP_COPY", "P2P")),
        SimulatedDevice("rigid", flags=()),
        SimulatedDevice("other", model="other-vf"),
    ]


class World:
    """A stack with an operator and two nodes whose agents run; node-c is a Node without an agent."""

    def __init__(self, stack: Stack, operator: Child):
        self.stack, self.operator = stack, operator
        self._lost: dict[str, int] = {}

    def control(self, node: str) -> SimulatorControl:
        """The simulator of a node."""
        return SimulatorControl(self.stack.nodes[node].simulator_socket)

    def open(self, node: Node, addresses: Sequence[str], *, rate: int = 200) -> None:
        """A workload on `node` opens the devices, marks them, and has them write into each other."""
        backend = SimulatedBackend(node.simulator_socket)
        for other in self.stack.nodes:  # no traffic before every peer is there
            self.control(other).configure(rate_per_second=0, latency_us=500)
        for port, address in enumerate(addresses):
            _, fds = request_device(node.broker_socket, address, "test")
            with backend.adopt(address, fds) as device:
                device.start_traffic(port, [p for p in range(len(addresses)) if p != port])
                device.write_region(0, mark(address))
        self.open_rate(rate)
        self.published(node.name, dict.fromkeys(addresses, "workload test"))

    def open_rate(self, rate: int) -> None:
        """Writes per second of every device that carries state, on every node."""
        for node in self.stack.nodes:
            self.control(node).configure(rate_per_second=rate, latency_us=500)

    def marks(self, node: str, addresses: Sequence[str]) -> list[bytes]:
        """What the devices of a node have in their scratch registers, read through the broker."""
        there = self.stack.nodes[node]
        backend, found = SimulatedBackend(there.simulator_socket), []
        for address in addresses:
            _, fds = request_device(there.broker_socket, address, "test")
            with backend.adopt(address, fds) as device:
                found.append(device.read_region(0, 16))
        return found

    def published(self, node: str, holders: dict[str, str], timeout: float = 20) -> None:
        """Wait until the inventory shows these holders."""

        def there() -> bool:
            shown = {
                d["spec"]["address"]: d.get("status", {}).get("holder", "")
                for d in self.stack.get("vfd")["items"]
                if d["spec"]["nodeName"] == node
            }
            return all(shown.get(address) == holder for address, holder in holders.items())

        self.stack.wait_until(there, f"holders {holders} on {node}", timeout)

    @contextmanager
    def workload(self, node: str = "node-a", addresses: Sequence[str] = SETS) -> Iterator[None]:
        """Devices open on `node` for the duration; afterwards every device of every node is free again."""
        self.open(self.stack.nodes[node], addresses)
        self._lost = {name: int(self.control(name).stats()["totals"]["lost"]) for name in self.stack.nodes}
        try:
            yield
        finally:
            self.free()

    def free(self) -> None:
        """Disarm faults and close every device; quietly, since one that is closed loses what its peers write."""
        self.open_rate(0)
        for node in self.stack.nodes.values():
            for device in self.control(node.name).list():
                self.control(node.name).clear_faults(device["address"])  # the next test has its own
                if device["open"]:
                    try:
                        close_device(node.broker_socket, device["address"])
                    except DeviceError:  # a mutant's session may still have it
                        continue
            self.published(node.name, {d["address"]: "" for d in self.control(node.name).list()})

    def apply(self, manifest: Json) -> str:
        """kubectl apply; returns namespace/name's name."""
        self.stack.kubectl("apply", "-f", "-", input=json.dumps(manifest))
        return str(manifest["metadata"]["name"])

    def finished(self, name: str, timeout: int = 60) -> Json:
        """Wait as a user would, then the object."""
        self.stack.kubectl("wait", "--for=condition=Finished", f"vfm/{name}", f"--timeout={timeout}s")
        return self.stack.get("vfm", name)

    def in_pre_copy(self, name: str, namespace: str = "default") -> None:
        """Wait until a migration is in pre-copy."""
        self.stack.wait_until(
            lambda: self.stack.get("vfm", name, "-n", namespace).get("status", {}).get("phase") == "PreCopy",
            f"{name} is in pre-copy",
        )

    def run(self, manifest: Json, timeout: int = 60) -> Json:
        """Apply, wait for the end, return the object."""
        return self.finished(self.apply(manifest), timeout)

    def totals(self, node: str) -> Json:
        """P2P counters of the devices on a node; what was lost is counted from the workload's start."""
        totals: Json = self.control(node).stats()["totals"]
        return {**totals, "lost": totals["lost"] - self._lost.get(node, 0)}

    def states(self, node: str, addresses: Sequence[str] = SETS) -> list[str]:
        """Device states as the simulator has them."""
        found = self.control(node).stats()["devices"]
        return [found[address]["state"] for address in addresses]


def mark(address: str) -> bytes:
    """What the workload writes into a device."""
    return f"mark of {address}".encode().ljust(16, b".")


def pairs(addresses: Sequence[str] = SETS, source: str = "node-a", target: str = "node-b") -> list[Any]:
    """Each device to its namesake."""
    return [(f"gpu{i}", source, address, target, address) for i, address in enumerate(addresses)]


def condition(found: Json, kind: str) -> Json:
    """One condition of a finished migration."""
    made: Json = next(c for c in found["status"]["conditions"] if c["type"] == kind)
    return made


def audit_arguments(folder: Path) -> list[str]:
    """API server flags that record what the operators do."""
    policy = folder / "audit.yaml"
    policy.write_text(AUDIT_POLICY)
    return [
        f"--audit-policy-file={policy}",
        f"--audit-log-path={folder / 'audit.log'}",
        "--audit-log-mode=blocking",
        "--audit-log-format=json",
    ]


__all__ = ["SETS", "World", "audit_arguments", "condition", "devices", "mark", "migration", "pairs"]
