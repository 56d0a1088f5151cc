"""Migrations of the kernel's own VFIO devices between two machines, by the whole product.

What the devices went through is told by their driver (the guest's kernel log), never by the product. What they carry
are marks in their emulated UARTs, written by a workload at the source and read by one at the target.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devtools.kernel_stack import KernelNode, KernelStack
from devtools.kernel_workload import PORTS, Marks
from devtools.mtty_trace import Arc, Outcome
from devtools.mtty_workload import FIFO_LIMIT, Fault, Mark
from devtools.stack import Json, migration
from vfio_api.device import DeviceState

MIGRATIONS = 50
MOVING, TABLE, LOST = (0, 1), 2, (3, 4)  # which of a node's devices are for what
DELAY_MS = 300
IN_GUEST_ARCS = Path(__file__).with_name("in_guest_arcs.py")

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
        """Mark every port of every device, each differently; returns what was written."""
        written = []
        for number, device in enumerate(self.devices):
            marks = tuple(
                Mark((37 * salt + 11 * number + port) % 256, f"{salt}.{number}.{port}".encode()[:FIFO_LIMIT])
                for port in range(PORTS)
            )
            self.node.workload.mark(device, marks)
            written.append(marks)
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
    """Apply a migration of all devices and wait until it is finished; returns the object."""
    stack.settled(source.ends, target.ends)
    name = f"kernel-{next(_names)}"
    pairs = [
        (f"tty{number}", source.node.name, old, target.node.name, new)
        for number, (old, new) in enumerate(zip(source.devices, target.devices, strict=True))
    ]
    stack.kubectl("create", "-f", "-", input=json.dumps(migration(name, pairs, **spec)))
    stack.kubectl("wait", "--for=condition=Finished", f"vfm/{name}", "--timeout=60s")
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


def assert_target(arcs: Sequence[Arc], side: Side) -> None:
    """Every target device took exactly the way of a migration, after its reset, and behind barrier C."""
    resets = [arc for arc in arcs if arc.outcome is Outcome.RESET]
    assert {(arc.old, arc.new) for arc in resets} <= {("STOP", "RUNNING")}  # a source of an earlier migration
    moved = [arc for arc in arcs if arc.outcome is not Outcome.RESET]
    paths = [states(moved, device) for device in side.devices]
    assert paths == [PREPARATION + TARGET_PATH] * len(side.devices)
    assert {arc.outcome for arc in moved} == {Outcome.TAKEN}
    started = [arc for arc in moved if (arc.old, arc.new) in (("STOP", "RUNNING_P2P"), ("RUNNING_P2P", "RUNNING"))]
    assert_barrier(started, side, "RUNNING_P2P", "RUNNING")


def assert_rolled_back(stack: KernelStack, source: Side, target: Side, marks: list[Marks], found: Json) -> None:
    """The sources run with their marks, having been let go behind the barrier; the targets are blank and free."""
    assert found["status"]["phase"] == "Failed"
    assert condition(found, "Succeeded")["status"] == "False"
    stack.settled(source.ends, target.ends)
    arcs = source.arcs()
    assert [states(arcs, device)[-1] for device in source.devices] == ["RUNNING"] * len(source.devices)
    assert_barrier(arcs, source, "RUNNING_P2P", "RUNNING")
    assert source.read() == marks
    blanked = target.arcs()
    for device in target.devices:
        last = [arc for arc in blanked if arc.device == device][-1]
        assert (last.new, last.outcome) == ("RUNNING", Outcome.RESET)


def test_fifty_migrations_back_and_forth_carry_the_marks(stack: KernelStack, figures: dict[str, str]) -> None:
    source, target = sides(stack)
    seen: dict[str, list[Arc]] = {source.node.name: [], target.node.name: []}
    downtimes: list[int] = []
    began = time.monotonic()
    for number in range(MIGRATIONS):
        marks = source.mark(number)
        found = migrate(stack, source, target)
        assert condition(found, "Succeeded")["status"] == "True", found["status"]
        downtimes.append(found["status"]["downtimeMicroseconds"])
        sent, loaded = source.arcs(), target.arcs()
        assert_source(sent, source)
        assert_target(loaded, target)
        assert target.read() == marks
        seen[source.node.name] += sent
        seen[target.node.name] += loaded
        source, target = target, source
    seconds = time.monotonic() - began
    for node in stack.nodes.values():  # nothing escaped that was read piece by piece
        whole = [arc for arc in node.guest.driver_trace() if arc.device in Side(node).devices]
        assert whole[-len(seen[node.name]) :] == seen[node.name]
    p50, p99 = statistics.median(downtimes), statistics.quantiles(downtimes, n=100, method="inclusive")[98]
    figures["migrations"] = f"{MIGRATIONS} of {len(MOVING)} devices each in {seconds:.1f} s, all Succeeded"
    figures["downtime (status)"] = (
        f"p50 {p50 / 1e3:.1f} ms, p99 {p99 / 1e3:.1f} ms, min {min(downtimes) / 1e3:.1f} ms, "
        f"max {max(downtimes) / 1e3:.1f} ms"
    )
    arcs = [arc for trace in seen.values() for arc in trace]
    resets = sum(arc.outcome is Outcome.RESET for arc in arcs)
    figures["arcs (driver's log)"] = f"{len(arcs) - resets} arcs and {resets} resets, none failed"


def test_barriers_wait_for_the_slowest_device(stack: KernelStack) -> None:
    source, target = sides(stack)
    marks = source.mark(60)
    slow, started = source.devices[1], target.devices[1]
    source.node.workload.arm_fault(
        DeviceState.PRE_COPY, DeviceState.PRE_COPY_P2P, Fault.DELAY, device=slow, delay_ms=DELAY_MS
    )
    target.node.workload.arm_fault(
        DeviceState.STOP, DeviceState.RUNNING_P2P, Fault.DELAY, device=started, delay_ms=DELAY_MS
    )
    found = migrate(stack, source, target)
    assert found["status"]["phase"] == "Succeeded", found["status"]
    for arcs, device, state, after in (
        (source.arcs(), slow, "PRE_COPY_P2P", "STOP_COPY"),
        (target.arcs(), started, "RUNNING_P2P", "RUNNING"),
    ):
        # The log has the begin of each arc, so the delayed one ended this much later by the guest's own clock.
        ended = [arc.time for arc in arcs if arc.device == device and arc.new == state][-1] + DELAY_MS / 1000
        passed = [arc.time for arc in arcs if (arc.old, arc.new) == (state, after)]
        assert len(passed) == len(MOVING)
        assert min(passed) >= ended
    assert target.read() == marks


def test_source_arc_that_fails_rolls_back(stack: KernelStack) -> None:
    source, target = sides(stack)
    marks = source.mark(70)
    broken = source.devices[1]
    source.node.workload.arm_fault(DeviceState.PRE_COPY_P2P, DeviceState.STOP_COPY, Fault.FAIL, device=broken)
    found = migrate(stack, source, target)
    succeeded = condition(found, "Succeeded")
    assert succeeded["reason"] == "ArcFailed"
    for part in ("tty1", broken, "PRE_COPY_P2P -> STOP_COPY", "[Errno 5]"):
        assert part in succeeded["message"]
    assert_rolled_back(stack, source, target, marks, found)


def test_state_refused_by_a_target_leaves_the_source_running(stack: KernelStack) -> None:
    source, target = sides(stack)
    marks = source.mark(80)
    broken = target.devices[0]
    target.node.workload.arm_fault(DeviceState.RESUMING, DeviceState.STOP, Fault.FAIL, device=broken)
    found = migrate(stack, source, target)
    succeeded = condition(found, "Succeeded")
    assert succeeded["reason"] == "StateRefused"
    for part in ("tty0", broken, "RESUMING -> STOP", "[Errno 5]"):
        assert part in succeeded["message"]
    assert_rolled_back(stack, source, target, marks, found)


def test_after_failures_the_same_devices_migrate(stack: KernelStack) -> None:
    source, target = sides(stack)
    marks = source.mark(90)
    found = migrate(stack, source, target)
    assert found["status"]["phase"] == "Succeeded", found["status"]
    assert target.read() == marks


def test_source_in_error_ends_as_state_lost(stack: KernelStack) -> None:
    source, target = sides(stack, LOST)
    marks = source.mark(100)
    broken, peer = source.devices
    source.node.workload.arm_fault(DeviceState.PRE_COPY_P2P, DeviceState.STOP_COPY, Fault.ERROR, device=broken)
    found = migrate(stack, source, target)
    succeeded = condition(found, "Succeeded")
    assert (succeeded["status"], succeeded["reason"]) == ("False", "SourceStateLost")
    assert broken in succeeded["message"]
    stack.settled(source.ends, target.ends)
    arcs = source.arcs()
    way_back = [(arc.device, arc.new, arc.outcome) for arc in arcs]
    quiet = way_back.index((peer, "RUNNING_P2P", Outcome.TAKEN))
    assert quiet < way_back.index((broken, "RUNNING", Outcome.RESET))  # its peer could not reach it then
    assert states(arcs, peer)[-1] == "RUNNING"
    assert source.node.workload.read(peer) == marks[1]
    for arc in target.arcs():  # what was half loaded never ran
        assert (arc.old, arc.new) not in (("STOP", "RUNNING_P2P"), ("RUNNING_P2P", "RUNNING"))


def test_table_of_arcs_is_the_kernels(stack: KernelStack, figures: dict[str, str]) -> None:
    node = next(iter(stack.nodes.values()))
    done = node.guest.exec([sys.executable, str(IN_GUEST_ARCS), node.devices[TABLE]]).check()
    result = json.loads(done.stdout)
    assert result["differences"] == []
    assert result["pairs"] == len(DeviceState) ** 2 - 2
    figures["table of arcs"] = f"{result['pairs']} pairs of states asked, {result['arcs']} arcs, all as in the table"
