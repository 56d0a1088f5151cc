"""What the demo migrates: a cluster with devices and a workload, and how to tell that nothing was lost."""

import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from devtools import tools
from devtools.demo_view import Steps
from devtools.gobuild import KUBERNETES
from devtools.plane import Plane, build_plane
from devtools.processes import Child
from devtools.stack import ROOT, Node, SimulatedDevice, Stack
from vfio_agent.broker import request_device
from vfio_agent.devices.simulated import SimulatedBackend, SimulatorControl

SOURCE, TARGET = "node-a", "node-b"
DEVICES = 4
SIZE_BYTES = 192 << 20
DIRTY_BYTES_PER_SECOND = 4 << 20
WRITES_PER_SECOND, WRITE_LATENCY_US = 200, 500
CACHED_SECONDS = 1.0  # what takes longer was built or installed
SETTLE_SECONDS, GRACE_SECONDS, BROKER_SECONDS = 0.3, 0.5, 10.0
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the verdict."""

    good: bool
    label: str
    text: str


class Scene(Protocol):
    """A cluster with devices and a workload on it."""

    title: str
    manifest: Path
    sizes: Mapping[str, int]
    """Bytes of the state of each device, by its name in the manifest; 0 if it is not known."""
    expected: tuple[type[Exception], ...]
    """What else can go wrong without being a mistake in the demo."""

    @property
    def plane(self) -> Plane:
        """The control plane; there is one once `start` has returned."""

    def start(self, steps: Steps) -> None:
        """Bring everything up, with a workload that uses the source devices."""

    def verdict(self) -> Sequence[Finding]:
        """After the migration: is everything there that the workload had?"""

    def metrics(self) -> Mapping[str, int]:
        """Ports of /metrics, by who serves them."""

    def logs(self) -> Sequence[Path]:
        """Log files, the most telling first."""

    def close(self) -> None:
        """Stop and remove everything; again does nothing."""


def prepare_tools(steps: Steps, pool: ThreadPoolExecutor) -> None:
    """Build the control plane and install kubectl and helm, unless the cache has them."""
    others = pool.submit(lambda: (tools.kubectl(), tools.helm()))
    with steps.step("build control plane, get kubectl, helm") as step:
        build_plane(step.report)
        others.result()
        fresh = time.monotonic() - step.began > CACHED_SECONDS
        step.text = f"control plane, kubectl, helm: {'ready, cached from now on' if fresh else 'cached'}"


def p2p_findings(source: Json, target: Json) -> list[Finding]:
    """What the simulators' accounts say of P2P writes: `SimulatorControl.stats()` of both hosts.

    The counters of a device are part of its state. So `missing` of the target's host counts what was lost anywhere on
    the way, and the hosts' own `lost` says where nobody answered.
    """
    devices = [d for d in target["devices"].values() if d["port"] is not None]
    sent = sum(sum(d["sent"].values()) for d in devices)
    received = sum(sum(d["received"].values()) for d in devices)
    unanswered = source["totals"]["lost"] + target["totals"]["lost"]
    lost = max(target["totals"]["missing"], unanswered)
    doubled = source["totals"]["doubled"] + target["totals"]["doubled"]
    here = target["totals"]["received"]
    return [
        Finding(lost == 0, "P2P writes lost", str(lost)),
        Finding(doubled == 0, "P2P writes doubled", str(doubled)),
        Finding(
            len(devices) == DEVICES and here > 0,
            "P2P traffic",
            f"{sent} writes sent, {received} received, {here} of them on {TARGET}",
        ),
    ]


def _opened(node: Node, address: str) -> Sequence[int]:
    """Fds of a device from the agent's broker, which may not listen yet right after the agent's start."""
    deadline = time.monotonic() + BROKER_SECONDS
    while True:
        try:
            return request_device(node.broker_socket, address, "demo")[1]
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the agent of {node.name} does not listen for workloads") from None
            time.sleep(0.02)


class SimulatedScene:
    """Two nodes with simulated devices that write into each other."""

    title = f"{DEVICES} simulated devices with P2P traffic, {SOURCE} to {TARGET}"
    manifest = ROOT / "examples" / "migrate-simulated.yaml"
    sizes: Mapping[str, int] = {f"gpu{i}": SIZE_BYTES for i in range(DEVICES)}
    expected: tuple[type[Exception], ...] = ()

    def __init__(self) -> None:
        self.stack = Stack([SOURCE, TARGET])
        # Children die with the thread that started them, so these threads live until the children are stopped.
        self._pool = ThreadPoolExecutor(6, thread_name_prefix="demo")
        self._pending: list[Future[Any]] = []
        self._marks = {f"sim{i}": secrets.token_bytes(16) for i in range(DEVICES)}
        self._operator: Child | None = None

    @property
    def plane(self) -> Plane:
        """The control plane."""
        return self.stack.plane

    def _submit(self, call: Any, *arguments: Any) -> Future[Any]:
        self._pending.append(self._pool.submit(call, *arguments))
        return self._pending[-1]

    def start(self, steps: Steps) -> None:
        """What does not need each other starts side by side."""
        prepare_tools(steps, self._pool)
        nodes = self._submit(self._start_nodes, steps)
        with steps.step(f"Kubernetes {KUBERNETES} (API server, etcd, controllers), CRDs, RBAC"):
            self.stack.__enter__()
        operator = self._submit(self._start_operator, steps)
        nodes.result()
        agents = [self._submit(self._start_agent, steps, node) for node in self.stack.nodes.values()]
        agents[0].result()
        workload = self._submit(self._start_workload, steps)
        for future in (operator, *agents, workload):
            future.result()
        with steps.step(f"inventory: {2 * DEVICES} VFIODevices published by the agents"):
            self.stack.devices_published(2 * DEVICES)

    def _start_nodes(self, steps: Steps) -> None:
        devices = [
            SimulatedDevice(f"sim{i}", SIZE_BYTES, dirty_rate_bytes_per_second=DIRTY_BYTES_PER_SECOND)
            for i in range(DEVICES)
        ]
        with steps.step(f"{SOURCE} and {TARGET}: {DEVICES} simulated devices each, device keeper"):
            # no traffic before every device has a peer that answers
            p2p = {"rate_per_second": 0, "latency_us": WRITE_LATENCY_US}
            both = [self._submit(self.stack.add_node, name, devices, p2p) for name in (SOURCE, TARGET)]
            for future in both:
                future.result()

    def _start_operator(self, steps: Steps) -> None:
        with steps.step("operator, as ServiceAccount vfio-operator"):
            self._operator = self.stack.start_operator()

    def _start_agent(self, steps: Steps, node: Node) -> None:
        with steps.step(f"agent on {node.name}, with a token bound to its pod and node"):
            node.start_agent()

    def _start_workload(self, steps: Steps) -> None:
        """Open the devices as a workload does, mark them, let them write into each other."""
        node, ports = self.stack.nodes[SOURCE], range(DEVICES)
        backend = SimulatedBackend(node.simulator_socket)
        total = DEVICES * WRITES_PER_SECOND
        with steps.step(f"workload on {SOURCE}: {DEVICES} devices open, {total} P2P writes/s"):
            for port, (address, mark) in enumerate(self._marks.items()):
                with backend.adopt(address, _opened(node, address)) as device:
                    device.start_traffic(port, [other for other in ports if other != port])
                    device.write_region(0, mark)
            self._traffic(WRITES_PER_SECOND)

    def _traffic(self, rate: int) -> None:
        for node in self.stack.nodes.values():
            SimulatorControl(node.simulator_socket).configure(rate_per_second=rate, latency_us=WRITE_LATENCY_US)

    def verdict(self) -> Sequence[Finding]:
        """Stop the traffic, let what is under way arrive, compare the accounts; then read the marks."""
        source, target = (self.stack.nodes[name] for name in (SOURCE, TARGET))
        self._traffic(0)
        time.sleep(SETTLE_SECONDS)
        stats = [SimulatorControl(node.simulator_socket).stats() for node in (source, target)]
        self._traffic(WRITES_PER_SECOND)
        intact = sum(self._read_mark(target, address) == mark for address, mark in self._marks.items())
        text = f"{intact} of {DEVICES} written on {SOURCE} found intact on {TARGET}"
        return [*p2p_findings(*stats), Finding(intact == DEVICES, "markers", text)]

    @staticmethod
    def _read_mark(node: Node, address: str) -> bytes:
        with SimulatedBackend(node.simulator_socket).adopt(address, _opened(node, address)) as device:
            return device.read_region(0, 16)

    def metrics(self) -> Mapping[str, int]:
        """The operator and both agents."""
        ports = {f"agent {node.name}": node.metrics_port() for node in self.stack.nodes.values()}
        if self._operator is not None:
            ports["operator"] = self.stack.operator_metrics_port(self._operator)
        return ports

    def logs(self) -> Sequence[Path]:
        """The operator's, then the agents', then those of the rest."""

        def order(path: Path) -> tuple[bool, bool, str]:
            return not path.name.startswith("operator"), path.name != "agent.log", str(path)

        return sorted(self.stack.dir.rglob("*.log"), key=order)

    def close(self) -> None:
        """Tell all to stop at once, and kill what takes its time: nothing of it is needed any more."""
        for future in self._pending:
            future.cancel()
        wait(self._pending)  # a start that is under way may yet register what is to be stopped
        nodes = self.stack.nodes.values()
        children = [c for c in (self._operator, *(c for n in nodes for c in (n.agent, n.simulator, n.keeper))) if c]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in children:
                child.signal(number)
            self._await_end(children)
        self.stack.closing.close()
        self._pool.shutdown()

    @staticmethod
    def _await_end(children: Sequence[Child]) -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        while any(child.running for child in children) and time.monotonic() < deadline:
            time.sleep(0.02)
