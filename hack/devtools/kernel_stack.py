"""The whole product with the kernel's own VFIO devices: two virtual machines are the nodes of a real control plane.

The control plane and the operator run on this machine, as in `devtools.stack`; in each guest run a keeper, an agent
and a workload, with mediated devices of the driver mtty. The agents reach the API server and the operator through the
guest's user network, and each other through a direct link. The driver's own log tells what the devices went through.

    with KernelStack() as stack:
        a, b = stack.nodes.values()
        a.workload.mark(a.devices[0], marks)
"""

import contextlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devtools.guest import HOST, WORKLOAD, Guest, GuestError, GuestStalledError, Job, Link
from devtools.kernel import ensure_qemu, kernel_artefacts
from devtools.kernel_agents import AGENT, Agents, ForkedAgent
from devtools.kernel_workload import Workload
from devtools.kube_proxy import KubeProxy
from devtools.ports import free_port
from devtools.processes import Child
from devtools.stack import NAMESPACE, ROOT, Json, Stack

NODES = ("guest-a", "guest-b")
API = "/apis/vfiomigration.io/v1alpha1"
MEMORY_MIB = 512
AGENT_SECONDS = 120.0
POLL_SECONDS = 0.05
LOG_TAIL = 4000
METRICS_PORT, WORKLOAD_PORT, AGENTS_PORT = 9102, 9200, 9201  # in the guest, whose ports are all its own
RUN = Path("/run/vfio-agent")
KEEPER_SOCKET, BROKER_SOCKET = RUN / "keeper.sock", RUN / "broker.sock"
SOURCES = ("api", "agent", "hack", "tests")


class GuestProcess:
    """A background process of a guest, to be handled like `devtools.processes.Child`."""

    def __init__(self, name: str, job: Job | ForkedAgent):
        self.name, self.log, self.pid = name, job.log, job.pid
        self._job = job

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._job.poll() is None

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for(self, text: str, timeout: float = AGENT_SECONDS) -> None:
        """Wait until `text` is in its output. Raises GuestError if it ends before, GuestStalledError if it does not."""
        deadline = time.monotonic() + timeout
        while text not in self.text():
            if not self.running and text in self.text():
                return  # its last words
            if not self.running or time.monotonic() > deadline:
                kind = GuestStalledError if self.running else GuestError
                state = "is running" if self.running else f"ended with {self._job.poll()}"
                raise kind(f"{self.name} {state} and has not printed {text!r}:\n{self.text()[-3000:]}")
            time.sleep(POLL_SECONDS)

    def signal(self, number: int) -> None:
        """Send a signal if it still runs."""
        if self.running:
            self._job.signal(number)

    def wait(self, timeout: float) -> int:
        """The exit code, once it has ended."""
        return self._job.wait(timeout)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.signal(signal.SIGKILL)
        self.wait(10)

    def stop(self, timeout: float = 15) -> int:
        """SIGTERM, and wait; returns the exit code."""
        self.signal(signal.SIGTERM)
        return self._job.wait(timeout)


class KernelNode:
    """One guest as a node."""

    agent: GuestProcess
    keeper: GuestProcess
    marker: GuestProcess

    def __init__(self, stack: "KernelStack", number: int, name: str, devices: int):
        self.name, self._stack = name, stack
        self.dir = stack.dir / name
        self.dir.mkdir()
        self.devices = tuple(f"6d747479-{number:04x}-4000-8000-{index:012x}" for index in range(devices))
        """UUIDs of its mediated devices."""
        self.address = f"10.99.0.{number}"
        self._ports = {port: free_port() for port in (METRICS_PORT, WORKLOAD_PORT, AGENTS_PORT)}
        self._starts = 0
        self.workload = Workload(name, self._ports[WORKLOAD_PORT])
        self._agents = Agents(name, self._ports[AGENTS_PORT])
        self._link = Link(stack.dir / "link", server=number == 1, address=self.address)
        self.guest = self._boot()
        stack.closing.callback(self.close)

    def _boot(self) -> Guest:
        path = ":".join(str(ROOT / folder) for folder in SOURCES)
        environment = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        return Guest.start(
            self.name, share=self.dir, memory_mib=MEMORY_MIB, env=environment, hostfwd=self._ports, link=self._link
        )

    def _spawn(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> GuestProcess:
        self._starts += 1
        argv = [sys.executable, *arguments]
        return GuestProcess(f"{name} in {self.name}", self.guest.spawn(argv, log=f"{name}-{self._starts}.log", env=env))

    def prepare(self) -> None:
        """Make the devices; start keeper, workload, and the process that starts agents: all but the agent itself.

        What an agent imports takes a guest most of the time; meanwhile the control plane starts. A guest whose
        programs stand still before there is an agent is booted again, once, and `KernelStack.replaced` says so; what
        fails or ends is a failure at once. (Seen once in some hundred boots: programs that read the host's files by 9p
        got no answer any more.)
        """
        try:
            self._prepare()
        except GuestStalledError as error:
            self._stack.replaced.append(f"{self.name} was booted again: {error}\n{self._waiting()}")
            self.guest.kill()
            self.guest = self._boot()
            self._prepare()

    def _waiting(self) -> str:
        try:
            return self.guest.waiting()
        except GuestError as error:
            return str(error)

    def _prepare(self) -> None:
        self.guest.exec(["mkdir", "-p", str(RUN)]).check()
        agents = self._spawn("agents", "-m", "devtools.kernel_agents", "--port", str(AGENTS_PORT))
        self.start_keeper()
        self.guest.exec([sys.executable, "-E", "-S", str(WORKLOAD), "create", *self.devices]).check()
        serve = ["devtools.kernel_workload", "--broker", str(BROKER_SOCKET), "--port", str(WORKLOAD_PORT)]
        self.marker = self._spawn("workload", "-m", *serve)
        for process in (agents, self.marker):
            process.wait_for("ready")

    def start(self) -> None:
        """After `prepare`, and with a control plane: start the agent; returns once it has started."""
        self._stack.agent_credentials(self.name, self.dir, self._stack.server_for_guests)
        self.start_agent()
        self.agent.wait_for("agent started")

    def start_keeper(self) -> None:
        """Start the keeper, once the one before has ended; returns when it takes devices."""
        self.keeper = self._spawn("keeper", "-m", "vfio_agent.keeper", "--socket", str(KEEPER_SOCKET))
        self.keeper.wait_for("ready")

    def start_agent(self, *, module: str = AGENT, **settings: str) -> GuestProcess:
        """Start the agent, or another after that; returns at once. module: what to run as the agent."""
        self._starts += 1
        log = self.dir / f"agent-{self._starts}.log"
        agent = self._agents.start(self._settings(**settings), log, self.guest.inside(log), module)
        self.agent = GuestProcess(f"agent in {self.name}", agent)
        return self.agent

    def restart_agent(self) -> None:
        """Kill the agent and start another; returns once that is connected and has looked at all devices."""
        self.agent.kill()
        self.start_agent()
        for text in ('"connected"', *self.devices):
            self.agent.wait_for(text)

    def revive(self) -> None:
        """Start keeper and agent again if they have ended; returns once the agent is connected."""
        if not self.keeper.running:
            self.start_keeper()
        if not self.agent.running:
            self.start_agent().wait_for('"connected"')

    def journal(self) -> str:
        """What the agent has recorded of its sessions."""
        return self.guest.exec(["sh", "-c", f"cat {RUN}/*/sessions/*.json"]).stdout

    def opened(self) -> set[str]:
        """The device nodes behind the fds that the keeper holds."""
        links = self.guest.exec(["find", f"/proc/{self.keeper.pid}/fd", "-type", "l", "-printf", "%l\\n"]).check()
        return {link for link in links.stdout.splitlines() if link.startswith(("/dev/vfio/", "/dev/iommu"))}

    def _settings(self, **settings: str) -> dict[str, str]:
        """The agent's environment."""
        env = {
            "NODE_NAME": self.name,
            "STATE_DIR": str(RUN / "state"),
            "RUNTIME_DIR": str(RUN / "run"),
            "KEEPER_SOCKET": str(KEEPER_SOCKET),
            "BROKER_SOCKET": str(BROKER_SOCKET),
            "KERNEL_DEVICES": "true",
            "KERNEL_PATH": self._stack.path,
            "KUBECONFIG": self.guest.inside(self.dir / "kubeconfig"),
            "TOKEN_FILE": self.guest.inside(self.dir / "operator-token"),
            "OPERATOR_NAMESPACE": NAMESPACE,
            "LISTEN_HOST": self.address,
            "ADVERTISE_HOST": self.address,
            "METRICS_PORT": str(METRICS_PORT),
            "INVENTORY_SECONDS": "2",
            **settings,
        }
        return {f"VFIO_AGENT_{key}": value for key, value in env.items()}

    def close(self) -> None:
        """End the guest at once; nothing in it is worth a shutdown."""
        self.guest.kill()

    def metrics_port(self) -> int:
        """The port here at which the agent's /metrics is."""
        return self._ports[METRICS_PORT]


class GuestStack(Stack):
    """`Stack` whose nodes are in guests, which share the processors with whoever asks what has become of them."""

    @property
    def server_for_guests(self) -> str:
        """The API server's URL in the guests."""
        return f"https://{HOST}:{self.plane.server.rpartition(':')[2]}"

    def _ask_by_proxy(self) -> None:
        self._proxy = KubeProxy(self.plane.environment, self.dir / "proxy.log")
        self.closing.callback(self._proxy.close)

    def get(self, *arguments: str) -> Json:
        """`Stack.get`, without a kubectl for what is asked often."""
        match arguments:
            case ("vfd",):
                found: Json = self._proxy.get(f"{API}/vfiodevices")
            case ("vfm", name):
                found = self._proxy.get(f"{API}/namespaces/default/vfiomigrations/{name}")
            case _:
                found = super().get(*arguments)
        return found

    def migrate(self, migration: Json) -> None:
        """Create a VFIOMigration in the namespace default."""
        self._proxy.create(f"{API}/namespaces/default/vfiomigrations", migration)


class KernelStack(GuestStack):
    """Its nodes are two guests, each with `devices` mediated devices. Starts everything when entered."""

    nodes: dict[str, KernelNode]  # type: ignore[assignment]  # not simulated, otherwise alike
    operator: Child

    def __init__(self, devices: int = 2, *, operator: bool = True, path: str = "auto"):
        """See the class; without `operator` none is started. path: how agents open devices (their KERNEL_PATH).

        Raises what `devtools.kernel.kernel_artefacts` and `ensure_qemu` raise where guests cannot be had.
        """
        kernel_artefacts()
        ensure_qemu()
        super().__init__(NODES, tls_sans=[HOST])
        self._devices, self._with_operator = devices, operator
        self.path = path
        self.replaced: list[str] = []
        """Why guests were booted a second time, and what their programs waited for."""

    def __enter__(self) -> "KernelStack":
        try:
            self.nodes = {name: KernelNode(self, n, name, self._devices) for n, name in enumerate(NODES, 1)}
            with ThreadPoolExecutor(len(self.nodes)) as pool:
                preparing = [pool.submit(node.prepare) for node in self.nodes.values()]
                super().__enter__()
                self._ask_by_proxy()
                if self._with_operator:
                    self.start_operator()  # by this thread: a child does not outlive the thread that started it
                for prepared in preparing:
                    prepared.result()
                list(pool.map(KernelNode.start, self.nodes.values()))
            self.devices_published(len(NODES) * self._devices, 60)
        except BaseException as error:
            self.explain(error)
            self.closing.close()
            raise
        return self

    def explain(self, error: BaseException) -> None:
        """Add the last words of every process to an error."""
        for log, text in self.logs().items():
            error.add_note(f"==== {log}\n{text}")

    def start_operator(
        self, name: str = "operator-0", *, module: str = "vfio_operator", server: str = "", **settings: str
    ) -> Child:
        """`Stack.start_operator`, with the address at which guests find it."""
        self.operator = super().start_operator(
            name, module=module, server=server, **{"ADVERTISE_HOST": HOST, **settings}
        )
        return self.operator

    def restart_agents(self, path: str) -> None:
        """Kill all agents and start others that open devices by `path`; what the keepers hold stays as it is open."""
        self.path = path
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(KernelNode.restart_agent, self.nodes.values()))

    def give_up_devices(self) -> None:
        """Have every device closed."""
        for device in self.get("vfd")["items"]:
            if device.get("status", {}).get("holder"):
                self.nodes[device["spec"]["nodeName"]].workload.close(device["spec"]["address"])

    def logs(self) -> dict[str, str]:
        """The last words of every process, for a failure's report: log file -> text."""
        found = {}
        for log in sorted(self.dir.rglob("*.log")):
            with contextlib.suppress(OSError):
                found[str(log.relative_to(self.dir))] = log.read_text(errors="replace")[-LOG_TAIL:]
        return found

    def settled(self, running: Sequence[tuple[str, str]], free: Sequence[tuple[str, str]]) -> None:
        """Wait until the inventory shows these devices (node, address) held, those free, and none claimed."""

        def shown() -> bool:
            found = {(d["spec"]["nodeName"], d["spec"]["address"]): d for d in self.get("vfd")["items"]}
            held = {key for key, device in found.items() if device.get("status", {}).get("holder")}
            claimed = any(found[key]["spec"].get("claimRef") for key in (*running, *free))
            return held.issuperset(running) and held.isdisjoint(free) and not claimed

        try:
            self.wait_until(shown, f"{running} held and {free} free in the inventory")
        except TimeoutError as error:
            error.add_note(self.kubectl("get", "vfd", "-o", "wide"))
            raise
