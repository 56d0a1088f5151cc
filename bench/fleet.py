"""Many node agents in a few processes, so that one machine can play a cluster of 64 or 200 nodes.

Each is the product's own agent: sessions, journal on disk, data port, inventory, a stream to the leader with a token
bound to a pod on its own (fake) node. Not real are the devices (bench/cheap.py), and the keeper, which would be a
process a node. Nobody can ask these agents for a device by a socket: what a workload holds there, it holds from the
start.

    PYTHONPATH=hack:bench:tests .venv/bin/python bench/fleet.py --spec FILE.json   runs the agents of one process
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import structlog
from kubernetes.aio import client, config

from cheap import CheapBackend, MemoryKeeper
from devtools.processes import Child
from devtools.stack import AGENT_NAMESPACE, AUDIENCE, NAMESPACE, Stack, python_path
from vfio_agent.__main__ import ARC_THREADS
from vfio_agent.agent import Agent
from vfio_agent.devices.simmodel import ALL_FLAGS
from vfio_agent.heirs import Heirs
from vfio_agent.holdings import Holdings
from vfio_agent.inventory import Inventory
from vfio_agent.journal import Journal
from vfio_agent.kube import AgentApi
from vfio_agent.latch import Latch
from vfio_agent.link import Link, hello
from vfio_agent.metrics import AgentMetrics
from vfio_agent.pods import Pods
from vfio_agent.receiver import DataServer
from vfio_agent.session import Session
from vfio_agent.surroundings import Surroundings
from vfio_api import heap, logs
from vfio_api.device import DeviceState, MigrationFlags

ROOT = Path(__file__).resolve().parents[1]
READY = '"event": "fleet ready"'
VERSION = "bench"
WORKLOAD = "workload bench"
LOOK_SECONDS = 0.02
AT_ONCE = 16  # requests for tokens under way
TOKEN_SECONDS = 7200
DEVICE = "Device"
NO_FLAGS = MigrationFlags(0)
Json = dict[str, Any]
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class FleetNode:
    """One node of a fleet: its devices' addresses, and those that a workload has open from the start."""

    name: str
    devices: tuple[str, ...]
    held: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reached:
    """That a session was at a goal, or (role: DEVICE) one device of a node in a state.

    moment: time.monotonic, which is the same clock in every process of a machine.
    """

    node: str
    role: str
    goal: str
    moment: float


class Member:
    """One agent of the fleet, put together as in vfio_agent.__main__."""

    def __init__(self, said: Mapping[str, Any], reached: list[Reached]):
        self.node: str = said["node"]
        self._said, self._reached = said, reached
        flags = NO_FLAGS
        for name in said["flags"]:
            flags |= MigrationFlags[name]
        backend = CheapBackend(said["devices"], flags, said["size_bytes"], said["first_byte_seconds"], self._has_moved)
        self._boot_id = str(uuid4())
        self._backends = {backend.name: backend}
        self.holdings = Holdings(self._backends, MemoryKeeper(), self._boot_id)

    async def run(self, ready: "asyncio.Queue[str]") -> None:
        """Until cancelled. `ready` is told the node's name once it is connected and all its devices are published."""
        said, folder = self._said, Path(self._said["dir"])
        metrics = AgentMetrics(VERSION)
        journal = Journal(folder / "state", Path(said["runtime_dir"]), self._boot_id)
        journal.lock()
        api = await AgentApi.connect(Path(said["kubeconfig"]), NAMESPACE)
        server = DataServer("127.0.0.1", 0)
        pods = Pods()
        self.inventory = Inventory(
            self.node, self._backends, self.holdings, pods, api, metrics, lambda address: agent.busy(address)
        )
        arcs = ThreadPoolExecutor(ARC_THREADS, "arc")
        around = Surroundings(self.holdings, journal, server, arcs, metrics, lambda _session: None, pods)
        agent = Agent(around, journal.highest_epoch(), on_reached=self._note)
        agent.restore()
        hullo = hello(VERSION, self._boot_id, uuid4().hex, f"127.0.0.1:{server.port}")
        link = Link(agent, api, hullo, Path(said["token"]), metrics, "", self.inventory.refreshed)
        latch = Latch(agent.sessions, agent.carry_out, api, self.node, metrics)
        heirs = Heirs(self.holdings, pods, agent.busy, self.inventory.changed)
        for address in said["held"]:
            self.holdings.open(address, WORKLOAD)
        try:
            async with asyncio.TaskGroup() as group:
                for part in (link.run(), latch.run(), self.inventory.run(said["inventory_seconds"]), heirs.run()):
                    group.create_task(part)
                await self.inventory.refreshed()
                while not link.connected:  # noqa: ASYNC110 - a Link has no event for it
                    await asyncio.sleep(LOOK_SECONDS)
                ready.put_nowait(self.node)
        finally:
            server.close()
            arcs.shutdown(wait=False)
            with contextlib.suppress(OSError):
                await api.close()

    def _has_moved(self, state: DeviceState) -> None:
        """A device has come to a state; in an arc's thread."""
        self._reached.append(Reached(self.node, DEVICE, state.name, time.monotonic()))

    def _note(self, session: Session) -> None:
        if session.reached is None:
            return
        role, goal = session.facts.role.value, session.reached.value
        self._reached.append(Reached(self.node, role, goal, time.monotonic()))
        self.inventory.passed(session.reached)


class Control:
    """Answers the benchmark on a unix socket: one JSON line a request."""

    def __init__(self, members: Sequence[Member], reached: list[Reached]):
        self._members, self._reached = members, reached

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request and one answer."""
        with contextlib.closing(writer):
            request = json.loads(await reader.readline())
            answer = await self._answer(request)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

    async def _answer(self, request: Json) -> Json:
        if request["op"] == "reached":
            taken, self._reached[:] = list(self._reached), []
            return {"reached": [asdict(each) for each in taken]}
        await asyncio.gather(*(member.inventory.refreshed() for member in self._members))
        return {}


async def run(spec: Json) -> None:
    """Run the agents of one process until SIGTERM."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    stop, loop, ready = asyncio.Event(), asyncio.get_running_loop(), asyncio.Queue[str]()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    reached: list[Reached] = []
    members = [Member(each, reached) for each in spec["agents"]]
    control = Control(members, reached)
    server = await asyncio.start_unix_server(control.serve, spec["socket"])
    async with server:
        tasks = [asyncio.create_task(member.run(ready)) for member in members]
        for _ in members:
            await _first(asyncio.create_task(ready.get()), tasks)
        heap.settle()
        log.info("fleet ready", agents=len(members))
        await _first(asyncio.create_task(stop.wait()), tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first(awaited: "asyncio.Task[Any]", tasks: "Sequence[asyncio.Task[None]]") -> None:
    """Wait for `awaited`; what ends one of the tasks before is raised here."""
    done, _ = await asyncio.wait((awaited, *tasks), return_when=asyncio.FIRST_COMPLETED)
    for task in done - {awaited}:
        task.result()


class Fleet:
    """Agents for `nodes` in `processes` processes beside a stack whose operator leads, or is about to.

    The stack must have been made with the nodes' names. On entering all agents are connected, and all of their devices
    published.

    first_byte_seconds: what a device that has stopped
    takes until it gives its state.
    """

    def __init__(
        self,
        stack: Stack,
        nodes: Sequence[FleetNode],
        *,
        processes: int = 2,
        flags: MigrationFlags = ALL_FLAGS,
        size_bytes: int = 1,
        first_byte_seconds: float = 0.0,
        inventory_seconds: float = 10.0,
        patience_seconds: float = 240.0,
    ):
        self._stack, self._nodes, self._processes = stack, nodes, processes
        self._flags = [flag.name for flag in MigrationFlags if flag in flags]
        self._size_bytes, self._inventory_seconds = size_bytes, inventory_seconds
        self._first_byte_seconds = first_byte_seconds
        self._patience_seconds = patience_seconds
        self._dir = stack.dir / "fleet"
        self._volatile = Path()
        self._sockets: dict[str, Path] = {}  # by node
        self.children: list[Child] = []

    def __enter__(self) -> Self:
        self._dir.mkdir()
        # a tmpfs, as on a node: on a disk each record would wait for that
        self._volatile = Path(tempfile.mkdtemp(prefix="vf-", dir="/dev/shm"))
        try:
            asyncio.run(credentials(self._stack, [node.name for node in self._nodes], self._dir))
            for number in range(self._processes):
                self._start(number, self._nodes[number :: self._processes])
            for child in self.children:
                child.wait_for(READY, self._patience_seconds)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def signal(self, number: int) -> None:
        """Send every process a signal."""
        for child in self.children:
            child.signal(number)

    def close(self) -> None:
        """End every process of the fleet; may be called again."""
        for child in self.children:
            child.signal(signal.SIGTERM)
        for child in self.children:
            child.stop()
        shutil.rmtree(self._volatile, ignore_errors=True)

    def _start(self, number: int, nodes: Sequence[FleetNode]) -> None:
        control = self._dir / f"control-{number}"
        self._sockets |= {node.name: control for node in nodes}
        agents = [
            {
                "node": node.name,
                "dir": str(self._dir / node.name),
                "runtime_dir": str(self._volatile / node.name),
                "token": str(self._dir / node.name / "operator-token"),
                "kubeconfig": str(self._dir / node.name / "kubeconfig"),
                "devices": node.devices,
                "held": node.held,
                "flags": self._flags,
                "size_bytes": self._size_bytes,
                "first_byte_seconds": self._first_byte_seconds,
                "inventory_seconds": self._inventory_seconds,
            }
            for node in nodes
        ]
        spec = self._dir / f"fleet-{number}.json"
        spec.write_text(json.dumps({"socket": str(control), "agents": agents}))
        argv = [sys.executable, str(ROOT / "bench" / "fleet.py"), "--spec", str(spec)]
        self.children.append(Child(f"fleet {number}", argv, self._dir / f"fleet-{number}.log", python_path()))

    def settle(self) -> None:
        """Wait until every agent has published what it has: what a migration leaves behind is then over."""
        with ThreadPoolExecutor(len(self.children)) as threads:
            list(threads.map(lambda path: _ask(path, {"op": "settle"}), sorted(set(self._sockets.values()))))

    def reached(self) -> list[Reached]:
        """Which sessions were at which goal when, and which devices in which state, since this was asked last."""
        paths = sorted(set(self._sockets.values()))
        return [Reached(**each) for path in paths for each in _ask(path, {"op": "reached"})["reached"]]


def _ask(path: Path, request: Json) -> Json:
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rw") as file:
        sock.connect(str(path))
        file.write(json.dumps(request) + "\n")
        file.flush()
        answer: Json = json.loads(file.readline())
        return answer


async def credentials(stack: Stack, nodes: Sequence[str], folder: Path) -> None:
    """As Stack.agent_credentials, for many nodes at once: an agent pod on each, and two tokens bound to it.

    Writes operator-token and kubeconfig to a folder for each node.
    """
    settings = client.Configuration()
    await config.load_kube_config(str(stack.plane.kubeconfig), client_configuration=settings)  # type: ignore[no-untyped-call]
    pattern, room = json.dumps(stack.kubeconfig_for("TOKEN")), asyncio.Semaphore(AT_ONCE)
    async with client.ApiClient(settings) as api_client:
        core: Any = client.CoreV1Api(api_client)

        async def token(pod: str, *audiences: str) -> str:
            bound = {"apiVersion": "v1", "kind": "Pod", "name": pod}
            wanted = {"audiences": audiences, "boundObjectRef": bound, "expirationSeconds": TOKEN_SECONDS}
            made = await core.create_namespaced_service_account_token("vfio-agent", AGENT_NAMESPACE, {"spec": wanted})
            return str(made.status.token)

        async def one(node: str) -> None:
            pod = f"vfio-agent-{node}"
            spec = {
                "nodeName": node,
                "serviceAccountName": "vfio-agent",
                "containers": [{"name": "agent", "image": "vfio-agent"}],
            }
            async with room:
                await core.create_namespaced_pod(AGENT_NAMESPACE, {"metadata": {"name": pod}, "spec": spec})
                own, other = await token(pod), await token(pod, AUDIENCE)
            (folder / node).mkdir()
            (folder / node / "operator-token").write_text(other)
            (folder / node / "kubeconfig").write_text(pattern.replace("TOKEN", own))

        await asyncio.gather(*(one(node) for node in nodes))


@contextlib.contextmanager
def fleet(
    nodes: Sequence[FleetNode], *, fsync: bool = True, operator: Mapping[str, str] | None = None, **options: Any
) -> Iterator[tuple[Stack, Fleet]]:
    """A stack with an operator that leads, and a fleet beside it. operator: its settings. options: of Fleet."""
    with Stack([node.name for node in nodes], fsync=fsync) as stack:
        started = stack.start_operator(**{"LEASE_SECONDS": "15", "RENEW_DEADLINE_SECONDS": "10", **(operator or {})})
        started.wait_for('"event": "leading"')
        with Fleet(stack, nodes, **options) as made:
            yield stack, made


def main() -> None:
    """Run the agents of one process, as a Fleet starts it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True)
    spec = json.loads(parser.parse_args().spec.read_text())
    logs.configure("info", process=str(os.getpid()))
    asyncio.run(run(spec))


if __name__ == "__main__":
    main()
