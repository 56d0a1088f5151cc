"""Nodes on this machine: each has mounts and a network of its own, where real kubelets run real pods.

They live inside `devtools.cluster.sandbox`, so that nothing of them outlasts it. All are joined by a bridge, at which
the control plane is, too.
"""

import base64
import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import yaml

from devtools.cluster.node_files import (
    API_ADDRESS,
    NODE_ADDRESS,
    PODS,
    NodeFolders,
    write_node_files,
)
from devtools.cluster.runtime import Runtime
from devtools.cluster.sandbox import make_cgroup, old_cgroups
from devtools.plane import Plane
from devtools.processes import Child

BRIDGE = "nodes"
HERE = "10.99.0.1"
SCRIPT = Path(__file__).with_name("local_node.sh")
IMPORT_SECONDS = 300.0


def ip(*arguments: str) -> None:
    """Run iproute2's ip. Raises CalledProcessError."""
    subprocess.run(["ip", *arguments], check=True)


def join_network() -> None:
    """Make the bridge that joins nodes and control plane, in the network namespace that this process is in."""
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("address", "add", f"{HERE}/24", "dev", BRIDGE)
    ip("address", "add", f"{API_ADDRESS}/32", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def write_identity(plane: Plane, name: str, into: Path, server: str) -> None:
    """Write the kubelet's kubeconfig, its certificate and key, and the API server's ca.crt."""
    config = yaml.safe_load(plane.node_kubeconfig(name).read_text())
    user = config["users"][0]["user"]
    for key, file in (("client-certificate-data", "kubelet.crt"), ("client-key-data", "kubelet.key")):
        (into / file).write_bytes(base64.b64decode(user[key]))
    config["clusters"][0]["cluster"]["server"] = server
    (into / "kubeconfig").write_text(yaml.safe_dump(config))
    (into / "ca.crt").write_bytes(plane.ca.read_bytes())


class LocalNode:
    """One node. `start` once the control plane serves; `close` ends it."""

    def __init__(self, number: int, name: str, folder: Path, runtime: Runtime, kubelet: Path):
        self.number, self.name, self.dir = number, name, folder
        self.address = NODE_ADDRESS.format(number=number)
        self._kubelet, self._runtime = kubelet, runtime
        self._closing = contextlib.ExitStack()
        folder.mkdir()
        (folder / "containerd").mkdir()
        self._folders = NodeFolders(folder, runtime.folder, folder / "containerd")
        make_cgroup(name)
        write_node_files(folder, number, self._folders, old_cgroups=old_cgroups(), cgroup_root=f"/{name}")
        self._network()
        enter = ["nsenter", f"--net=/run/netns/{name}", "unshare", "--mount", "sh", str(SCRIPT), str(folder)]
        self._holder = self._child("node", enter, "ready")
        self._containerd = self._program(
            "containerd", [str(runtime.folder / "containerd"), "-c", str(folder / "containerd.toml")], "serving..."
        )

    def _network(self) -> None:
        outer = f"to-{self.name}"
        ip("netns", "add", self.name)
        self._closing.callback(ip, "netns", "delete", self.name)
        ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", outer, "master", BRIDGE, "up")
        inside = ("-n", self.name)
        ip(*inside, "link", "set", "lo", "up")
        ip(*inside, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip(*inside, "link", "set", "eth0", "up")
        ip(*inside, "route", "add", "default", "via", HERE)
        ip("route", "add", PODS.format(number=self.number), "via", self.address)
        enter = ["nsenter", f"--net=/run/netns/{self.name}"]
        subprocess.run([*enter, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], check=True)

    def _child(self, what: str, argv: Sequence[str], ready: str = "") -> Child:
        # the folder of programs is for containerd, which looks for its shim on PATH
        path = f"{self._runtime.folder}{os.pathsep}{os.environ['PATH']}"
        child = Child(f"{what} of {self.name}", argv, self.dir / f"{what}.log", {"PATH": path}, ready)
        self._closing.callback(child.stop)
        return child

    def _program(self, what: str, argv: Sequence[str], ready: str = "") -> Child:
        return self._child(what, [*self._entering(), *argv], ready)

    def _entering(self) -> list[str]:
        return ["nsenter", f"--target={self._holder.pid}", "--mount", "--net", "--"]

    def import_images(self, archives: Sequence[Path]) -> None:
        """Load images into the node's runtime. Raises CalledProcessError."""
        ctr = [str(self._runtime.ctr), "--address", str(self._folders.socket), "--namespace", "k8s.io"]
        for archive in archives:
            self.exec([*ctr, "images", "import", "--local", str(archive)], IMPORT_SECONDS)

    def start(self, plane: Plane) -> None:
        """Start the kubelet; returns at once."""
        write_identity(plane, self.name, self.dir, plane.server)
        arguments = [
            f"--config={self.dir}/kubelet.yaml",
            f"--kubeconfig={self.dir}/kubeconfig",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            f"--root-dir={self.dir}/kubelet",
            f"--cert-dir={self.dir}/pki",
        ]
        self._program("kubelet", [str(self._kubelet), *arguments])

    def exec(self, argv: Sequence[str], timeout: float = 60) -> str:
        """Run a command in the node's mounts and network; returns its output. Raises CalledProcessError."""
        done = subprocess.run([*self._entering(), *argv], capture_output=True, text=True, check=False, timeout=timeout)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, argv, done.stdout, done.stderr)
        return done.stdout

    def close(self) -> None:
        """End it; its pods end with the sandbox."""
        self._closing.close()
