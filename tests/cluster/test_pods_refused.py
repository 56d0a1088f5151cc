"""Moves of pods that are refused: in words that help, with nothing touched."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.pods_world import SLOW, PodsWorld, claim, container, failed, move, pod, untouched
from cluster.world import condition
from cluster.world import pairs as named
from devtools.stack import migration

Json = dict[str, Any]
DEVICES = ("sim0", "sim1")


@pytest.fixture(autouse=True)
def clean(pods: PodsWorld) -> Iterator[None]:
    """Every test begins with free devices and no pods."""
    yield
    pods.clean()


def refused(pods: PodsWorld, manifest: Json, reason: str, source: Json | None) -> str:
    """Create it; it is refused before anything is touched. What it says."""
    before = [len(node.arcs()) for node in pods.stack.nodes.values()]
    found = pods.run(manifest)
    message = failed(found, reason)
    validated = condition(found, "Validated")
    assert (validated["status"], validated["reason"]) == ("False", reason)
    assert "finalizers" not in found["metadata"]
    assert [len(node.arcs()) for node in pods.stack.nodes.values()] == before
    if source is not None:
        untouched(pods, source, DEVICES)
    return message


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("ReadWriteOncePod", "its counterpart could not mount it beside it; use another access mode"),
        ("ReadWriteOnce", "it cannot be on node node-b while it is on node-a; use ReadWriteMany"),
    ],
)
def test_a_volume_that_cannot_be_attached_twice(pods: PodsWorld, mode: str, words: str) -> None:
    source = pods.with_devices("web", volumes=[claim(pods, "data", mode)])
    message = refused(pods, move("volume", "web"), "PodNotMovable", source)
    assert message.startswith(f"pod default/web mounts PersistentVolumeClaim data, which is {mode}: {words}, or ")
    assert "or move the devices only (spec.devices)" in message


def test_a_volume_of_many_pods_is_no_obstacle(pods: PodsWorld) -> None:
    source = pods.with_devices("web", volumes=[claim(pods, "data", "ReadWriteMany")])
    found = pods.run(move("volume", "web", mode="Plan"))
    assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
    untouched(pods, source, DEVICES)


def controlled(kind: str) -> Json:
    """A controller with one pod on node-a."""
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [container()], "nodeSelector": {"kubernetes.io/hostname": "node-a"}},
    }
    selector = {"selector": {"matchLabels": {"app": "web"}}}
    spec = {
        "StatefulSet": {"serviceName": "web", "replicas": 1, **selector},
        "DaemonSet": selector,
        "Job": {},
    }[kind]
    template["spec"] |= {"restartPolicy": "Never"} if kind == "Job" else {}
    version = "batch/v1" if kind == "Job" else "apps/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "web"}, "spec": {**spec, "template": template}}


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "Job"])
def test_a_pod_whose_controller_would_fight_it(pods: PodsWorld, kind: str) -> None:
    pods.stack.kubectl("create", "-f", "-", input=json.dumps(controlled(kind)))

    def there() -> list[Json]:
        found: list[Json] = pods.stack.get("pods", "-l", "app=web")["items"]
        return found

    pods.stack.wait_until(
        lambda: [p["status"].get("phase") for p in there()] == ["Running"], f"the pod of the {kind} runs"
    )
    (source,) = there()
    pods.opens(source, DEVICES)
    name = source["metadata"]["name"]
    message = refused(pods, move("fought", name), "PodNotMovable", source)
    assert message == (
        f"pod default/{name} belongs to {kind} web, which would make another in its place or delete the counterpart; "
        "pods of ReplicaSets and pods of their own can be moved"
    )


def test_a_pod_without_devices(pods: PodsWorld) -> None:
    """The same on a node where another pod has some, and where nobody has."""
    other = pods.with_devices("other")
    pods.create(pod("web"))
    message = refused(pods, move("bare", "web"), "NothingToMigrate", other)
    assert message.startswith("spec.source: pod web on node node-a has no migratable device in use (sim0: used by pod ")
    assert message.endswith("`kubectl get vfd` lists what there is")
    elsewhere = pods.create(pod("elsewhere", "node-b"))
    message = refused(pods, move("bare-too", "elsewhere", "node-a"), "NothingToMigrate", other)
    assert "pod elsewhere on node node-b has no migratable device in use (sim0: not open; " in message
    assert pods.there("elsewhere")["metadata"]["uid"] == elsewhere["metadata"]["uid"]


def test_a_pod_that_is_not_there_or_does_not_run(pods: PodsWorld) -> None:
    message = refused(pods, move("nobody", "nobody"), "UnknownPod", None)
    assert message == ("spec.source: pod default/nobody does not exist; `kubectl get pods -o wide` lists what there is")
    waits = pod("waits", schedulingGates=[{"name": "example.com/wait"}])
    del waits["spec"]["nodeName"]
    pods.stack.kubectl("create", "-f", "-", input=json.dumps(waits))
    message = refused(pods, move("waits", "waits"), "UnknownPod", None)
    assert message == "spec.source: pod default/waits is Pending on node none: only a pod that runs can be moved"


def test_devices_of_a_pod_on_another_node_than_was_said(pods: PodsWorld) -> None:
    """The pod's devices are where the pod is; who names its devices on another node is told what is there."""
    source = pods.with_devices("web")
    there = migration("elsewhere", named(list(DEVICES), "node-b", "node-a"), workload={"pause": {"method": "Freeze"}})
    message = refused(pods, there, "SourceNotHeld", source)
    assert message.startswith("pair gpu0: source device sim0 on node node-b is not open, so it carries no state")


def test_some_of_a_pods_devices(pods: PodsWorld) -> None:
    source = pods.with_devices("web")
    half = migration("half", named(["sim0"]))
    message = refused(pods, half, "PodDevicesSplit", source)
    assert message == (
        "pair gpu0: device sim0 on node node-a is used by pod default/web, which also has sim1: devices of one pod "
        "move together; name these, too, or use spec.source.podName"
    )


def test_too_few_free_devices_at_the_target(pods: PodsWorld) -> None:
    source = pods.with_devices("web")
    pods.with_devices("other", ("sim0", "sim1"), node="node-b")
    message = refused(pods, move("crowded", "web"), "NoCompatibleTarget", source)
    assert message.startswith("source device sim1 on node node-a (vfio-sim sim-vf ")
    assert "finds no free compatible device on node node-b for a set of 2" in message
    assert "held by pod default/other" in message


def test_a_plan_shows_the_whole_set_and_touches_nothing(pods: PodsWorld) -> None:
    source = pods.with_devices("web")
    found = pods.run(move("planned", "web", mode="Plan"))
    assert found["status"]["message"].startswith("2 pairs can migrate; forecast downtime ")
    assert [row["name"] for row in found["status"]["feasibility"]] == list(DEVICES)
    untouched(pods, source, DEVICES)


@pytest.mark.parametrize(
    ("target", "reason", "words"),
    [
        ("pod/web", "SourceEqualsTarget", "pod default/web is the source as well; name another pod, or a node in "),
        ("pod/nobody", "TargetPodFailed", "pod default/nobody does not exist; `kubectl get pods` lists what there is"),
        ("node-c", "UnknownNode", "target node node-c does not exist; `kubectl get nodes` lists what there is"),
    ],
)
def test_a_target_that_cannot_be_one(pods: PodsWorld, target: str, reason: str, words: str) -> None:
    source = pods.with_devices("web")
    message = refused(pods, move("nowhere", "web", target), reason, source)
    assert message.startswith("spec.target: ")
    assert words in message


def test_a_pod_that_is_moved_already(pods: PodsWorld) -> None:
    pods.with_devices("web")
    pods.create(pod("next", "node-b"))
    pods.apply(move("first", "web", "pod/next", strategy=SLOW))
    pods.in_pre_copy("first")
    uid = pods.stack.get("vfm", "first")["metadata"]["uid"]
    message = failed(pods.run(move("second", "web")), "PodNotMovable")
    assert message == (
        f"spec.source: pod default/web is part of another migration (UID {uid}); wait for that to finish, or cancel it"
    )
    message = failed(pods.run(move("third", "next", "node-a")), "PodNotMovable")
    assert f"pod default/next is part of another migration (UID {uid})" in message
    found = pods.finished("first")
    assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
