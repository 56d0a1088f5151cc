"""The programs that our data streams are compared with: openssl, socat, iperf3."""

import json
import os
import resource
import shutil
import socket
import ssl
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

_OPENSSL = ("-tls1_3", "-quiet")


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
        for name, serve in (("openssl", self._s_server), ("socat", self._listener)):
            if (agreed := self._agreed(serve)) != cipher:
                sys.exit(f"dataplane: {name} agrees on {agreed}, our streams on {cipher}: they cannot be compared")

    def _agreed(self, serve: Callable[[int], Sequence[str]]) -> str | None:
        """The cipher suite that a server takes of all that Python's ssl offers."""
        (port,) = _free_ports(1)
        offers = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        offers.check_hostname, offers.verify_mode = False, ssl.CERT_NONE
        with ExitStack() as ending:
            server = self._start(serve(port), subprocess.PIPE, ending)
            _await_listener(port, server)
            plain = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
            with plain, offers.wrap_socket(plain) as connection:
                found = connection.cipher()
        return found[0] if found else None

    def _s_server(self, port: int, *options: str) -> Sequence[str]:
        pem = ("-cert", str(self._pem), "-key", str(self._pem))
        return "openssl", "s_server", "-accept", f"{port}", *pem, *_OPENSSL, "-naccept", "1", *options

    def _listener(self, port: int, *options: str) -> Sequence[str]:
        return "socat", "-u", *options, f"OPENSSL-LISTEN:{port},cert={self._pem},verify=0", "STDOUT"

    def openssl(self, options: Sequence[str], streams: int, size: int) -> Run:
        """A run of pairs of s_client and s_server. options: of s_server."""
        return self._pairs(
            lambda port: self._s_server(port, *options),
            lambda port: ("openssl", "s_client", "-connect", f"127.0.0.1:{port}", *_OPENSSL, "-no_ign_eof"),
            streams,
            size,
        )

    def socat(self, options: Sequence[str], streams: int, size: int) -> Run:
        """A run of pairs of socat. options: of both."""
        return self._pairs(
            lambda port: self._listener(port, *options),
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
        with ExitStack() as ending:
            # s_server ends with its input
            servers = [self._start(serve(port), subprocess.PIPE, ending) for port in ports]
            for port, server in zip(ports, servers, strict=True):
                _await_listener(port, server)
            began = time.monotonic()
            with ExitStack() as files:
                clients = [self._start(send(port), files.enter_context(hole.open("rb")), ending) for port in ports]
            for process in (*clients, *servers):
                if process.wait(PATIENCE_SECONDS) != 0:
                    raise RuntimeError(f"{process.args!r} failed with {process.returncode}")
            seconds = time.monotonic() - began
        return Run(seconds, cpu_seconds(resource.RUSAGE_CHILDREN) - cpu, size)

    def _start(
        self, command: Sequence[str], stdin: Any, ending: ExitStack, stdout: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """A program of the peer; it is gone when `ending` ends."""
        child = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, env=self._env)
        ending.enter_context(child)
        ending.callback(child.kill)
        return child

    def iperf3(self, options: Sequence[str], streams: int, size: int, *, one_process: bool) -> Run:
        """A run of iperf3. options: of the client. one_process: for all streams at each end, or else one for each.

        Seconds are from before the first client starts until the last one has ended.
        """
        ports = _free_ports(1 if one_process else streams)
        each = ("-n", f"{size // len(ports)}", "-P", f"{streams // len(ports)}", "-J", *options)
        cpu = cpu_seconds(resource.RUSAGE_CHILDREN)
        with ExitStack() as ending:
            servers = [
                self._start(("iperf3", "-s", "--one-off", "-p", f"{port}"), subprocess.DEVNULL, ending)
                for port in ports
            ]
            for port, server in zip(ports, servers, strict=True):
                _await_listener(port, server)
            began = time.monotonic()
            clients = [
                self._start(
                    ("iperf3", "-c", "127.0.0.1", "-p", f"{port}", *each), subprocess.DEVNULL, ending, subprocess.PIPE
                )
                for port in ports
            ]
            ends = [json.loads(child.communicate(timeout=PATIENCE_SECONDS)[0])["end"] for child in clients]
            seconds = time.monotonic() - began
            for server in servers:
                server.wait(PATIENCE_SECONDS)
        taken = sum(end["sum_received"]["bytes"] for end in ends)
        return Run(seconds, cpu_seconds(resource.RUSAGE_CHILDREN) - cpu, taken)


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
