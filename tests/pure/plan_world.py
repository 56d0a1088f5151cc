"""A small world for the plan: fake agents that obey by the real machine, a fake etcd with a write-once decision.

The promises I1 to I3 are checked whenever a device moves and when Commit is written.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from vfio_agent import machine
from vfio_agent.machine import DeviceFacts, SessionFacts
from vfio_api.device import P2P_QUIESCENT, RUNS, DeviceState, IllegalArcError, MigrationFlags, path
from vfio_api.errors import CommandError, Reason
from vfio_api.models_migration import Mode
from vfio_api.models_status import Phase
from vfio_api.types import Command, DeviceReport, Failure, Goal, MigrationKey, Outcome, Role, SessionReport
from vfio_operator import plan as planning
from vfio_operator.actions import (
    Action,
    AddFinalizer,
    Authorize,
    Claim,
    CreateSwitchover,
    Decide,
    Finish,
    PersistFailure,
    PersistPairs,
    PersistRehearsal,
    Plan,
    Send,
    Unclaim,
)
from vfio_operator.observed import DeviceRecord, Observed, Pair, Participant, Strategy, Switchover, Wish
from vfio_operator.plan import plan

S = DeviceState
KEY = MigrationKey("uid-1", "team", "move")
ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
MAX_ATTEMPTS = 6
MAX_TURNS = 2000

ONE_TO_ONE = (Pair("gpu0", "a", "g0", "c", "h0"), Pair("gpu1", "a", "g1", "c", "h1"))
TWO_TO_TWO = (Pair("gpu0", "a", "g0", "c", "h0"), Pair("gpu1", "b", "g1", "d", "h1"))
TWO_TO_ONE = (Pair("gpu0", "a", "g0", "c", "h0"), Pair("gpu1", "b", "g1", "c", "h1"))
ONE_TO_TWO = (Pair("gpu0", "a", "g0", "c", "h0"), Pair("gpu1", "a", "g1", "d", "h1"))
SHAPES = {"1-1": ONE_TO_ONE, "2-2": TWO_TO_TWO, "2-1": TWO_TO_ONE, "1-2": ONE_TO_TWO}


class BrokenPromiseError(AssertionError):
    """An invariant of the design does not hold in the state that was just entered."""


@dataclass
class FakeDevice:
    """One device, whoever drives it. loaded: a target with another incarnation's state in it."""

    name: str
    role: Role
    state: DeviceState = S.RUNNING
    open: bool = False
    loaded: bool = False
    sent: bool = False


@dataclass
class Etcd:
    """What survives every process."""

    finalizer: bool = False
    pairs: tuple[Pair, ...] = ()
    claims: set[str] = field(default_factory=set)
    switchover: Switchover = field(default_factory=Switchover)
    cancel: bool = False
    terminal: Finish | None = None
    rehearsed: bool = False
    failure: Failure | None = None

    def decide(self, outcome: Outcome) -> None:
        """Write-once, as the CEL rule has it."""
        assert self.switchover.exists, "a decision needs a VFIOSwitchover"
        if self.switchover.decision is None:
            self.switchover = Switchover(True, outcome)


@dataclass
class FakeSession:
    """A session as its agent has it; `facts` is what the journal has too."""

    facts: SessionFacts
    devices: dict[str, FakeDevice]
    pre_copy: bool = True
    reached: Goal | None = None
    failure: Failure | None = None
    job: Iterator[None] | None = None
    streams: bool = False

    def report(self) -> SessionReport:
        return SessionReport(
            KEY.uid,
            self.facts.role,
            self.facts.epoch,
            self.facts.sequence,
            self.reached,
            self.facts.backward,
            b"certificate",
            tuple(
                DeviceReport(d.name, d.name, d.state, ALL, initial_acknowledged=True, drained=True)
                for d in self.devices.values()
            ),
            self.failure,
        )


class FakeAgent:
    """Takes commands as `vfio_agent.agent` and `session` do; every decision is `vfio_agent.machine`'s."""

    def __init__(self, node: str, world: "World"):
        self.node, self._world = node, world
        self.sessions: dict[Role, FakeSession] = {}
        self.inbox: deque[Command] = deque()
        self.outbox: deque[SessionReport] = deque()
        self.highest_epoch = 0

    def busy(self) -> bool:
        return bool(self.inbox) or any(s.job is not None for s in self.sessions.values()) or self._votes()

    def advance(self) -> None:
        """One small thing: go on with a command, load a device, or take the next command."""
        for session in self.sessions.values():
            if session.job is not None:
                if next(session.job, "end") == "end":
                    session.job = None
                return
        if self._votes():
            self._load()
        elif self.inbox:
            self._take(self.inbox.popleft())

    def restart(self) -> None:
        """The process is killed; journal and keeper stay, commands and data streams do not."""
        self.inbox.clear()
        self.outbox.clear()
        for session in self.sessions.values():
            session.job, session.streams = None, False
            if session.facts.role is Role.TARGET and session.facts.loaded:
                session.reached = Goal.RUNNING if session.facts.started else Goal.LOADED
            else:
                session.reached = None
                session.failure = Failure(Reason.AGENT_RESTARTED, f"the agent of {self.node} restarted")

    def _take(self, command: Command) -> None:
        session = self.sessions.get(command.role)
        try:
            if command.epoch < self.highest_epoch:
                raise CommandError("older epoch", reason=Reason.STALE_EPOCH)
            if session is None:
                if command.goal is Goal.RELEASED:
                    self._say(SessionReport(KEY.uid, command.role, command.epoch, command.sequence, Goal.RELEASED))
                    return
                if command.goal is not Goal.PREPARED:
                    raise CommandError("no session here; Prepared comes first")
                facts = SessionFacts(command.role, command.epoch)
                session = self.sessions[command.role] = FakeSession(facts, {})
            machine.admit(session.facts, command)
        except CommandError as error:
            base = SessionReport(KEY.uid, command.role, command.epoch, command.sequence)
            failure = Failure(error.reason, error.message)
            self._say(replace(session.report() if session else base, failure=failure))
            return
        session.job = self._pursue(session, command)

    def _pursue(self, session: FakeSession, command: Command) -> Iterator[None]:
        session.facts = replace(
            session.facts,
            epoch=command.epoch,
            sequence=command.sequence,
            decision=session.facts.decision or command.decision,
            backward=session.facts.backward or command.goal in machine.ROLLBACK,
            switchover=session.facts.switchover or command.goal in (Goal.QUIESCED, Goal.STOP_COPY),
        )
        if session.failure is not None and command.goal in machine.SOURCE_FORWARD:
            self._say(session.report())
            return
        if command.goal in machine.ROLLBACK:
            session.failure = None
        yield
        failure = self._before(session, command)
        if failure is None:
            facts = tuple(DeviceFacts(d.name, d.state, ALL) for d in session.devices.values())
            for planned in machine.rounds(session.facts.role, command.goal, facts, pre_copy=session.pre_copy):
                for name, state in planned.moves:
                    failure = failure or self._move(session, session.devices[name], state)
                    yield
                if failure is not None:
                    break
        if failure is not None:
            session.failure = session.failure or failure
        else:
            self._after(session, command)
            session.reached = command.goal
        self._say(session.report())
        if session.reached is Goal.RELEASED:
            del self.sessions[command.role]

    def _before(self, session: FakeSession, command: Command) -> Failure | None:
        role, world = session.facts.role, self._world
        if command.goal is Goal.PREPARED:
            for device in world.on(self.node, role):
                if role is Role.SOURCE and not device.open:
                    return Failure(Reason.SOURCE_NOT_HELD, f"device {device.name} is not held", device.name)
                if role is Role.TARGET and device.loaded:
                    return Failure(Reason.TARGET_HAS_HOLDER, f"device {device.name} is in use", device.name)
                device.open = True
                session.devices[device.name] = device
        if command.goal is Goal.PRE_COPY:
            session.streams = True
        if role is Role.SOURCE and command.goal in machine.ROLLBACK:
            session.streams = False
            for device in session.devices.values():
                if device.state is S.ERROR:
                    return Failure(Reason.SOURCE_STATE_LOST, f"device {device.name} is in ERROR", device.name)
        if command.goal is Goal.RELEASED and role is Role.SOURCE and session.facts.decision is not Outcome.COMMIT:
            for device in session.devices.values():
                if device.state is not S.RUNNING:
                    return Failure(Reason.ARC_FAILED, f"device {device.name} is not RUNNING", device.name)
        if command.goal is Goal.RELEASED and role is Role.TARGET and not session.facts.started:
            for device in session.devices.values():
                world.blank(device)
        return None

    def _after(self, session: FakeSession, command: Command) -> None:
        role = session.facts.role
        if command.goal is Goal.STOP_COPY:
            for device in session.devices.values():
                device.sent = True
        if role is Role.TARGET and command.goal is Goal.RUNNING:
            session.facts = replace(session.facts, started=True)
        if role is Role.SOURCE and command.goal is Goal.RELEASED and session.facts.decision is Outcome.COMMIT:
            for device in session.devices.values():
                self._world.close(device)

    def _move(self, session: FakeSession, device: FakeDevice, state: DeviceState) -> Failure | None:
        failed = self._world.fault(device, state)
        if failed is not None:
            return failed
        try:
            arcs = path(device.state, state, ALL)
        except IllegalArcError as error:  # the kernel's EINVAL
            return Failure(Reason.ARC_FAILED, str(error), device.name, f"{device.state.name} -> {state.name}", 22)
        for arc in arcs:
            self._world.enter(device, arc)
        return None

    def _loadable(self, session: FakeSession) -> list[FakeDevice]:
        peers = {d.name: d for d in self._world.devices if d.role is Role.SOURCE}
        return [d for d in session.devices.values() if d.state is S.RESUMING and peers[d.name].sent]

    def _votes(self) -> bool:
        session = self.sessions.get(Role.TARGET)
        if session is None or session.failure is not None or session.reached is not Goal.PREPARED:
            return False
        return bool(self._loadable(session))

    def _load(self) -> None:
        session = self.sessions[Role.TARGET]
        device = self._loadable(session)[0]
        failure = self._move(session, device, S.STOP)
        if failure is not None:
            session.failure = replace(failure, reason=Reason.STATE_REFUSED)
            self._say(session.report())
            return
        device.loaded = True
        if all(d.loaded for d in session.devices.values()):
            session.facts = replace(session.facts, loaded=True)
            session.reached = Goal.LOADED
        self._say(session.report())

    def _say(self, report: SessionReport) -> None:
        if self.node in self._world.leader.streams:
            self.outbox.append(report)


@dataclass
class Leader:
    """What dies with a leader. Says things as `vfio_operator.execute` does."""

    epoch: int = 1
    sequence: int = 0
    failure: Failure | None = None
    exhausted: bool = False
    authorized: tuple[Pair, ...] | None = None
    streams: dict[str, int] = field(default_factory=dict)
    reports: dict[tuple[str, Role], SessionReport] = field(default_factory=dict)
    sent: dict[tuple[str, Role], tuple[Goal, Outcome | None, int, tuple[int, int], int]] = field(default_factory=dict)


class World:
    """Everything together. Invariants are checked in `enter`, `blank`, `close` and when Commit is written."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        faults: Iterable[int] = (),
        *,
        to_error: bool = False,
        mode: Mode = Mode.MIGRATE,
    ):
        self.mode = mode
        self.pairs, self.etcd, self.leader = tuple(pairs), Etcd(), Leader()
        self.devices = [FakeDevice(p.name, role, open=role is Role.SOURCE) for p in pairs for role in Role]
        self._place = {(p.name, Role.SOURCE): p.source_node for p in pairs} | {
            (p.name, Role.TARGET): p.target_node for p in pairs
        }
        self.agents = {node: FakeAgent(node, self) for node in sorted(set(self._place.values()))}
        self.steps: list[str] = []
        self.seen: dict[Role, set[DeviceState]] = {role: set() for role in Role}
        self.moves, self._faults, self._to_error = 0, set(faults), to_error
        self.broke: Callable[[FakeDevice], None] = lambda _device: None
        self._due = True  # something that the leader has not seen yet
        self._streams = itertools.count(1)
        self._inventory = {
            (node, address): DeviceRecord(
                f"{node}-{address}", node, address, "sim", "sim:1", ALL, True, "workload" if source else ""
            )
            for p in pairs
            for node, address, source in (
                (p.source_node, p.source_device, True),
                (p.target_node, p.target_device, False),
            )
        }
        for node in self.agents:
            self.connect(node)

    # -- devices

    def on(self, node: str, role: Role) -> list[FakeDevice]:
        return [d for d in self.devices if d.role is role and self._place[d.name, role] == node]

    def side(self, role: Role) -> list[FakeDevice]:
        return [d for d in self.devices if d.role is role]

    def fault(self, device: FakeDevice, state: DeviceState) -> Failure | None:
        self.moves += 1
        if self.moves not in self._faults:
            return None
        arc = f"{device.state.name} -> {state.name}"
        if self._to_error:
            device.state = S.ERROR
            self.broke(device)
        return Failure(Reason.ARC_FAILED, f"device {device.name}: arc {arc} failed", device.name, arc, 5)

    def enter(self, device: FakeDevice, state: DeviceState) -> None:
        """A device takes one arc; the promises must hold before and after."""
        before, device.state = device.state, state
        self.seen[device.role].add(state)
        others = [d for d in self.side(device.role) if d is not device]
        what = f"{device.role} {device.name}: {before.name} -> {state.name}"
        if state is S.STOP_COPY and not all(d.state in P2P_QUIESCENT for d in others):
            raise BrokenPromiseError(f"I3: {what} while {others} are not quiescent")
        # a blank target may run as it likes; it carries nothing
        counts = device.role is Role.SOURCE or device.loaded
        if counts and state is S.RUNNING and before in P2P_QUIESCENT:
            late = [d for d in others if d.state in P2P_QUIESCENT and d.state is not S.RUNNING_P2P]
            if late:
                raise BrokenPromiseError(f"I3: {what} while {late} are not in RUNNING_P2P")
        decision = self.etcd.switchover.decision
        if device.role is Role.TARGET and device.loaded and state in RUNS and decision is not Outcome.COMMIT:
            raise BrokenPromiseError(f"I1: {what}: loaded, and the decision is {decision}")
        if device.role is Role.SOURCE and state in RUNS and decision is Outcome.COMMIT:
            raise BrokenPromiseError(f"I1: {what} after Commit")

    def blank(self, device: FakeDevice) -> None:
        if device.loaded and self.etcd.switchover.decision is not Outcome.ABORT:
            raise BrokenPromiseError(f"I2: target {device.name} is reset without Abort, it has voted")
        device.state, device.loaded, device.open = S.RUNNING, False, False

    def close(self, device: FakeDevice) -> None:
        if not all(d.loaded and d.state is S.RUNNING for d in self.side(Role.TARGET)):
            raise BrokenPromiseError(f"I2: source {device.name} is closed before every target runs")
        device.open = False

    # -- connections

    def connect(self, node: str) -> None:
        """The agent dials the leader: Hello with its live sessions, Welcome with the epoch."""
        agent, self._due = self.agents[node], True
        agent.inbox.clear()
        agent.outbox.clear()
        self.leader.streams[node] = next(self._streams)
        agent.highest_epoch = max(agent.highest_epoch, self.leader.epoch)
        for role, session in agent.sessions.items():
            self.leader.reports[node, role] = session.report()

    def disconnect(self, node: str) -> None:
        self.leader.streams.pop(node, None)
        self._due = True
        self.agents[node].inbox.clear()
        self.agents[node].outbox.clear()

    def elect(self, connected: Iterable[str] | None = None) -> None:
        """Another leader: knows what is stored, and what agents that have dialled it say."""
        for node in list(self.leader.streams):
            self.disconnect(node)
        self.leader = Leader(epoch=self.leader.epoch + 1, failure=self.etcd.failure)
        for node in self.agents if connected is None else connected:
            self.connect(node)

    def restart_agent(self, node: str) -> None:
        self.disconnect(node)
        self.agents[node].restart()
        self.connect(node)

    # -- the leader

    def observe(self) -> Observed:
        leader, etcd = self.leader, self.etcd
        nodes = frozenset(self.agents)
        places = {(node, role) for (_, role), node in self._place.items()} if etcd.pairs else set()
        return Observed(
            key=KEY,
            wish=Wish(self.pairs, Strategy(), cancel=etcd.cancel, mode=self.mode),
            nodes=nodes,
            connected=frozenset(leader.streams),
            inventory=self._inventory,
            has_finalizer=etcd.finalizer,
            pairs=etcd.pairs,
            claims=frozenset(etcd.claims),
            participants=tuple(
                Participant(
                    node,
                    role,
                    connected=node in leader.streams,
                    commanded=self._delivered(leader, node, role),
                    report=leader.reports.get((node, role)),
                )
                for node, role in sorted(places)
            ),
            switchover=etcd.switchover,
            failure=leader.failure,
            recorded=etcd.failure,
            exhausted=leader.exhausted,
            settled=len(leader.streams) == len(self.agents),
            inherited=leader.epoch > 1 and bool(etcd.pairs),
            authorized=leader.authorized,
            rehearsed=etcd.rehearsed,
        )

    @staticmethod
    def _delivered(leader: Leader, node: str, role: Role) -> bool:
        sent = leader.sent.get((node, role))
        return sent is not None and (node not in leader.streams or sent[2] == leader.streams[node])

    def cancel(self) -> None:
        self.etcd.cancel = self._due = True

    def expire(self) -> None:
        """The leader's deadline for a step has passed."""
        self.leader.failure, self._due = Failure(Reason.STEP_TIMEOUT, "too long"), True

    def turn(self) -> bool:
        """One plan and its actions; True if anything was done."""
        if not self._due:
            return False
        self._due = self._plan_and_act()
        return self._due

    def _plan_and_act(self) -> bool:
        observed = self.observe()
        if self.leader.failure is None and planning.rolls_back(observed):
            self.leader.failure = planning.first_failure(observed)  # what sets out the way back is remembered
            observed = replace(observed, failure=self.leader.failure)
        planned = plan(observed)
        if not self.steps or self.steps[-1] != planned.step:
            self.steps.append(planned.step)
        done = [self._act(observed, planned, action) for action in planned.actions]
        return any(done)

    def _act(self, observed: Observed, planned: Plan, action: Action) -> bool:
        etcd = self.etcd
        match action:
            case AddFinalizer():
                etcd.finalizer = True
            case Authorize():
                self.leader.authorized = action.pairs
            case PersistPairs():
                etcd.pairs = action.pairs
            case PersistRehearsal():
                etcd.rehearsed = True
            case PersistFailure():
                etcd.failure = action.failure
            case Claim():
                etcd.claims = {f"{node}-{address}" for node, address in action.devices}
            case CreateSwitchover():
                etcd.switchover = replace(etcd.switchover, exists=True)
            case Decide():
                if action.outcome is Outcome.COMMIT:
                    self._check_votes()
                etcd.decide(action.outcome)
            case Unclaim():
                etcd.claims = set()
            case Finish():
                etcd.terminal = action
            case Send():
                return self._send(action)
        return True

    def _check_votes(self) -> None:
        for device in self.side(Role.TARGET):
            if not device.loaded or device.state is not S.STOP:
                raise BrokenPromiseError(f"I1: Commit is written, but target {device.name} has not voted")

    def _send(self, action: Send) -> bool:
        leader, identity = self.leader, (action.node, action.role)
        stream = leader.streams.get(action.node)
        if stream is None:
            return False
        attempts, last = 1, leader.sent.get(identity)
        if last is not None and last[:3] == (action.goal, action.decision, stream):
            report = leader.reports.get(identity)
            if report is None or report.failure is None or (report.epoch, report.sequence) < last[3]:
                return False
            attempts = last[4] + 1
            if attempts > MAX_ATTEMPTS:
                leader.exhausted = True
                return True
        leader.sequence += 1
        number = (leader.epoch, leader.sequence)
        leader.sent[identity] = (action.goal, action.decision, stream, number, attempts)
        self.agents[action.node].inbox.append(
            Command(KEY, action.role, action.goal, leader.epoch, leader.sequence, 1000, action.decision)
        )
        return True

    # -- running

    def happenings(self) -> list[Callable[[], object]]:
        """What can happen now besides the leader's turn."""
        can: list[Callable[[], object]] = []
        for node, agent in self.agents.items():
            if agent.busy():
                can.append(agent.advance)
            if agent.outbox:
                can.append(partial(self._deliver, agent, node))
        return can

    def _deliver(self, agent: FakeAgent, node: str) -> None:
        report = agent.outbox.popleft()
        self.leader.reports[node, report.role] = report
        self._due = True

    def run(
        self, interrupt: Callable[[int], None] = lambda _tick: None, choices: Iterable[int] = (), patience: int = 0
    ) -> Finish:
        """Until the terminal status is written; `interrupt` is called before every happening with its number.

        choices: what happens first, as numbers; when they are used up, the leader is always asked first. Before the
        tick `patience` it is no failure that nothing happens.
        """
        tape = iter(choices)
        for tick in range(MAX_TURNS):
            interrupt(tick)
            can = self.happenings()
            pick = next(tape, None)
            if pick is not None:
                choice = pick % (len(can) + 1)
                if choice == len(can):
                    self.turn()
                else:
                    can[choice]()
            elif not (self.turn() or can or tick < patience):
                raise AssertionError(f"I4: stuck at {self.steps[-1]}: {self.observe()}")
            elif can and self.etcd.terminal is None:
                can[0]()
            if self.etcd.terminal is not None:
                return self.etcd.terminal
        raise AssertionError(f"I4: no end in {MAX_TURNS} ticks, at {self.steps[-3:]}")

    def check_end(self) -> Phase:
        """The workload runs on exactly one side, and nothing is left behind; returns the terminal phase."""
        finish = self.etcd.terminal
        assert finish is not None
        sources, targets = self.side(Role.SOURCE), self.side(Role.TARGET)
        if finish.phase is Phase.SUCCEEDED and self.mode is Mode.MIGRATE:
            assert self.etcd.switchover.decision is Outcome.COMMIT
            assert all(d.loaded and d.state is S.RUNNING for d in targets), targets
            assert not any(d.open for d in sources), sources
        else:
            assert self.etcd.switchover.decision is not Outcome.COMMIT, finish
            assert all(d.open and d.state is S.RUNNING for d in sources), (finish, sources)
            assert not any(d.open or d.loaded for d in targets), (finish, targets)
        assert not self.etcd.claims
        assert not any(agent.sessions for agent in self.agents.values())
        return finish.phase


def good_run(pairs: Sequence[Pair]) -> tuple[list[str], int]:
    """The steps of a run where nothing happens, and its length in ticks."""
    world, ticks = World(pairs), 0

    def count(tick: int) -> None:
        nonlocal ticks
        ticks = tick

    world.run(count)
    assert world.check_end() is Phase.SUCCEEDED
    return world.steps, ticks


LENGTHS = {shape: good_run(pairs)[1] for shape, pairs in SHAPES.items()}
every_shape = pytest.mark.parametrize("shape", ["1-1", "2-2"])


def sweep(
    shape: str,
    try_at: Callable[[World, int], None],
    moments: Iterable[int] | None = None,
    mode: Mode = Mode.MIGRATE,
) -> dict[int, str]:
    """Moments of the good run at which `try_at` fails, each with what it said."""
    failed = {}
    for moment in range(LENGTHS[shape] + 1) if moments is None else moments:
        try:
            try_at(World(SHAPES[shape], mode=mode), moment)
        except AssertionError as error:
            failed[moment] = f"{type(error).__name__} {error}".partition("\n")[0][:300]
    return failed


def at(moment: int, happens: Callable[[], object]) -> Callable[[int], None]:
    def interrupt(tick: int) -> None:
        if tick == moment:
            happens()

    return interrupt
