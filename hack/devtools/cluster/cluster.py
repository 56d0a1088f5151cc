"""A cluster of real nodes as its users have it: kubectl, helm, and waiting for what they show."""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from devtools.plane import Plane
from devtools.tools import helm, kubectl

Json = dict[str, Any]
POLL_SECONDS = 0.2


class CommandError(RuntimeError):
    """kubectl or helm failed; the message holds the command and what it said."""


class Node(Protocol):
    """One node, wherever it runs."""

    name: str
    dir: Path

    def exec(self, argv: Sequence[str], timeout: float = 60) -> str:
        """Run a command on it; returns its output. Raises if it fails."""


class Cluster:
    """A control plane and its nodes. patience: what every wait is multiplied by, where nodes are emulated."""

    def __init__(self, plane: Plane, nodes: Mapping[str, Node], folder: Path, patience: float = 1.0):
        self.plane, self.nodes, self.dir, self.patience = plane, nodes, folder, patience

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 120) -> str:
        """Run kubectl as cluster admin; returns what it printed, with its complaints if it fails and may.

        Raises CommandError.
        """
        return self._run([str(kubectl()), *arguments], stdin, check, timeout)

    @contextlib.contextmanager
    def kubectl_until(self, into: Path, *arguments: str) -> Iterator[None]:
        """kubectl as cluster admin, for as long as the block runs, with its output in a file."""
        with into.open("w") as output:
            process = subprocess.Popen([str(kubectl()), *arguments], stdout=output, env=self.plane.environment)
            try:
                yield
            finally:
                process.terminate()
                process.wait(30)

    def helm(self, *arguments: str, check: bool = True, timeout: float = 600) -> str:
        """Run helm as cluster admin. Raises CommandError."""
        return self._run([str(helm()), *arguments], None, check, timeout)

    def _run(self, argv: Sequence[str], stdin: str | None, check: bool, timeout: float) -> str:
        done = subprocess.run(
            argv,
            input=stdin or "",
            env=self.plane.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout * self.patience,
        )
        if done.returncode == 0:
            return done.stdout
        if check:
            words = " ".join([Path(argv[0]).name, *argv[1:]])
            raise CommandError(f"{words}: exit code {done.returncode}: {done.stderr.strip()}\n{done.stdout}")
        return done.stdout + done.stderr

    def get(self, *arguments: str) -> Json:
        """`kubectl get ... -o json`."""
        found: Json = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = 30) -> None:
        """Poll until `condition`. Raises TimeoutError that says `what`."""
        deadline = time.monotonic() + timeout * self.patience
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout * self.patience:g} s: {what}")
            time.sleep(POLL_SECONDS)

    def nodes_ready(self, timeout: float = 60) -> None:
        """Wait until every node is Ready."""

        def ready() -> bool:
            found = {
                node["metadata"]["name"]
                for node in self.get("nodes")["items"]
                for condition in node["status"].get("conditions", ())
                if condition["type"] == "Ready" and condition["status"] == "True"
            }
            return found >= set(self.nodes)

        self.wait_until(ready, f"nodes {', '.join(self.nodes)} Ready", timeout)

    def pods(self, namespace: str, component: str) -> list[Json]:
        """The pods of one component that are not about to end, oldest first."""
        label = f"app.kubernetes.io/component={component}"
        found = self.get("pods", "-n", namespace, "-l", label)["items"]
        there = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return sorted(there, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    def explain(self, error: BaseException) -> None:
        """Add what the cluster shows now to an error."""
        for what in (
            ("get", "pods", "-A", "-o", "wide"),
            ("get", "events", "-A", "--field-selector=type=Warning"),
            ("get", "vfm,vfd", "-A", "-o", "wide"),
        ):
            error.add_note(f"==== kubectl {' '.join(what)}\n{self.kubectl(*what, check=False)}")
