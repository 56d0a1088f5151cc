"""A node with eight pods, each with a device, is emptied: by a VFIOEvacuation, and by `kubectl drain`."""

import json
import time
from collections.abc import Callable, Iterator

import pytest

from devtools.cluster.cluster import Json
from e2e.counters import allow_counters, condition
from e2e.fleet import OPERATOR, REPLICASETS, Fleet, downtimes
from e2e.installation import SMALL, Installation

PER_NODE = 2  # the operator's limit, by default
Say = Callable[[str], None]
DEPLOYED = SMALL[: len(SMALL) // 2]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Prints a line into the run's own output."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n    {text}", flush=True)

    return line


@pytest.fixture
def fleet(installed: Installation) -> Iterator[Fleet]:
    """Eight counters on node-a, half of them a Deployment's."""
    allow_counters(installed)
    made = Fleet(installed, "node-a", DEPLOYED)
    made.start()
    yield made
    installed.cluster.kubectl("uncordon", "node-a")
    made.end()


def evacuate(installation: Installation, name: str, **spec: object) -> None:
    body = {"apiVersion": "vfiomigration.io/v1alpha1", "kind": "VFIOEvacuation", "metadata": {"name": name}}
    installation.apply({**body, "spec": {"nodeName": "node-a", **spec}})


def ended(installation: Installation, name: str) -> Json:
    cluster = installation.cluster
    cluster.wait_until(
        lambda: condition(cluster.get("vfe", name), "Finished") == "True", f"VFIOEvacuation {name} finished", 300
    )
    return cluster.get("vfe", name)["status"]


def test_a_node_is_emptied_within_the_limits(installed: Installation, fleet: Fleet, say: Say) -> None:
    began = time.monotonic()
    with fleet.crowd() as crowd:
        evacuate(installed, "empty-a")
        status = ended(installed, "empty-a")
    took = time.monotonic() - began
    assert status["phase"] == "Succeeded", status
    assert (status["total"], status["moved"], status["failed"]) == (8, 8, 0)
    assert {item["phase"] for item in status["items"]} == {"Moved"}
    total = fleet.moved()
    assert crowd.most_of_a_node == PER_NODE, "the limit is used, and kept"
    say(
        f"evacuation of 8 pods: {took:.0f} s, at most {crowd.most} at once; {total} counts, none lost or repeated; "
        + downtimes(list(crowd.migrations.values()))
    )


def test_kubectl_drain_moves_every_pod_and_evicts_none(installed: Installation, fleet: Fleet, say: Say) -> None:
    began = time.monotonic()
    with fleet.crowd() as crowd:
        said = installed.cluster.kubectl(
            "drain", "node-a", "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--timeout=300s", timeout=330
        )
    took = time.monotonic() - began
    assert "node/node-a drained" in said
    total = fleet.moved()
    assert crowd.most_of_a_node == PER_NODE
    deleted, codes = fleet.ends_of_pods()
    assert len(deleted) == len(SMALL)
    by_device = {address: deleted[pod["metadata"]["name"]] for address, pod in fleet.pods.items()}
    assert {by_device[address] for address in DEPLOYED} <= {OPERATOR, REPLICASETS}
    assert {by_device[address] for address in SMALL if address not in DEPLOYED} == {OPERATOR}
    assert set(codes) <= {429, 404}, "no eviction was let through"
    assert codes.count(429) >= len(SMALL)
    say(
        f"kubectl drain of 8 pods: {took:.0f} s, {codes.count(429)} evictions put off, none done; {total} counts, none "
        f"lost or repeated; {downtimes(list(crowd.migrations.values()))}"
    )


def test_cancelling_stops_what_has_not_started(installed: Installation, fleet: Fleet, say: Say) -> None:
    slow = {"bandwidthLimitBytesPerSecond": "512Ki", "downtimeLimitMilliseconds": 5000}
    with fleet.crowd() as crowd:
        evacuate(installed, "cancelled-a", strategy=slow)
        cluster = installed.cluster
        cluster.wait_until(
            lambda: any(m.get("status", {}).get("phase") == "PreCopy" for m in cluster.get("vfm", "-A")["items"]),
            "the first ones move",
            60,
        )
        cluster.kubectl("patch", "vfe", "cancelled-a", "--type=merge", "-p", json.dumps({"spec": {"cancel": True}}))
        status = ended(installed, "cancelled-a")
    assert status["phase"] == "Cancelled", status
    outcomes = {item["name"].rpartition("/")[2]: item["phase"] for item in status["items"]}
    by_name = {pod["metadata"]["name"]: address for address, pod in fleet.pods.items()}
    moved = [by_name[name] for name, phase in outcomes.items() if phase == "Moved"]
    stays = [by_name[name] for name, phase in outcomes.items() if phase == "Cancelled"]
    assert len(moved) + len(stays) == len(SMALL)
    assert 1 <= len(moved) <= 2 * PER_NODE, "what moved already, and at most what had just begun"
    fleet.moved(moved)
    assert sorted(fleet.stayed()) == sorted(stays)
    say(f"cancelled: {len(moved)} had begun and were moved, {len(stays)} stay and count on; {crowd.most} at once")
