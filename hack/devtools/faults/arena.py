"""Where cells are run: a control plane with operators whose links can be disturbed, and lanes of nodes beside it."""

import base64
import json
import re
import signal
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from kubernetes import client, config

from devtools.faults.proxy import Address, Proxy
from devtools.faults.witness import Witness
from devtools.processes import Child
from devtools.stack import NAMESPACE, Json, Stack

API, VERSION = "vfiomigration.io", "v1alpha1"
OPERATOR = {
    "HEARTBEAT_SECONDS": "0.3",
    "DEAD_SECONDS": "2",
    "PREPARE_SECONDS": "8",
    "RELEASE_SECONDS": "5",
    "API_SECONDS": "30",
    "JANITOR_SECONDS": "1",
    "SETTLE_SECONDS": "4",
    "LEASE_SECONDS": "4",
    "RENEW_DEADLINE_SECONDS": "3",
    "RETRY_SECONDS": "0.3",
}
AUDIT = """apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  verbs: [create, update, patch, delete]
  users: ["system:serviceaccount:vfio-migration:vfio-operator"]
- level: None
"""
LEADING_SECONDS = 30.0


class Api:
    """The API server as an administrator sees it, past every disturbed link; quicker than kubectl. Any thread."""

    def __init__(self, kubeconfig: Path):
        settings: Any = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=settings)  # type: ignore[no-untyped-call]
        made = client.ApiClient(settings)
        self._objects: Any = client.CustomObjectsApi(made)
        self._leases: Any = client.CoordinationV1Api(made)

    def leader(self) -> tuple[str, Address]:
        """Who leads, and where it listens."""
        lease = self._leases.read_namespaced_lease("vfio-operator", NAMESPACE, _request_timeout=5)
        address = (lease.metadata.annotations or {}).get("vfiomigration.io/leader-address", "127.0.0.1:1")
        host, _, port = address.rpartition(":")
        return lease.spec.holder_identity or "", (host, int(port))

    def create(self, body: Json) -> str:
        """Create a migration; returns its UID."""
        made = self._objects.create_namespaced_custom_object(
            API, VERSION, body["metadata"]["namespace"], "vfiomigrations", body, _request_timeout=10
        )
        return str(made["metadata"]["uid"])

    def cancel(self, namespace: str, name: str) -> None:
        """Set spec.cancel."""
        self._objects.patch_namespaced_custom_object(
            API, VERSION, namespace, "vfiomigrations", name, {"spec": {"cancel": True}}, _request_timeout=10
        )

    def delete(self, namespace: str, name: str) -> None:
        """Delete a migration; its finalizer keeps it for as long as it needs."""
        self._objects.delete_namespaced_custom_object(
            API, VERSION, namespace, "vfiomigrations", name, _request_timeout=10
        )

    def devices(self) -> list[Json]:
        """Every VFIODevice."""
        found: list[Json] = self._objects.list_cluster_custom_object(API, VERSION, "vfiodevices", _request_timeout=10)[
            "items"
        ]
        return found

    def switchovers(self) -> list[Json]:
        """Every VFIOSwitchover."""
        found: list[Json] = self._objects.list_cluster_custom_object(
            API, VERSION, "vfioswitchovers", _request_timeout=10
        )["items"]
        return found


class Arena:
    """One control plane. replicas: how many operators there are while nothing is wrong.

    Its children end with the thread that entered it, which is to call `replenish` from time to time, as a Deployment
    would: an operator that ends is replaced.
    """

    def __init__(self, nodes: Sequence[str], folder: Path, replicas: int = 1):
        folder.mkdir(parents=True)
        self._audit = folder / "audit.log"
        policy = folder / "audit.yaml"
        policy.write_text(AUDIT)
        arguments = [f"--audit-policy-file={policy}", f"--audit-log-path={self._audit}", "--audit-log-mode=blocking"]
        self.stack = Stack(nodes, apiserver_args=arguments)
        self._replicas, self._number = replicas, 0
        self.operators: dict[str, Child] = {}
        self.stopping = threading.Event()
        self.away = threading.Event()  # the API server was killed: nothing can be started

    def __enter__(self) -> "Arena":
        self.stack.__enter__()
        self.api = Api(self.stack.plane.kubeconfig)
        port = int(self.stack.plane.server.rpartition(":")[2])
        self.link = Proxy(lambda: ("127.0.0.1", port))  # of every operator to the API server
        self.stack.closing.callback(self.link.close)
        self.witness = Witness(self.stack.plane)
        self.witness.start()
        self.stack.closing.callback(self.witness.stop)
        self.replenish()
        self.await_leader(frozenset())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.__exit__(kind, error, trace)

    @property
    def api_port(self) -> int:
        """Where the API server listens."""
        return int(self.stack.plane.server.rpartition(":")[2])

    def replenish(self) -> None:
        """Have as many operators as there should be. In the arena's own thread."""
        if self.away.is_set():
            return
        running = {name for name, child in self.operators.items() if child.running}
        for _ in range(self._replicas - len(running)):
            name = f"operator-{self._number}"
            self._number += 1
            server = f"https://127.0.0.1:{self.link.port}"
            # another dictionary: other threads look at it
            self.operators = {**self.operators, name: self.stack.start_operator(name, server=server, **OPERATOR)}

    def leader(self) -> Child:
        """The operator that leads. Raises KeyError if none of ours does."""
        return self.operators[self.api.leader()[0]]

    def await_leader(self, other_than: frozenset[str], seconds: float = LEADING_SECONDS) -> Child:
        """Wait until an operator leads that is not one of these. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            name = self.api.leader()[0]
            child = self.operators.get(name)
            if child is not None and child.running and name not in other_than and "leading" in child.text():
                return child
            self.stopping.wait(0.05)
        raise TimeoutError(f"no operator leads within {seconds:g} s")

    def operator_address(self) -> Address:
        """Where agents find the leader."""
        return self.api.leader()[1]

    def changed_by(self, name: str, since: datetime) -> list[str]:
        """What a replica has changed since then, by the API server's audit log: "verb resource"."""
        kubeconfig = json.loads((self.stack.dir / f"{name}.kubeconfig").read_text())
        payload = kubeconfig["users"][0]["user"]["token"].split(".")[1]
        token = "JTI=" + json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["jti"]
        found = []
        for line in self._audit.read_text().splitlines():
            entry = json.loads(line)
            extra = entry["user"].get("extra", {}).get("authentication.kubernetes.io/credential-id", [])
            late = datetime.fromisoformat(entry["requestReceivedTimestamp"]) > since
            if token in extra and late and entry.get("responseStatus", {}).get("code", 500) < 400:
                found.append(f"{entry['verb']} {entry['objectRef']['resource']}")
        return found

    def tail(self) -> str:
        """The last lines of the operators' logs, for a cell that could not be run."""
        lines = [f"{n}: {line}" for n, c in self.operators.items() for line in c.text().splitlines()[-8:]]
        return re.sub(r"\s+", " ", "\n".join(lines))


def stop_process(child: Child) -> None:
    """SIGSTOP."""
    child.signal(signal.SIGSTOP)


def wake_process(child: Child) -> None:
    """SIGCONT."""
    child.signal(signal.SIGCONT)
