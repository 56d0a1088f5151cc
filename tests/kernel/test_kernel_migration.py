"""Migrations of the kernel's own VFIO devices between two machines, by the whole product.

What the devices went through is told by their driver (the guest's kernel log), never by the product. What they carry
are marks in their emulated UARTs, written by a workload at the source and read by one at the target.
"""

import itertools
import re
import statistics
import time

from devtools.kernel_stack import KernelStack
from devtools.kernel_workload import PORTS
from devtools.mtty_trace import Arc, Outcome
from devtools.mtty_workload import Fault
from kernel.figures import Figures
from kernel.sides import (
    MOVING,
    Side,
    assert_source,
    assert_target,
    condition,
    migrate,
    sides,
)
from vfio_api.device import DeviceState

MIGRATIONS = {"group": 50, "cdev": 20}
DELAY_MS = 300
OPENED = {
    "group": [r"/dev/vfio/\d+", "/dev/vfio/vfio"],
    "cdev": [r"/dev/vfio/devices/vfio\d+", "/dev/iommu"],
}
"""What is open for a device, by each way."""


def test_migrations_back_and_forth_carry_the_marks(stack: KernelStack, path: str, figures: Figures) -> None:
    source, target = sides(stack)
    seen: dict[str, list[Arc]] = {source.node.name: [], target.node.name: []}
    downtimes: list[int] = []
    began = time.monotonic()
    for number in range(MIGRATIONS[path]):
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
    report(figures, path, [arc for trace in seen.values() for arc in trace], downtimes, seconds)


def report(figures: Figures, path: str, arcs: list[Arc], downtimes: list[int], seconds: float) -> None:
    """What so many migrations came to: results for one migration must be the same by both ways, times need not."""
    count = len(downtimes)
    taken = sum(arc.outcome is Outcome.TAKEN for arc in arcs)
    p50, p99 = statistics.median(downtimes), statistics.quantiles(downtimes, n=100, method="inclusive")[98]
    figures.measured(path, "migrations", f"{count}, all Succeeded, in {seconds:.1f} s")
    figures.same(path, "arcs a migration", f"{taken / count:g}, none failed (driver's log)")
    figures.same(path, "barriers a migration", "2 of 2 held (A at the source, C at the target)")
    figures.same(path, "marks a migration", f"{len(MOVING) * PORTS} of {len(MOVING) * PORTS} intact")
    figures.measured(path, "downtime p50, p99", f"{p50 / 1e3:.1f} ms, {p99 / 1e3:.1f} ms")
    figures.measured(path, "downtime min, max", f"{min(downtimes) / 1e3:.1f} ms, {max(downtimes) / 1e3:.1f} ms")


def test_devices_are_open_by_the_way_asked_for(stack: KernelStack, path: str, figures: Figures) -> None:
    source, target = sides(stack)
    source.mark(55)
    stack.settled(source.ends, target.ends)
    opened = source.node.opened()
    for pattern in OPENED[path]:
        assert any(re.fullmatch(pattern, node) for node in opened), opened
    for pattern in itertools.chain.from_iterable(OPENED[other] for other in OPENED if other != path):
        assert not any(re.fullmatch(pattern, node) for node in opened), opened
    figures.measured(path, "open at the keeper", " and ".join(OPENED[path]))


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


def test_config_registers_come_along(stack: KernelStack, path: str, figures: Figures) -> None:
    """The interrupt line is in mtty's PCI config space and not in the state it saves, so it comes beside that."""
    source, target = sides(stack)
    marks = source.mark(120)
    lines = {1: 0x15, 2: 0x16}
    for number, device in enumerate(source.devices, 1):
        source.node.workload.set_interrupt_line(device, lines[number])
    found = migrate(stack, source, target)
    assert found["status"]["phase"] == "Succeeded", found["status"]
    arrived = [target.node.workload.interrupt_line(device) for device in target.devices]
    assert arrived == list(lines.values())
    assert target.read() == marks
    figures.same(path, "PCI config", f"interrupt line of {len(arrived)} of {len(arrived)} devices arrived")
