"""Pods of examples/counter in a cluster: made, moved, and their logs read for counts that were lost or repeated."""

import contextlib
import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from devtools.cluster.cluster import Json
from devtools.guest import GuestError
from devtools.images import AGENT, ROOT
from e2e.installation import MARKERS, SOCKETS, GuestDevices, Installation

COUNTS = "/run/vfio-counter"
ENOUGH = 20  # counts in each device, to be sure that it goes on
DEVICES = 2  # of a counter
COUNTER = ROOT / "examples/counter/counter.py"


def counter_pod(name: str, node: str, addresses: Sequence[str], *, kernel: bool) -> Json:
    """A pod that counts through devices of a node. kernel: it opens them by itself, else by the agent's socket."""
    mounts = [
        {"name": "sockets", "mountPath": SOCKETS},
        {"name": "counter", "mountPath": "/counter"},
        {"name": "counts", "mountPath": COUNTS},
        *([{"name": "vfio", "mountPath": "/dev/vfio"}] if kernel else []),
    ]
    volumes: list[Json] = [
        {"name": "sockets", "hostPath": {"path": SOCKETS, "type": "Directory"}},
        {"name": "counter", "configMap": {"name": "counter"}},
        {"name": "counts", "hostPath": {"path": COUNTS, "type": "DirectoryOrCreate"}},
        *([{"name": "vfio", "hostPath": {"path": "/dev/vfio", "type": "Directory"}}] if kernel else []),
    ]
    container: Json = {
        "name": "counter",
        "image": AGENT.config().reference.rpartition("/")[2],
        "imagePullPolicy": "Never",
        "command": ["python3", "/counter/counter.py", *addresses],
        "env": [
            {"name": "COUNTER_OPEN", "value": "kernel" if kernel else "agent"},
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "COUNTER_LOG", "value": f"{COUNTS}/$(POD).jsonl"},
        ],
        "volumeMounts": mounts,
        **({"securityContext": {"privileged": True}} if kernel else {}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": MARKERS, "labels": {"app": "counter"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 2,
            "automountServiceAccountToken": False,
            "containers": [container],
            "volumes": volumes,
        },
    }


def allow_counters(installation: Installation) -> None:
    """The program, where pods can mount it."""
    meta = {"name": "counter", "namespace": MARKERS}
    program = {COUNTER.name: Path(COUNTER).read_text()}
    installation.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": program})


def counted(installation: Installation, node: str, pod: str) -> list[Json]:
    """What a counter has said, also one that has ended: it writes to its node."""
    try:
        log = installation.cluster.nodes[node].exec(["cat", f"{COUNTS}/{pod}.jsonl"])
    except (subprocess.CalledProcessError, GuestError):
        return []  # it has said nothing yet
    return [json.loads(line) for line in log.splitlines() if line.startswith("{") and line.endswith("}")]


def contiguous(before: Sequence[Json], after: Sequence[Json], modulus: int) -> str:
    """Why the counts of a counterpart do not follow those of its source, in the same devices; "" if they do."""
    had, has = ({line["mark"] for line in lines if "mark" in line} for lines in (before, after))
    if not had or had != has:
        return f"the source's devices had the marks {had}, its counterpart's have {has}"
    wrong = (_followed(_of(before, mark), _of(after, mark), modulus) for mark in had)
    return next(filter(None, wrong), "")


def _of(lines: Sequence[Json], mark: str) -> list[Json]:
    return [line for line in lines if line.get("mark") == mark]


def _followed(before: Sequence[Json], after: Sequence[Json], modulus: int) -> str:
    tried = [line["count"] for line in before if line["what"] == "try"]
    done = [line["count"] for line in before if line["what"] == "done"]
    taken = next((line["count"] for line in after if line["what"] == "take"), None)
    if not done or taken is None:
        return f"{len(done)} counts before, taken over: {taken}"
    if taken not in (done[-1], tried[-1]):
        return f"the device held {taken}, the source had done {done[-1]} and tried {tried[-1]}"
    counts = [line["count"] for line in after if line["what"] == "done"]
    expected = [(taken + 1 + number) % modulus for number in range(len(counts))]
    return "" if counts == expected else f"after {taken}: {counts[:5]}"


def service(installation: Installation) -> None:
    """A Service of the counters."""
    meta = {"name": "counter", "namespace": MARKERS}
    spec = {"selector": {"app": "counter"}, "ports": [{"port": 80}]}
    installation.apply({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})


@contextlib.contextmanager
def endpoints(installation: Installation) -> Iterator[list[frozenset[str]]]:
    """The pods to which the Service's traffic goes, as kube-proxy decides it: one entry for every change of its
    EndpointSlices within the block, filled in at its end.
    """
    cluster, said = installation.cluster, installation.cluster.dir / "endpoints.json"
    chosen = ["-n", MARKERS, "-l", "kubernetes.io/service-name=counter"]
    cluster.wait_until(
        lambda: any(s.get("endpoints") for s in cluster.get("endpointslices", *chosen)["items"]), "endpoints", 30
    )
    found: list[frozenset[str]] = []
    with cluster.kubectl_until(said, "get", "endpointslices", *chosen, "-o", "json", "--watch"):
        cluster.wait_until(lambda: said.stat().st_size > 0, "the watch shows something", 30)
        yield found
    decoder, text = json.JSONDecoder(), said.read_text().strip()
    while text:
        body, end = decoder.raw_decode(text)
        found.append(_routed(body.get("endpoints") or ()))
        text = text[end:].strip()


def _routed(endpoints: Sequence[Json]) -> frozenset[str]:
    """Ready ones; else those that serve while they end (KEP-1669)."""
    ready = [e for e in endpoints if e["conditions"].get("ready")]
    ending = [e for e in endpoints if e["conditions"].get("serving") and e["conditions"].get("terminating")]
    return frozenset(e["targetRef"]["name"] for e in ready or ending)


class Mover:
    """One counter that is moved on and on. deployed: its pods are a Deployment's."""

    def __init__(self, installation: Installation, *, deployed: bool = False):
        self._installation, self._deployed = installation, deployed
        self.counted = 0
        self._pod = "counter"
        self._kernel = isinstance(installation.devices, GuestDevices)
        self._modulus = 256 if self._kernel else 2**64

    def start(self, node: str) -> None:
        """The first pod; it counts."""
        cluster = self._installation.cluster
        addresses = self._installation.devices.of(cluster, node)[:DEVICES]
        pod = counter_pod("counter", node, addresses, kernel=self._kernel)
        if not self._deployed:
            self._installation.apply(pod)
            self._pod = "counter"
            return self._await_counts(node, self._pod)
        template = {"metadata": {"labels": {"app": "counter"}}, "spec": pod["spec"]}
        spec = {"replicas": 1, "selector": {"matchLabels": {"app": "counter"}}, "template": template}
        meta = {"name": "counter", "namespace": MARKERS, "labels": {"app": "counter"}}
        self._installation.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})
        cluster.wait_until(lambda: len(self.pods()) == 1, "the Deployment has its pod", 30)
        (self._pod,) = self.pods()
        return self._await_counts(node, self._pod)

    def end(self) -> None:
        """Delete what was made, and wait until its devices are free."""
        cluster, addresses = self._installation.cluster, self._installation.devices
        chosen = ["-n", MARKERS, "-l", "app=counter", "--ignore-not-found", "--wait=true"]
        # a Deployment that is still there answers the end of a pod with another
        cluster.kubectl("delete", "deployments", *chosen, "--cascade=foreground")
        cluster.kubectl("delete", "pods", *chosen)
        for node in cluster.nodes:
            for address in addresses.of(cluster, node):
                self._installation.close(node, address)

        def free() -> bool:
            return not any(d.get("status", {}).get("holder") for d in cluster.get("vfd")["items"])

        cluster.wait_until(free, "every device is free", 60)

    def pods(self) -> list[str]:
        """The pods that are not being deleted."""
        found = self._installation.cluster.get("pods", "-n", MARKERS, "-l", "app=counter")["items"]
        return [p["metadata"]["name"] for p in found if "deletionTimestamp" not in p["metadata"]]

    def _await_counts(self, node: str, pod: str) -> None:
        def counts() -> bool:
            done = Counter(line["mark"] for line in counted(self._installation, node, pod) if line["what"] == "done")
            return len(done) == DEVICES and min(done.values()) > ENOUGH

        self._installation.cluster.wait_until(counts, f"pod {pod} counts in each of its devices", 60)

    def move(self, name: str, source: str, target: str) -> Json:
        """Move it, and look at both logs."""
        cluster = self._installation.cluster
        spec = {"source": {"podName": self._pod}, "target": {"nodeName": target}}
        self._installation.apply(
            {
                "apiVersion": "vfiomigration.io/v1alpha1",
                "kind": "VFIOMigration",
                "metadata": {"name": name, "namespace": MARKERS},
                "spec": spec,
            }
        )
        cluster.wait_until(
            lambda: condition(cluster.get("vfm", name, "-n", MARKERS), "Finished") == "True",
            f"VFIOMigration {name} finished",
            90,
        )
        ended = cluster.get("vfm", name, "-n", MARKERS)
        assert condition(ended, "Succeeded") == "True", ended["status"].get("message")
        after = ended["status"]["workload"]["targetPod"]["name"]
        self._await_counts(target, after)
        lines = counted(self._installation, source, self._pod)
        wrong = contiguous(lines, counted(self._installation, target, after), self._modulus)
        assert not wrong, wrong
        self.counted += sum(line["what"] == "done" for line in lines)
        assert self.pods() == [after], "there is this pod, and no other was made"
        self._pod = after
        return ended


def condition(migration: Json, kind: str) -> str:
    """The status of a condition; "" if it is not there."""
    return next((c["status"] for c in migration.get("status", {}).get("conditions", ()) if c["type"] == kind), "")
