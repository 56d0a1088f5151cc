"""The two sides of a migration between guests: their devices, marks and arcs, and what must hold of the arcs.

What the devices went through is told by their driver (the guest's kernel log), never by the product.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from devtools.kernel_stack import KernelNode, KernelStack
from devtools.kernel_workload import PORTS, Marks
from devtools.mtty_trace import Arc, Outcome
from devtools.mtty_workload import FIFO_LIMIT, Mark
from devtools.stack import Json, migration

PATHS = ("group", "cdev")
"""How the agents open devices: the legacy group and container, or the device's own node and iommufd."""
MOVING, SINGLE = (0, 1), 2  # which of a node's devices are for what
DOWNTIME_LIMIT_MS = 1000
"""Little enough for a forecast that locks a migration out to show; guests are emulated, so no more is asked of them."""

SOURCE_PATH = ["RUNNING", "PRE_COPY", "PRE_COPY_P2P", "STOP_COPY", "STOP"]
TARGET_PATH = ["STOP", "RESUMING", "STOP", "RUNNING_P2P", "RUNNING"]
PREPARATION = ["RUNNING", "RUNNING_P2P"]  # from a reset to STOP

_names = itertools.count()


@dataclass(frozen=True)
class Side:
    """The devices of one node that take part."""

    node: KernelNode
    indexes: Sequence[int] = MOVING

    @property
    def devices(self) -> list[str]:
        return [self.node.devices[index] for index in self.indexes]

    @property
    def ends(self) -> list[tuple[str, str]]:
        return [(self.node.name, device) for device in self.devices]

    def mark(self, salt: int) -> list[Marks]:
        """Mark every port of every device, each differently; returns what was written.

        A device that was not open is opened, and so reset: arcs of before are not in what `arcs` returns next.
        """
        written = []
        for number, device in enumerate(self.devices):
            marks = tuple(
                Mark((37 * salt + 11 * number + port) % 256, f"{salt}.{number}.{port}".encode()[:FIFO_LIMIT])
                for port in range(PORTS)
            )
            self.node.workload.mark(device, marks)
            written.append(marks)
        self.node.workload.arcs()
        return written

    def read(self) -> list[Marks]:
        return [self.node.workload.read(device) for device in self.devices]

    def arcs(self) -> list[Arc]:
        """What the driver did with these devices since the last look."""
        return [arc for arc in self.node.workload.arcs() if arc.device in self.devices]


def sides(stack: KernelStack, indexes: Sequence[int] = MOVING) -> tuple[Side, Side]:
    """(source, target): where the devices are held now, or the first node if nowhere."""
    first, second = (Side(node, indexes) for node in stack.nodes.values())
    held = {(d["spec"]["nodeName"], d["spec"]["address"]) for d in stack.get("vfd")["items"] if d["status"]["holder"]}
    return (second, first) if second.ends[0] in held else (first, second)


def migrate(stack: KernelStack, source: Side, target: Side, **spec: Any) -> Json:
    """Apply a migration of all devices and wait until it is finished; returns the object.

    If the devices have moved, the inventory says so, too, when this returns: `sides` asks it.
    """
    found = finished(stack, apply(stack, source, target, **spec))
    if found["status"]["phase"] == "Succeeded" and "mode" not in spec:
        stack.settled(target.ends, source.ends)
    return found


def apply(stack: KernelStack, source: Side, target: Side, **spec: Any) -> str:
    """Apply a migration of all devices; returns its name."""
    stack.settled(source.ends, target.ends)
    name = f"kernel-{next(_names)}"
    spec.setdefault("strategy", {"downtimeLimitMilliseconds": DOWNTIME_LIMIT_MS})
    pairs = [
        (f"tty{number}", source.node.name, old, target.node.name, new)
        for number, (old, new) in enumerate(zip(source.devices, target.devices, strict=True))
    ]
    stack.migrate(migration(name, pairs, **spec))
    return name


def finished(stack: KernelStack, name: str) -> Json:
    """Wait until the migration is finished; returns the object."""

    def over() -> bool:
        conditions = stack.get("vfm", name).get("status", {}).get("conditions", [])
        return ("Finished", "True") in [(each["type"], each["status"]) for each in conditions]

    stack.wait_until(over, f"{name} is finished", 90)
    return stack.get("vfm", name)


def condition(found: Json, kind: str) -> Json:
    """One condition of a migration's status."""
    by_type: dict[str, Json] = {c["type"]: c for c in found["status"]["conditions"]}
    return by_type[kind]


def states(arcs: Sequence[Arc], device: str) -> list[str]:
    """The states of one device, from its first arc on; an arc that failed does not count."""
    own = [arc for arc in arcs if arc.device == device and arc.outcome is not Outcome.FAILED]
    return [own[0].old, *(arc.new for arc in own)] if own else []


def assert_barrier(arcs: Sequence[Arc], side: Side, before: str, after: str) -> None:
    """No device begins to enter `after` before every device that takes part has begun to enter `before`."""
    entered = [arcs.index(arc) for arc in arcs if arc.new == before]
    passed = [arcs.index(arc) for arc in arcs if arc.new == after and arc.old == before]
    assert len(entered) == len(passed) == len(side.devices), arcs
    assert max(entered) < min(passed), arcs


def assert_source(arcs: Sequence[Arc], side: Side) -> None:
    """Every source device took exactly the way of a migration, behind barrier A."""
    assert [states(arcs, device) for device in side.devices] == [SOURCE_PATH] * len(side.devices)
    assert_barrier(arcs, side, "PRE_COPY_P2P", "STOP_COPY")
    assert {arc.outcome for arc in arcs} == {Outcome.TAKEN}


def assert_target(arcs: Sequence[Arc], side: Side, left: Collection[str] = ("STOP",)) -> None:
    """Every target device took exactly the way of a migration, after its reset, and behind barrier C.

    left: states in which an earlier migration may have left the device, for the reset to lead out of.
    """
    resets = [arc for arc in arcs if arc.outcome is Outcome.RESET]
    assert {arc.old for arc in resets} <= set(left), resets
    for device in side.devices:  # none after its first arc
        assert Outcome.RESET not in [arc.outcome for arc in arcs if arc.device == device][1:], arcs
    moved = [arc for arc in arcs if arc.outcome is not Outcome.RESET]
    paths = [states(moved, device) for device in side.devices]
    assert paths == [PREPARATION + TARGET_PATH] * len(side.devices)
    assert {arc.outcome for arc in moved} == {Outcome.TAKEN}
    started = [arc for arc in moved if (arc.old, arc.new) in (("STOP", "RUNNING_P2P"), ("RUNNING_P2P", "RUNNING"))]
    assert_barrier(started, side, "RUNNING_P2P", "RUNNING")
