"""Two nodes with the same simulated devices, and migrations there and back between them, by the whole product.

What a benchmark measures here is a simulation of devices, and everything else as it is: control plane with fsync,
operator, agents and keepers as processes, TLS between them.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import measure
from devtools.processes import Child
from devtools.stack import SimulatedDevice, Stack, migration
from vfio_agent.broker import close_device, request_device

NAMES = ("node-a", "node-b")
Json = dict[str, Any]


@dataclass(frozen=True)
class Moved:
    """A migration that has ended. seconds: from `kubectl apply` until it was seen to be Finished."""

    name: str
    status: Json
    seconds: float

    @property
    def succeeded(self) -> bool:
        """Whether the devices run at the target now."""
        return bool(self.status["phase"] == "Succeeded")

    @property
    def reason(self) -> str:
        """Of its condition Succeeded."""
        return str(next(c["reason"] for c in self.status["conditions"] if c["type"] == "Succeeded"))

    @property
    def downtime(self) -> float | None:
        """Milliseconds; None if nothing was stopped."""
        return milliseconds(self.status.get("downtimeMicroseconds"))

    @property
    def predicted(self) -> float | None:
        """The last forecast before the switchover, in milliseconds; None without one."""
        return milliseconds(self.status.get("predictedDowntimeMicroseconds"))

    def step(self, name: str) -> float:
        """Milliseconds of a step in status.timings. Raises StopIteration if there is none."""
        return float(next(t["durationMicroseconds"] for t in self.status["timings"] if t["step"] == name)) / 1000


def milliseconds(microseconds: int | None) -> float | None:
    """Of what a status has in microseconds, if it has."""
    return None if microseconds is None else microseconds / 1000


@dataclass(frozen=True)
class TwoNodes:
    """The stack and the operator of `two_nodes`."""

    stack: Stack
    operator: Child

    def agent(self, node: str) -> int:
        """The process of a node's agent."""
        agent = self.stack.nodes[node].agent
        assert agent is not None
        return agent.pid

    def occupy(self, node: str, addresses: Sequence[str]) -> None:
        """Have a workload open the devices on `node`; returns once the inventory shows it."""
        for address in addresses:
            for fd in request_device(self.stack.nodes[node].broker_socket, address, "bench")[1]:
                os.close(fd)  # the keeper holds it
        self.stack.wait_until(lambda: self._all(node, addresses, held=True), f"held on {node}: {addresses}", 60)

    def free(self, node: str, addresses: Sequence[str]) -> None:
        """Close the devices on `node`."""
        for address in addresses:
            close_device(self.stack.nodes[node].broker_socket, address)

    def await_room(self, node: str, addresses: Sequence[str]) -> None:
        """Return once the inventory shows the devices on `node` as free."""
        self.stack.wait_until(lambda: self._all(node, addresses, held=False), f"free on {node}: {addresses}", 60)

    def _all(self, node: str, addresses: Sequence[str], *, held: bool) -> bool:
        found = {d["spec"]["address"]: d for d in self.stack.get("vfd")["items"] if d["spec"]["nodeName"] == node}
        return all(bool(found[address].get("status", {}).get("holder")) is held for address in addresses)

    def move(self, name: str, source: str, addresses: Sequence[str], strategy: Mapping[str, Any], **spec: Any) -> Moved:
        """Migrate devices from `source` to the other node, each to its namesake, and wait for the end."""
        target = NAMES[1 - NAMES.index(source)]
        wanted = [(f"pair-{n}", source, address, target, address) for n, address in enumerate(addresses)]
        made = migration(name, wanted, strategy=dict(strategy), **spec)
        began = time.monotonic()
        self.stack.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(made))
        self.stack.kubectl("wait", "--for=condition=Finished", f"vfm/{name}", "--timeout=300s")
        seconds = time.monotonic() - began
        return Moved(name, self.stack.get("vfm", name)["status"], seconds)


@contextlib.contextmanager
def two_nodes(devices: Sequence[SimulatedDevice], p2p: Mapping[str, int] | None = None) -> Iterator[TwoNodes]:
    """Both nodes with these devices; a leader is elected, and all devices are published."""
    with Stack(NAMES, fsync=True) as stack:
        operator = stack.start_operator()
        for node in NAMES:
            stack.add_node(node, devices, p2p or {"rate_per_second": 0, "latency_us": 500}).start_agent()
        operator.wait_for('"event": "leading"')
        stack.devices_published(len(NAMES) * len(devices), 120)
        yield TwoNodes(stack, operator)


def tell(results: Sequence[measure.Result]) -> None:
    """Print the figures, and whether those with a bar keep it."""
    for each in results:
        verdict = "" if each.holds is None else f" (bar {each.bar}: {'pass' if each.holds else 'falls short'})"
        print(f"{each.name}: {each.figure:g} {each.unit}{verdict}", flush=True)
