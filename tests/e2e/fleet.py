"""Many counters on one node, each with a device of its own: moved together, and looked at afterwards."""

import contextlib
import json
import secrets
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from devtools.cluster.cluster import Json
from devtools.cluster.local_cluster import AUDITED
from e2e.counters import ENOUGH, contiguous, counted, counter_pod
from e2e.installation import MARKERS, NAMESPACE, SMALL, Installation

UNDERWAY = ("Preparing", "PreCopy", "Switchover", "Starting", "RollingBack")
MODULUS = 2**64
OPERATOR = f"system:serviceaccount:{NAMESPACE}:vfio-operator"
# Of two pods, it ends the one that costs least: the one that was moved, see docs/decisions/0019.
REPLICASETS = "system:serviceaccount:kube-system:replicaset-controller"


@dataclass
class Crowd:
    """How many migrations were under way at once, as their statuses said it: in all, and of a node, at most."""

    most: int = 0
    most_of_a_node: int = 0
    migrations: dict[str, Json] = field(default_factory=dict)

    def see(self, migration: Json) -> None:
        """One more version of a migration."""
        self.migrations[migration["metadata"]["uid"]] = migration
        active = [m for m in self.migrations.values() if m.get("status", {}).get("phase") in UNDERWAY]
        ends = Counter((side, node) for each in active for side in ("source", "target") for node in _nodes(each, side))
        self.most = max(self.most, len(active))
        self.most_of_a_node = max(self.most_of_a_node, *ends.values(), 0)


def _nodes(migration: Json, side: str) -> set[str]:
    return {pair[side]["nodeName"] for pair in migration["status"].get("pairs", ())}


class Fleet:
    """Counters of a node, by the device that each has. deployed: those of them that are a Deployment's."""

    def __init__(self, installation: Installation, node: str, deployed: Sequence[str] = ()):
        self._installation, self.node, self._deployed = installation, node, deployed
        self.pods: dict[str, Json] = {}
        self._audited = 0
        # their logs stay on the nodes, by the pods' names
        self._name = f"count-{secrets.token_hex(2)}"

    def start(self) -> None:
        """Make them; each counts."""
        self._audited = len(self._audit())
        for address in SMALL:
            pod = counter_pod(f"{self._name}-{address}", self.node, [address], kernel=False)
            pod["metadata"]["labels"] = pod["metadata"]["labels"] | {"counts": address}
            self._installation.apply(_deployment(pod) if address in self._deployed else pod)
        wait = self._installation.cluster.wait_until
        wait(lambda: len(self._found()) == len(SMALL), "every counter has its pod", 60)
        self.pods = self._found()
        for address, pod in self.pods.items():
            name = pod["metadata"]["name"]
            wait(lambda name=name: self._counts(self.node, name) > ENOUGH, f"pod {name} counts", 120)  # type: ignore[misc]
            wait(lambda address=address: self._known(address), f"{address} is shown to be {name}'s", 60)  # type: ignore[misc]

    def end(self) -> None:
        """Delete them, and wait until their devices are free."""
        cluster = self._installation.cluster
        # a Deployment that is still there answers the end of a pod with another
        chosen = ["-n", MARKERS, "-l", "counts", "--ignore-not-found", "--wait=true"]
        cluster.kubectl("delete", "deployments", *chosen, "--cascade=foreground")
        cluster.kubectl("delete", "pods", *chosen)
        for node in cluster.nodes:
            self._installation.close(node, *SMALL)
        cluster.wait_until(lambda: not any(map(self._holder, cluster.get("vfd")["items"])), "devices are free", 60)

    def moved(self, addresses: Sequence[str] = SMALL) -> int:
        """Fails unless these are on another node and go on there with the next count; returns how many were counted."""
        cluster, total = self._installation.cluster, 0
        now = self._found()
        assert set(now) == set(SMALL), "each has one pod"
        for address in addresses:
            before, after = self.pods[address]["metadata"]["name"], now[address]["metadata"]["name"]
            target = now[address]["spec"]["nodeName"]
            assert now[address]["metadata"]["uid"] != self.pods[address]["metadata"]["uid"]
            assert target != self.node
            there = f"pod {after} counts on {target}"
            cluster.wait_until(lambda at=target, name=after: self._counts(at, name) > ENOUGH, there, 60)  # type: ignore[misc]
            lines = counted(self._installation, self.node, before)
            wrong = contiguous(lines, counted(self._installation, target, after), MODULUS)
            assert not wrong, f"{before} -> {after}: {wrong}"
            total += sum(line["what"] == "done" for line in lines)
        return total

    def stayed(self) -> list[str]:
        """The devices whose pods are those that were started, and still count."""
        now = self._found()
        same = [a for a in SMALL if a in now and now[a]["metadata"]["uid"] == self.pods[a]["metadata"]["uid"]]
        for address in same:
            name = now[address]["metadata"]["name"]
            before = self._counts(self.node, name)
            goes_on = f"pod {name} counts on"
            self._installation.cluster.wait_until(
                lambda name=name, before=before: self._counts(self.node, name) > before + ENOUGH,  # type: ignore[misc]
                goes_on,
                60,
            )
        return same

    @contextlib.contextmanager
    def crowd(self) -> Iterator[Crowd]:
        """Every version of the migrations within the block is seen, in its order; filled in at its end."""
        cluster, made = self._installation.cluster, Crowd()
        said = cluster.dir / "migrations.json"
        with cluster.kubectl_until(said, "get", "vfm", "-n", MARKERS, "-o", "json", "--watch"):
            yield made
        decoder, text = json.JSONDecoder(), said.read_text().strip()
        with contextlib.suppress(ValueError):  # of the last one, if it was cut off
            while text:
                body, end = decoder.raw_decode(text)
                made.see(body)
                text = text[end:].strip()

    def ends_of_pods(self) -> tuple[dict[str, str], list[int]]:
        """From the API server's audit log: who deleted each of the pods that were started, and how evictions ended."""
        names = {pod["metadata"]["name"] for pod in self.pods.values()}
        deleted: dict[str, str] = {}
        codes: list[int] = []
        for line in self._audit()[self._audited :]:
            event = json.loads(line)
            what, code = event["objectRef"], event["responseStatus"]["code"]
            if what.get("namespace") != MARKERS or what.get("name") not in names:
                continue
            if what.get("subresource") == "eviction":
                codes.append(code)
            elif event["verb"] == "delete" and code < 300:
                deleted.setdefault(what["name"], event["user"]["username"])
        return deleted, codes

    def _audit(self) -> list[str]:
        return (self._installation.cluster.dir / AUDITED).read_text().splitlines()

    def _found(self) -> dict[str, Json]:
        found = self._installation.cluster.get("pods", "-n", MARKERS, "-l", "counts")["items"]
        there = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return {pod["metadata"]["labels"]["counts"]: pod for pod in there}

    def _counts(self, node: str, pod: str) -> int:
        return sum(line["what"] == "done" for line in counted(self._installation, node, pod))

    def _known(self, address: str) -> bool:
        uid = self.pods[address]["metadata"]["uid"]
        found = self._installation.cluster.get("vfd")["items"]
        return any(d.get("status", {}).get("pod", {}).get("uid") == uid for d in found)

    @staticmethod
    def _holder(device: Json) -> str:
        return str(device.get("status", {}).get("holder", ""))


def downtimes(migrations: Sequence[Json]) -> str:
    """p50 and p99 of what succeeded, for the report."""
    measured = [m["status"]["downtimeMicroseconds"] / 1000 for m in migrations if m["status"]["phase"] == "Succeeded"]
    cuts = statistics.quantiles(measured, n=100, method="inclusive")
    return f"downtime p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms"


def _deployment(pod: Json) -> Json:
    labels = pod["metadata"]["labels"]
    template = {"metadata": {"labels": labels}, "spec": pod["spec"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": pod["metadata"],
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }
