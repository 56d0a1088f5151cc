"""A real Kubernetes control plane in one process: how to build, start and use it.

The program is hack/testplane; its first build takes minutes, so it is cached by its content.
"""

import base64
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from devtools.gobuild import LOG_TAIL_LINES, Progress, build_program
from devtools.ports import free_port
from devtools.tools import kubectl

START_S = 60.0
STOP_S = 15.0


class PlaneError(RuntimeError):
    """The plane did not start; the message ends with its log."""


class KubectlError(RuntimeError):
    """A kubectl command failed; the message holds the command and what it said."""


def build_plane(progress: Progress | None = None) -> Path:
    """The plane's program. Raises what `devtools.gobuild.build_program` raises."""
    return build_program("testplane", progress=progress)


class Plane:
    """A running control plane; a context manager that starts it and, at the end, removes all of it.

    It also ends when this process does, however that ends.
    """

    server: str
    """The API server's URL."""
    kubeconfig: Path
    """The administrator's kubeconfig."""
    ca: Path
    """The certificate authority that the API server is to be checked against."""
    dir: Path
    """The plane's private directory, with its log in "log"."""
    pid: int

    def __init__(
        self,
        fake_nodes: Sequence[str] = (),
        *,
        apiserver_args: Sequence[str] = (),
        fsync: bool = False,
        tls_sans: Sequence[str] = (),
        nodes: Sequence[str] = (),
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Set up a plane; start() or "with" starts it.

        Args:
            fake_nodes: nodes that are Ready and whose pods turn Running without running anything
            apiserver_args: extra flags of the kube-apiserver, such as "--v=2"
            fsync: whether what is written survives a power cut
            tls_sans: extra names and addresses in the kube-apiserver's certificate
            nodes: real nodes; each kubelet's identity is in `node_kubeconfig`
            host, port: where to serve; port 0 takes a free one
        """
        self._flags = ["-exit-on-stdin-eof", f"-fsync={str(fsync).lower()}"]
        self._flags += [f"-fake-node={name}" for name in fake_nodes]
        self._flags += [f"-apiserver-arg={arg}" for arg in apiserver_args]
        self._flags += [f"-tls-san={name}" for name in tls_sans]
        self._flags += [f"-node={name}" for name in nodes] + [f"-host={host}"]
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Build the program if need be, start it and wait until it serves requests.

        Raises:
            MissingToolError, BuildError: it cannot be built.
            PlaneError: it does not come up within a minute.
        """
        program = build_plane()
        # Not below TMPDIR: it holds unix sockets, whose paths may be 107 characters long.
        self.dir = Path(tempfile.mkdtemp(prefix="vp-", dir="/tmp"))
        try:
            self._run(program, self._port or free_port())
        except BaseException:
            self.stop()
            shutil.rmtree(self.dir, ignore_errors=True)
            raise

    def _run(self, program: Path, port: int) -> None:
        with (self.dir / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-dir", self.dir, *self._flags, "-port", str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: the plane stops after its users
            )
        assert self._process.stdout is not None
        line = _read_line(self._process.stdout, START_S)
        if not line:
            raise PlaneError(f"the control plane did not start; its log ends with:\n{self._log_tail()}")
        ready = json.loads(line)
        self.server, self.pid = ready["server"], ready["pid"]
        self.kubeconfig, self.ca = Path(ready["kubeconfig"]), Path(ready["ca"])

    def kill(self) -> None:
        """SIGKILL, as if the machine of the control plane had lost its power; what etcd stored is there."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def restart(self) -> None:
        """After `kill`: serve the same data at the same address. Raises PlaneError."""
        self._run(build_plane(), int(self.server.rpartition(":")[2]))

    def stop(self) -> None:
        """Stop the program, killing it if it takes too long, and remove its directory; again does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def node_kubeconfig(self, name: str) -> Path:
        """The kubeconfig of a real node's kubelet."""
        return self.dir / f"node-{name}.kubeconfig"

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which kubectl, its plugins and helm talk to this plane as administrator."""
        # A cache of its own: the usual one goes by address, and a later plane may get the same port.
        return os.environ | {
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(self.dir / "kubectl-cache"),
        }

    # "input" is what subprocess.run calls it
    def kubectl(self, *args: str, input: str | None = None, check: bool = True) -> str:  # noqa: A002
        """Run kubectl as administrator, with input on its stdin, and return what it printed.

        Raises:
            KubectlError: it failed, unless check is false.
        """
        result = subprocess.run(
            [kubectl(), *args],
            input=input or "",
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and result.returncode:
            raise KubectlError(f"kubectl {' '.join(args)}: exit code {result.returncode}: {result.stderr.strip()}")
        return result.stdout

    def service_account_kubeconfig(
        self, namespace: str, name: str, path: Path, duration_s: int = 7200, server: str = ""
    ) -> None:
        """Write a kubeconfig with a new token of the service account, and its namespace as the default.

        server: the API server's URL, if another way to it is to be taken.

        Raises:
            KubectlError: there is no such service account.
        """
        token = self.kubectl("create", "token", name, "-n", namespace, f"--duration={duration_s}s").strip()
        ca = base64.b64encode(self.ca.read_bytes()).decode()
        cluster = {"server": server or self.server, "certificate-authority-data": ca}
        context = {"cluster": "testplane", "user": name, "namespace": namespace}
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "testplane", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "testplane", "context": context}],
            "current-context": "testplane",
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(kubeconfig, indent=2) + "\n", encoding="utf-8")

    def _log_tail(self) -> str:
        lines = (self.dir / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])


def _read_line(stream: IO[bytes], timeout_s: float) -> bytes:
    """Return the next line of a pipe; empty if the other end closes it or time runs out first."""
    deadline = time.monotonic() + timeout_s
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                return b""
            chunk = os.read(stream.fileno(), 4096)
            if not chunk:
                return b""
            line += chunk
    return line
