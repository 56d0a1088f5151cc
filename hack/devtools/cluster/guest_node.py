"""A Kubernetes node in a guest of `devtools.guest`, with the kernel's own VFIO devices."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from devtools.cluster.local_node import write_identity
from devtools.cluster.node_files import API_ADDRESS, API_PORT, NODE_ADDRESS, PODS, NodeFolders, write_node_files
from devtools.cluster.runtime import Runtime
from devtools.guest import GUEST_SHARE, HOST, WORKLOAD, Guest, Job, Link
from devtools.kernel import kernel_artefacts
from devtools.plane import Plane

MEMORY_MIB = 1024
KUBELET_PORT = 10250
SCRIPT = Path(__file__).with_name("guest_node.sh")
SETUP_SECONDS = 120.0
SOCKET_TRIES = 600


class GuestNode:
    """One node. It boots at once; `prepare` when it has, `start` once the control plane serves.

    number: the last part of its address. peers: numbers of the other nodes. ports: of the guest -> of 127.0.0.1 here.
    devices: how many mediated devices it has.
    """

    def __init__(
        self,
        number: int,
        name: str,
        folder: Path,
        *,
        peers: Sequence[int],
        link: Path,
        disk: Path,
        runtime: Runtime,
        programs: Mapping[str, Path],
        ports: Mapping[int, int],
        devices: int,
    ):
        self.number, self.name, self.dir, self.ports = number, name, folder, ports
        self.address = NODE_ADDRESS.format(number=number)
        self.devices = tuple(f"6d747479-{number:04x}-4000-8000-{index:012x}" for index in range(devices))
        """UUIDs of its mediated devices."""
        self._peers, self._runtime, self._programs = peers, runtime, programs
        self._jobs: list[Job] = []
        folder.mkdir()
        inside = NodeFolders(Path(GUEST_SHARE), runtime.folder, Path("/var/lib/containerd"))
        self._folders = inside
        write_node_files(folder, number, inside)
        search = f"{runtime.folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.guest = Guest.start(
            name,
            share=folder,
            memory_mib=MEMORY_MIB,
            # runc makes a fifo where TMPDIR says, and /tmp is no place for it under TCG
            env={"PATH": search, "TMPDIR": "/run"},
            hostfwd=ports,
            link=Link(link, server=not peers or number < min(peers), address=self.address),
            disk=disk,
        )

    def prepare(self, api_port: int) -> None:
        """Set the machine up, make its devices, start containerd and what leads to the API server on `api_port`."""
        artefacts = kernel_artefacts()
        routes = [word for n in self._peers for word in (PODS.format(number=n), NODE_ADDRESS.format(number=n))]
        arguments = [str(artefacts.node_modules), str(artefacts.busybox), API_ADDRESS, *routes]
        self.exec(["sh", str(SCRIPT), *arguments], SETUP_SECONDS)
        self.exec([sys.executable, "-E", "-S", str(WORKLOAD), "create", *self.devices], SETUP_SECONDS)
        self._spawn("forward", [str(self._programs["forward"]), f"{API_ADDRESS}:{API_PORT}", f"{HOST}:{api_port}"])
        self._spawn("containerd", [str(self._runtime.folder / "containerd"), "-c", f"{GUEST_SHARE}/containerd.toml"])
        wait = f"n=0; while [ ! -S {self._folders.socket} ]; do n=$((n+1)); [ $n -lt {SOCKET_TRIES} ]; sleep 0.1; done"
        self.exec(["sh", "-e", "-c", wait], SETUP_SECONDS)

    def start(self, plane: Plane) -> None:
        """Start the kubelet; returns at once."""
        write_identity(plane, self.name, self.dir, f"https://{API_ADDRESS}:{API_PORT}")
        arguments = [
            f"--config={GUEST_SHARE}/kubelet.yaml",
            f"--kubeconfig={GUEST_SHARE}/kubeconfig",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            "--root-dir=/var/lib/kubelet",
            "--cert-dir=/run/kubelet-pki",
        ]
        self._spawn("kubelet", [str(self._programs["kubelet"]), *arguments])

    def _spawn(self, what: str, argv: Sequence[str]) -> None:
        self._jobs.append(self.guest.spawn(argv, log=f"{what}.log"))

    def exec(self, argv: Sequence[str], timeout: float = 60) -> str:
        """Run a command on the node; returns its output. Raises GuestError."""
        return self.guest.exec(argv, timeout).check().stdout

    def close(self) -> None:
        """End the guest at once; nothing in it is worth a shutdown."""
        self.guest.kill()
