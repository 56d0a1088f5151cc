"""How many migrations run at once and who waits, and which policy one follows: read from the status, as a user does."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.pods_world import PATIENT, failed
from cluster.world import World, condition
from devtools.stack import SimulatedDevice, Stack, migration
from devtools.tools import kubectl
from vfio_api.models import device_object_name
from vfio_api.names import API

Json = dict[str, Any]
NODES = ("node-a", "node-b", "node-c")
DEVICES = [f"sim{i}" for i in range(8)]
OVER = ("Succeeded", "Failed", "Cancelled")
IN_CLUSTER, PER_NODE = 5, 2  # what an operator allows unless it is told otherwise


@pytest.fixture(scope="module")
def trio() -> Iterator[World]:
    """Three nodes with agents, and an operator as it is installed."""
    with Stack(NODES) as stack:
        operator = stack.start_operator("operator-0", **PATIENT)
        for name in NODES:
            stack.add_node(name, [SimulatedDevice(address) for address in DEVICES]).start_agent()
        operator.wait_for('"event": "leading"')
        stack.devices_published(len(NODES) * len(DEVICES))
        yield World(stack, operator)


@pytest.fixture(autouse=True)
def clean(trio: World) -> Iterator[None]:
    """Every test begins with free devices, and without policies."""
    yield
    trio.stack.kubectl("delete", "vfm", "--all", "-A", "--timeout=60s")
    trio.stack.kubectl("delete", "vfp", "--all")
    trio.free()


@contextmanager
def watched(world: World, path: Path) -> Iterator[list[dict[str, Json]]]:
    """Every picture that the API server gave of the migrations within the block, filled in at its end."""
    command = [kubectl(), "get", "vfm", "-A", "--watch", "-o", "json"]
    pictures: list[dict[str, Json]] = []
    with path.open("wb") as said:
        watch = subprocess.Popen(command, env=world.stack.plane.environment, stdout=said)
        try:
            yield pictures
        finally:
            watch.terminate()
            watch.wait(10)
    decoder, text, seen = json.JSONDecoder(), path.read_text().strip(), dict[str, Json]()
    while text:
        body, end = decoder.raw_decode(text)
        seen = {**seen, body["metadata"]["name"]: body}
        pictures.append(seen)
        text = text[end:].strip()


def running(picture: dict[str, Json]) -> list[Json]:
    """Those that have begun, and not ended. status.pairs are written when one begins."""
    return [
        body
        for body in picture.values()
        if (status := body.get("status", {})).get("pairs") and status.get("phase") not in OVER
    ]


def test_8_migrations_keep_to_the_limits_and_all_are_done(trio: World, tmp_path: Path) -> None:
    ways = [("node-a", "node-b"), ("node-b", "node-c"), ("node-c", "node-a")]
    wanted = [(number, *ways[number % 3]) for number in range(8)]
    for node in NODES:
        trio.open(trio.stack.nodes[node], [f"sim{n}" for n, source, _ in wanted if source == node], rate=0)
    with watched(trio, tmp_path / "watched") as pictures:
        for n, source, target in wanted:
            pair = ("gpu", source, f"sim{n}", target, f"sim{n}")
            trio.apply(migration(f"m{n}", [pair], strategy={"bandwidthLimitBytesPerSecond": 2 << 20}))
        ended = [trio.finished(f"m{n}", 120) for n, _, _ in wanted]
        trio.stack.wait_until(
            lambda: (tmp_path / "watched").read_text().count('"queuePosition"') > 0, "the watch has shown a queue"
        )
    assert [e["status"]["phase"] for e in ended] == ["Succeeded"] * 8
    assert all("queuePosition" not in e["status"] for e in ended)
    counts = [len(running(picture)) for picture in pictures]
    assert max(counts) == IN_CLUSTER
    for picture in pictures:
        for end in ("source", "target"):
            nodes = Counter(body["status"]["pairs"][0][end]["nodeName"] for body in running(picture))
            assert max(nodes.values(), default=0) <= PER_NODE, nodes
    positions = {
        (body["status"]["queuePosition"], body["status"]["message"])
        for picture in pictures
        for body in picture.values()
        if "queuePosition" in body.get("status", {})
    }
    assert {position for position, _ in positions} <= {1, 2, 3, 4}
    assert any(message.startswith("queued: number 1 of ") for position, message in positions if position == 1)
    assert any(f"{IN_CLUSTER} migrations run, at most {IN_CLUSTER} may at once" in message for _, message in positions)


def test_who_waits_says_where_it_is_and_the_one_with_priority_comes_first(trio: World) -> None:
    trio.open(trio.stack.nodes["node-a"], DEVICES[:5], rate=0)
    slow = {"bandwidthLimitBytesPerSecond": 1 << 20}

    def one(number: int, **spec: Any) -> Json:
        pair = ("gpu", "node-a", DEVICES[number], "node-b", DEVICES[number])
        return migration(f"q{number}", [pair], strategy=slow, **spec)

    def position(number: int) -> int:
        found = trio.stack.get("vfm", f"q{number}").get("status", {})
        assert ("queuePosition" in found) == (str(found.get("message", "")).startswith("queued: ")), found
        return int(found.get("queuePosition", 0))

    for number in (0, 1):
        trio.apply(one(number))
        trio.in_pre_copy(f"q{number}")
    trio.apply(one(2))
    trio.stack.wait_until(lambda: position(2) == 1, "it waits")
    found = trio.stack.get("vfm", "q2")
    assert found["status"]["phase"] == "Pending"
    assert found["status"]["message"] == (
        "queued: number 1 of 1: 2 migrations run out of node node-a, at most 2 may at once"
    )
    waits = trio.stack.get("vfd", device_object_name("node-a", "sim2"))
    assert "claimRef" not in waits["spec"], "who waits reserves nothing"
    trio.apply(one(3))
    trio.stack.wait_until(lambda: position(3) == 2, "the next one waits behind it")
    trio.apply(one(4, priority=10))
    trio.stack.wait_until(lambda: [position(n) for n in (4, 2, 3)] == [1, 2, 3], "priority comes first")
    trio.stack.kubectl("patch", "vfm", "q2", "--type=merge", "-p", '{"spec":{"cancel":true}}')
    assert trio.finished("q2")["status"]["phase"] == "Cancelled"
    trio.stack.wait_until(lambda: position(3) in (0, 1, 2), "who was behind it moves up")
    done = {n: condition(trio.finished(f"q{n}", 120), "Finished")["lastTransitionTime"] for n in (0, 1, 3, 4)}
    assert done[4] < done[3]


# Policies.


def policy(name: str, strategy: Json | None = None, *, priority: int | None = None, **selectors: Json) -> Json:
    spec = {"strategy": strategy, "priority": priority, **selectors}
    return {
        "apiVersion": f"{API}/v1alpha1",
        "kind": "VFIOMigrationPolicy",
        "metadata": {"name": name},
        "spec": {field: value for field, value in spec.items() if value is not None},
    }


def planned(trio: World, name: str, labels: Json | None = None, **strategy: Any) -> Json:
    """A plan of one device; its object."""
    manifest = migration(name, [("gpu", "node-a", "sim0", "node-b", "sim0")], mode="Plan", strategy=strategy)
    manifest["metadata"]["labels"] = labels or {}
    return trio.run(manifest)


DEFAULTS = {
    "downtimeLimitMilliseconds": 300,
    "preCopy": "Auto",
    "convergenceTimeoutSeconds": 300,
    "onConvergenceTimeout": "Abort",
    "switchoverAck": True,
    "switchoverTimeoutSeconds": 30,
}


def test_without_a_policy_the_status_shows_the_defaults(trio: World) -> None:
    trio.open(trio.stack.nodes["node-a"], ["sim0"], rate=0)
    found = planned(trio, "plain", downtimeLimitMilliseconds=50)
    assert found["spec"]["strategy"] == {"downtimeLimitMilliseconds": 50}, "the schema adds nothing"
    assert found["status"]["strategy"] == DEFAULTS | {"downtimeLimitMilliseconds": 50}
    assert "policy" not in found["status"]


def test_the_most_specific_policy_counts_and_what_the_migration_says_counts_more(trio: World) -> None:
    trio.open(trio.stack.nodes["node-a"], ["sim0"], rate=0)
    trio.stack.kubectl("label", "namespace", "default", "tier=gold", "--overwrite")
    for body in (
        policy("all", {"downtimeLimitMilliseconds": 1000, "convergenceTimeoutSeconds": 11}),
        policy("gold", {"downtimeLimitMilliseconds": 400}, namespaceSelector={"tier": "gold"}),
        policy(
            "gold-db",
            {"downtimeLimitMilliseconds": 20, "switchoverTimeoutSeconds": 7, "bandwidthLimitBytesPerSecond": "500M"},
            namespaceSelector={"tier": "gold"},
            migrationSelector={"app": "db"},
        ),
        policy("silver", {"downtimeLimitMilliseconds": 9}, namespaceSelector={"tier": "silver"}),
    ):
        trio.stack.kubectl("create", "-f", "-", input=json.dumps(body))
    try:

        def resolved(name: str, labels: Json | None = None, **strategy: Any) -> tuple[Any, Json]:
            status = planned(trio, name, labels, **strategy)["status"]
            return status.get("policy"), status["strategy"]

        number = iter(range(100))
        # the operator learns of policies by its watch
        trio.stack.wait_until(
            lambda: resolved(f"probe-{next(number)}", {"app": "db"})[0] == "gold-db", "the policies are known"
        )
        limits = {"switchoverTimeoutSeconds": 7, "bandwidthLimitBytesPerSecond": 500_000_000}
        assert resolved("db", {"app": "db"}) == ("gold-db", DEFAULTS | limits | {"downtimeLimitMilliseconds": 20})
        assert resolved("db-says", {"app": "db"}, downtimeLimitMilliseconds=70, switchoverTimeoutSeconds=8) == (
            "gold-db",
            DEFAULTS | limits | {"downtimeLimitMilliseconds": 70, "switchoverTimeoutSeconds": 8},
        )
        # of less specific ones nothing counts
        assert resolved("other") == ("gold", DEFAULTS | {"downtimeLimitMilliseconds": 400})
        trio.stack.kubectl("label", "namespace", "default", "tier-")
        expected = DEFAULTS | {"downtimeLimitMilliseconds": 1000, "convergenceTimeoutSeconds": 11}
        assert resolved("lost-label") == ("all", expected)
    finally:
        trio.stack.kubectl("label", "namespace", "default", "tier-")


def test_two_policies_that_are_as_specific_refuse_the_migration(trio: World) -> None:
    trio.open(trio.stack.nodes["node-a"], ["sim0"], rate=0)
    for name, label in (("left", {"app": "db"}), ("right", {"team": "x"})):
        body = policy(name, {"preCopy": "Disabled"}, migrationSelector=label)
        trio.stack.kubectl("create", "-f", "-", input=json.dumps(body))
    both, number = {"app": "db", "team": "x"}, iter(range(100))
    trio.stack.wait_until(
        lambda: planned(trio, f"probe-{next(number)}", both)["status"]["phase"] == "Failed", "policies known"
    )
    message = failed(planned(trio, "torn", both), "PolicyConflict")
    assert message == (
        "VFIOMigrationPolicies left and right select this migration by 1 labels each, and neither is more specific: "
        "add a label to one of them, or delete one (kubectl get vfp)"
    )
    assert planned(trio, "one", {"app": "db"})["status"]["policy"] == "left"
    assert all("claimRef" not in d["spec"] for d in trio.stack.get("vfd")["items"])


def test_what_has_begun_keeps_its_policys_limits(trio: World) -> None:
    """The limit of pre-copy is what it began with, although the policy is gone before it ends."""
    trio.open(trio.stack.nodes["node-a"], ["sim0"], rate=0)
    limit = {"bandwidthLimitBytesPerSecond": 2 << 20, "downtimeLimitMilliseconds": 777}
    trio.stack.kubectl("create", "-f", "-", input=json.dumps(policy("slow", limit)))
    number = iter(range(100))
    trio.stack.wait_until(
        lambda: planned(trio, f"probe-{next(number)}")["status"].get("policy") == "slow", "the policy is known"
    )
    trio.apply(migration("kept", [("gpu", "node-a", "sim0", "node-b", "sim0")]))
    trio.in_pre_copy("kept")
    trio.stack.kubectl("delete", "vfp", "slow")
    found = trio.finished("kept")
    assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
    assert found["status"]["policy"] == "slow"
    assert found["status"]["strategy"] == DEFAULTS | limit


def test_a_leader_knows_the_policies_before_its_first_migration(trio: World) -> None:
    """What was created while nobody led is done by the policy all the same."""
    trio.open(trio.stack.nodes["node-a"], ["sim0"], rate=0)
    trio.operator.stop()
    try:
        trio.stack.kubectl("create", "-f", "-", input=json.dumps(policy("first", {"downtimeLimitMilliseconds": 42})))
        names = [f"early-{number}" for number in range(5)]
        for name in names:
            trio.apply(migration(name, [("gpu", "node-a", "sim0", "node-b", "sim0")], mode="Plan"))
    finally:
        trio.operator = trio.stack.start_operator("operator-0", **PATIENT)
    for name in names:
        found = trio.finished(name)
        assert found["status"].get("policy") == "first"
        assert found["status"]["strategy"]["downtimeLimitMilliseconds"] == 42
