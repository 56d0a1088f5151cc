"""Two nodes on which migrations are disturbed, run by the product or a broken version of it, and judged."""

import contextlib
import json
import shutil
from collections.abc import Callable
from typing import Any

from cluster.world import World, mark, migration, pairs
from devtools.faults.checker import Story, Violation, check
from devtools.faults.gather import Gatherer
from devtools.faults.story import TERMINAL, End
from devtools.faults.witness import Witness
from devtools.processes import Child
from devtools.stack import SimulatedDevice, Stack
from vfio_api.errors import DeviceError

SOURCE, TARGET = "node-a", "node-b"
DEVICES = ["sim0", "sim1", "sim2"]
OPERATOR = {
    "PREPARE_SECONDS": "6",
    "RELEASE_SECONDS": "4",
    "HEARTBEAT_SECONDS": "0.5",
    "DEAD_SECONDS": "3",
    "SETTLE_SECONDS": "4",
    "LEASE_SECONDS": "3",
    "RENEW_DEADLINE_SECONDS": "2",
    "RETRY_SECONDS": "0.3",
    "JANITOR_SECONDS": "1",
}
AGENT = {"SILENCE_SECONDS": "4"}
ARC_US = 5_000  # long enough for what is done too early to be seen


class FaultWorld(World):
    """One control plane, an operator, a source node and a target node; what runs on them can be changed."""

    def __init__(self, stack: Stack, witness: Witness):
        self.witness = witness
        self.modules = {SOURCE: "vfio_agent", TARGET: "vfio_agent", "operator": "vfio_operator"}
        self.closed: set[End] = set()
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

    def start_agent(self, name: str, *, connected: bool = True) -> None:
        """The agent of a node, of the kind that is wanted now; there need not be a leader to connect to."""
        agent = self.stack.nodes[name].start_agent(module=self.modules[name], **AGENT)
        if connected:
            agent.wait_for('"event": "connected"')

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
        """Start everything anew and from nothing: the product, but for the given modules (source, target, operator)."""
        names = {"source": SOURCE, "target": TARGET, "operator": "operator"}
        self.modules = {SOURCE: "vfio_agent", TARGET: "vfio_agent", "operator": "vfio_operator"}
        self.modules |= {names[part]: f"mutants.{module}" for part, module in modules.items()}
        self.operator.kill()
        for name in (SOURCE, TARGET):
            node = self.stack.nodes[name]
            self.kill_agent(name)
            node.keeper.kill()
            for folder in node.records:
                shutil.rmtree(folder, ignore_errors=True)
            node.restart_keeper()
            for address in DEVICES:
                self.control(name).clear_faults(address)
        self._forget()
        self.start_operator()
        for name in (SOURCE, TARGET):
            self.start_agent(name)

    def _forget(self) -> None:
        """Remove every object of earlier migrations, whatever holds it, and their claims."""
        for kind in ("vfiomigrations", "vfioswitchovers"):
            for found in self.stack.get(kind)["items"]:
                name = found["metadata"]["name"]
                patch = '{"metadata":{"finalizers":null}}'
                self.stack.kubectl("patch", kind, name, "--type=merge", "-p", patch, check=False)  # gone is as good
                self.stack.kubectl("delete", kind, name, "--ignore-not-found")
        for found in self.stack.get("vfd")["items"]:
            if "claimRef" in found["spec"]:
                name = found["metadata"]["name"]
                self.stack.kubectl("patch", "vfd", name, "--type=merge", "-p", '{"spec":{"claimRef":null}}')

    def told(self, name: str, disturb: Callable[["FaultWorld", str], None], seconds: float = 45, **spec: Any) -> Story:
        """Migrate, `disturb` it, wait for its end (or `seconds`), and tell what happened."""
        self.closed, self.spoilt = set(), True  # until all has gone well
        self.open(self.stack.nodes[SOURCE], DEVICES)
        gatherer = Gatherer(self.stack.nodes.values())
        self.apply(migration(name, pairs(DEVICES), **spec))
        disturb(self, name)
        uid = self.stack.get("vfm", name)["metadata"]["uid"]
        ended = self.witness.wait_for_phase(uid, TERMINAL, seconds)
        quiet = self._come_to_rest(seconds / 2)
        story = gatherer.story(
            self.witness,
            uid,
            pairs(DEVICES),
            marks_ok=self._marked,
            claims_left=self._claims(),
            closed_by_fault=self.closed,
        )
        self.spoilt = bool(self.closed) or not ended or not quiet
        return story

    def _come_to_rest(self, seconds: float) -> bool:
        """Wait a little for what is released after the end; what is left then is for the checker to say."""
        with contextlib.suppress(TimeoutError):
            self.stack.wait_until(self._quiet, "nothing is claimed, one side is closed", seconds)
            return True
        return False

    def _marked(self, source: End, device: End) -> bool:
        try:
            return self.marks(device[0], [device[1]]) == [mark(source[1])]
        except (OSError, DeviceError):  # closed meanwhile, or held by what should have ended
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
