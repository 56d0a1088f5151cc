"""Two nodes on which migrations are disturbed, run by the product or a broken version of it, and judged."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster.world import World, mark, migration, pairs
from devtools.faults.checker import Story, Violation, check
from devtools.faults.gather import Gatherer
from devtools.faults.story import TERMINAL, End
from devtools.faults.witness import Witness
from devtools.processes import Child
from devtools.stack import SimulatedDevice, Stack

SOURCE, TARGET = "node-a", "node-b"
DEVICES = ["sim0", "sim1", "sim2"]
OPERATOR = {
    "PREPARE_SECONDS": "6",
    "RELEASE_SECONDS": "4",
    "HEARTBEAT_SECONDS": "1",
    "DEAD_SECONDS": "3",
    "SETTLE_SECONDS": "4",
    "LEASE_SECONDS": "3",
    "RENEW_DEADLINE_SECONDS": "2",
    "RETRY_SECONDS": "0.3",
}
AGENT = {"SILENCE_SECONDS": "4"}
ARC_US = 5_000  # long enough for what is done too early to be seen


class FaultWorld(World):
    """One control plane, an operator, a source node and a target node; what runs on them can be changed."""

    def __init__(self, stack: Stack, witness: Witness):
        self.witness = witness
        self.modules = {SOURCE: "vfio_agent", TARGET: "vfio_agent", "operator": "vfio_operator"}
        self.closed: set[End] = set()
        self.spoilt = False  # something is left that only a fresh start removes
        self._operators = 0
        for name in (SOURCE, TARGET):
            stack.add_node(name, [SimulatedDevice(address, arc_latency_us=ARC_US) for address in DEVICES])
        super().__init__(stack, self._operator(stack))
        for name in (SOURCE, TARGET):
            self.start_agent(name)
        self.operator.wait_for('"event": "leading"')
        stack.devices_published(2 * len(DEVICES))

    def _operator(self, stack: Stack) -> Child:
        self._operators += 1
        name = f"operator-{self._operators}"
        return stack.start_operator(name, module=self.modules["operator"], **OPERATOR)

    def start_operator(self) -> None:
        """Another operator, of the kind that is wanted now."""
        self.operator = self._operator(self.stack)

    def start_agent(self, name: str) -> None:
        """The agent of a node, of the kind that is wanted now."""
        self.stack.nodes[name].start_agent(module=self.modules[name], **AGENT).wait_for('"event": "connected"')

    def kill_agent(self, name: str) -> None:
        """SIGKILL."""
        agent = self.stack.nodes[name].agent
        assert agent is not None
        agent.kill()

    def kill_node(self, name: str) -> None:
        """SIGKILL agent and keeper, so that every device of the node is closed; then start both again."""
        self.closed |= {(name, address) for address in DEVICES}
        self.kill_agent(name)
        self.stack.nodes[name].keeper.kill()
        self.stack.nodes[name].restart_keeper()
        self.start_agent(name)

    def become(self, **modules: str) -> None:
        """Have the product run, but for the given modules (source, target, operator), with nothing left of before."""
        names = {"source": SOURCE, "target": TARGET, "operator": "operator"}
        wanted = {SOURCE: "vfio_agent", TARGET: "vfio_agent", "operator": "vfio_operator"}
        wanted |= {names[part]: f"mutants.{module}" for part, module in modules.items()}
        changed = {name for name, module in wanted.items() if self.spoilt or self.modules[name] != module}
        self.modules = wanted
        if not self.spoilt:
            self.free()
        if "operator" in changed:
            self.operator.stop(5)
        for name in changed - {"operator"}:
            self.kill_agent(name)
            if self.spoilt:
                self._wipe(name)
        if self.spoilt:
            self._forget()
        if "operator" in changed:
            self.start_operator()
        for name in changed - {"operator"}:
            self.start_agent(name)
        for name in (SOURCE, TARGET):
            for address in DEVICES:
                self.control(name).clear_faults(address)
        self.spoilt = False

    def _wipe(self, name: str) -> None:
        node = self.stack.nodes[name]
        node.keeper.kill()
        for folder in ("state", "run"):
            shutil.rmtree(node.dir / folder, ignore_errors=True)
        node.restart_keeper()

    def _forget(self) -> None:
        """Remove what has not ended, whatever holds it, and every claim."""
        for kind in ("vfiomigrations", "vfioswitchovers"):
            for found in self.stack.get(kind)["items"]:
                name = found["metadata"]["name"]
                if "finalizers" in found["metadata"]:
                    self.stack.kubectl("patch", kind, name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
                    self.stack.kubectl("delete", kind, name, "--ignore-not-found", "--wait=false")
        for found in self.stack.get("vfd")["items"]:
            if "claimRef" in found["spec"]:
                name = found["metadata"]["name"]
                self.stack.kubectl("patch", "vfd", name, "--type=merge", "-p", '{"spec":{"claimRef":null}}')

    @contextlib.contextmanager
    def workload(self, node: str = SOURCE, addresses: Sequence[str] = DEVICES) -> Iterator[None]:
        """Devices open on the source node; nothing is promised of them afterwards."""
        self.open(self.stack.nodes[node], addresses)
        yield

    def told(self, name: str, disturb: Callable[["FaultWorld", str], None], seconds: float = 45, **spec: Any) -> Story:
        """Migrate, `disturb` it, wait for its end (or `seconds`), and tell what happened."""
        self.closed = set()
        with self.workload():
            gatherer = Gatherer(self.stack.nodes.values())
            self.apply(migration(name, pairs(DEVICES), **spec))
            disturb(self, name)
            uid = self.stack.get("vfm", name)["metadata"]["uid"]
            self.witness.wait_for_phase(uid, TERMINAL, seconds)
            try:
                self.stack.wait_until(self._quiet, "nothing is claimed, one side is closed", 5)
            except TimeoutError:  # what is left open or claimed is for the checker to say
                self.spoilt = True
            self.spoilt |= bool(self.closed) or not self.witness.wait_for_phase(uid, TERMINAL, 0)
            return gatherer.story(
                self.witness,
                uid,
                pairs(DEVICES),
                marks_ok=self._marked,
                claims_left=self._claims(),
                closed_by_fault=self.closed,
            )

    def _marked(self, source: End, device: End) -> bool:
        try:
            return self.marks(device[0], [device[1]]) == [mark(source[1])]
        except OSError:
            return False

    def _claims(self) -> int:
        return sum("claimRef" in found["spec"] for found in self.stack.get("vfd")["items"])

    def _quiet(self) -> bool:
        open_sides = [any(d["open"] for d in self.control(name).list()) for name in (SOURCE, TARGET)]
        return not self._claims() and not all(open_sides)

    def judge(self, story: Story) -> tuple[Violation, ...]:
        """What the checker finds."""
        return check(story)

    def decision(self, name: str) -> str:
        """The outcome that is stored for a migration so far; "" if none is."""
        uid = self.stack.get("vfm", name)["metadata"]["uid"]
        found = self.stack.kubectl("get", "vfioswitchovers", uid, "--ignore-not-found", "-o", "json")
        made: str = json.loads(found).get("status", {}).get("decision", {}).get("outcome", "") if found else ""
        return made
