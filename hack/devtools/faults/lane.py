"""A lane: four nodes of an arena on which one cell after the other is run, with every link of theirs in our hands."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from devtools.faults.arena import Arena
from devtools.faults.proxy import Proxy
from devtools.faults.story import End
from devtools.ports import free_port
from devtools.stack import Json, Node, SimulatedDevice, migration
from vfio_agent.broker import close_device, request_device
from vfio_agent.devices.simulated import SimulatedBackend, SimulatorControl
from vfio_api.errors import DeviceError

DEVICES = ("sim0", "sim1")
SIZE_BYTES = 1 << 20
RATE = 200
LATENCY_US = 500
STRATEGY = {
    "switchoverTimeoutSeconds": 3,
    "convergenceTimeoutSeconds": 12,
    "downtimeLimitMilliseconds": 5000,
}
SETTLE_SECONDS = 30.0
Pair = tuple[str, str, str, str, str]


class LaneNode:
    """A node with its keeper, simulator and agent, and the links of that agent."""

    def __init__(self, arena: Arena, name: str):
        self.name, self._arena = name, arena
        devices = [SimulatedDevice(address, SIZE_BYTES, 1 << 16) for address in DEVICES]
        self.node: Node = arena.stack.add_node(name, devices, {"rate_per_second": 0, "latency_us": LATENCY_US})
        self.control = SimulatorControl(self.node.simulator_socket)
        self._port = free_port()
        self.operator_link = Proxy(arena.operator_address)
        self.data_link = Proxy(lambda: ("127.0.0.1", self._port))
        self.api_link = Proxy(lambda: ("127.0.0.1", arena.api_port))
        for proxy in self.links:
            arena.stack.closing.callback(proxy.close)
        self.full_disk = self.node.dir / "full"
        self._started = False

    @property
    def links(self) -> tuple[Proxy, ...]:
        """Control, data, API server."""
        return self.operator_link, self.data_link, self.api_link

    def start_agent(self) -> None:
        """Start the agent, or start it again."""
        self.node.start_agent(
            module="devtools.faults.agent_program",
            server=f"https://127.0.0.1:{self.api_link.port}",
            again=self._started,
            OPERATOR_ADDRESS=f"127.0.0.1:{self.operator_link.port}",
            LISTEN_PORT=str(self._port),
            ADVERTISE_PORT=str(self.data_link.port),
            SILENCE_SECONDS="2",
            FULL_DISK=str(self.full_disk),
        )
        self._started = True

    @property
    def full_disk_hits(self) -> int:
        """How many writes found the disk full."""
        hits = self.full_disk.with_suffix(".hits")
        return hits.stat().st_size if hits.exists() else 0

    def heal(self) -> None:
        """Undo whatever was done to this node, but for processes that were killed."""
        for proxy in self.links:
            proxy.clear()
        self.full_disk.unlink(missing_ok=True)
        self.full_disk.with_suffix(".hits").unlink(missing_ok=True)
        self.release()

    @property
    def connected(self) -> bool:
        """Whether the agent has a leader, as far as it has said last."""
        text = self.node.agent.text() if self.node.agent is not None else ""
        lost = max(text.rfind('"event": "operator stream ended"'), text.rfind('"event": "operator not reached"'))
        return text.rfind('"event": "connected"') > lost

    def release(self) -> None:
        """Let everything that is held go on, and hold nothing any more."""
        for address in DEVICES:
            self.control.clear_faults(address)
            self.control.release(address)

    def revive(self) -> None:
        """Start what does not run."""
        if not self.node.keeper.running:
            self.node.restart_keeper()
        if self.node.agent is None or not self.node.agent.running:
            self.start_agent()

    def begin_anew(self) -> None:
        """As after a new installation: nothing is remembered, no device is open."""
        for child in (self.node.agent, self.node.keeper):
            if child is not None:
                child.kill()
        for folder in self.node.records:
            shutil.rmtree(folder, ignore_errors=True)
        self.revive()

    def sessions(self, uid: str) -> list[str]:
        """Records that the agent still has of a migration's sessions."""
        return sorted({path.stem for folder in self.node.records for path in folder.glob(f"sessions/{uid}.*.json")})

    def close_devices(self) -> None:
        """Have the agent give up every device. Raises DeviceError or OSError if it does not."""
        for device in self.control.list():
            if device["open"]:
                close_device(self.node.broker_socket, device["address"])


class Lane:
    """Nodes a and b for sources, c and d for targets; a namespace of its own."""

    def __init__(self, arena: Arena, name: str):
        self.arena, self.name = arena, name
        self.nodes = {letter: LaneNode(arena, f"{name}-{letter}") for letter in "abcd"}
        self._by_name = {node.name: node for node in self.nodes.values()}

    @staticmethod
    def node_names(name: str) -> list[str]:
        """The names of a lane's nodes."""
        return [f"{name}-{letter}" for letter in "abcd"]

    def start(self) -> None:
        """Make the namespace and start the agents."""
        self.arena.stack.kubectl("create", "namespace", self.name)
        for node in self.nodes.values():
            node.start_agent()
        self.wait(lambda: len(self._own_devices()) == 8, "the lane's devices are published", 120)

    def node(self, name: str) -> LaneNode:
        """A node by its name."""
        return self._by_name[name]

    def pairs(self, shape: str) -> tuple[Pair, ...]:
        """Two pairs: of one source node and one target node, or of two and two."""
        a, b, c, d = (node.name for node in self.nodes.values())
        if shape == "1-1":
            return ("gpu0", a, "sim0", c, "sim0"), ("gpu1", a, "sim1", c, "sim1")
        return ("gpu0", a, "sim0", c, "sim0"), ("gpu1", b, "sim1", d, "sim1")

    def wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Poll until `condition`. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds:g} s: {what}")
            self.arena.stopping.wait(0.02)

    def _own_devices(self) -> list[Json]:
        return [d for d in self.arena.api.devices() if d["spec"]["nodeName"] in self._by_name]

    def reset(self) -> None:
        """Everything as before the first cell; what cannot be brought there is begun anew."""
        for node in self.nodes.values():
            node.heal()
            node.revive()
            node.control.configure(rate_per_second=0, latency_us=LATENCY_US)
        try:
            for node in self.nodes.values():
                node.close_devices()
            self.wait(self._clean, "no device is held or claimed", 5)
        except (DeviceError, OSError, TimeoutError):
            for node in self.nodes.values():
                node.begin_anew()
            self.wait(self._clean, "no device is held or claimed", SETTLE_SECONDS)
        self.wait(lambda: all(n.connected for n in self.nodes.values()), "agents are connected", SETTLE_SECONDS)

    def _clean(self) -> bool:
        # a device is there a moment before its status is
        known = [(d["spec"], d.get("status", {})) for d in self._own_devices()]
        return all(
            not spec.get("claimRef") and not status.get("holder") and status.get("migratable") for spec, status in known
        )

    def open(self, pairs: Sequence[Pair]) -> None:
        """A workload opens the sources, marks them, and has those on one node write into each other."""
        together = len({pair[1] for pair in pairs}) == 1
        for port, (_, name, address, _, _) in enumerate(pairs):
            node = self.node(name)
            _, fds = request_device(node.node.broker_socket, address, "cell")
            with SimulatedBackend(node.node.simulator_socket).adopt(address, fds) as device:
                device.start_traffic(port, [p for p in range(len(pairs)) if p != port] if together else [])
                device.write_region(0, mark(name, address))
        self.traffic(RATE)
        held = {(pair[1], pair[2]) for pair in pairs}
        self.wait(lambda: held <= {_end(d) for d in self._own_devices() if _holder(d)}, "the sources are held", 20)

    def traffic(self, rate: int) -> None:
        """P2P writes per second of every device that carries state."""
        for node in self.nodes.values():
            node.control.configure(rate_per_second=rate, latency_us=LATENCY_US)

    def calm(self) -> None:
        """No new writes, and those under way have arrived."""
        self.traffic(0)
        controls = [node.control for node in self.nodes.values()]
        with contextlib.suppress(TimeoutError):  # what is missing then is missing
            self.wait(lambda: all(c.stats()["totals"]["missing"] == 0 for c in controls), "writes arrive", 1)

    def manifest(self, name: str, pairs: Sequence[Pair]) -> Json:
        """The migration of a cell."""
        return migration(name, pairs, namespace=self.name, strategy=STRATEGY)

    def states(self, ends: Sequence[End]) -> tuple[str, ...]:
        """States of devices as their simulators have them."""
        return tuple(self.node(name).control.stats()["devices"][device]["state"] for name, device in ends)

    def marks_ok(self, source: End, end: End) -> bool:
        """Whether an open device has what was written into `source`."""
        node = self.node(end[0])
        try:
            _, fds = request_device(node.node.broker_socket, end[1], "cell")
            with SimulatedBackend(node.node.simulator_socket).adopt(end[1], fds) as device:
                return device.read_region(0, 32) == mark(*source)
        except (DeviceError, OSError):
            return False

    def claims(self, uid: str) -> int:
        """How many devices a migration has reserved."""
        return sum(1 for d in self._own_devices() if (d["spec"].get("claimRef") or {}).get("uid") == uid)

    def left_over(self, uid: str, pairs: Sequence[Pair]) -> str:
        """What there still is of a migration that has ended: claims, sessions, a finalizer, both sides open."""
        if claims := self.claims(uid):
            return f"{claims} claims"
        kept = [s for s in self.arena.api.switchovers() if s["metadata"]["name"] == uid]
        if kept and kept[0]["metadata"].get("finalizers"):
            return "the finalizer of its switchover"
        if sessions := [f"{node.name}/{each}" for node in self.nodes.values() for each in node.sessions(uid)]:
            return f"sessions {', '.join(sessions)}"
        both = [pair[0] for pair in pairs if self._open((pair[1], pair[2])) and self._open((pair[3], pair[4]))]
        return f"source and target of {', '.join(both)} are open" if both else ""

    def _open(self, end: End) -> int:
        return sum(1 for d in self.node(end[0]).control.list() if d["address"] == end[1] and d["open"])

    def logs(self) -> Iterator[Path]:
        """Of its nodes' processes."""
        for node in self.nodes.values():
            yield from sorted(node.node.dir.glob("*.log"))


def mark(node: str, address: str) -> bytes:
    """What a workload writes into a device."""
    return f"{node}/{address}".encode().ljust(32, b".")


def _end(device: Json) -> End:
    return device["spec"]["nodeName"], device["spec"]["address"]


def _holder(device: Json) -> str:
    return str(device.get("status", {}).get("holder", ""))
