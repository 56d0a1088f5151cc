"""A cluster whose two nodes are guests with the kernel's own VFIO devices. Needs no root."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devtools.cluster.cluster import Cluster
from devtools.cluster.disk import node_disk
from devtools.cluster.egress import EgressProxy
from devtools.cluster.guest_node import KUBELET_PORT, GuestNode
from devtools.cluster.node_files import NODE_ADDRESS
from devtools.cluster.runtime import container_runtime
from devtools.gobuild import build_program
from devtools.guest import HOST
from devtools.images import pause_image
from devtools.plane import Plane
from devtools.ports import free_port

FIRST_NUMBER = 11
PATIENCE = 3.0
METRICS_PORTS = (9101, 9102)


@contextlib.contextmanager
def guest_cluster(names: Sequence[str], images: Sequence[Path], devices: int = 2) -> Iterator[Cluster]:
    """Control plane on this machine and two guests with these images, all nodes Ready.

    Raises what building its parts raises, and GuestError.
    """
    runtime = container_runtime()
    programs = {name: build_program(name, name) for name in ("kubelet", "forward")}
    disk = node_disk(runtime, [pause_image(), *images])
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(names))
    with contextlib.ExitStack() as closing:
        folder = Path(tempfile.mkdtemp(prefix="vc-", dir="/tmp"))  # unix socket paths are short
        closing.callback(shutil.rmtree, folder, ignore_errors=True)
        nodes: dict[str, GuestNode] = {}
        for number, name in zip(numbers, names, strict=True):
            nodes[name] = GuestNode(
                number,
                name,
                folder / name,
                peers=[other for other in numbers if other != number],
                link=folder / "link",
                disk=disk,
                runtime=runtime,
                programs=programs,
                ports={KUBELET_PORT: free_port()},
                devices=devices,
            )
            closing.callback(nodes[name].close)
        kubelets = {
            f"{NODE_ADDRESS.format(number=node.number)}:{KUBELET_PORT}": node.ports[KUBELET_PORT]
            for node in nodes.values()
        }
        egress = closing.enter_context(EgressProxy(folder, kubelets))
        api_port = free_port()
        plane = Plane(
            nodes=names,
            port=api_port,
            tls_sans=[HOST],
            apiserver_args=[
                "--kubelet-preferred-address-types=InternalIP",
                f"--egress-selector-config-file={egress.config}",
            ],
        )
        with ThreadPoolExecutor(len(nodes)) as pool:
            preparing = [pool.submit(node.prepare, api_port) for node in nodes.values()]
            closing.enter_context(plane)
            for done in preparing:
                done.result()
        for node in nodes.values():
            node.start(plane)
        cluster = Cluster(plane, nodes, folder, PATIENCE)
        try:
            cluster.nodes_ready()
            yield cluster
        except BaseException as error:
            cluster.explain(error)
            raise
