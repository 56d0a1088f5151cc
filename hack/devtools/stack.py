"""The whole product on one machine: a real control plane, the operator and node agents as processes of their own.

Every process has its own ServiceAccount token with the chart's RBAC; agents' tokens are bound to a pod on a (fake)
node, so that node identity is as real as in a cluster. No root is needed.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from devtools import tools
from devtools.plane import Plane
from devtools.processes import Child

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "vfio-migration"
AGENT_NAMESPACE = "vfio-migration-agents"
# What would put pods of the chart beside the processes that this module starts.
WORKLOADS = frozenset({"Deployment", "DaemonSet", "StatefulSet", "Job", "CronJob", "Pod", "PodDisruptionBudget"})
AUDIENCE = "vfio-operator"
Json = dict[str, Any]
# The policies let nobody create this but the operator.
SWITCHOVER_OF_NOBODY: Json = {
    "apiVersion": "vfiomigration.io/v1alpha1",
    "kind": "VFIOSwitchover",
    "metadata": {"name": "probe", "namespace": "default"},
    "spec": {
        "migrationName": "probe",
        "migrationUID": "probe",
        "epoch": 1,
        "sourceNodes": ["a"],
        "targetNodes": ["b"],
        "timeoutSeconds": 1,
    },
}


def python_path() -> dict[str, str]:
    """Environment in which children import this checkout."""
    folders = ("api", "operator", "agent", "cli", "hack", "tests")
    return {"PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in folders)}


@dataclass(frozen=True)
class SimulatedDevice:
    """One simulated device: what the simulator's configuration says of it."""

    address: str
    size_bytes: int = 8 << 20
    dirty_rate_bytes_per_second: int = 0
    arc_latency_us: int = 100
    flags: Sequence[str] = ("STOP_COPY", "P2P", "PRE_COPY")
    model: str = "sim-vf"
    arc_latencies_us: Mapping[str, int] = field(default_factory=dict)  # by "RESUMING->STOP": what takes another time


class Node:
    """One node: the simulator that plays its kernel, the keeper, and the agent."""

    def __init__(self, stack: "Stack", name: str, devices: Sequence[SimulatedDevice], p2p: Mapping[str, int]):
        self.name, self._stack = name, stack
        self.dir = stack.dir / name
        self.dir.mkdir()
        self.trace = self.dir / "arcs.jsonl"
        config = self.dir / "devices.json"
        config.write_text(json.dumps({"devices": [vars(d) for d in devices], "p2p": dict(p2p)}))
        self.simulator_socket, self.broker_socket = self.dir / "sim", self.dir / "broker"
        arguments = ["--socket", str(self.simulator_socket), "--config", str(config), "--trace", str(self.trace)]
        self.simulator = self._child("simulator", "vfio_agent.devices.simulator", arguments, "ready")
        self.keeper = self.restart_keeper()
        self.agent: Child | None = None

    def restart_keeper(self) -> Child:
        """Start a keeper, as the first or after the one before has ended."""
        self.keeper = self._child("keeper", "vfio_agent.keeper", ["--socket", str(self.dir / "keeper")], "ready")
        return self.keeper

    def _child(
        self, name: str, module: str, arguments: Sequence[str], ready: str, env: Mapping[str, str] | None = None
    ) -> Child:
        child = Child(
            f"{name} of {self.name}",
            [sys.executable, "-m", module, *arguments],
            self.dir / f"{name}.log",
            {**python_path(), **(env or {})},
            ready,
        )
        self._stack.closing.callback(child.stop)
        return child

    def start_agent(
        self, *, module: str = "vfio_agent", server: str = "", again: bool = False, **settings: str
    ) -> Child:
        """Start (or start again) the agent, with its token; returns once it has started.

        server: the API server's URL, if another way to it is to be taken. again: with the token that it had.
        """
        token, kubeconfig = self.dir / "operator-token", self.dir / "kubeconfig"
        if not again:
            token, kubeconfig = self._stack.agent_credentials(self.name, self.dir, server)
        env = {
            "NODE_NAME": self.name,
            "STATE_DIR": str(self.records[0]),
            "RUNTIME_DIR": str(self.records[1]),
            "KEEPER_SOCKET": str(self.dir / "keeper"),
            "BROKER_SOCKET": str(self.broker_socket),
            "SIMULATOR_SOCKET": str(self.simulator_socket),
            "KERNEL_DEVICES": "false",
            "KUBECONFIG": str(kubeconfig),
            "TOKEN_FILE": str(token),
            "OPERATOR_NAMESPACE": NAMESPACE,
            "LISTEN_HOST": "127.0.0.1",
            "ADVERTISE_HOST": "127.0.0.1",
            "METRICS_HOST": "127.0.0.1",
            "METRICS_PORT": "0",
            "INVENTORY_SECONDS": "1",
            **settings,
        }
        self.agent = self._child(
            "agent",
            module,
            [],
            "agent started",
            {f"VFIO_AGENT_{key}": value for key, value in env.items()},
        )
        return self.agent

    @property
    def records(self) -> tuple[Path, Path]:
        """The folders in which the agent remembers what it must: the durable one, and the one on a tmpfs."""
        return self.dir / "state", self._stack.runtime(self.name)

    def metrics_port(self) -> int:
        """The port of the agent's /metrics."""
        assert self.agent is not None
        return int(_logged(self.agent, "agent started")["metrics_port"])

    def arcs(self) -> list[Json]:
        """The simulator's own trace of arcs."""
        return [json.loads(line) for line in self.trace.read_text().splitlines()]


def _logged(child: Child, event: str) -> Json:
    for line in child.text().splitlines():
        with contextlib.suppress(ValueError):
            entry: Json = json.loads(line)
            if entry.get("event") == event:
                return entry
    raise LookupError(f"{child.name} has not logged {event!r}")


class Stack:
    """Control plane with the CRDs and the chart's RBAC; then operators and nodes as asked for."""

    def __init__(
        self,
        nodes: Sequence[str],
        *,
        fsync: bool = False,
        apiserver_args: Sequence[str] = (),
        tls_sans: Sequence[str] = (),
    ):
        self.closing = contextlib.ExitStack()
        self.dir = Path(tempfile.mkdtemp(prefix="vs-", dir="/tmp"))  # unix socket paths are short
        self.closing.callback(_remove, self.dir)
        self.plane = Plane(nodes, fsync=fsync, apiserver_args=apiserver_args, tls_sans=tls_sans)
        self.nodes: dict[str, Node] = {}
        self._runtime: Path | None = None

    def __enter__(self) -> "Stack":
        try:
            self.plane.start()
            self.closing.callback(self.plane.stop)
            self._install()
        except BaseException:
            self.closing.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.close()

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True) -> str:  # noqa: A002
        """Run kubectl as cluster admin."""
        return self.plane.kubectl(*arguments, input=input, check=check)

    def _install(self) -> None:
        self.kubectl("create", "namespace", NAMESPACE)
        items = [item for item in chart_objects(NAMESPACE) if not _brings_pods(item)]
        rendered = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        self.kubectl("apply", "--server-side", "-f", "-", input=rendered)
        crds = ("vfiomigrations", "vfioswitchovers", "vfiodevices")
        self.kubectl(
            "wait", "--for=condition=Established", *(f"crd/{crd}.vfiomigration.io" for crd in crds), "--timeout=30s"
        )
        self.wait_until(
            self._policies_active, "admission policies active: a VFIOMigration is stamped, a VFIOSwitchover refused", 60
        )

    def _policies_active(self) -> bool:
        """The API server reads new policies once a second, and the schemas of new kinds every five."""
        create = ["create", "--dry-run=server", "-f", "-", "-o", "json"]
        probe = json.dumps(migration("probe", [("probe", "a", "a", "b", "b")]))
        made = self.kubectl(*create, input=probe, check=False)
        if not made or "annotations" not in json.loads(made)["metadata"]:
            return False
        return not self.kubectl(*create, input=json.dumps(SWITCHOVER_OF_NOBODY), check=False)

    def start_operator(
        self, name: str = "operator-0", *, module: str = "vfio_operator", server: str = "", **settings: str
    ) -> Child:
        """Start one replica under its own restricted token; returns once it listens. server: the API server's URL."""
        kubeconfig = self.dir / f"{name}.kubeconfig"
        self.plane.service_account_kubeconfig(NAMESPACE, "vfio-operator", kubeconfig, server=server)
        env = {
            "POD_NAME": name,
            "NAMESPACE": NAMESPACE,
            "KUBECONFIG": str(kubeconfig),
            "LISTEN_HOST": "127.0.0.1",
            "ADVERTISE_HOST": "127.0.0.1",
            "METRICS_HOST": "127.0.0.1",
            "METRICS_PORT": "0",
            "LEASE_SECONDS": "5",
            "RENEW_DEADLINE_SECONDS": "3",
            "RETRY_SECONDS": "0.5",
            **settings,
        }
        child = Child(
            name,
            [sys.executable, "-m", module],
            self.dir / f"{name}.log",
            {**python_path(), **{f"VFIO_OPERATOR_{key}": value for key, value in env.items()}},
            "operator started",
        )
        self.closing.callback(child.stop)
        return child

    @staticmethod
    def operator_metrics_port(operator: Child) -> int:
        """The port of an operator's /metrics."""
        return int(_logged(operator, "operator started")["metrics_port"])

    def runtime(self, node: str) -> Path:
        """A node's folder that does not outlive a boot: as in a cluster, on a tmpfs if there is one."""
        if self._runtime is None:
            there = Path("/dev/shm")
            self._runtime = Path(tempfile.mkdtemp(prefix="vs-", dir=there if os.access(there, os.W_OK) else self.dir))
            self.closing.callback(_remove, self._runtime)
        folder = self._runtime / node
        folder.mkdir(exist_ok=True)
        return folder

    def add_node(self, name: str, devices: Sequence[SimulatedDevice], p2p: Mapping[str, int] | None = None) -> Node:
        """A node with simulated devices; its agent is started by `start_agent`."""
        node = self.nodes[name] = Node(self, name, devices, p2p or {"rate_per_second": 200, "latency_us": 500})
        return node

    def agent_credentials(self, node: str, folder: Path, server: str = "") -> tuple[Path, Path]:
        """(token file for the operator, kubeconfig) of the agent pod on a node; the pod is made if absent.

        `server` is the API server's URL where the agent runs, if another than here.
        """
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"vfio-agent-{node}", "namespace": AGENT_NAMESPACE},
            "spec": {
                "nodeName": node,
                "serviceAccountName": "vfio-agent",
                "containers": [{"name": "agent", "image": "vfio-agent"}],
            },
        }
        self.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(pod))
        bound = ["--bound-object-kind=Pod", f"--bound-object-name=vfio-agent-{node}", "--duration=7200s"]
        create = ["create", "token", "vfio-agent", "--namespace", AGENT_NAMESPACE, *bound]
        token, kubeconfig = folder / "operator-token", folder / "kubeconfig"
        token.write_text(self.kubectl(*create, f"--audience={AUDIENCE}").strip())
        kubeconfig.write_text(json.dumps(self.kubeconfig_for(self.kubectl(*create).strip(), server)))
        return token, kubeconfig

    def kubeconfig_for(self, token: str, server: str = "", tls_name: str = "") -> Json:
        """A kubeconfig that shows `token`; from elsewhere than this host also with another server address."""
        admin = json.loads(self.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
        cluster = {**admin["clusters"][0]["cluster"], **({"server": server} if server else {})}
        if tls_name:
            cluster["tls-server-name"] = tls_name
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {"token": token}}],
        }

    def get(self, *arguments: str) -> Json:
        """`kubectl get ... -o json`."""
        found: Json = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = 30) -> None:
        """Poll until `condition`. Raises TimeoutError that says `what`."""
        for _ in _ticks(timeout):
            if condition():
                return
        raise TimeoutError(f"not within {timeout:g} s: {what}")

    def devices_published(self, count: int, timeout: float = 30) -> None:
        """Wait until `count` VFIODevices are there with their flags known."""

        def known() -> bool:
            return sum(1 for d in self.get("vfd")["items"] if d.get("status", {}).get("migrationFlags")) >= count

        self.wait_until(known, f"{count} VFIODevices with known flags", timeout)


def chart_objects(namespace: str, *flags: str) -> list[Json]:
    """What helm renders of the chart, as of an installation in `namespace`. flags: of `helm template`."""
    command = [str(tools.helm()), "template", "vfio", str(ROOT / "charts/vfio-migration"), "--namespace", namespace]
    rendered = subprocess.run([*command, *flags], capture_output=True, text=True, check=True).stdout
    return [item for item in yaml.safe_load_all(rendered) if item]


def _brings_pods(item: Json) -> bool:
    """Whether it is a workload or what guards one, or a hook, which `kubectl apply` would run at once."""
    return item["kind"] in WORKLOADS or "helm.sh/hook" in item["metadata"].get("annotations", {})


def _ticks(timeout: float) -> Iterator[None]:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        yield
        time.sleep(0.05)


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


def migration(
    name: str, pairs: Sequence[tuple[str, str, str, str, str]], *, namespace: str = "default", **spec: Any
) -> Json:
    """A VFIOMigration of (name, source node, source device, target node, target device) pairs."""
    return {
        "apiVersion": "vfiomigration.io/v1alpha1",
        "kind": "VFIOMigration",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "devices": [
                {
                    "name": pair,
                    "source": {"nodeName": source_node, "device": source},
                    "target": {"nodeName": target_node, "device": target},
                }
                for pair, source_node, source, target_node, target in pairs
            ],
            **spec,
        },
    }
