"""One migration that is to go wrong: armed, held, looked at, judged; and the migration of its devices that follows."""

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from devtools.kernel_stack import KernelNode, KernelStack
from devtools.mtty_trace import STATES, Arc, parse_driver_trace
from devtools.mtty_workload import Fault
from devtools.stack import Json
from kernel.figures import Figures
from kernel.safety import Verdict, judge
from kernel.sides import apply, assert_source, assert_target, condition, finished, migrate, sides
from vfio_api.device import DeviceState

State = DeviceState
ROLLED_BACK, COMPLETED, LOST = "rolled back", "succeeded", "state lost"
USABLE = "devices usable afterwards"
_salts = itertools.count(200)


class Trial:
    """A migration of two marked devices whose drivers' logs are kept as a whole."""

    def __init__(self, stack: KernelStack, figures: Figures, path: str):
        self.stack, self._figures, self._path = stack, figures, path
        self.source, self.target = sides(stack)
        self.marks = self.source.mark(next(_salts))
        self.target.arcs()
        figures.tried(path, USABLE)
        self.name = ""
        self._logs = {node.name: "" for node in stack.nodes.values()}

    def node(self, role: str) -> KernelNode:
        """The node of a side."""
        return (self.source if role == "source" else self.target).node

    def device(self, role: str, index: int) -> str:
        """A device of a side."""
        return (self.source if role == "source" else self.target).devices[index]

    def arm(self, role: str, arc: tuple[State, State], fault: Fault, index: int = 1, count: int = 1) -> None:
        """Have an arc of a device hit."""
        self.node(role).workload.arm_fault(*arc, fault, device=self.device(role, index), count=count)

    def begin(self, **spec: Any) -> None:
        """Apply it."""
        self.name = apply(self.stack, self.source, self.target, **spec)

    def arcs(self, role: str) -> list[Arc]:
        """What the driver of a side did with its devices since the marks were set."""
        node = self.node(role)
        self._logs[node.name] += node.workload.log()
        devices = (self.source if role == "source" else self.target).devices
        return [arc for arc in parse_driver_trace(self._logs[node.name]) if arc.device in devices]

    def last(self, role: str, arc: tuple[State, State], index: int = 1) -> Arc:
        """The last time that a device set out on an arc."""
        way = (self.device(role, index), arc[0].name, arc[1].name)
        return [found for found in self.arcs(role) if (found.device, found.old, found.new) == way][-1]

    def await_held(self, role: str, arc: tuple[State, State]) -> None:
        """Wait until the second device's arc is held and the first has come through it: the migration is there.

        The driver counts the hit when the arc is one that a release lets go on; it logs the arc before that.
        """
        first, second = self.device(role, 0), self.device(role, 1)
        way = (arc[0].name, arc[1].name)

        def held() -> bool:
            arcs = self.arcs(role)
            under_way = [(found.device, found.old, found.new) for found in arcs if found.ended is None]
            through = [(found.old, found.new) for found in arcs if found.device == first][-1:] == [way]
            hit = all(fault.hits for fault in self.node(role).workload.armed())
            return through and under_way == [(second, *way)] and hit

        self.stack.wait_until(held, f"{arc[0].name} -> {arc[1].name} of {role} held")

    def await_state(self, role: str, state: State) -> None:
        """Wait until all devices of a side have come to a state."""

        def arrived() -> bool:
            arcs = self.arcs(role)
            own = [[arc for arc in arcs if arc.device == self.device(role, index)] for index in (0, 1)]
            return all(each and each[-1].after == state.name and each[-1].ended is not None for each in own)

        self.stack.wait_until(arrived, f"devices of {role} in {state.name}")

    def await_journalled(self, role: str, text: str) -> None:
        """Wait until a side's agent has recorded this of the session."""
        self.stack.wait_until(lambda: text in self.node(role).journal(), f"{text} in the journal of {role}")

    def release(self) -> None:
        """Let go on what is held."""
        for node in self.stack.nodes.values():
            node.workload.release()

    def restart(self, role: str) -> None:
        """Start a side's agent, whose end is behind us; returns once the operator has its word."""
        self.node(role).start_agent().wait_for('"connected"')

    def kill_both(self, role: str, *, restart: bool = True) -> None:
        """Kill a side's agent and its keeper, so that every device there is closed; start others."""
        node = self.node(role)
        node.agent.kill()
        node.keeper.kill()
        node.start_keeper()
        if restart:
            self.restart(role)

    def finished(self) -> Json:
        """Wait for the end."""
        return finished(self.stack, self.name)

    def assert_fired(self) -> None:
        """Every fault that was armed has hit as often as it was to."""
        armed = [fault for node in self.stack.nodes.values() for fault in node.workload.armed()]
        assert armed
        assert not [fault for fault in armed if fault.left], armed

    def judged(self, found: Json, lost: Sequence[str] = (), *, closed: bool = False) -> str:
        """Where the workload is now: on exactly one side with its marks, by the driver's log. Returns the outcome.

        lost: source devices that were in ERROR, whose state a reset has erased. closed: targets were closed, and not
        reset before.
        """
        status = found["status"]
        if condition(found, "Succeeded")["status"] == "True":
            self.stack.settled(self.target.ends, self.source.ends)
            verdict = self._verdict()
            assert verdict.at_target, verdict
            assert not [name for name, device in verdict.sources.items() if device.state == "RUNNING"], verdict
            assert self.target.read() == self.marks
            return COMPLETED
        assert status["phase"] == "Failed", status
        self.stack.settled(self.source.ends, self.target.ends)
        verdict = self._verdict()
        assert verdict.at_source, verdict
        assert verdict.lost() == list(lost), verdict
        assert not [name for name, device in verdict.targets.items() if device.ran], verdict
        if not closed:  # blank again, by a reset
            blank = [(device.state, device.loaded) == ("RUNNING", False) for device in verdict.targets.values()]
            assert all(blank), verdict
        read = self.source.read()
        kept = [number for number, device in enumerate(self.source.devices) if device not in lost]
        assert [read[number] for number in kept] == [self.marks[number] for number in kept]
        return LOST if lost else ROLLED_BACK

    def judged_lost(self, found: Json, kept: Sequence[int] = ()) -> None:
        """A state was lost for good, and no source runs again; of the target, only the devices `kept` run, with marks.

        All others are free.
        """
        assert found["status"]["phase"] == "Failed", found["status"]
        running = [end for number, end in enumerate(self.target.ends) if number in kept]
        ends = (*self.source.ends, *self.target.ends)
        self.stack.settled(running, [end for end in ends if end not in running])
        verdict = self._verdict()
        assert not [name for name, device in verdict.sources.items() if device.back or device.state == "RUNNING"], (
            verdict
        )
        for number in kept:
            device = verdict.targets[self.target.devices[number]]
            assert (device.state, device.loaded, device.ran) == ("RUNNING", True, True), verdict
            assert self.target.node.workload.read(self.target.devices[number]) == self.marks[number]

    def _verdict(self) -> Verdict:
        return judge(self.source.devices, self.arcs("source"), self.target.devices, self.arcs("target"))

    def assert_usable(self) -> None:
        """The same devices migrate, in the direction that is theirs now, and carry new marks."""
        source, target = sides(self.stack)
        marks = source.mark(next(_salts))
        target.arcs()
        found = migrate(self.stack, source, target)
        assert found["status"]["phase"] == "Succeeded", json.dumps(found["status"])
        assert_source(source.arcs(), source)
        assert_target(target.arcs(), target, STATES)  # what is closed by a kill is left where it was
        assert target.read() == marks
        self._figures.done(self._path, USABLE)

    def outcome(self, row: str, case: str, outcome: str, *, same: bool = True) -> None:
        """Note it for the summary; it must be the same by both ways, unless it is a race which of two it is."""
        self._figures.case(self._path, row, case, outcome, same=same)


def assert_told(found: Json, reason: str, *parts: str) -> None:
    """The end is a failure of that reason, and its message has these parts."""
    succeeded = condition(found, "Succeeded")
    assert (succeeded["status"], succeeded["reason"]) == ("False", reason), succeeded
    for part in parts:
        assert re.search(re.escape(part), succeeded["message"]), succeeded
