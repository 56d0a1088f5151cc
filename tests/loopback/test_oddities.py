"""What drivers and peers do that they had better not: two agents on simulated devices, the test is the operator.

Whatever it is, the session says so with reason, device and errno, passes no barrier, and can be rolled back.
"""

import contextlib
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from loopback.agents_world import (
    COMMIT,
    COUNT,
    NAMES,
    SOURCE,
    TARGET,
    Node,
    Operator,
    assert_nothing_lost,
    assert_sources_run,
    assert_targets_blank,
    play,
)
from vfio_api.device import DeviceState as S
from vfio_api.errors import Reason
from vfio_api.types import Failure, Goal, Peer, Role

# A step that cannot be done is given up after this; nothing is measured against it.
SHORT_MILLISECONDS = 500
FORWARD = ((SOURCE, Goal.PREPARED), (TARGET, Goal.PREPARED), (SOURCE, Goal.PRE_COPY), (SOURCE, Goal.STOP_COPY))


async def arrive(operator: Operator) -> None:
    """The rest of a whole migration: whatever was odd, the state is there."""
    operator.decision = COMMIT
    running = await operator.tell(TARGET, Goal.RUNNING)
    assert running.failure is None, running.failure
    assert operator.target.states() == [S.RUNNING] * COUNT
    for n in range(COUNT):
        assert operator.target.device(f"sim{n}").read_region(0, 8) == b"marker %d" % n
        assert operator.target.device(f"sim{n}").read_registers(4, 8) == b"set up %d" % n
    assert (await operator.tell(SOURCE, Goal.RELEASED)).failure is None
    assert_nothing_lost(operator, TARGET)


async def undo(operator: Operator) -> None:
    await operator.roll_back()
    assert_sources_run(operator)
    assert_nothing_lost(operator, SOURCE)
    assert_targets_blank(operator)


# --- odd, but within the rules


@pytest.mark.parametrize("role", [SOURCE, TARGET])
@pytest.mark.parametrize("sizes", [[(1, 300)], [(1, 50), (7, 50), (4093, 0)], [(65_537, 0)], [(16, 1), (65_535, 0)]])
def test_a_device_may_cut_its_state_as_it_likes(
    nodes: tuple[Node, Node], role: Role, sizes: list[tuple[int, int]]
) -> None:
    """Short reads at the source, short writes at the target: 1 byte, across records, off by one of a page."""

    async def scene(operator: Operator) -> None:
        op = "read" if role is SOURCE else "write"
        for limit, times in sizes:
            operator.agent(role).node.control.fault("sim1", op, limit_bytes=limit, times=times)
        await operator.until_voted()
        await arrive(operator)

    play(nodes, scene)


def test_a_device_may_give_more_initial_data_than_it_promised(nodes: tuple[Node, Node]) -> None:
    """What counts is that it has none left: only then is it acknowledged."""

    async def scene(operator: Operator) -> None:
        operator.source.node.control.fault("sim1", "info", limit_bytes=100, times=3)
        await operator.until_voted()
        await arrive(operator)

    play(nodes, scene)


def test_new_initial_data_takes_the_acknowledgement_back_until_it_is_loaded(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        await operator.source.until(SOURCE, lambda r: all(d.initial_acknowledged and d.drained for d in r.devices))
        with stopped(operator.target.node):  # so that nothing can be loaded yet
            operator.source.node.control.reinit("sim1")
            await operator.source.until(SOURCE, lambda r: not r.devices[1].initial_acknowledged)
        report = await operator.source.until(SOURCE, lambda r: all(d.initial_acknowledged for d in r.devices))
        assert report.failure is None
        assert (await operator.tell(SOURCE, Goal.STOP_COPY)).failure is None
        await operator.target.until(TARGET, lambda r: r.reached is Goal.LOADED)
        await arrive(operator)

    play(nodes, scene)


@pytest.mark.parametrize("goal", [Goal.QUIESCED, Goal.STOP_COPY])
def test_no_device_stops_before_new_initial_data_is_loaded(nodes: tuple[Node, Node], goal: Goal) -> None:
    """The device has it after it was found converged, and nobody has told of it when the switchover begins."""

    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        await operator.source.until(SOURCE, lambda r: all(d.initial_acknowledged and d.drained for d in r.devices))
        begun = len(operator.source.node.arcs())
        with stopped(operator.target.node):  # so that nothing can be loaded
            operator.source.node.control.reinit("sim1")
            report = await operator.tell(SOURCE, goal, deadline=SHORT_MILLISECONDS)
            assert report.failure is not None
            assert (report.failure.reason, report.failure.device) == (Reason.STEP_TIMEOUT, "gpu1")
            assert report.reached is Goal.PRE_COPY
        arcs = operator.source.node.arcs()[begun:]
        assert sorted(arcs) == [("sim0", "PRE_COPY_P2P"), ("sim1", "PRE_COPY_P2P")], "both are quiescent, none stopped"
        await undo(operator)

    play(nodes, scene)


def test_new_initial_data_in_the_switchover_is_loaded_and_then_it_goes_on(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        await operator.source.until(SOURCE, lambda r: all(d.initial_acknowledged and d.drained for d in r.devices))
        sent = operator.source.reports[SOURCE].devices[1].transferred_bytes
        operator.source.node.control.reinit("sim1")
        report = await operator.tell(SOURCE, Goal.STOP_COPY)
        assert report.failure is None
        assert report.devices[1].transferred_bytes >= sent + 200_000, "all of it once more"
        await operator.target.until(TARGET, lambda r: r.reached is Goal.LOADED)
        await arrive(operator)

    play(nodes, scene)


def test_who_does_not_ask_for_the_acknowledgement_is_not_held_up_by_it(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        operator.spec = {"switchover_ack": False}
        await operator.pre_copy()
        await operator.source.until(SOURCE, lambda r: all(d.initial_acknowledged and d.drained for d in r.devices))
        with stopped(operator.target.node):
            operator.source.node.control.reinit("sim1")
            assert (await operator.tell(SOURCE, Goal.STOP_COPY, deadline=SHORT_MILLISECONDS)).failure is not None
            assert operator.source.states() == [S.STOP_COPY] * COUNT
        await undo(operator)

    play(nodes, scene)


# --- against the rules


@dataclass(frozen=True)
class Odd:
    """A fault of a device, when it is armed, and what the session must say of it. late: after pre-copy converged."""

    role: Role
    op: str
    code: int
    reason: Reason
    says: str
    late: bool = False
    fault: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        word = errno.errorcode[self.code]
        return f"{self.role} {self.op} {word}{' late' if self.late else ''}"


INSIDE = {"after_bytes": 100_000}
REFUSED, LOST, FAILED = Reason.STATE_REFUSED, Reason.DEVICE_LOST, Reason.ARC_FAILED
ODDITIES = [
    Odd(SOURCE, "read", errno.EFAULT, FAILED, "look at the kernel log of its node", fault=INSIDE),
    Odd(SOURCE, "read", errno.EFAULT, FAILED, "look at the kernel log of its node", late=True),
    Odd(SOURCE, "read", errno.ENODEV, LOST, "the device is gone", fault=INSIDE),
    Odd(SOURCE, "read", errno.ENODEV, LOST, "the device is gone", late=True),
    Odd(SOURCE, "read", errno.ENOMSG, FAILED, "no data for now, in STOP_COPY", late=True, fault={"times": 0}),
    Odd(SOURCE, "info", errno.EIO, FAILED, "look at the kernel log of its node", fault={"times": 0}),
    Odd(SOURCE, "config", errno.EIO, FAILED, "its config could not be read", late=True),
    Odd(TARGET, "write", errno.EFAULT, REFUSED, "its driver could not copy these bytes", fault=INSIDE),
    Odd(TARGET, "write", errno.EFAULT, REFUSED, "its driver could not copy these bytes", late=True),
    Odd(TARGET, "write", errno.ENOMEM, REFUSED, "its node is out of memory for the state: free some", fault=INSIDE),
    Odd(TARGET, "write", errno.ENOSPC, REFUSED, "its node has no room for the state: free some", fault=INSIDE),
    Odd(TARGET, "write", errno.ENODEV, LOST, "the device is gone", fault=INSIDE),
    Odd(TARGET, "write", errno.ENODEV, LOST, "the device is gone", late=True),
    Odd(TARGET, "config", errno.EINVAL, REFUSED, "it refused its config of 64 bytes", late=True),
]


async def until_failed(operator: Operator, role: Role, *, arm: Callable[[], None] | None = None) -> Failure:
    """Go on until that side fails: into pre-copy, or if there is something to `arm`, do that and go beyond."""
    for side, goal in FORWARD:
        if goal is Goal.STOP_COPY:
            if arm is None:
                break
            await operator.source.until(SOURCE, lambda r: all(d.initial_acknowledged for d in r.devices))
            arm()
        if (await operator.tell(side, goal)).failure is not None:
            break
    failure = (await operator.agent(role).until(role, lambda r: r.failure is not None)).failure
    assert failure is not None
    return failure


async def assert_no_barrier_passed(operator: Operator) -> None:
    """No target votes, and none starts even if told to; a source that failed does not go forward."""
    assert operator.target.reports[TARGET].reached is Goal.PREPARED
    assert S.RUNNING not in operator.target.states()
    refused = (await operator.tell(TARGET, Goal.RUNNING, decision=None)).failure
    assert refused is not None
    assert S.RUNNING not in operator.target.states()


@pytest.mark.parametrize("odd", ODDITIES, ids=lambda odd: odd.name)
def test_a_device_against_the_rules_ends_the_migration(nodes: tuple[Node, Node], odd: Odd) -> None:
    async def scene(operator: Operator) -> None:
        def arm() -> None:
            operator.agent(odd.role).node.control.fault("sim1", odd.op, error=odd.code, **odd.fault)

        if not odd.late:
            arm()
        failure = await until_failed(operator, odd.role, arm=arm if odd.late else None)
        assert (failure.reason, failure.device, failure.errno) == (odd.reason, "gpu1", odd.code)
        assert "device gpu1" in failure.message
        assert odd.says in failure.message
        if odd.role is SOURCE and not odd.late:
            assert (await operator.tell(SOURCE, Goal.STOP_COPY)).reached is not Goal.STOP_COPY
            assert S.STOP_COPY not in operator.source.states()
        await assert_no_barrier_passed(operator)
        operator.source.node.control.clear_faults("sim1")
        await undo(operator)

    play(nodes, scene)


def test_a_state_that_ends_too_early_is_refused_when_it_is_validated(nodes: tuple[Node, Node]) -> None:
    """Every byte that was sent came, so only the device itself can tell that it is not all."""

    async def scene(operator: Operator) -> None:
        control = operator.source.node.control
        failure = await until_failed(operator, TARGET, arm=lambda: control.fault("sim1", "read", ends=True, times=0))
        assert (failure.reason, failure.device, failure.errno) == (Reason.STATE_REFUSED, "gpu1", errno.EINVAL)
        assert failure.arc == "RESUMING -> STOP"
        assert "arc RESUMING -> STOP failed" in failure.message
        assert "it is now in RESUMING; the state does not fit or came incomplete" in failure.message
        await assert_no_barrier_passed(operator)
        await undo(operator)

    play(nodes, scene)


# --- what does not end by itself


@contextlib.contextmanager
def stopped(node: Node) -> Iterator[None]:
    """The devices of a node stand still in the middle of whatever they do."""
    simulator = node.processes[0]
    simulator.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        simulator.send_signal(signal.SIGCONT)


def test_a_device_that_never_comes_to_its_end(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        operator.source.node.control.fault("sim1", "endless", times=0)
        report = await operator.tell(SOURCE, Goal.STOP_COPY, deadline=SHORT_MILLISECONDS)
        assert report.failure is not None
        assert (report.failure.reason, report.failure.device) == (Reason.STEP_TIMEOUT, "gpu1")
        assert f"StopCopy was not reached within {SHORT_MILLISECONDS} ms" in report.failure.message
        assert "device gpu1 has sent" in report.failure.message
        assert report.reached is Goal.PRE_COPY
        await assert_no_barrier_passed(operator)
        await undo(operator)

    play(nodes, scene)


def test_a_target_that_accepts_and_answers_nothing(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.prepare()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            peers = (Peer("other", address, operator.target.reports[TARGET].certificate),)
            report = await operator.tell(SOURCE, Goal.PRE_COPY, peers=peers, deadline=SHORT_MILLISECONDS)
        assert report.failure is not None
        assert (report.failure.reason, report.failure.device) == (Reason.STEP_TIMEOUT, "gpu0")
        assert f"device gpu0 has sent 0 bytes and awaits its TLS handshake with {address}" in report.failure.message
        assert report.reached is Goal.PREPARED
        await assert_no_barrier_passed(operator)
        await undo(operator)

    play(nodes, scene)


def test_a_stream_that_stalls_in_the_switchover(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        operator.spec = {"pre_copy": False}  # or perhaps nothing would be left to be sent
        await operator.pre_copy()
        with stopped(operator.target.node):
            report = await operator.tell(SOURCE, Goal.STOP_COPY, deadline=SHORT_MILLISECONDS)
            assert report.failure is not None
            assert report.failure.reason is Reason.STEP_TIMEOUT
            assert report.failure.device in NAMES
            address = f"127.0.0.1:{operator.target.server.port}"
            assert "awaits the acknowledgement of END" in report.failure.message
            assert f"by {address}" in report.failure.message
            assert report.reached is Goal.PRE_COPY
        await undo(operator)

    play(nodes, scene)


# --- the rate of the link


def test_the_link_is_measured_before_anything_is_sent(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        operator.spec = {"pre_copy": False}
        await operator.prepare()
        assert operator.source.reports[SOURCE].link_bytes_per_second == 0
        report = await operator.tell(SOURCE, Goal.PRE_COPY)
        assert report.failure is None
        assert operator.source.states() == [S.RUNNING] * COUNT
        assert [device.transferred_bytes for device in report.devices] == [0] * COUNT
        assert report.link_bytes_per_second > 0
        assert operator.target.reports[TARGET].link_bytes_per_second == 0
        await undo(operator)

    play(nodes, scene)


def test_a_limit_holds_the_streams_back(nodes: tuple[Node, Node]) -> None:
    """400 KB at 4 KB/s do not go in half a second, however fast or slow this machine is."""

    async def scene(operator: Operator) -> None:
        operator.spec = {"bandwidth_limit_bytes_per_second": 4000}
        await operator.pre_copy()
        failure = (await operator.tell(SOURCE, Goal.STOP_COPY, deadline=SHORT_MILLISECONDS)).failure
        assert failure is not None
        assert failure.reason is Reason.STEP_TIMEOUT
        await undo(operator)

    play(nodes, scene)


def test_a_limited_link_is_said_to_be_no_faster_than_its_limit(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        operator.spec = {"bandwidth_limit_bytes_per_second": 4_000_000}
        await operator.until_voted()
        report = operator.source.reports[SOURCE]
        assert 0 < report.link_bytes_per_second <= 4_000_000
        assert all(0 < device.bytes_per_second <= 4_000_000 for device in report.devices)
        await arrive(operator)

    play(nodes, scene)
