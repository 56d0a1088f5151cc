"""Entry point of the agent: puts the parts together and ends on SIGTERM."""

import asyncio
import contextlib
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import structlog
from prometheus_client import start_http_server
from pydantic import ValidationError

from vfio_agent.agent import Agent
from vfio_agent.broker import Broker
from vfio_agent.devices.kernel import KernelBackend
from vfio_agent.devices.protocol import Backend
from vfio_agent.devices.simulated import SimulatedBackend
from vfio_agent.holdings import Holdings
from vfio_agent.inventory import Inventory
from vfio_agent.journal import AgentRunningError, Journal
from vfio_agent.keeper import KeeperClient, KeeperError
from vfio_agent.keeperwatch import watch_keeper
from vfio_agent.kube import AgentApi
from vfio_agent.latch import Latch
from vfio_agent.link import Link, hello
from vfio_agent.metrics import AgentMetrics
from vfio_agent.receiver import DataServer
from vfio_agent.session import Session, Surroundings
from vfio_agent.settings import AgentSettings
from vfio_api import logs
from vfio_api.types import Goal

log = structlog.get_logger()
ARC_THREADS = 64
_HOLDER_CHANGES = (Goal.PREPARED, Goal.RUNNING, Goal.RELEASED)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _backends(settings: AgentSettings) -> dict[str, Backend]:
    backends: dict[str, Backend] = {}
    if settings.kernel_devices:
        backends[KernelBackend.name] = KernelBackend(settings.kernel_path)
    if settings.simulator_socket is not None:
        backends[SimulatedBackend.name] = SimulatedBackend(settings.simulator_socket)
    return backends


async def run(settings: AgentSettings) -> None:
    """Run the agent until SIGTERM. Raises AgentRunningError, KeeperError or OSError if it cannot start."""
    release, boot_id = version("vfio-migration"), _boot_id()
    metrics = AgentMetrics(release)
    backends = _backends(settings)
    journal = Journal(settings.state_dir, settings.runtime_dir, boot_id)
    journal.lock()
    holdings = Holdings(backends, KeeperClient(settings.keeper_socket), boot_id)
    await asyncio.to_thread(holdings.restore)
    api = await AgentApi.connect(settings.kubeconfig, settings.operator_namespace)
    server = DataServer(settings.listen_host, settings.listen_port)
    inventory = Inventory(settings.node_name, backends, holdings, api, metrics)
    _, metrics_thread = metrics_server = start_http_server(
        settings.metrics_port, settings.metrics_host, metrics.registry
    )
    advertised = f"{settings.advertise_host}:{settings.advertise_port or server.port}"
    with ThreadPoolExecutor(ARC_THREADS, "arc") as arcs:
        around = Surroundings(holdings, journal, server, arcs, metrics, lambda _session: None)
        agent = Agent(around, journal.highest_epoch(), on_reached=lambda s: _publish(inventory, s))
        agent.restore()
        link = Link(
            agent,
            api,
            hello(release, boot_id, uuid4().hex, advertised),
            settings.token_file,
            metrics,
            settings.operator_address,
            settings.silence_seconds,
        )
        latch = Latch(agent.sessions, agent.carry_out, api, settings.node_name, metrics)
        broker = Broker(settings.broker_socket, holdings, inventory.changed, agent.busy)
        log.info("agent started", data_address=advertised, metrics_port=metrics_server[0].server_port)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            async with asyncio.TaskGroup() as group:
                parts = (
                    link.run(),
                    latch.run(),
                    inventory.run(settings.inventory_seconds),
                    broker.run(),
                    watch_keeper(holdings, metrics),
                )
                tasks = [group.create_task(part) for part in parts]
                await stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            server.close()
            metrics_server[0].shutdown()
            metrics_thread.join(5)
            with contextlib.suppress(OSError):
                await api.close()
    log.info("agent stopped; open devices stay with the keeper")


def _publish(inventory: Inventory, session: Session) -> None:
    if session.reached in _HOLDER_CHANGES:
        inventory.changed()


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
