"""Two agents in one process, on real simulated devices with real streams and keepers; a test is the operator."""

import asyncio
import contextlib
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

from vfio_agent.agent import Agent
from vfio_agent.devices.simulated import SimulatedBackend, SimulatedDevice, SimulatorControl
from vfio_agent.holdings import Holdings
from vfio_agent.journal import Journal
from vfio_agent.keeper import KeeperClient
from vfio_agent.metrics import AgentMetrics
from vfio_agent.pods import NodeFolders, Pods
from vfio_agent.receiver import DataServer
from vfio_agent.source_side import SourceSide
from vfio_agent.surroundings import Surroundings
from vfio_api.device import DeviceState as S
from vfio_api.errors import Reason
from vfio_api.types import (
    Command,
    Goal,
    MigrationKey,
    Outcome,
    Peer,
    Role,
    SessionDevice,
    SessionReport,
    SessionSpec,
    Workload,
)

KEY = MigrationKey("0b7f3ad8-1f7c-4c9e-9a52-7f5a0c7d0f11", "team", "move")
PATIENCE = 30.0
COUNT = 2
NAMES = [f"gpu{number}" for number in range(COUNT)]
DEVICES = tuple(SessionDevice(name, f"sim{n}", "other") for n, name in enumerate(NAMES))
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

    def __init__(self, node: Node, boot: str = "boot-1", folders: NodeFolders | None = None):
        self.node, self.folders = node, folders
        self.metrics = AgentMetrics("test")
        self.keeper = KeeperClient(node.directory / "keeper.sock")
        self.holdings = Holdings({"simulated": SimulatedBackend(node.directory / "sim.sock")}, self.keeper, boot)
        self.holdings.restore()
        self.journal = Journal(node.directory / "state", node.directory / "run", boot)
        self.journal.lock()
        self.server = DataServer("127.0.0.1", 0)
        self.arcs = ThreadPoolExecutor(16, "arc")
        self.pods, self.on_reached = Pods(folders), list[Callable[[], None]]()
        parts = (self.holdings, self.journal, self.server, self.arcs, self.metrics)
        around = Surroundings(*parts, lambda _session: None, self.pods)
        self.agent = Agent(around, self.journal.highest_epoch(), lambda _session: [call() for call in self.on_reached])
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
                await side.stop_streams()
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
    """Sends commands in the operator's place; sequence and epoch as it would count them.

    spec: what its migration says besides its devices and, for each side, the pods that use them.
    """

    source: RunningAgent
    target: RunningAgent
    epoch: int = 1
    decision: Outcome | None = None
    spec: dict[str, Any] = field(default_factory=dict)
    workloads: dict[Role, tuple[Workload, ...]] = field(default_factory=dict)
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
            "spec": self._spec(role) if goal is Goal.PREPARED else None,
            "peers": (peer,) if known and goal in (Goal.PREPARED, Goal.PRE_COPY) else (),
            **changes,
        }
        return Command(KEY, role, goal, deadline_milliseconds=deadline, **fields)

    def _spec(self, role: Role) -> SessionSpec:
        return SessionSpec(DEVICES, workloads=self.workloads.get(role, ()), **self.spec)

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


Scene = Callable[[Operator], Awaitable[None]]


@contextlib.asynccontextmanager
async def stage(nodes: tuple[Node, Node], folders: NodeFolders | None = None) -> AsyncIterator[Operator]:
    """Two fresh agents; the source's devices are open, marked, and write to each other. folders: of the source."""
    for node in nodes:
        node.control.configure(rate_per_second=0, latency_us=500)
        for n in range(COUNT):
            node.control.clear_faults(f"sim{n}")
    operator = Operator(RunningAgent(nodes[0], folders=folders), RunningAgent(nodes[1]))
    try:
        source = operator.source
        for n in range(COUNT):
            source.holdings.open(f"sim{n}", "workload")
            source.device(f"sim{n}").start_traffic(n, [1 - n])
            source.device(f"sim{n}").write_region(0, b"marker %d" % n)
            source.device(f"sim{n}").write_registers(4, b"set up %d" % n)
        operator.losses = {role: losses(operator.agent(role).node) for role in Role}
        for node in nodes:
            node.control.configure(rate_per_second=3000, latency_us=500)
        yield operator
    finally:
        for agent in (operator.source, operator.target):  # by now perhaps others than in the beginning
            await agent.clear()


async def replaced(operator: Operator, role: Role) -> RunningAgent:
    """Another agent process on that node takes up what the journal and the keeper have."""
    old = operator.agent(role)
    await old.end()
    new = RunningAgent(old.node, folders=old.folders)
    if role is SOURCE:
        operator.source = new
    else:
        operator.target = new
    return new


def play(nodes: tuple[Node, Node], scene: Scene, folders: NodeFolders | None = None) -> None:
    async def run() -> None:
        async with stage(nodes, folders) as operator:
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
            assert device.config() == b""
