"""Agents as processes of their own, with an API server and an operator that are the test's."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web

from loopback.agents_world import COUNT, PATIENCE, SOURCE, TARGET, Node, Operator, environment
from vfio_agent.broker import request_device
from vfio_agent.devices.simulated import SimulatedBackend
from vfio_api import wire
from vfio_api.names import ADDRESS_ANNOTATION, CA_KEY, EPOCH_ANNOTATION
from vfio_api.types import Command, Outcome, Role, SessionReport
from vfio_api.v1 import agent_pb2 as pb
from vfio_api.v1 import agent_pb2_grpc
from vfio_operator.pki import Authority

NAMESPACE = "vfio-migration"
Json = dict[str, Any]


@dataclass
class ApiServer:
    """What an agent asks of it: who leads, what is decided, and that this node's devices are published.

    leader: "host:port" of the operator, "" while nobody leads. decided_by: who wrote the decision.
    """

    ca: bytes
    leader: str = ""
    decision: Outcome | None = None
    decided_by: str = ""
    url: str = ""

    async def lease(self, _request: web.Request) -> web.Response:
        noted = {ADDRESS_ANNOTATION: self.leader, EPOCH_ANNOTATION: "1"}
        holder = "operator" if self.leader else ""
        return web.json_response({"metadata": {"annotations": noted}, "spec": {"holderIdentity": holder}})

    async def config_map(self, _request: web.Request) -> web.Response:
        return web.json_response({"metadata": {}, "data": {CA_KEY: self.ca.decode()}})

    async def switchover(self, _request: web.Request) -> web.Response:
        status = {"decision": {"outcome": self.decision.value}} if self.decision else {}
        return web.json_response({"spec": {"sourceNodes": ["a"], "targetNodes": ["b"]}, "status": status})

    async def decide(self, request: web.Request) -> web.Response:
        """Once, as the schema has it."""
        if self.decision is not None:
            return web.json_response({"message": "the decision is immutable"}, status=422)
        said = (await request.json())["status"]["decision"]
        self.decision, self.decided_by = Outcome(said["outcome"]), said["by"]
        return web.json_response({})

    async def publish(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        app, group = web.Application(), "/apis/vfiomigration.io/v1alpha1"
        app.router.add_get(f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{{name}}", self.lease)
        app.router.add_get(f"/api/v1/namespaces/{NAMESPACE}/configmaps/{{name}}", self.config_map)
        app.router.add_get(f"{group}/namespaces/team/vfioswitchovers/{{name}}", self.switchover)
        app.router.add_patch(f"{group}/namespaces/team/vfioswitchovers/{{name}}/status", self.decide)
        app.router.add_patch(f"{group}/vfiodevices/{{tail:.*}}", self.publish)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()


class _Service(agent_pb2_grpc.AgentLinkServicer):
    """The operator's end of the channel: what a test says goes to the agent whose token is the node's name."""

    def __init__(self, agents: "Mapping[str, ProcessAgent]"):
        self._agents = agents

    async def Connect(self, requests: AsyncIterator[pb.AgentMessage], context: Any) -> None:  # noqa: N802 - the name of the rpc
        token = dict(context.invocation_metadata())["authorization"].removeprefix("Bearer ")
        agent = self._agents[token]
        hello = wire.hello_from_wire((await anext(requests)).hello)
        await context.write(pb.OperatorMessage(welcome=pb.Welcome(epoch=1, node=token)))
        agent.data_address = hello.data_address
        await agent.heard(*hello.sessions)
        agent.connected.set()
        sending = asyncio.create_task(self._send(agent, context))
        try:
            async for message in requests:
                if message.HasField("report"):
                    await agent.heard(wire.report_from_wire(message.report))
        finally:
            sending.cancel()
            agent.connected.clear()

    async def _send(self, agent: "ProcessAgent", context: Any) -> None:
        while True:
            command = await agent.commands.get()
            await context.write(pb.OperatorMessage(command=wire.command_to_wire(command)))


class ProcessAgent:
    """vfio-agent on a node; the operator of `agents_world` talks to it as to one of this process."""

    def __init__(self, node: Node, name: str, api: ApiServer):
        self.node, self.name, self._api = node, name, api
        self.reports: dict[Role, SessionReport] = {}
        self.connected, self.commands = asyncio.Event(), asyncio.Queue[Command]()
        self.data_address = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._said = 0  # in its log, before it was started
        self._news = asyncio.Condition()

    @property
    def agent(self) -> "ProcessAgent":
        """Who takes commands."""
        return self

    @property
    def server(self) -> "ProcessAgent":
        """Who listens for data."""
        return self

    @property
    def port(self) -> int:
        """Where it does."""
        return int(self.data_address.rpartition(":")[2])

    @property
    def broker(self) -> Path:
        """Its socket for workloads."""
        return self.node.directory / "broker.sock"

    def take(self, command: Command) -> None:
        """Have it sent."""
        self.commands.put_nowait(command)

    async def heard(self, *reports: SessionReport) -> None:
        """What it says."""
        async with self._news:
            self.reports.update((report.role, report) for report in reports)
            self._news.notify_all()

    async def until(self, role: Role, holds: Callable[[SessionReport], bool]) -> SessionReport:
        """The first report of that side for which `holds`."""
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: role in self.reports and holds(self.reports[role]))
        return self.reports[role]

    async def start(self, module: str = "vfio_agent", *, connects: bool = True, **settings: str) -> None:
        """Start it, the first time or again; returns when it is connected, or runs if it is not to be connected."""
        folder = self.node.directory
        (folder / "token").write_text(self.name)
        (folder / "kubeconfig").write_text(json.dumps(_kubeconfig(self._api.url)))
        env = {
            "NODE_NAME": self.name,
            "STATE_DIR": str(folder / "state"),
            "RUNTIME_DIR": str(folder / "run"),
            "KEEPER_SOCKET": str(folder / "keeper.sock"),
            "BROKER_SOCKET": str(self.broker),
            "SIMULATOR_SOCKET": str(folder / "sim.sock"),
            "KERNEL_DEVICES": "false",
            "KUBECONFIG": str(folder / "kubeconfig"),
            "TOKEN_FILE": str(folder / "token"),
            "LISTEN_HOST": "127.0.0.1",
            "ADVERTISE_HOST": "127.0.0.1",
            "METRICS_HOST": "127.0.0.1",
            "METRICS_PORT": "0",
            "SILENCE_SECONDS": "600",
            **settings,
        }
        self.connected.clear()
        arguments = [sys.executable, "-m", module]
        made = {**environment(), **{f"VFIO_AGENT_{key}": value for key, value in env.items()}}
        with (folder / "agent.log").open("ab") as log:
            self._said = log.tell()
            # no preexec_fn: gRPC, which serves in this process, survives no fork
            self._process = await asyncio.to_thread(
                subprocess.Popen, arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=made
            )
        await self.logs("agent started")
        if connects:
            async with asyncio.timeout(PATIENCE):
                await self.connected.wait()

    async def logs(self, text: str) -> None:
        """Wait until it has said that since it was started."""

        def said() -> str:
            return (self.node.directory / "agent.log").read_bytes()[self._said :].decode()

        def there() -> bool:
            assert self._process is None or self._process.poll() is None, said()
            return text in said()

        await eventually(there)

    async def kill(self) -> None:
        """As the kernel does it for want of memory: nothing is said, nothing is put in order."""
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        self.reports.clear()

    def states(self) -> list[str]:
        """Of its devices, as the simulator has them."""
        found = self.node.control.stats()["devices"]
        return [found[f"sim{n}"]["state"] for n in range(COUNT)]


async def eventually(holds: Callable[[], bool]) -> None:
    """Look until it does; whoever has waited too long has failed."""
    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110 - there is nothing that tells
            await asyncio.sleep(0.02)


def _kubeconfig(url: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }


@dataclass
class Cluster:
    """Two nodes with an agent each, an API server and an operator, which is the test."""

    api: ApiServer
    operator: Operator
    source: ProcessAgent
    target: ProcessAgent
    _server: grpc.aio.Server
    begun: dict[Role, int] = field(default_factory=dict)

    async def leave(self) -> None:
        """The operator is gone for good: nobody leads, and no stream to it lives."""
        self.api.leader = ""
        await self._server.stop(None)

    def open_devices(self) -> None:
        """A workload at the source has them open."""
        backend = SimulatedBackend(self.source.node.directory / "sim.sock")
        for n in range(COUNT):
            _, fds = request_device(self.source.broker, f"sim{n}", "workload")
            with backend.adopt(f"sim{n}", fds) as device:
                device.write_region(0, b"marker %d" % n)

    def arcs(self, role: Role) -> list[str]:
        """States of that side's devices since `begun` was noted for it."""
        made = self.operator.agent(role).node.arcs()
        return [state for _, state in made[self.begun.get(role, 0) :]]


@contextlib.asynccontextmanager
async def cluster(
    folder: Path, modules: Mapping[Role, str] | None = None, settings: Mapping[Role, Mapping[str, str]] | None = None
) -> AsyncIterator[Cluster]:
    """Agents of these modules (vfio_agent where none is named) with these settings, connected; devices open."""
    authority = Authority()
    identity = authority.issue(3600.0, datetime.now(UTC))
    api = ApiServer(authority.certificate)
    nodes = [Node(folder / name) for name in ("a", "b")]
    agents = {name: ProcessAgent(node, name, api) for name, node in zip(("a", "b"), nodes, strict=True)}
    server = grpc.aio.server()
    agent_pb2_grpc.add_AgentLinkServicer_to_server(_Service(agents), server)  # type: ignore[no-untyped-call]
    credentials = grpc.ssl_server_credentials([(identity.key, identity.certificate)])
    api.leader = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    source, target = agents["a"], agents["b"]
    played: Any = Operator(source, target)  # type: ignore[arg-type]
    async with contextlib.AsyncExitStack() as closing:
        for node in nodes:
            closing.callback(node.end)
        await closing.enter_async_context(api.serving())
        await server.start()
        closing.push_async_callback(server.stop, None)
        for role, agent in ((SOURCE, source), (TARGET, target)):
            closing.push_async_callback(agent.kill)
            await agent.start((modules or {}).get(role, "vfio_agent"), **(settings or {}).get(role, {}))
        made = Cluster(api, played, source, target, server)
        await asyncio.to_thread(made.open_devices)
        yield made
