"""Two agents in one process, on real simulated devices with real streams and keepers; the test is the operator."""

import asyncio
import contextlib
import errno
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vfio_agent import machine
from vfio_agent.agent import Agent
from vfio_agent.devices.simulated import SimulatedBackend, SimulatedDevice, SimulatorControl
from vfio_agent.holdings import Holdings
from vfio_agent.journal import Journal
from vfio_agent.keeper import KeeperClient
from vfio_agent.metrics import AgentMetrics
from vfio_agent.receiver import DataServer
from vfio_agent.session import Surroundings
from vfio_agent.sides import SourceSide
from vfio_api.device import DeviceState as S
from vfio_api.errors import Reason
from vfio_api.types import (
    Command,
    DeviceReport,
    Goal,
    MigrationKey,
    Outcome,
    Peer,
    Role,
    SessionDevice,
    SessionReport,
    SessionSpec,
)

KEY = MigrationKey("0b7f3ad8-1f7c-4c9e-9a52-7f5a0c7d0f11", "team", "move")
PATIENCE = 30.0
COUNT = 2
NAMES = [f"gpu{number}" for number in range(COUNT)]
SIM = {
    "devices": [
        {"address": f"sim{n}", "model": "sim:1", "size_bytes": 200_000, "dirty_rate_bytes_per_second": 100_000}
        for n in range(COUNT)
    ],
    "p2p": {},
}
COMMIT, ABORT = Outcome.COMMIT, Outcome.ABORT
SOURCE, TARGET = Role.SOURCE, Role.TARGET


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


class Node:
    """The processes of one node that outlive an agent: simulator and keeper."""

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir()
        (directory / "config").write_text(json.dumps(SIM))
        self.processes = [
            start(
                "vfio_agent.devices.simulator",
                *("--socket", str(directory / "sim.sock"), "--config", str(directory / "config")),
                *("--trace", str(directory / "trace")),
            ),
            start("vfio_agent.keeper", "--socket", str(directory / "keeper.sock")),
        ]
        self.control = SimulatorControl(directory / "sim.sock")

    def end(self) -> None:
        for process in self.processes:
            with process:
                process.terminate()

    def arcs(self) -> list[tuple[str, str]]:
        """(device, state) of every arc that was made, in order."""
        lines = [json.loads(line) for line in (self.directory / "trace").read_text().splitlines()]
        return [(line["device"], line["state"]) for line in lines if line["event"] == "arc" and not line["errno"]]


class RunningAgent:
    """One agent on a node, and what it reported."""

    def __init__(self, node: Node):
        self.node = node
        self.metrics = AgentMetrics("test")
        self.keeper = KeeperClient(node.directory / "keeper.sock")
        self.holdings = Holdings({"simulated": SimulatedBackend(node.directory / "sim.sock")}, self.keeper, "boot-1")
        self.holdings.restore()
        self.journal = Journal(node.directory / "state", node.directory / "run", "boot-1")
        self.journal.lock()
        self.server = DataServer("127.0.0.1", 0)
        self.arcs = ThreadPoolExecutor(16, "arc")
        around = Surroundings(self.holdings, self.journal, self.server, self.arcs, self.metrics, lambda _session: None)
        self.agent = Agent(around, self.journal.highest_epoch())
        self.agent.restore()
        self.reports: dict[Role, SessionReport] = {r.role: r for r in self.agent.reports()}
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            reports = await self.agent.next_reports()
            async with self._news:
                self.reports.update((r.role, r) for r in reports)
                self._news.notify_all()

    async def until(self, role: Role, holds: Callable[[SessionReport], bool]) -> SessionReport:
        """The first report of that side for which `holds`."""
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: role in self.reports and holds(self.reports[role]))
        return self.reports[role]

    def device(self, address: str) -> SimulatedDevice:
        held = self.holdings.get(address)
        assert held is not None
        assert isinstance(held.device, SimulatedDevice)
        return held.device

    def states(self) -> list[S]:
        return [self.device(f"sim{n}").state() for n in range(COUNT)]

    async def end(self) -> None:
        """As if the process had been killed: nothing is said, devices stay with the keeper."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        for session in list(self.agent._sessions.values()):
            side = session.side
            side.close()
            if isinstance(side, SourceSide):
                await asyncio.to_thread(side._stop_senders)
            else:
                for stream in side._streams.values():
                    stream.close()
        self.server.close()
        await asyncio.to_thread(self.arcs.shutdown)
        for held in self.holdings.all().values():
            held.device.close()
        os.close(self.journal._lock_fd)

    async def clear(self) -> None:
        """Leave the node as it was found."""
        for address in list(self.holdings.all()):
            self.holdings.release(address)
        await self.end()
        for folder in ("run/sessions", "state/sessions", "state"):
            for path in (self.node.directory / folder).glob("*.json"):
                path.unlink()


REFUSALS = (Reason.COMMAND_REFUSED, Reason.STALE_EPOCH)


def answers(report: SessionReport, command: Command) -> bool:
    """Whether a report is the outcome of that command: its goal, a failure on the way there, or its refusal."""
    if report.failure is not None and report.failure.reason in REFUSALS:
        return True
    done = report.failure is not None or report.reached is command.goal
    return report.sequence >= command.sequence and done


def reaches(command: Command, report: SessionReport) -> bool:
    return report.sequence >= command.sequence and report.reached is command.goal


@dataclass
class Operator:
    """Sends commands in the operator's place; sequence and epoch as it would count them."""

    source: RunningAgent
    target: RunningAgent
    epoch: int = 1
    decision: Outcome | None = None
    losses: dict[Role, tuple[int, int]] = field(default_factory=dict)
    _sequence: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def agent(self, role: Role) -> RunningAgent:
        return self.source if role is SOURCE else self.target

    def command(self, role: Role, goal: Goal, *, deadline: int = 20_000, **changes: Any) -> Command:
        other = self.agent(TARGET if role is SOURCE else SOURCE)
        known = other.reports.get(TARGET if role is SOURCE else SOURCE)
        peer = Peer("other", f"127.0.0.1:{other.server.port}", known.certificate if known else b"")
        fields: dict[str, Any] = {
            "epoch": self.epoch,
            "sequence": next(self._sequence),
            "decision": self.decision,
            "spec": SessionSpec(tuple(SessionDevice(name, f"sim{n}", "other") for n, name in enumerate(NAMES)))
            if goal is Goal.PREPARED
            else None,
            "peers": (peer,) if known and goal in (Goal.PREPARED, Goal.PRE_COPY) else (),
            **changes,
        }
        return Command(KEY, role, goal, deadline_milliseconds=deadline, **fields)

    async def tell(self, role: Role, goal: Goal, **changes: Any) -> SessionReport:
        """Send a command; the report of its outcome: the goal reached, or a failure."""
        return await self.say(self.command(role, goal, **changes))

    async def say(self, command: Command) -> SessionReport:
        agent = self.agent(command.role)
        agent.reports.pop(command.role, None)
        agent.agent.take(command)
        return await agent.until(command.role, lambda report: answers(report, command))

    async def prepare(self) -> None:
        for role in (SOURCE, TARGET):
            report = await self.tell(role, Goal.PREPARED)
            assert report.failure is None, report.failure

    async def pre_copy(self) -> None:
        await self.prepare()
        report = await self.tell(SOURCE, Goal.PRE_COPY)
        assert report.failure is None, report.failure

    async def until_voted(self) -> None:
        await self.pre_copy()
        await self.source.until(SOURCE, lambda r: all(d.initial_acknowledged for d in r.devices))
        report = await self.tell(SOURCE, Goal.STOP_COPY)
        assert report.failure is None, report.failure
        await self.target.until(TARGET, lambda r: r.reached is Goal.LOADED)

    async def roll_back(self) -> SessionReport:
        """As the plan does: Abort, the barrier, RUNNING, blank targets, release."""
        self.decision = ABORT
        for role, goal in (
            (SOURCE, Goal.RUNNING_P2P),
            (SOURCE, Goal.RUNNING),
            (TARGET, Goal.RELEASED),
            (SOURCE, Goal.RELEASED),
        ):
            agent, command = self.agent(role), self.command(role, goal)
            agent.agent.take(command)
            # a failure of before may be told beside it
            report = await agent.until(role, partial(reaches, command))
        return report


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    made = [Node(tmp_path_factory.mktemp("nodes") / name) for name in ("a", "b")]
    yield made[0], made[1]
    for node in made:
        node.end()


Scene = Callable[[Operator], Awaitable[None]]


@contextlib.asynccontextmanager
async def stage(nodes: tuple[Node, Node]) -> AsyncIterator[Operator]:
    """Two fresh agents; the source's devices are open, marked, and write to each other."""
    for node in nodes:
        node.control.configure(rate_per_second=0, latency_us=500)
    operator = Operator(RunningAgent(nodes[0]), RunningAgent(nodes[1]))
    try:
        source = operator.source
        for n in range(COUNT):
            source.holdings.open(f"sim{n}", "workload")
            source.device(f"sim{n}").start_traffic(n, [1 - n])
            source.device(f"sim{n}").write_region(0, b"marker %d" % n)
        operator.losses = {role: losses(operator.agent(role).node) for role in Role}
        for node in nodes:
            node.control.configure(rate_per_second=3000, latency_us=500)
        yield operator
    finally:
        for agent in (operator.source, operator.target):  # by now perhaps others than in the beginning
            await agent.clear()


def play(nodes: tuple[Node, Node], scene: Scene) -> None:
    async def run() -> None:
        async with stage(nodes) as operator:
            await scene(operator)

    asyncio.run(run())


def assert_sources_run(operator: Operator) -> None:
    assert operator.source.states() == [S.RUNNING] * COUNT
    assert [operator.source.device(f"sim{n}").read_region(0, 8) for n in range(COUNT)] == [b"marker 0", b"marker 1"]


def losses(node: Node) -> tuple[int, int]:
    totals = node.control.stats()["totals"]
    return totals["lost"], totals["doubled"]


def assert_nothing_lost(operator: Operator, role: Role) -> None:
    """No write between the devices of that side fell on one that could not answer."""
    assert losses(operator.agent(role).node) == operator.losses[role]


def assert_targets_blank(operator: Operator) -> None:
    assert operator.target.holdings.all() == {}
    assert operator.target.keeper.held() == []
    for n in range(COUNT):
        with SimulatedBackend(operator.target.node.directory / "sim.sock").open(f"sim{n}") as device:
            assert device.state() is S.RUNNING
            assert device.read_region(0, 8) == bytes(8)


# --- the good case


def test_a_whole_migration(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        assert operator.source.states() == [S.STOP_COPY] * COUNT
        assert operator.target.states() == [S.STOP] * COUNT
        operator.decision = COMMIT
        running = await operator.tell(TARGET, Goal.RUNNING)
        assert running.failure is None
        assert operator.target.states() == [S.RUNNING] * COUNT
        assert [operator.target.device(f"sim{n}").read_region(0, 8) for n in range(COUNT)] == [
            b"marker 0",
            b"marker 1",
        ]
        released = await operator.tell(SOURCE, Goal.RELEASED)
        assert [d.state for d in released.devices] == [S.STOP] * COUNT
        assert operator.source.holdings.all() == {}
        await operator.tell(TARGET, Goal.RELEASED)
        assert {h.holder for h in operator.target.holdings.all().values()} == {"keeper"}
        assert set(operator.target.keeper.held()) == {"sim0", "sim1"}
        assert operator.target.states() == [S.RUNNING] * COUNT
        assert_nothing_lost(operator, TARGET)
        assert operator.source.agent.reports() == operator.target.agent.reports() == ()
        assert operator.source.journal.sessions() == operator.target.journal.sessions() == []
        steps = {timing.step for timing in (*released.timings, *running.timings)}
        assert {"barrier_a", "barrier_b", "transfer", "barrier_c", "barrier_d", "load/gpu0", "load/gpu1"} <= steps

    play(nodes, scene)


def test_the_bytes_that_were_sent_are_the_bytes_that_were_loaded(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        sent, loaded = (operator.agent(role).reports[role].devices for role in (SOURCE, TARGET))
        assert [d.transferred_bytes for d in sent] == [d.transferred_bytes for d in loaded]
        assert all(d.transferred_bytes > 200_000 for d in sent)
        await operator.roll_back()

    play(nodes, scene)


# --- a failure of each arc


def arc_id(value: object) -> str:
    return "-".join(s.name for s in value) if isinstance(value, tuple) else str(value)


FORWARD_ARCS = [
    (SOURCE, (S.RUNNING, S.PRE_COPY)),
    (SOURCE, (S.PRE_COPY, S.PRE_COPY_P2P)),
    (SOURCE, (S.PRE_COPY_P2P, S.STOP_COPY)),
    (TARGET, (S.RUNNING, S.RUNNING_P2P)),
    (TARGET, (S.RUNNING_P2P, S.STOP)),
    (TARGET, (S.STOP, S.RESUMING)),
    (TARGET, (S.RESUMING, S.STOP)),
]


@pytest.mark.parametrize(("role", "arc"), FORWARD_ARCS, ids=arc_id)
@pytest.mark.parametrize("which", ["sim0", "sim1"])
def test_an_arc_that_fails_is_reported_and_the_rollback_leaves_every_source_running(
    nodes: tuple[Node, Node], role: Role, arc: tuple[S, S], which: str
) -> None:
    async def scene(operator: Operator) -> None:
        operator.agent(role).node.control.fault(which, arc=arc, error=errno.EIO)
        failed = None
        for side, goal in (
            (SOURCE, Goal.PREPARED),
            (TARGET, Goal.PREPARED),
            (SOURCE, Goal.PRE_COPY),
            (SOURCE, Goal.STOP_COPY),
        ):
            failed = (await operator.tell(side, goal)).failure
            if failed is not None:
                break
        if failed is None:
            failed = (await operator.target.until(TARGET, lambda r: r.failure is not None)).failure
        assert failed is not None
        name = NAMES[int(which[-1])]
        assert (failed.device, failed.errno) == (name, errno.EIO)
        assert failed.arc.split(" -> ")[0] in {s.name for s in S}
        assert failed.reason in (Reason.ARC_FAILED, Reason.STATE_REFUSED)
        await operator.roll_back()
        assert_sources_run(operator)
        assert_nothing_lost(operator, SOURCE)
        assert_targets_blank(operator)

    play(nodes, scene)


@pytest.mark.parametrize("op", ["read", "write"])
def test_a_stream_that_fails_at_a_device_is_rolled_back(nodes: tuple[Node, Node], op: str) -> None:
    async def scene(operator: Operator) -> None:
        role = SOURCE if op == "read" else TARGET
        await operator.prepare()
        operator.agent(role).node.control.fault("sim1", op, error=errno.EIO, after_bytes=100_000)
        await operator.tell(SOURCE, Goal.PRE_COPY)
        failed = (await operator.agent(role).until(role, lambda r: r.failure is not None)).failure
        assert failed is not None
        assert (failed.device, failed.errno) == ("gpu1", errno.EIO)
        await operator.roll_back()
        assert_sources_run(operator)
        assert_nothing_lost(operator, SOURCE)
        assert_targets_blank(operator)

    play(nodes, scene)


@pytest.mark.parametrize("moment", ["prepared", "pre-copy", "quiesced", "voted"])
def test_a_rollback_from_any_point_leaves_every_source_running(nodes: tuple[Node, Node], moment: str) -> None:
    async def scene(operator: Operator) -> None:
        if moment == "prepared":
            await operator.prepare()
        elif moment == "voted":
            await operator.until_voted()
        else:
            await operator.pre_copy()
        if moment == "quiesced":
            assert (await operator.tell(SOURCE, Goal.QUIESCED)).failure is None
        await operator.roll_back()
        assert_sources_run(operator)
        assert_nothing_lost(operator, SOURCE)
        assert_targets_blank(operator)
        again = operator.source.agent.reports(), operator.target.agent.reports()
        assert again == ((), ())

    play(nodes, scene)


def test_a_rollback_arc_that_fails_once_is_made_when_it_is_told_again(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        nodes[0].control.fault("sim0", arc=(S.STOP, S.RUNNING_P2P), error=errno.EIO)
        operator.decision = ABORT
        failed = (await operator.tell(SOURCE, Goal.RUNNING_P2P)).failure
        assert failed is not None
        assert S.RUNNING not in operator.source.states()
        await operator.roll_back()
        assert_sources_run(operator)
        assert_nothing_lost(operator, SOURCE)

    play(nodes, scene)


def test_an_arc_that_lasts_beyond_its_deadline_is_no_running_source_in_disguise(nodes: tuple[Node, Node]) -> None:
    """The thread is still within the arc when the step is given up; the rollback must see where the device got to."""

    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        nodes[0].control.fault("sim0", arc=(S.PRE_COPY_P2P, S.STOP_COPY), delay_us=400_000)
        failed = (await operator.tell(SOURCE, Goal.STOP_COPY, deadline=100)).failure
        assert failed is not None
        assert failed.reason is Reason.STEP_TIMEOUT
        await operator.roll_back()
        assert_sources_run(operator)
        assert_nothing_lost(operator, SOURCE)

    play(nodes, scene)


def slow_writes(operator: Operator) -> None:
    """Writes are under way for much longer than it is from one to the next, so that some always are."""
    operator.source.node.control.configure(rate_per_second=3000, latency_us=20_000)


def test_writes_that_are_under_way_when_the_switchover_begins_arrive(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        slow_writes(operator)
        await operator.pre_copy()
        assert (await operator.tell(SOURCE, Goal.STOP_COPY)).failure is None
        await operator.roll_back()
        assert_nothing_lost(operator, SOURCE)

    play(nodes, scene)


def test_mutant_an_agent_that_stops_its_devices_one_by_one_loses_writes(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    def only(name: str) -> Callable[[machine.DeviceFacts, bool], S | None]:
        return lambda device, _wanted: S.STOP_COPY if device.name == name else None

    one_by_one = tuple((f"stop_{name}", only(name)) for name in NAMES)
    monkeypatch.setattr(machine, "WAYPOINTS", {**machine.WAYPOINTS, (SOURCE, Goal.STOP_COPY): one_by_one})

    async def scene(operator: Operator) -> None:
        slow_writes(operator)
        await operator.pre_copy()
        assert (await operator.tell(SOURCE, Goal.STOP_COPY)).failure is None
        await operator.roll_back()
        with pytest.raises(AssertionError):
            assert_nothing_lost(operator, SOURCE)

    play(nodes, scene)


def test_mutant_a_rollback_without_its_barrier_loses_writes(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        await operator.tell(SOURCE, Goal.STOP_COPY)
        assert_nothing_lost(operator, SOURCE)
        goal = (SOURCE, Goal.RUNNING)
        monkeypatch.setattr(machine, "WAYPOINTS", {**machine.WAYPOINTS, goal: machine.WAYPOINTS[goal][-1:]})
        operator.source.node.control.fault("sim1", arc=(S.STOP_COPY, S.STOP), delay_us=50_000)
        await operator.tell(SOURCE, Goal.RUNNING, decision=ABORT)
        with pytest.raises(AssertionError):
            assert_nothing_lost(operator, SOURCE)

    play(nodes, scene)


# --- what an agent refuses


def test_a_loaded_target_does_not_run_without_commit(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        for goal in (Goal.RUNNING_P2P, Goal.RUNNING):
            refused = (await operator.tell(TARGET, goal)).failure
            assert refused is not None
            assert refused.reason is Reason.COMMAND_REFUSED
            assert "no Commit is known" in refused.message
        refused = (await operator.tell(SOURCE, Goal.RUNNING)).failure
        assert refused is not None
        assert "no Abort is known" in refused.message
        assert operator.target.states() == [S.STOP] * COUNT
        assert operator.source.states() == [S.STOP_COPY] * COUNT
        await operator.roll_back()
        assert_sources_run(operator)

    play(nodes, scene)


def test_a_source_does_not_run_after_commit(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        operator.decision = COMMIT
        for goal in (Goal.RUNNING_P2P, Goal.RUNNING):
            refused = (await operator.tell(SOURCE, goal)).failure
            assert refused is not None
            assert "the decision is Commit" in refused.message
        assert operator.source.states() == [S.STOP_COPY] * COUNT
        assert (await operator.tell(TARGET, Goal.RUNNING)).reached is Goal.RUNNING

    play(nodes, scene)


def test_a_command_of_an_older_epoch_is_refused(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.prepare()
        operator.epoch = 5
        assert (await operator.tell(SOURCE, Goal.PREPARED)).failure is None
        refused = (await operator.tell(SOURCE, Goal.PRE_COPY, epoch=4)).failure
        assert refused is not None
        assert refused.reason is Reason.STALE_EPOCH
        await operator.source.agent.raise_epoch(9)
        refused = (await operator.tell(SOURCE, Goal.PRE_COPY, epoch=8)).failure
        assert refused is not None
        assert refused.message.endswith("command of epoch 8, this node has seen 9")
        assert operator.source.states() == [S.RUNNING] * COUNT
        assert operator.source.journal.highest_epoch() == 9
        operator.epoch = 9
        assert (await operator.tell(SOURCE, Goal.PRE_COPY)).failure is None
        await operator.roll_back()

    play(nodes, scene)


def test_a_repeated_command_changes_nothing(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        async def twice(role: Role, goal: Goal) -> None:
            command = operator.command(role, goal)
            first = await operator.say(command)
            arcs = operator.agent(role).node.arcs()
            second = await operator.say(command)
            assert first.failure is second.failure is None
            assert second.reached is goal
            if goal is not Goal.RELEASED:
                assert [d.state for d in second.devices] == [d.state for d in first.devices]
            assert operator.agent(role).node.arcs() == arcs

        await operator.prepare()
        await twice(TARGET, Goal.PREPARED)
        await twice(SOURCE, Goal.PRE_COPY)
        await twice(SOURCE, Goal.QUIESCED)
        await twice(SOURCE, Goal.STOP_COPY)
        await operator.target.until(TARGET, lambda r: r.reached is Goal.LOADED)
        operator.decision = COMMIT
        await twice(TARGET, Goal.RUNNING_P2P)
        await twice(TARGET, Goal.RUNNING)
        await twice(SOURCE, Goal.RELEASED)
        await twice(TARGET, Goal.RELEASED)
        assert operator.target.states() == [S.RUNNING] * COUNT

    play(nodes, scene)


def test_a_command_without_a_session_is_refused(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        for role, goal in ((SOURCE, Goal.PRE_COPY), (TARGET, Goal.RUNNING)):
            refused = (await operator.tell(role, goal)).failure
            assert refused is not None
            assert "Prepared comes first" in refused.message
        released = await operator.tell(TARGET, Goal.RELEASED)
        assert (released.reached, released.failure) == (Goal.RELEASED, None)

    play(nodes, scene)


def test_a_target_in_use_is_refused_and_left_alone(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        held = operator.target.holdings.open("sim1", "somebody else")
        operator.target.device("sim1").write_region(0, b"precious")
        await operator.tell(SOURCE, Goal.PREPARED)
        refused = (await operator.tell(TARGET, Goal.PREPARED)).failure
        assert refused is not None
        assert (refused.reason, refused.device) == (Reason.TARGET_HAS_HOLDER, "gpu1")
        await operator.tell(TARGET, Goal.RELEASED)
        assert operator.target.device("sim1").read_region(0, 8) == b"precious"
        assert set(operator.target.holdings.all()) == {"sim1"}
        assert operator.target.holdings.get("sim1") is held

    play(nodes, scene)


def test_a_source_that_is_not_held_is_refused_and_can_be_given_up(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        operator.source.holdings.release("sim1")
        refused = (await operator.tell(SOURCE, Goal.PREPARED)).failure
        assert refused is not None
        assert (refused.reason, refused.device) == (Reason.SOURCE_NOT_HELD, "gpu1")
        for goal in (Goal.RUNNING, Goal.RELEASED):
            report = await operator.tell(SOURCE, goal)
            assert report.failure is None, report.failure
        assert operator.source.device("sim0").state() is S.RUNNING

    play(nodes, scene)


# --- an agent that was killed


async def replaced(operator: Operator, role: Role) -> RunningAgent:
    """Another agent process on that node takes up what the journal and the keeper have."""
    old = operator.agent(role)
    await old.end()
    new = RunningAgent(old.node)
    if role is SOURCE:
        operator.source = new
    else:
        operator.target = new
    return new


@pytest.mark.parametrize("role", [SOURCE, TARGET])
def test_an_agent_killed_in_pre_copy_rolls_back(nodes: tuple[Node, Node], role: Role) -> None:
    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        agent = await replaced(operator, role)
        failed = agent.reports[role].failure
        assert failed is not None
        assert failed.reason is Reason.AGENT_RESTARTED
        await operator.roll_back()
        assert_sources_run(operator)
        assert_nothing_lost(operator, SOURCE)
        assert_targets_blank(operator)

    play(nodes, scene)


def test_a_target_killed_after_its_vote_keeps_it(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        agent = await replaced(operator, TARGET)
        report = agent.reports[TARGET]
        assert (report.reached, report.failure) == (Goal.LOADED, None)
        assert agent.states() == [S.STOP] * COUNT
        operator.decision = COMMIT
        running = await operator.tell(TARGET, Goal.RUNNING)
        assert running.failure is None
        assert [agent.device(f"sim{n}").read_region(0, 8) for n in range(COUNT)] == [b"marker 0", b"marker 1"]
        assert_nothing_lost(operator, TARGET)
        assert (await operator.tell(SOURCE, Goal.RELEASED)).failure is None

    play(nodes, scene)


def test_a_source_killed_after_commit_is_released(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        agent = await replaced(operator, SOURCE)
        operator.decision = COMMIT
        for goal in (Goal.RUNNING_P2P, Goal.RUNNING):
            refused = (await operator.tell(SOURCE, goal)).failure
            assert refused is not None
        assert agent.states() == [S.STOP_COPY] * COUNT
        assert (await operator.tell(TARGET, Goal.RUNNING)).failure is None
        released = await operator.tell(SOURCE, Goal.RELEASED)
        assert released.reached is Goal.RELEASED or (await agent.until(SOURCE, lambda r: r.reached is Goal.RELEASED))
        assert agent.holdings.all() == {}

    play(nodes, scene)


def test_reports_name_devices_by_their_name_and_address(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.prepare()
        devices: tuple[DeviceReport, ...] = operator.source.reports[SOURCE].devices
        assert [(d.name, d.address, d.state) for d in devices] == [
            ("gpu0", "sim0", S.RUNNING),
            ("gpu1", "sim1", S.RUNNING),
        ]
        assert all(d.stop_copy_bytes > 200_000 for d in devices)

    play(nodes, scene)
