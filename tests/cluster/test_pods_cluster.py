"""Pods that move with their devices, on a real API server: what is refused, what ends a move, and that it is whole."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.pods_world import (
    SLOW,
    TARGET_POD_SECONDS,
    PodsWorld,
    container,
    failed,
    move,
    pod,
    untouched,
)
from vfio_api.names import BASE_NAME_ANNOTATION, HERITAGE_ANNOTATION, INCOMING_ANNOTATION, MIGRATION_LABEL

Json = dict[str, Any]
DEVICES = ("sim0", "sim1")
COST = "controller.kubernetes.io/pod-deletion-cost"


@pytest.fixture(autouse=True)
def clean(pods: PodsWorld) -> Iterator[None]:
    """Every test begins with free devices and no pods."""
    yield
    pods.clean()


# It moves.


def test_a_pod_of_its_own_moves_and_has_one_counterpart(pods: PodsWorld) -> None:
    source = pods.with_devices("web", labels={"tier": "front"})
    pods.apply(move("whole", "web", strategy=SLOW))
    made = pods.await_counterpart("whole")
    labels, annotations = made["metadata"]["labels"], made["metadata"]["annotations"]
    assert set(labels) == {MIGRATION_LABEL}, "no Service and no ReplicaSet takes it before Commit"
    assert json.loads(annotations[HERITAGE_ANNOTATION])["labels"] == source["metadata"]["labels"]
    assert (annotations[INCOMING_ANNOTATION], annotations[BASE_NAME_ANNOTATION]) == ("default/whole", "web")
    assert [owner["kind"] for owner in made["metadata"]["ownerReferences"]] == ["VFIOMigration"]
    found = pods.finished("whole")
    assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
    name = made["metadata"]["name"]
    workload = found["status"]["workload"]
    assert (workload["sourcePod"]["name"], workload["sourcePod"]["nodeName"]) == ("web", "node-a")
    assert workload["targetPod"] == {"name": name, "uid": made["metadata"]["uid"], "nodeName": "node-b"}
    assert pods.get_pod("web") is None
    moved = pods.there(name)
    assert moved["metadata"]["uid"] == made["metadata"]["uid"], "it was made once"
    assert moved["metadata"]["labels"] == source["metadata"]["labels"]
    assert moved["metadata"].get("ownerReferences", []) == []
    assert COST not in moved["metadata"]["annotations"]
    assert HERITAGE_ANNOTATION not in moved["metadata"]["annotations"]
    assert pods.has_marks(source, "node-b", DEVICES)
    pods.await_owner("node-b", DEVICES, moved["metadata"]["uid"])
    pods.await_owner("node-a", DEVICES, "")
    folder = pods.folders["node-a"].cgroup(source["metadata"]["uid"])
    assert (folder / "cgroup.kill").read_text() == "1", "what was frozen is ended by its agent"


def test_a_deployments_pod_moves_and_no_third_one_is_made(pods: PodsWorld) -> None:
    meta = {"name": "web", "labels": {"app": "web"}}
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container()], "nodeSelector": {}}}
    template["spec"]["nodeSelector"] = {"kubernetes.io/hostname": "node-a"}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
    pods.stack.kubectl("create", "-f", "-", input=json.dumps(deployment))
    pods.stack.kubectl("wait", "--for=condition=Available", "deployment/web", "--timeout=30s")
    (source,) = pods.stack.get("pods", "-l", "app=web")["items"]
    pods.opens(source, DEVICES)
    found = pods.run(move("deployed", source["metadata"]["name"]))
    assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
    target = found["status"]["workload"]["targetPod"]["name"]

    def settled() -> bool:
        left = pods.stack.get("pods", "-l", "app=web")["items"]
        return [p["metadata"]["name"] for p in left] == [target]

    pods.stack.wait_until(settled, "the Deployment has the counterpart and no other")
    moved = pods.there(target)
    owner, was = moved["metadata"]["ownerReferences"], source["metadata"]["ownerReferences"]
    assert [o["uid"] for o in owner] == [o["uid"] for o in was]
    assert COST not in moved["metadata"]["annotations"]
    (rs,) = pods.stack.get("replicasets", "-l", "app=web")["items"]
    assert rs["status"]["replicas"] == 1


def test_a_pod_that_the_user_made_takes_over(pods: PodsWorld) -> None:
    source = pods.with_devices("web")
    target = pods.create(pod("web-next", "node-b"))
    found = pods.run(move("mine", "web", "pod/web-next"))
    assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
    assert found["status"]["workload"]["targetPod"]["uid"] == target["metadata"]["uid"]
    assert pods.get_pod("web") is None
    left = pods.there("web-next")
    assert left["metadata"]["labels"] == target["metadata"]["labels"], "it is the user's, and stays as they made it"
    assert left["metadata"].get("annotations") == target["metadata"].get("annotations")
    assert pods.has_marks(source, "node-b", DEVICES)
    pods.await_owner("node-b", DEVICES, target["metadata"]["uid"])
    assert len(pods.stack.get("pods")["items"]) == 1


# What ends a move before the decision: the source runs on.


def test_a_counterpart_that_cannot_be_scheduled_ends_it_in_time(pods: PodsWorld) -> None:
    source = pods.with_devices("web", containers=[container(resources={"requests": {"cpu": "4"}})])
    pods.create(pod("other", "node-b", containers=[container(resources={"requests": {"cpu": "30"}})]))
    message = failed(pods.run(move("full", "web"), timeout=30), "TargetPodFailed")
    assert message.startswith("pod default/web-")
    assert f"did not run within {TARGET_POD_SECONDS} s: it cannot be scheduled: 0/2 nodes are available" in message
    assert "Insufficient cpu" in message
    assert "the source runs on; free there what it needs, or choose another target node" in message
    pods.stack.kubectl("delete", "pod", "other")
    untouched(pods, source, DEVICES)


def test_a_port_of_the_host_that_is_taken_ends_it_in_the_schedulers_words(pods: PodsWorld) -> None:
    ports = [container(ports=[{"containerPort": 8099, "hostPort": 8099}])]
    source = pods.with_devices("web", hostNetwork=True, containers=ports)
    pods.create(pod("other", "node-b", hostNetwork=True, containers=ports))
    message = failed(pods.run(move("clash", "web"), timeout=30), "TargetPodFailed")
    assert "it cannot be scheduled: 0/2 nodes are available" in message
    assert "didn't have free ports for the requested pod ports" in message
    untouched(pods, source, DEVICES)


ENDED: Json = {"terminated": {"exitCode": 3, "reason": "Error"}}
NO_IMAGE: Json = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}


@pytest.mark.parametrize(
    ("state", "words"),
    [(ENDED, "a container ended: Error (exit code 3)"), (NO_IMAGE, "ErrImagePull: no such image")],
    ids=["crashed", "no image"],
)
def test_a_counterpart_that_does_not_run_ends_it(pods: PodsWorld, state: Json, words: str) -> None:
    source = pods.with_devices("web")
    pods.apply(move("crash", "web", strategy=SLOW))
    pods.in_pre_copy("crash")
    name = pods.await_counterpart("crash")["metadata"]["name"]
    status = {"name": "main", "image": "workload", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    pods.say(name, {"containerStatuses": [status]})
    message = failed(pods.finished("crash"), "TargetPodFailed")
    which = f"pod default/{name}, the counterpart of default/web"
    assert message.startswith(f"{which}, does not run on node node-b: {words}")
    assert "the source runs on; look at kubectl describe pod" in message
    untouched(pods, source, DEVICES)


def test_a_counterpart_that_is_deleted_ends_it(pods: PodsWorld) -> None:
    source = pods.with_devices("web")
    pods.apply(move("gone", "web", strategy=SLOW))
    pods.in_pre_copy("gone")
    pods.stack.kubectl("delete", "pod", pods.await_counterpart("gone")["metadata"]["name"])
    message = failed(pods.finished("gone"), "TargetPodFailed")
    assert "the counterpart of pod default/web was deleted; the source runs on; create the migration again" in message
    untouched(pods, source, DEVICES)


def test_the_users_target_pod_that_is_deleted_ends_it(pods: PodsWorld) -> None:
    source = pods.with_devices("web")
    pods.create(pod("web-next", "node-b"))
    pods.apply(move("mine", "web", "pod/web-next", strategy=SLOW))
    pods.in_pre_copy("mine")
    pods.stack.kubectl("delete", "pod", "web-next")
    message = failed(pods.finished("mine"), "TargetPodFailed")
    assert "the counterpart of pod default/web was deleted" in message
    untouched(pods, source, DEVICES)


def test_the_users_target_pod_stays_after_a_failure(pods: PodsWorld) -> None:
    source = pods.with_devices("web")
    target = pods.create(pod("web-next", "node-b"))
    pods.apply(move("mine", "web", "pod/web-next", strategy=SLOW))
    pods.in_pre_copy("mine")
    pods.stack.kubectl("patch", "vfm", "mine", "--type=merge", "-p", '{"spec":{"cancel":true}}')
    assert pods.finished("mine")["status"]["phase"] == "Cancelled"
    left = pods.there("web-next")
    assert (left["metadata"]["uid"], left["metadata"]["labels"]) == (
        target["metadata"]["uid"],
        target["metadata"]["labels"],
    )
    untouched(pods, source, DEVICES)


def nothing_left(pods: PodsWorld) -> None:
    """Neither a counterpart nor a claim."""
    pods.stack.wait_until(lambda: pods.stack.get("pods")["items"] == [], "no pod is left")
    assert all("claimRef" not in d["spec"] for d in pods.stack.get("vfd")["items"])
    assert {d["spec"]["address"] for d in pods.stack.get("vfd")["items"] if d["status"].get("holder")} <= set(DEVICES)


def test_a_source_that_is_deleted_meanwhile_ends_it(pods: PodsWorld) -> None:
    pods.with_devices("web")
    pods.apply(move("deleted", "web", strategy=SLOW))
    pods.in_pre_copy("deleted")
    pods.stack.kubectl("delete", "pod", "web")
    message = failed(pods.finished("deleted"), "PodGone")
    assert message.startswith("pod default/web is ")
    assert "it was deleted or evicted during its migration; look at its Events, and at who deletes it" in message
    nothing_left(pods)


def test_a_source_that_is_evicted_meanwhile_ends_it(pods: PodsWorld) -> None:
    """As `kubectl drain` does it: there is no webhook here."""
    pods.with_devices("web")
    pods.apply(move("evicted", "web", strategy=SLOW))
    pods.in_pre_copy("evicted")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "web", "namespace": "default"}}
    path = "/api/v1/namespaces/default/pods/web/eviction"
    pods.stack.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))
    assert "it was deleted or evicted" in failed(pods.finished("evicted"), "PodGone")
    nothing_left(pods)


def test_a_source_that_its_kubelet_ends_meanwhile_ends_it(pods: PodsWorld) -> None:
    """Under pressure a kubelet fails pods; they stay."""
    pods.with_devices("web")
    pods.apply(move("pressure", "web", strategy=SLOW))
    pods.in_pre_copy("pressure")
    pods.say("web", {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."})
    assert "pod default/web has ended (Failed)" in failed(pods.finished("pressure"), "PodGone")
    assert pods.counterpart("pressure") is None


def test_a_cancelled_move_leaves_the_source_as_it_was(pods: PodsWorld) -> None:
    source = pods.with_devices("web")
    pods.apply(move("cancelled", "web", strategy=SLOW))
    pods.in_pre_copy("cancelled")
    pods.await_counterpart("cancelled")
    pods.stack.kubectl("patch", "vfm", "cancelled", "--type=merge", "-p", '{"spec":{"cancel":true}}')
    assert pods.finished("cancelled")["status"]["phase"] == "Cancelled"
    untouched(pods, source, DEVICES)


def test_a_rehearsal_leaves_both_sides_as_they_were(pods: PodsWorld) -> None:
    source = pods.with_devices("web")
    found = pods.run(move("rehearsed", "web", mode="Rehearse"))
    assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
    untouched(pods, source, DEVICES)
