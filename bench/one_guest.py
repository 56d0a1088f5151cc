"""Two nodes in one guest: a keeper, an agent and a workload for each, with mediated devices of the driver mtty.

In one guest there is one kernel, one clock and one log of the driver, so what this system does with devices can be
compared there with what QEMU does with the same ones. Control plane and operator run on this machine.
"""

import contextlib
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devtools.guest import HOST, WORKLOAD, Guest
from devtools.kernel_agents import Agents
from devtools.kernel_stack import RUN, SOURCES, GuestProcess, GuestStack
from devtools.kernel_workload import Workload
from devtools.ports import free_port
from devtools.processes import Child
from devtools.stack import NAMESPACE, ROOT

MEMORY_MIB = 1536  # two agents, and two QEMUs with a machine of 64 MiB each
AGENTS_PORT = 9201


class Place:
    """One of the guest's two nodes."""

    def __init__(self, stack: "OneGuest", number: int, name: str):
        self.name, self._stack = name, stack
        self.dir = stack.share / name
        self.dir.mkdir()
        self.devices = tuple(f"6d747479-{number:04x}-4000-8000-{index:012x}" for index in range(stack.devices))
        self.run = RUN / name
        self.workload_port = 9300 + number
        self.workload = Workload(name, stack.ports[self.workload_port])
        self.agent: GuestProcess | None = None

    def prepare(self) -> None:
        """Make the devices, start keeper and workload."""
        guest = self._stack.guest
        guest.exec(["mkdir", "-p", str(self.run)]).check()
        guest.exec([sys.executable, "-E", "-S", str(WORKLOAD), "create", *self.devices]).check()
        self._spawn("keeper", "-m", "vfio_agent.keeper", "--socket", str(self.run / "keeper.sock")).wait_for("ready")
        serve = ["--broker", str(self.run / "broker.sock"), "--port", str(self.workload_port)]
        self._spawn("workload", "-m", "devtools.kernel_workload", *serve).wait_for("ready")

    def _spawn(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> GuestProcess:
        argv = [sys.executable, *arguments]
        job = self._stack.guest.spawn(argv, log=f"{name}-{self.name}.log", env=env)
        return GuestProcess(f"{name} of {self.name}", job)

    def start_agent(self) -> None:
        """With its token; returns once it has started."""
        self._stack.agent_credentials(self.name, self.dir, self._stack.server_for_guests)
        log, guest = self.dir / "agent.log", self._stack.guest
        env = {
            "NODE_NAME": self.name,
            "STATE_DIR": str(self.run / "state"),
            "RUNTIME_DIR": str(self.run / "run"),
            "KEEPER_SOCKET": str(self.run / "keeper.sock"),
            "BROKER_SOCKET": str(self.run / "broker.sock"),
            "KERNEL_DEVICES": "true",
            "KUBECONFIG": guest.inside(self.dir / "kubeconfig"),
            "TOKEN_FILE": guest.inside(self.dir / "operator-token"),
            "OPERATOR_NAMESPACE": NAMESPACE,
            "LISTEN_HOST": "127.0.0.1",
            "ADVERTISE_HOST": "127.0.0.1",
            "METRICS_HOST": "127.0.0.1",
            "METRICS_PORT": "0",
            "INVENTORY_SECONDS": "10",
        }
        settings = {f"VFIO_AGENT_{key}": value for key, value in env.items()}
        forked = self._stack.agents.start(settings, log, guest.inside(log), self._stack.agent_module)
        self.agent = GuestProcess(f"agent of {self.name}", forked)
        self.agent.wait_for('"event": "connected"')


class OneGuest(GuestStack):
    """Control plane (with fsync) and operator here, both nodes in one guest. Starts everything when entered."""

    operator: Child

    def __init__(self, devices: int = 2, processors: int = 1, agent_module: str = "vfio_agent"):
        super().__init__(["source", "target"], fsync=True, tls_sans=[HOST])
        self.devices, self._processors, self.agent_module = devices, processors, agent_module
        self.share = self.dir / "guest"
        self.ports = {port: free_port() for port in (AGENTS_PORT, 9301, 9302)}
        self.places: dict[str, Place] = {}

    def __enter__(self) -> "OneGuest":
        try:
            self._boot()
            with ThreadPoolExecutor(1) as pool:
                preparing = pool.submit(self._prepare)
                super().__enter__()
                self._ask_by_proxy()
                self.operator = self.start_operator(ADVERTISE_HOST=HOST)
                preparing.result()
            for place in self.places.values():
                place.start_agent()
            self.wait_until(lambda: self._published() == 2 * 2 * self.devices, "all devices are published", 90)
        except BaseException as error:
            for log in sorted(self.dir.rglob("*.log")):
                with contextlib.suppress(OSError):
                    error.add_note(f"==== {log}\n{log.read_text(errors='replace')[-2000:]}")
            self.closing.close()
            raise
        return self

    def _boot(self) -> None:
        environment = {"PYTHONPATH": ":".join(str(ROOT / s) for s in (*SOURCES, "bench")), "PYTHONUNBUFFERED": "1"}
        self.share.mkdir()
        self.guest = Guest.start(
            "bench", share=self.share, memory_mib=MEMORY_MIB, env=environment, hostfwd=self.ports,
            processors=self._processors,
        )  # fmt: skip
        self.closing.callback(self.guest.kill)
        self.agents = Agents("bench", self.ports[AGENTS_PORT])
        for number, name in enumerate(("source", "target"), 1):
            self.places[name] = Place(self, number, name)

    def _prepare(self) -> None:
        argv = [sys.executable, "-m", "devtools.kernel_agents", "--port", str(AGENTS_PORT)]
        agents = GuestProcess("agents", self.guest.spawn(argv, log="agents.log"))
        for place in self.places.values():
            place.prepare()
        agents.wait_for("ready")

    def _published(self) -> int:
        return sum(1 for d in self.get("vfd")["items"] if d.get("status", {}).get("migrationFlags"))

    def settled(self, held: Place, free: Place) -> None:
        """Wait until the inventory shows the devices of one node held and those of the other free, none claimed."""

        def shown() -> bool:
            found = {(d["spec"]["nodeName"], d["spec"]["address"]): d for d in self.get("vfd")["items"]}
            ends = [(place, found.get((place.name, device))) for place in (held, free) for device in place.devices]
            return all(
                device is not None
                and bool(device.get("status", {}).get("holder")) == (place is held)
                and not device["spec"].get("claimRef")
                for place, device in ends
            )

        self.wait_until(shown, f"the devices of {held.name} held, those of {free.name} free", 60)


def this_folder() -> Path:
    """Where programs for the guest are."""
    return Path(__file__).resolve().parent
