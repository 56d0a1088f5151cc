"""The control channel: a gRPC server that agents dial, and what each of them last said.

Who an agent is comes from its token alone (`callers`), never from what it says. One agent instance per node: a second
one is refused while the first one's stream lives.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import replace

import grpc
import structlog

from vfio_api import PROTOCOL_VERSION, wire
from vfio_api.addresses import everywhere, joined
from vfio_api.errors import Reason
from vfio_api.types import AgentHello, Command, Goal, Role, SessionReport
from vfio_api.v1 import agent_pb2 as pb
from vfio_api.v1 import agent_pb2_grpc
from vfio_operator.agent_stream import AgentStream, Look, Ping
from vfio_operator.callers import MAX_TOKEN, Callers, RefusedError
from vfio_operator.history import History
from vfio_operator.kube import Caller, OperatorApi
from vfio_operator.leader import Leadership, LeadershipLostError
from vfio_operator.metrics import OperatorMetrics

log = structlog.get_logger()
_Context = grpc.aio.ServicerContext[pb.AgentMessage, pb.OperatorMessage]
HELLO_SECONDS = 10.0
MAX_LEAP = 1 << 20  # elections that an agent may know and the Lease not, as after a restore: epochs must not run out
MAX_SEQUENCE = 2**40  # no migration has so many commands: an agent that says so has made it up
PING_SECONDS = 1.0  # at most so often, while a migration wants to know
# Who is idle is pinged at one of so many heartbeats: two hundred agents took more than a hundredth of a core otherwise.
# An agent gives up a leader that says nothing for six (vfio_agent.settings.silence_seconds).
IDLE_HEARTBEATS = 4
# An agent asks by HTTP/2 whether its connection lives, and gRPC takes any byte as an answer to its own question: with
# the longer time the operator has to ask none, and notices all the same a connection from which nothing comes.
SERVER_OPTIONS = [
    ("grpc.keepalive_time_ms", 18_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 2_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 16),
]


class Agents:
    """What is known of every agent. `woken(uid)` is called when something about a migration changed (uid "" for all).

    Reports of an agent that is not connected are kept: they are the last that is known.
    """

    def __init__(self, woken: Callable[[str], None], metrics: OperatorMetrics, history: History):
        self._woken, self._metrics, self._history = woken, metrics, history
        self._streams: dict[str, AgentStream] = {}
        self._reports: dict[tuple[str, str, Role], SessionReport] = {}
        self._number = 0
        self._left: dict[str, float] = {}  # nodes whose agent has left, and loop time when

    @property
    def connected(self) -> frozenset[str]:
        """Nodes with a live stream."""
        return frozenset(self._streams)

    def leaving(self, successor_seconds: float) -> frozenset[str]:
        """Nodes whose agent is to end, or has ended not longer ago and no other has come: nothing is to begin there."""
        moment = asyncio.get_running_loop().time()
        self._left = {node: at for node, at in self._left.items() if moment - at < successor_seconds}
        return frozenset(node for node, stream in self._streams.items() if stream.leaving) | self._left.keys()

    def leaves(self, stream: AgentStream) -> None:
        """The agent has said that it is to end."""
        log.info("agent is to end", node=stream.node, pod=stream.pod)
        stream.leaving = True
        self._woken("")

    def stream(self, node: str) -> AgentStream | None:
        """The live stream of a node's agent."""
        return self._streams.get(node)

    def report(self, node: str, uid: str, role: Role) -> SessionReport | None:
        """The last report of a session."""
        return self._reports.get((node, uid, role))

    def highest_sequence(self, uid: str, nodes: Collection[str]) -> int:
        """The highest sequence number that the agents of these nodes have seen for a migration."""
        reports = self._reports.items()
        said = (r.sequence for (node, of, _), r in reports if of == uid and node in nodes)
        return max((sequence for sequence in said if sequence <= MAX_SEQUENCE), default=0)

    def orphans(self, active: Callable[[str], bool]) -> list[tuple[str, SessionReport]]:
        """(node, session) of connected agents for migrations that have no task and are not released."""
        return [
            (node, report)
            for (node, uid, _), report in self._reports.items()
            if node in self._streams and report.reached is not Goal.RELEASED and not active(uid)
        ]

    def has_session(self, uid: str) -> bool:
        """Whether a connected agent has a session of a migration that is not released."""
        return any(
            of == uid and node in self._streams and report.reached is not Goal.RELEASED
            for (node, of, _), report in self._reports.items()
        )

    def forget(self, uid: str) -> None:
        """A migration has ended: drop the reports of its released sessions; one that lives on is still to be ended."""
        self._reports = {
            key: report for key, report in self._reports.items() if key[1] != uid or report.reached is not Goal.RELEASED
        }

    def check(self, node: str, pod: str, hello: AgentHello) -> None:
        """Raise PermissionError if another instance serves the node."""
        old = self._streams.get(node)
        if old is not None and old.hello.instance != hello.instance:
            raise PermissionError(
                f"node {node} is served by agent pod {old.pod or '?'} (instance {old.hello.instance[:8]}) already; "
                f"pod {pod or '?'} (instance {hello.instance[:8]}) is refused: one agent per node"
            )

    def add(self, node: str, pod: str, hello: AgentHello) -> AgentStream:
        """A new stream; it replaces an older one of the same instance. Raises PermissionError for another instance."""
        self.check(node, pod, hello)
        if (old := self._streams.get(node)) is not None:
            old.cancel()
        self._left.pop(node, None)
        self._number += 1
        stream = self._streams[node] = AgentStream(node, pod, hello, self._number)
        there = {(node, report.migration_uid, report.role): report for report in hello.sessions}
        # a session that the agent no longer knows is gone, unless its end was reported
        ended = [k for k, r in self._reports.items() if k[0] == node and k not in there and r.reached is Goal.RELEASED]
        kept = set(ended[max(0, len(there) + len(ended) - wire.MAX_SESSIONS) :])
        others = {key: report for key, report in self._reports.items() if key[0] != node or key in kept}
        self._reports = others | there
        self._metrics.agent(node, connected=True)
        self._woken("")
        return stream

    def remove(self, stream: AgentStream) -> None:
        """A stream has ended."""
        if self._streams.get(stream.node) is stream:
            del self._streams[stream.node]
            self._metrics.agent(stream.node, connected=False)
            if stream.leaving:
                self._left[stream.node] = asyncio.get_running_loop().time()
            self._woken("")

    def reported(self, node: str, report: SessionReport) -> None:
        """A session changed."""
        if report.failure is not None and report.failure.reason is Reason.STALE_EPOCH:
            report = replace(report, failure=None)  # it refused a deposed leader: the session is well
        self._make_room(node, report)
        self._reports[node, report.migration_uid, report.role] = report
        self._woken(report.migration_uid)

    def _make_room(self, node: str, report: SessionReport) -> None:
        """Keep no more reports of a node than it can have sessions. Raises ValueError if it says that it has more."""
        if (node, report.migration_uid, report.role) in self._reports:
            return
        there = [key for key in self._reports if key[0] == node]
        if len(there) < wire.MAX_SESSIONS:
            return
        released = next((key for key in there if self._reports[key].reached is Goal.RELEASED), None)
        if released is None:
            raise ValueError(f"agent on node {node} reports more than {wire.MAX_SESSIONS} sessions")
        del self._reports[released]

    def send(self, node: str, command: Command) -> bool:
        """Queue a command; False if the agent is not connected or does not keep up (its stream is then ended)."""
        stream = self._streams.get(node)
        if stream is None:
            return False
        stream.stir()
        try:
            stream.commands.put_nowait(command)
        except asyncio.QueueFull:
            stream.cancel()
            return False
        return True

    def ping(self, nodes: Iterable[str]) -> None:
        """Measure the round trip to these nodes' agents, each at most once a second."""
        now = asyncio.get_running_loop().time()
        for node in nodes:
            stream = self._streams.get(node)
            if stream is None or stream.commands.full():
                continue
            if stream.answered and now - stream.pinged_at >= PING_SECONDS:
                stream.pinged_at, stream.answered = now, False
                stream.commands.put_nowait(Ping(int(now * 1e6)))

    def look(self, node: str) -> bool:
        """Have a node's agent look at its devices; whether it could be told."""
        stream = self._streams.get(node)
        if stream is None or stream.commands.full():
            return False
        stream.commands.put_nowait(Look(int(asyncio.get_running_loop().time() * 1e6)))
        return True

    def has_looked(self, stream: AgentStream, number: int) -> None:
        """An agent has looked at its devices, and has published what it found."""
        stream.looked = number, asyncio.get_running_loop().time()

    def looked(self, node: str, since: float) -> float | None:
        """Loop time at which a node's agent said that it had published what it found later than `since`; None: not yet.

        An agent that is away will publish when it comes.
        """
        stream = self._streams.get(node)
        if stream is None:
            return since
        asked, answered = stream.looked
        return answered if asked >= int(since * 1e6) else None

    def silent_for(self, seconds: float) -> frozenset[str]:
        """Nodes whose agents have owed an answer for that long."""
        return frozenset(node for node, stream in self._streams.items() if self.silent_seconds(stream) >= seconds)

    def silent_seconds(self, stream: AgentStream) -> float:
        """For how long the agent owes an answer to a ping; 0 if it owes none."""
        return 0.0 if stream.answered else asyncio.get_running_loop().time() - stream.pinged_at

    def ponged(self, stream: AgentStream, number: int) -> None:
        """An agent has answered."""
        if stream.answered or number != int(stream.pinged_at * 1e6):
            return
        stream.answered = True
        self._history.round_trip(stream.node, int(asyncio.get_running_loop().time() * 1e6) - number)


class AgentLink(agent_pb2_grpc.AgentLinkServicer):
    """The gRPC service. Agents are pinged at least every `heartbeat_seconds`, idle ones less often; one that answers no
    ping for `dead_seconds` is not there, whatever its connection says.
    """

    def __init__(
        self,
        agents: Agents,
        api: OperatorApi,
        leadership: Leadership,
        metrics: OperatorMetrics,
        *,
        agent_namespace: str,
        heartbeat_seconds: float,
        dead_seconds: float,
        review_seconds: float,
    ):
        self._callers = Callers(api, agent_namespace, review_seconds)
        self._agents, self._leadership, self._metrics = agents, leadership, metrics
        self._heartbeat_seconds, self._dead_seconds = heartbeat_seconds, dead_seconds

    async def Connect(  # noqa: N802 - the name of the rpc
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: _Context
    ) -> None:
        """See agent.proto."""
        if not self._leadership.leading:
            await self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "this replica does not lead")
        try:
            caller, token = await self._callers.identify(context.invocation_metadata() or ())
        except RefusedError as error:
            await self._refuse(context, error.code, str(error))
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                first = await anext(aiter(request_iterator))
            hello = wire.hello_from_wire(first.hello)
        except (ValueError, TimeoutError, StopAsyncIteration) as error:
            await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"no valid Hello came: {error}")
        if not PROTOCOL_VERSION - 1 <= hello.protocol <= PROTOCOL_VERSION:
            await self._refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"agent on node {caller.node} speaks protocol {hello.protocol}, this operator speaks "
                f"{PROTOCOL_VERSION - 1} to {PROTOCOL_VERSION}: upgrade the older one",
            )
        if hello.highest_epoch > self._leadership.epoch + MAX_LEAP:
            await self._refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"agent on node {caller.node} has seen epoch {hello.highest_epoch}, this operator leads with "
                f"{self._leadership.epoch}: no election raises it so far; remove what that agent has stored",
            )
        try:
            self._agents.check(caller.node, caller.pod, hello)  # also before: one that is refused raises no epoch
            if not self._leadership.leading:  # any more: who calls was looked up meanwhile
                raise LeadershipLostError("this replica does not lead any more")
            if hello.highest_epoch > self._leadership.epoch:
                await self._leadership.raise_epoch(hello.highest_epoch)
                self._metrics.epoch.set(self._leadership.epoch)
            stream = self._agents.add(caller.node, caller.pod, hello)
        except PermissionError as error:
            await self._refuse(context, grpc.StatusCode.ALREADY_EXISTS, str(error))
        except LeadershipLostError as error:
            await self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        stream.token = token
        await self._serve(stream, caller, request_iterator, context)

    async def _serve(
        self,
        stream: AgentStream,
        caller: Caller,
        requests: AsyncIterator[pb.AgentMessage],
        context: _Context,
    ) -> None:
        log.info("agent connected", node=stream.node, pod=stream.pod, version=stream.hello.version)
        tasks = [
            asyncio.create_task(self._read(stream, requests)),
            asyncio.create_task(self._write(stream, context)),
            asyncio.create_task(self._watch(stream)),
            asyncio.create_task(self._callers.watch(caller, lambda: stream.token)),
        ]
        stream.cancel = lambda: [task.cancel() for task in tasks]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._agents.remove(stream)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            cause = next((r for r in results if isinstance(r, Exception)), "")
            log.info("agent disconnected", node=stream.node, cause=str(cause))

    async def _read(self, stream: AgentStream, requests: AsyncIterator[pb.AgentMessage]) -> None:
        async for message in requests:
            if message.HasField("report"):
                self._agents.reported(stream.node, wire.report_from_wire(message.report))
            elif message.HasField("pong"):
                self._agents.ponged(stream, message.pong)
            elif message.HasField("looked"):
                self._agents.has_looked(stream, message.looked)
            elif message.HasField("leaving"):
                self._agents.leaves(stream)
            elif message.HasField("token") and len(message.token) < MAX_TOKEN:
                stream.token = message.token

    async def _watch(self, stream: AgentStream) -> None:
        """End the stream of an agent that hangs: TCP and gRPC may go on thinking that it is there."""
        while self._agents.silent_seconds(stream) < self._dead_seconds:
            self._agents.ping([stream.node])
            await asyncio.sleep(self._heartbeat_seconds)
            if stream.answered and stream.idle and not stream.hello.sessions:
                stream.stirred.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout((IDLE_HEARTBEATS - 1) * self._heartbeat_seconds):
                        await stream.stirred.wait()
        raise TimeoutError(f"no answer to a ping for {self._dead_seconds:g} s")

    async def _write(self, stream: AgentStream, context: _Context) -> None:
        welcome = pb.Welcome(epoch=self._leadership.epoch, node=stream.node)
        await context.write(pb.OperatorMessage(welcome=welcome))
        while True:
            said = await stream.commands.get()
            if isinstance(said, Ping):
                await context.write(pb.OperatorMessage(ping=said.number))
            elif isinstance(said, Look):
                await context.write(pb.OperatorMessage(look=said.number))
            else:
                await context.write(pb.OperatorMessage(command=wire.command_to_wire(said)))

    async def _refuse(self, context: _Context, code: grpc.StatusCode, why: str) -> None:
        log.warning("agent refused", code=code.name, why=why)
        self._metrics.refused_agents.labels(code.name).inc()
        await context.abort(code, why)


async def start_server(
    link: AgentLink, credentials: grpc.ServerCredentials, host: str, port: int
) -> tuple[grpc.aio.Server, int]:
    """Listen with TLS; returns the server and the port it listens on. Raises OSError if it cannot."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    agent_pb2_grpc.add_AgentLinkServicer_to_server(link, server)  # type: ignore[no-untyped-call]
    where = joined(everywhere(host), port)
    try:
        bound = server.add_secure_port(where, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {where}: {error}") from error
    await server.start()
    return server, bound
