"""A cluster of nodes on this machine, inside the sandbox: everything but the machine's kernel is its own."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devtools.cluster.cluster import Cluster
from devtools.cluster.local_node import LocalNode, join_network
from devtools.cluster.node_files import API_ADDRESS, API_PORT
from devtools.cluster.runtime import container_runtime
from devtools.gobuild import build_program
from devtools.images import pause_image
from devtools.plane import Plane

FIRST_NUMBER = 11

AUDITED = "audit.jsonl"  # in the cluster's folder: who deleted or evicted which pod, and what came of it
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "Metadata",
            "verbs": ["create", "delete"],
            "resources": [{"group": "", "resources": ["pods", "pods/eviction"]}],
        },
        {"level": "None"},
    ],
}


def _audited(folder: Path) -> list[str]:
    policy = folder / "audit.json"
    policy.write_text(json.dumps(AUDIT_POLICY))
    return [
        f"--audit-policy-file={policy}",
        f"--audit-log-path={folder / AUDITED}",
        "--audit-log-mode=blocking",
        "--audit-log-format=json",
    ]


@contextlib.contextmanager
def local_cluster(names: Sequence[str], images: Sequence[Path]) -> Iterator[Cluster]:
    """Control plane and nodes with these images, all nodes Ready. Raises what building its parts raises."""
    runtime, kubelet = container_runtime(), build_program("kubelet", "kubelet")
    archives = [pause_image(), *images]
    with contextlib.ExitStack() as closing:
        folder = Path(tempfile.mkdtemp(prefix="vc-", dir="/tmp"))  # unix socket paths are short
        closing.callback(shutil.rmtree, folder, ignore_errors=True)
        join_network()
        plane = Plane(
            nodes=names,
            host=API_ADDRESS,
            port=API_PORT,
            apiserver_args=[
                "--kubelet-preferred-address-types=InternalIP",
                "--enable-aggregator-routing=true",  # webhooks at the pods of their Service: nobody serves cluster IPs
                *_audited(folder),
            ],
        )
        nodes: dict[str, LocalNode] = {}
        for number, name in enumerate(names, FIRST_NUMBER):
            nodes[name] = LocalNode(number, name, folder / name, runtime, kubelet)
            closing.callback(nodes[name].close)
        with ThreadPoolExecutor(len(nodes)) as pool:
            importing = [pool.submit(node.import_images, archives) for node in nodes.values()]
            closing.enter_context(plane)
            for done in importing:
                done.result()
        for node in nodes.values():
            node.start(plane)
        cluster = Cluster(plane, nodes, folder)
        try:
            cluster.nodes_ready()
            yield cluster
        except BaseException as error:
            cluster.explain(error)
            raise
