"""Whatever the operator was at when it died, one pod is left, and no rule of a move is broken; or a check says so."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cluster.pods_world import PATIENT, SETTINGS, SLOW, PodsWorld, failed, move, pod
from devtools.processes import Child
from vfio_api.names import HERITAGE_ANNOTATION, INCOMING_ANNOTATION
from vfio_operator.counterpart import DELETION_COST

Json = dict[str, Any]
DEVICES = ("sim0", "sim1")
SERVICE: Json = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
}


@pytest.fixture(autouse=True)
def clean(pods: PodsWorld) -> Iterator[None]:
    """Every test begins with free devices and no pods."""
    yield
    pods.clean()


@contextmanager
def led_by(pods: PodsWorld, module: str, **settings: str) -> Iterator[Child]:
    """Another program leads for the duration."""
    pods.operator.stop()
    # short, as the next leader waits for it after a SIGKILL
    lease = {"LEASE_SECONDS": "5", "RENEW_DEADLINE_SECONDS": "3"}
    other = pods.stack.start_operator("operator-1", module=module, **SETTINGS, **lease, **settings)
    try:
        other.wait_for('"event": "leading"')
        yield other
    finally:
        other.stop()
        pods.operator = pods.stack.start_operator("operator-0", **SETTINGS, **PATIENT)
        pods.operator.wait_for('"event": "leading"', 60)


def annotations(body: Json) -> Json:
    found: Json = body["metadata"].get("annotations", {})
    return found


@pytest.mark.parametrize("deed", ["mark", "create", "delete", "adopt", "settle"])
def test_an_operator_that_dies_leaves_one_pod(pods: PodsWorld, deed: str) -> None:
    source = pods.with_devices("web", labels={"tier": "front"})
    with led_by(pods, "mutants.operator_that_dies", DIES_AFTER=deed) as dying:
        pods.apply(move("dies", "web"))
        assert dying.ended() == -signal.SIGKILL
        made = next((p for p in pods.stack.get("pods")["items"] if INCOMING_ANNOTATION in annotations(p)), None)
        assert (made is None) == (deed == "mark")
    found = pods.finished("dies")
    assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
    (left,) = pods.stack.get("pods")["items"]
    assert left["metadata"]["name"] == found["status"]["workload"]["targetPod"]["name"]
    assert made is None or left["metadata"]["uid"] == made["metadata"]["uid"], "it was made once"
    assert left["metadata"]["labels"] == source["metadata"]["labels"]
    assert left["metadata"].get("ownerReferences", []) == []
    assert not {HERITAGE_ANNOTATION, DELETION_COST} & annotations(left).keys()
    assert pods.has_marks(source, "node-b", DEVICES)


def test_an_operator_that_dies_and_a_source_that_goes_meanwhile_leave_no_pod(pods: PodsWorld) -> None:
    """Nothing but its name tells of the counterpart: nobody could write down that it was made."""
    pods.with_devices("web")
    with led_by(pods, "mutants.operator_that_dies", DIES_AFTER="create") as dying:
        pods.apply(move("both", "web"))
        assert dying.ended() == -signal.SIGKILL
        assert len(pods.stack.get("pods")["items"]) == 2
        pods.stack.kubectl("delete", "pod", "web")
    assert "pod default/web is gone: it was deleted or evicted" in failed(pods.finished("both"), "PodGone")
    pods.stack.wait_until(lambda: pods.stack.get("pods")["items"] == [], "no pod is left")


# Checks, and operators that must not pass them.


def served(pods: PodsWorld) -> set[str]:
    """The pods that Service web sends its traffic to."""
    slices = pods.stack.get("endpointslices", "-l", "kubernetes.io/service-name=web")["items"]
    return {e["targetRef"]["name"] for s in slices for e in s.get("endpoints") or () if e["conditions"].get("ready")}


def served_before_commit(pods: PodsWorld, name: str) -> set[str]:
    """Who serves while a move is in pre-copy and both pods run."""
    pods.stack.kubectl("create", "-f", "-", input=json.dumps(SERVICE))
    try:
        pods.with_devices("web")
        pods.stack.wait_until(lambda: served(pods) == {"web"}, "the source serves")
        pods.apply(move(name, "web", strategy=SLOW))
        pods.in_pre_copy(name)
        counterpart = pods.await_counterpart(name)["metadata"]["name"]
        # the controller of EndpointSlices has seen the counterpart once it has seen a pod that came after it
        pods.create(pod("later", "node-b", labels={"app": "web"}))
        pods.stack.wait_until(lambda: "later" in served(pods), "a pod that came after it serves")
        assert pods.stack.get("vfm", name)["status"]["phase"] == "PreCopy"
        found = served(pods) - {"later"}
        assert found <= {"web", counterpart}
        return found
    finally:
        pods.stack.kubectl("delete", "service", "web")


def test_the_counterpart_serves_nobody_before_commit(pods: PodsWorld) -> None:
    assert served_before_commit(pods, "quiet") == {"web"}


def test_mutant_a_counterpart_with_labels_takes_traffic_early(pods: PodsWorld) -> None:
    with led_by(pods, "mutants.operator_that_labels_early"):
        assert len(served_before_commit(pods, "loud")) == 2


def decided_when_it_went(pods: PodsWorld, name: str) -> str:
    """The decision that is written when the source is being deleted; "" for none."""
    pods.with_devices("web")
    pods.apply(move(name, "web", strategy=SLOW))
    uid = pods.stack.get("vfm", name)["metadata"]["uid"]
    pods.stack.wait_until(lambda: pods.get_pod("web") is None, "the source pod has gone", 60)
    found = pods.stack.kubectl("get", "vfioswitchovers", uid, "-o", "json", "--ignore-not-found")
    return str(json.loads(found).get("status", {}).get("decision", {}).get("outcome", "")) if found else ""


def test_the_source_goes_after_commit_only(pods: PodsWorld) -> None:
    assert decided_when_it_went(pods, "patient") == "Commit"
    assert pods.finished("patient")["status"]["phase"] == "Succeeded"


def test_mutant_a_source_that_goes_before_commit_is_seen(pods: PodsWorld) -> None:
    with led_by(pods, "mutants.operator_that_switches_pods_early"):
        assert decided_when_it_went(pods, "hasty") == ""
        pods.finished("hasty")
