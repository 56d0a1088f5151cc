"""Entry point of the agent: puts the parts together and ends when it is drained after SIGTERM."""

import asyncio
import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog
from pydantic import ValidationError

from vfio_agent.agent import Agent
from vfio_agent.broker import Broker
from vfio_agent.devices.kernel import KernelBackend
from vfio_agent.devices.protocol import Backend
from vfio_agent.devices.simulated import SimulatedBackend
from vfio_agent.drain import Drain
from vfio_agent.heirs import Heirs
from vfio_agent.holdings import Holdings
from vfio_agent.inventory import Inventory
from vfio_agent.journal import AgentRunningError, Journal
from vfio_agent.keeper import KeeperClient, KeeperError
from vfio_agent.keeperwatch import restore_from_keeper, watch_keeper
from vfio_agent.kube import AgentApi
from vfio_agent.latch import Latch
from vfio_agent.link import Link, hello
from vfio_agent.metrics import AgentMetrics
from vfio_agent.pods import NodeFolders, Pods
from vfio_agent.receiver import DataServer
from vfio_agent.session import Session
from vfio_agent.settings import AgentSettings
from vfio_agent.surroundings import Surroundings
from vfio_api import heap, logs
from vfio_api.addresses import joined
from vfio_api.traces import open_traces
from vfio_api.web import Check, Heartbeat, WebServer, show_tasks

if TYPE_CHECKING:
    from vfio_api.otlp import Otlp

log = structlog.get_logger()
ARC_THREADS = 64


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _backends(settings: AgentSettings) -> dict[str, Backend]:
    backends: dict[str, Backend] = {}
    if settings.kernel_devices:
        backends[KernelBackend.name] = KernelBackend(settings.kernel_path)
    if settings.simulator_socket is not None:
        backends[SimulatedBackend.name] = SimulatedBackend(settings.simulator_socket)
    return backends


class Readiness:
    """/readyz of an agent that has not started yet; then of its Drain."""

    def __init__(self) -> None:
        self.ask: Check = lambda: "it has not started yet"

    def __call__(self) -> str:
        """See `vfio_api.web.Check`."""
        return self.ask()


async def run(settings: AgentSettings) -> None:
    """Run the agent until SIGTERM, and until it is drained. Raises AgentRunningError, KeeperError or OSError if it
    cannot start.
    """
    boot_id, metrics = _boot_id(), AgentMetrics(version("vfio-migration"))
    journal = Journal(settings.state_dir, settings.runtime_dir, boot_id)
    journal.lock()
    heartbeat, ready = Heartbeat(), Readiness()
    show_tasks(metrics.tasks)
    # before anything that a device may hold up: who probes meanwhile finds an agent that lives and is not ready
    checks: dict[str, Check] = {"/healthz": heartbeat.check, "/readyz": ready}
    web = WebServer(settings.metrics_host, settings.metrics_port, checks, metrics.registry)
    try:
        await _serve(settings, boot_id, metrics, journal, heartbeat, ready, web.port)
    finally:
        await asyncio.to_thread(web.close)
    log.info("agent stopped; open devices stay with the keeper")


async def _serve(
    settings: AgentSettings,
    boot_id: str,
    metrics: AgentMetrics,
    journal: Journal,
    heartbeat: Heartbeat,
    ready: Readiness,
    metrics_port: int,
) -> None:
    backends = _backends(settings)
    holdings = Holdings(backends, KeeperClient(settings.keeper_socket), boot_id)
    await restore_from_keeper(holdings, settings.keeper_wait_seconds)
    api = await AgentApi.connect(settings.kubeconfig, settings.operator_namespace)
    server = DataServer(settings.listen_host, settings.listen_port)
    pods = Pods(NodeFolders(settings.proc_dir, settings.cgroup_dir, settings.pod_logs_dir))
    node = settings.node_name
    inventory = Inventory(node, backends, holdings, pods, api, metrics, lambda address: agent.busy(address))
    advertised = joined(settings.advertise_host, settings.advertise_port or server.port)
    traces = _traces(settings)
    with ThreadPoolExecutor(ARC_THREADS, "arc") as arcs:
        around = Surroundings(holdings, journal, server, arcs, metrics, lambda _session: None, pods, traces)
        agent = Agent(around, journal.highest_epoch(), on_reached=lambda s: _publish(inventory, broker, s))
        agent.restore()
        link = Link(
            agent,
            api,
            hello(version("vfio-migration"), boot_id, uuid4().hex, advertised),
            settings.token_file,
            metrics,
            settings.operator_address,
            inventory.refreshed,
            settings.silence_seconds,
        )
        latch = Latch(agent.sessions, agent.carry_out, api, settings.node_name, metrics)
        broker = Broker(settings.broker_socket, holdings, pods, inventory.changed, agent.busy, agent.incoming)
        heirs = Heirs(holdings, pods, agent.busy, inventory.changed)
        drain = Drain(agent, link, settings.drain_seconds)
        drain.listen()
        ready.ask = drain.ready
        heap.settle()
        log.info("agent started", data_address=advertised, metrics_port=metrics_port)
        try:
            async with asyncio.TaskGroup() as group:
                parts = (
                    heartbeat.run(),
                    link.run(),
                    latch.run(),
                    inventory.run(settings.inventory_seconds),
                    broker.run(),
                    heirs.run(),
                    watch_keeper(holdings, metrics),
                )
                tasks = [group.create_task(part) for part in parts]
                await drain.wait()
                for task in tasks:
                    task.cancel()
        finally:
            server.close()
            await agent.call_off()  # before the threads are waited for: between two arcs nothing else ends it
            with contextlib.suppress(OSError):
                await api.close()
            for session in agent.sessions():
                session.trail.hand_over()
            if traces is not None:
                await asyncio.to_thread(traces.close)


def _traces(settings: AgentSettings) -> "Otlp | None":
    node, release = settings.node_name, version("vfio-migration")
    return open_traces(settings.otlp_endpoint, "vfio-agent", node, service_version=release, host_name=node)


def _publish(inventory: Inventory, broker: Broker, session: Session) -> None:
    broker.stir()
    inventory.passed(session.reached)


def main() -> None:
    """Console script vfio-agent."""
    try:
        settings = AgentSettings()  # type: ignore[call-arg]  # from the environment
    except ValidationError as error:
        missing = ", ".join(f"VFIO_AGENT_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        sys.exit(f"vfio-agent: settings are wrong: {missing}")
    logs.configure(settings.log_level, node=settings.node_name)
    try:
        asyncio.run(run(settings))
    except (AgentRunningError, KeeperError, OSError) as error:
        sys.exit(f"vfio-agent: cannot run: {error}")


if __name__ == "__main__":
    main()
