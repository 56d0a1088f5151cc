"""Both ends of the control channel, in process: an operator that hears any agent, an agent that hears any operator."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from devtools.fuzz.base import Feed, insist
from devtools.fuzz.devices import Memory
from devtools.fuzz.mutate import LARGE, change_message
from devtools.fuzz.pods import FrozenPod, forget_frozen
from devtools.fuzz.samples import FROZEN, UIDS, WORDS, command, hello, report
from devtools.fuzz.sockets import end_keeper, serve_keeper
from devtools.stack import AGENT_NAMESPACE
from vfio_agent.agent import Agent
from vfio_agent.holdings import Holdings
from vfio_agent.journal import Journal
from vfio_agent.keeper import KeeperClient
from vfio_agent.link import Link
from vfio_agent.link import hello as own_hello
from vfio_agent.metrics import AgentMetrics
from vfio_agent.pods import Pods
from vfio_agent.receiver import DataServer
from vfio_agent.session import Session
from vfio_agent.surroundings import Surroundings
from vfio_api import wire
from vfio_api.device import RUNS, DeviceState
from vfio_api.errors import CommandError, Reason
from vfio_api.names import AGENT_SERVICE_ACCOUNT
from vfio_api.types import AgentHello, Command, Goal, MigrationKey, Outcome, Role, SessionReport
from vfio_api.v1 import agent_pb2 as pb
from vfio_operator.agent_stream import QUEUED_COMMANDS
from vfio_operator.channel import MAX_LEAP, AgentLink, Agents
from vfio_operator.history import History
from vfio_operator.kube import Caller
from vfio_operator.metrics import OperatorMetrics

ADDRESSES = ("127.0.0.1:1", "", "nonsense", "127.0.0.1:99999999", "[::1]:1", "127.0.0.1:-1")
PATIENCE = 30.0
_STOPS = (DeviceState.PRE_COPY_P2P, DeviceState.RUNNING_P2P, DeviceState.STOP_COPY)
_NEXT: dict[Role, dict[Goal | None, tuple[Goal, ...]]] = {
    Role.SOURCE: {
        None: (Goal.PREPARED,),
        Goal.PREPARED: (Goal.PRE_COPY, Goal.QUIESCED),
        Goal.PRE_COPY: (Goal.QUIESCED, Goal.STOP_COPY),
        Goal.QUIESCED: (Goal.STOP_COPY,),
        Goal.STOP_COPY: (Goal.RELEASED, Goal.RUNNING_P2P),
        Goal.RUNNING_P2P: (Goal.RUNNING,),
        Goal.RUNNING: (Goal.RELEASED,),
    },
    Role.TARGET: {
        None: (Goal.PREPARED,),
        Goal.PREPARED: (Goal.PREPARED, Goal.RUNNING_P2P),
        Goal.LOADED: (Goal.RUNNING_P2P, Goal.RUNNING),
        Goal.RUNNING_P2P: (Goal.RUNNING,),
        Goal.RUNNING: (Goal.RELEASED,),
    },
}


class RefusedError(Exception):
    """The operator has ended a call, as gRPC does it."""


class _Context:
    """One call, as gRPC hands it to the service."""

    def __init__(self, node: str):
        self.node, self.sent = node, 0

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.node}"),)

    async def abort(self, code: grpc.StatusCode, why: str) -> None:
        raise RefusedError(f"{code.name}: {why}")

    async def write(self, message: pb.OperatorMessage) -> None:
        message.SerializeToString()
        self.sent += 1


class _Api:
    """The API server: every token is a node's name."""

    async def review_token(self, token: str) -> Caller:
        return Caller(f"system:serviceaccount:{AGENT_NAMESPACE}:{AGENT_SERVICE_ACCOUNT}", token, "pod")


class _Leadership:
    """The Lease."""

    leading, epoch = True, 5

    async def raise_epoch(self, above: int) -> None:
        self.epoch = max(above, self.epoch) + 1


class OperatorWorld:
    """An operator, an agent that is as it should be, and one that is not."""

    def __init__(self) -> None:
        metrics, self.leadership = OperatorMetrics("fuzz"), _Leadership()
        self.agents = Agents(lambda _uid: None, metrics, History())
        api: Any = _Api()
        lease: Any = self.leadership
        self.link = AgentLink(
            self.agents,
            api,
            lease,
            metrics,
            agent_namespace=AGENT_NAMESPACE,
            heartbeat_seconds=60.0,
            dead_seconds=120.0,
            review_seconds=60.0,
        )
        self.steady = SessionReport("uid-1", Role.SOURCE, 1, 1, Goal.PREPARED)
        self.stream = self.agents.add("steady", "pod", AgentHello(1, "1", "boot", "i", "", 0, (self.steady,)))

    async def feed(self, rng: random.Random) -> int:
        """One connection of the mad agent, from its Hello to its end; its messages are the inputs."""
        said, ended = self._messages(rng), asyncio.Event()
        epoch = self.leadership.epoch

        async def requests() -> AsyncIterator[pb.AgentMessage]:
            for message in said:
                yield message
                self._command(rng)
            ended.set()

        context: Any = _Context("mad")
        async with asyncio.timeout(PATIENCE):
            with suppress(RefusedError):
                await self.link.Connect(requests(), context)
        insist(self.leadership.epoch <= epoch + MAX_LEAP + 1, "one agent has used epochs up for all")
        self._look()
        if self.leadership.epoch > 1 << 40:
            self.leadership.epoch = 5
        return len(said)

    def _messages(self, rng: random.Random) -> list[pb.AgentMessage]:
        first = hello(rng)
        first.protocol = rng.choice((first.protocol,) * 9 + (0, 99))
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            change_message(rng, first, WORDS)
        said = [pb.AgentMessage(hello=first)]
        for _ in range(rng.randrange(20)):
            told = report(rng)
            if rng.random() < 0.3:
                told.migration_uid = f"made-up-{rng.randrange(1 << 30)}"
            for _ in range(rng.choice((0, 0, 0, 0, 1))):
                change_message(rng, told, WORDS)
            said.append(pb.AgentMessage(report=told) if rng.random() < 0.9 else pb.AgentMessage(pong=rng.choice(LARGE)))
        if rng.random() < 0.05:
            rng.shuffle(said)
        return said

    def _command(self, rng: random.Random) -> None:
        if rng.random() < 0.2:
            sequence = self.agents.highest_sequence("uid-1", ["mad"]) + 1
            told = Command(MigrationKey("uid-1", "team", "move"), Role.SOURCE, Goal.RUNNING, 5, sequence, 1000)
            wire.command_to_wire(told)
            self.agents.send("mad", told)
        self.agents.ping(["mad"])

    def _look(self) -> None:
        agents = self.agents
        insist(agents.connected == {"steady"}, f"connected: {agents.connected}")
        insist(agents.stream("steady") is self.stream, "another agent's stream was ended")
        insist(agents.report("steady", "uid-1", Role.SOURCE) is self.steady, "another agent's report was changed")
        insist({key[0] for key in agents._reports} <= {"steady", "mad"}, "a report in another's name")
        insist(len(agents._reports) <= 2 * wire.MAX_SESSIONS + 1, f"{len(agents._reports)} reports are kept")
        insist(self.stream.commands.qsize() <= QUEUED_COMMANDS, "commands pile up")
        wire.command_to_wire(
            Command(
                MigrationKey("u", "t", "m"),
                Role.SOURCE,
                Goal.RUNNING,
                5,
                agents.highest_sequence("uid-1", ["mad"]) + 1,
                1,
            )
        )


@asynccontextmanager
async def operator(_scratch: Path) -> AsyncIterator[Feed]:
    """An operator that hears any agent."""
    yield OperatorWorld().feed


class _Call:
    """A stream to the operator, which says what it was given."""

    def __init__(self, messages: list[pb.OperatorMessage]):
        self._messages = iter(messages)

    async def read(self) -> Any:
        await asyncio.sleep(0)
        return next(self._messages, grpc.aio.EOF)

    async def write(self, message: pb.AgentMessage) -> None:
        message.SerializeToString()


class AgentWorld:
    """One agent with real sessions, on devices that tell what is done to them."""

    def __init__(self, scratch: Path, server: DataServer, arcs: ThreadPoolExecutor):
        self.broken: list[str] = []
        self._server, self._sequence = server, 0
        metrics, self.backend = AgentMetrics("fuzz"), Memory(4, self._moved)
        self.pod = FrozenPod(scratch / "host", FROZEN.pod_uid)
        self._holdings = Holdings({"memory": self.backend}, KeeperClient(scratch / "keeper.sock"), "boot-1")
        journal = Journal(scratch / "state", scratch / "run", "boot-1")
        around = Surroundings(
            self._holdings, journal, server, arcs, metrics, lambda _session: None, Pods(self.pod.folders)
        )
        self.agent = Agent(around, 0)
        nobody: Any = None
        self.link = Link(self.agent, nobody, own_hello("1", "boot-1", "i", "127.0.0.1:1"), scratch, metrics)

    def _moved(self, address: str, state: DeviceState) -> None:
        """Every arc that a session has a device make, in its thread: what the design promises of it."""
        source = self._pauses()
        held = [s for s in self.agent.sessions() if any(d.address == address for d in s.held_devices())]
        stops = state in _STOPS and source is not None and held == [source] and not source.facts.backward
        if stops and not self.pod.frozen:
            self.broken.append(f"{address} of a source goes to {state.name} and its pod is not frozen")
        for session in self.agent.sessions():
            if state in RUNS and any(d.address == address for d in session.held_devices()):
                facts = session.facts
                if facts.role is Role.TARGET and not (facts.decision is Outcome.COMMIT and facts.loaded):
                    self.broken.append(f"{address} of a target goes to {state.name}: {facts}")
                back = facts.role is Role.SOURCE and facts.switchover and facts.backward
                if back and facts.decision is not Outcome.ABORT:
                    self.broken.append(f"{address} of a source goes back to {state.name}: {facts}")

    def _pauses(self) -> Session | None:
        """The source session whose pod it is that can be frozen, if it is of no other session."""
        concerned = [s for s in self.agent.sessions() if FROZEN in s.spec.workloads]
        return concerned[0] if len(concerned) == 1 and concerned[0].facts.role is Role.SOURCE else None

    async def feed(self, rng: random.Random) -> int:
        """One connection of a mad operator; its messages are the inputs."""
        for n in range(2):
            if rng.random() < 0.5 and self._holdings.get(f"mem{n}") is None:
                self._holdings.open(f"mem{n}", "workload")
        said = self._messages(rng)
        call: Any = _Call(said)
        with suppress(ValueError, CommandError, ConnectionError):  # the stream ends, and the agent dials again
            await self.link._receive(call, "nowhere")
        await self._settle()
        await self._reports()
        insist(not self.broken, "; ".join(self.broken))
        source = self._pauses()
        if source is not None and source.reached in (Goal.QUIESCED, Goal.STOP_COPY) and not source.facts.backward:
            insist(self.pod.frozen, f"devices have stopped and their pod is not frozen: {source.facts}")
        insist(len(self.agent.sessions()) <= wire.MAX_SESSIONS, "too many sessions")
        insist(len(self.agent._sent) <= 2 * wire.MAX_SESSIONS, f"{len(self.agent._sent)} sessions are remembered")
        if rng.random() < 0.05:
            await self._clear()
        return len(said)

    def _messages(self, rng: random.Random) -> list[pb.OperatorMessage]:
        said = []
        for _ in range(rng.randrange(1, 12)):
            kind = rng.randrange(20)
            if kind == 0:
                said.append(pb.OperatorMessage(ping=rng.choice(LARGE)))
            elif kind == 1:
                said.append(pb.OperatorMessage(welcome=pb.Welcome(epoch=rng.randrange(6), node=rng.choice(WORDS))))
            else:
                told = command(rng)
                if rng.random() < 0.8:
                    self._fit(rng, told)
                for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, 2))):
                    change_message(rng, told, WORDS)
                if rng.random() < 0.05:
                    told.migration.uid = f"made-up-{rng.randrange(1 << 30)}"
                told.migration.name = told.migration.uid  # a name is of one migration at a time
                if told.migration.uid != UIDS[0]:  # and so is a pod
                    forget_frozen(told)
                for workload in told.spec.workloads:  # and who is asked by HTTP
                    if workload.HasField("hook") and workload.hook.address.count(".") == 3:
                        workload.hook.address, workload.hook.port = "127.0.0.1", 1
                        workload.hook.retries = min(workload.hook.retries, 1)
                    elif workload.HasField("hook"):
                        workload.hook.address = "nowhere"
                for peer in told.peers:  # what an operator names is dialled: nowhere but here
                    if peer.data_address != self._address():
                        peer.data_address = rng.choice(ADDRESSES)
                told.deadline_milliseconds = min(told.deadline_milliseconds, 2000)
                if told.epoch > 6:
                    told.epoch = rng.randrange(1, 6)
                said.append(pb.OperatorMessage(command=told))
        return said

    def _address(self) -> str:
        return f"127.0.0.1:{self._server.port}"

    def _fit(self, rng: random.Random, told: pb.Command) -> None:
        """What a leader that knows how things stand could say: both sides of one migration are here."""
        self._sequence += 1
        told.migration.uid, told.epoch = UIDS[0], max(1, self.agent.highest_epoch)
        told.sequence, told.deadline_milliseconds = self._sequence, 1000
        role = Role(told.role)
        sessions = {session.facts.role: session for session in self.agent.sessions() if session.key.uid == UIDS[0]}
        mine, other = sessions.get(role), sessions.get(Role.SOURCE if role is Role.TARGET else Role.TARGET)
        if rng.random() < 0.6:  # where it would go from here
            told.goal = rng.choice(_NEXT[role].get(mine.reached if mine else None, tuple(Goal)))
        told.ClearField("spec")
        if told.goal == Goal.PREPARED:
            first = 0 if role is Role.SOURCE else 2
            for n in range(2):
                told.spec.devices.add(name=f"gpu{n}", address=f"mem{first + n}", peer_node="other")
            told.spec.pre_copy = rng.random() < 0.9
            if role is Role.SOURCE and rng.random() < 0.5:
                told.spec.workloads.add(
                    pod_uid=FROZEN.pod_uid,
                    pod_namespace=FROZEN.pod_namespace,
                    pod_name=FROZEN.pod_name,
                    method=FROZEN.method,
                    timeout_milliseconds=FROZEN.timeout_milliseconds,
                )
        del told.peers[:]
        if other is not None:
            told.peers.add(node="other", data_address=self._address(), certificate=other.identity.certificate)

    async def _settle(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.agent._tasks:
                await asyncio.wait(self.agent._tasks)

    async def _reports(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.agent._wake.is_set():
                self.agent._press.set()  # nobody waits for more to tell
                for told in await self.agent.next_reports():
                    wire.report_from_wire(wire.report_to_wire(told))
                    failure = told.failure
                    insist(failure is None or failure.reason is not Reason.INTERNAL_ERROR, str(failure))

    async def _clear(self) -> None:
        """Begin anew: sessions that hold for a decision would else be all that there is."""
        for session in self.agent.sessions():
            await self._end(session)
        self.agent.highest_epoch = self._sequence = 0
        self.pod.thaw()
        for address in list(self._holdings.all()):
            await asyncio.to_thread(self._holdings.release, address)

    async def _end(self, session: Session) -> None:
        stop: Callable[[], Awaitable[None]] | None = getattr(session.side, "stop_streams", None)
        if stop is not None:
            await stop()
        session.end()
        del self.agent._sessions[session.key.uid, session.facts.role]

    async def close(self) -> None:
        """Nothing is left."""
        await self._clear()


@asynccontextmanager
async def agent(scratch: Path) -> AsyncIterator[Feed]:
    """An agent that hears any operator."""
    listener, thread = serve_keeper(scratch / "keeper.sock")
    server, errors = DataServer("127.0.0.1", 0), list[str]()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: errors.append(str(context)))
    try:
        with ThreadPoolExecutor(4) as arcs:
            world = AgentWorld(scratch, server, arcs)

            async def feed(rng: random.Random) -> int:
                count = await world.feed(rng)
                found, errors[:] = list(errors), []
                insist(not found, "; ".join(found))
                return count

            try:
                yield feed
            finally:
                await world.close()
    finally:
        loop.set_exception_handler(None)
        server.close()
        end_keeper(listener, thread)
