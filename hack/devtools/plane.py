"""A real Kubernetes control plane in one process: how to build, start and use it.

The program is hack/testplane; its first build takes minutes, so it is cached by its content.
"""

import base64
import json
import os
import platform
import selectors
import shutil
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from devtools.cache import build_once, content_key
from devtools.ports import free_port
from devtools.tools import go, kubectl

SOURCE = Path(__file__).resolve().parents[1] / "testplane"
KUBERNETES = "1.37.2"
START_S = 60.0
STOP_S = 15.0
LOG_TAIL_LINES = 30

# How Go builds the plane. Each of these is part of Go's own build cache key: use no others.
# Neither inlining nor debug data: a third less to compile, for 0.4 s more at each start.
GO_ENVIRONMENT = {
    "CGO_ENABLED": "0",
    "GOFLAGS": "-buildvcs=false -mod=readonly",
    "GOTOOLCHAIN": "local",
    "GOWORK": "off",
}
COMPILER_FLAGS = ["-trimpath", "-gcflags=all=-l -dwarf=false"]
# Module downloads plus compiled packages of a build that has nothing cached, before Go has counted.
STEPS_OF_A_COLD_BUILD = 2700

Progress = Callable[[int, int], None]


class BuildError(RuntimeError):
    """Go could not build the plane; the message ends with what it said."""


class PlaneError(RuntimeError):
    """The plane did not start; the message ends with its log."""


class KubectlError(RuntimeError):
    """A kubectl command failed; the message holds the command and what it said."""


def _linker_flags() -> str:
    """Return flags that give the server its version, which kubectl wants to compare with its own."""
    major, minor, _ = KUBERNETES.split(".")
    values = {
        "gitVersion": f"v{KUBERNETES}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "testplane",
        "buildDate": "2026-11-22T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(["-s -w", *(f"-X {package}.{k}={v}" for package in packages for k, v in values.items())])


def build_plane(progress: Progress | None = None) -> Path:
    """Return the plane's program, building it unless the cache has it.

    A build calls progress with steps done and steps in total; the total is a guess until all modules
    are there. The last call, of a build or not, has both equal.

    Raises:
        MissingToolError: there is no Go to build with.
        BuildError: the build fails, for instance because a module cannot be downloaded.
    """
    report = progress or (lambda _done, _total: None)
    files = [*SOURCE.glob("*.go"), SOURCE / "go.mod", SOURCE / "go.sum"]
    flags = [*COMPILER_FLAGS, f"-ldflags={_linker_flags()}"]
    key = content_key(files, *flags, *GO_ENVIRONMENT.values(), platform.machine())
    directory = build_once("testplane", key, lambda target: _build(flags, target, report))
    report(1, 1)
    return directory / "testplane"


def _build(flags: list[str], target: Path, report: Progress) -> None:
    """Download modules and count what must be compiled, then compile it."""
    done = 0
    to_compile: set[str] = set()

    def download(line: str) -> None:
        nonlocal done
        if line.startswith("stale "):
            to_compile.add(line.removeprefix("stale "))
        elif line.startswith("go: downloading "):
            done += 1
            report(done, STEPS_OF_A_COLD_BUILD)

    _run_go(["list", "-deps", *flags, "-f", "{{if .Stale}}stale {{.ImportPath}}{{end}}", "."], download)
    total = done + len(to_compile) + 1  # the last step is to link

    def compiled(line: str) -> None:
        nonlocal done
        if line in to_compile:
            done += 1
            report(done, total)

    _run_go(["build", "-v", *flags, "-o", str(target / "testplane"), "."], compiled)
    report(total, total)


def _run_go(args: list[str], each_line: Callable[[str], None]) -> None:
    """Run go in the source directory and hand on each line it prints, on stdout or stderr."""
    tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
    with subprocess.Popen(
        [go(), *args],
        cwd=SOURCE,
        env=os.environ | GO_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                tail.append(line)
                each_line(line.rstrip("\n"))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise BuildError(f"go {args[0]} failed with exit code {process.returncode}:\n{''.join(tail)}")


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
    ) -> None:
        """Set up a plane; start() or "with" starts it.

        Args:
            fake_nodes: nodes that are Ready and whose pods turn Running without running anything
            apiserver_args: extra flags of the kube-apiserver, such as "--v=2"
            fsync: whether what is written survives a power cut
            tls_sans: extra names and addresses in the kube-apiserver's certificate
        """
        self._flags = ["-exit-on-stdin-eof", f"-fsync={str(fsync).lower()}"]
        self._flags += [f"-fake-node={name}" for name in fake_nodes]
        self._flags += [f"-apiserver-arg={arg}" for arg in apiserver_args]
        self._flags += [f"-tls-san={name}" for name in tls_sans]
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
            self._run(program, free_port())
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
