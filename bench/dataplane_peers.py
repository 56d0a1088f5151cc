"""The programs that our data streams are compared with: openssl, socat, iperf3."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dataplane_run import PATIENCE_SECONDS, Run, cpu_seconds
from vfio_agent.datatls import new_identity


class Peers:
    """The programs of others, with what they need in a folder of their own."""

    def __init__(self, stack: ExitStack, cipher: str):
        _require("openssl", "openssl")
        _require("socat", "socat")
        _require("iperf3", "iperf3")
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vfio-bench-", dir="/dev/shm")))
        self._pem = self._folder / "identity.pem"
        self._pem.write_bytes(new_identity("peer").pem)
        conf = self._folder / "openssl.cnf"
        conf.write_text(
            "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = tls\n"
            f"[tls]\nMinProtocol = TLSv1.3\nCiphersuites = {cipher}\n"
        )
        self._env = {**os.environ, "OPENSSL_CONF": str(conf)}

    def openssl(self, options: Sequence[str], streams: int, size: int) -> Run:
        """A run of pairs of s_client and s_server. options: of s_server."""
        common = ("-tls1_3", "-quiet")
        pem = ("-cert", str(self._pem), "-key", str(self._pem))
        return self._pairs(
            lambda port: ("openssl", "s_server", "-accept", f"{port}", *pem, *common, "-naccept", "1", *options),
            lambda port: ("openssl", "s_client", "-connect", f"127.0.0.1:{port}", *common, "-no_ign_eof"),
            streams,
            size,
        )

    def socat(self, options: Sequence[str], streams: int, size: int) -> Run:
        """A run of pairs of socat. options: of both."""
        return self._pairs(
            lambda port: ("socat", "-u", *options, f"OPENSSL-LISTEN:{port},cert={self._pem},verify=0", "STDOUT"),
            lambda port: ("socat", "-u", *options, "STDIN", f"OPENSSL:127.0.0.1:{port},verify=0"),
            streams,
            size,
        )

    def _pairs(
        self, serve: Callable[[int], Sequence[str]], send: Callable[[int], Sequence[str]], streams: int, size: int
    ) -> Run:
        ports = _free_ports(streams)
        hole = self._folder / "hole"
        with hole.open("wb") as made:
            made.truncate(size // streams)
        cpu = cpu_seconds(resource.RUSAGE_CHILDREN)
        servers = [self._start(serve(port), subprocess.PIPE) for port in ports]  # s_server ends with its input
        for port, server in zip(ports, servers, strict=True):
            _await_listener(port, server)
        began = time.monotonic()
        with ExitStack() as files:
            clients = [self._start(send(port), files.enter_context(hole.open("rb"))) for port in ports]
        for process in (*clients, *servers):
            if process.wait(PATIENCE_SECONDS) != 0:
                raise RuntimeError(f"{process.args!r} failed with {process.returncode}")
        seconds = time.monotonic() - began
        for process in servers:
            process.communicate()
        return Run(seconds, cpu_seconds(resource.RUSAGE_CHILDREN) - cpu, size)

    def _start(self, command: Sequence[str], stdin: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self._env
        )

    def iperf3(self, options: Sequence[str], streams: int, size: int) -> Run:
        """A run of iperf3. options: of the client."""
        (port,) = _free_ports(1)
        cpu = cpu_seconds(resource.RUSAGE_CHILDREN)
        server = self._start(("iperf3", "--server", "--one-off", "--port", f"{port}"), subprocess.DEVNULL)
        _await_listener(port, server)
        ran = subprocess.run(
            ("iperf3", "-c", "127.0.0.1", "-p", f"{port}", "-n", f"{size}", "-P", f"{streams}", "-J", *options),
            capture_output=True,
            check=True,
        )
        server.wait(PATIENCE_SECONDS)
        end = json.loads(ran.stdout)["end"]["sum_received"]
        return Run(end["seconds"], cpu_seconds(resource.RUSAGE_CHILDREN) - cpu, end["bytes"])


def _require(program: str, package: str) -> None:
    if shutil.which(program) is None:
        sys.exit(f"dataplane: {program} is needed to compare with; on Debian: apt-get install {package}")


def _free_ports(count: int) -> list[int]:
    """Found at once, or one might be found twice."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in found]


def _await_listener(port: int, server: subprocess.Popen[bytes]) -> None:
    """Without connecting: the peers serve one connection each."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"{server.args!r} ended with {server.returncode} before it listened")
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            entries = [line.split() for line in Path(table).read_text().splitlines()[1:]]
            if any(fields[1].endswith(f":{port:04X}") and fields[3] == "0A" for fields in entries):
                return
        time.sleep(0.01)
    raise TimeoutError(f"nobody listens on port {port}")
