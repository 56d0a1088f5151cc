"""The counterpart of a pod: what it takes along, what it must not have yet, and which pods can have none."""

import json
from typing import Any

import pytest

from vfio_api.errors import Reason
from vfio_api.names import HERITAGE_ANNOTATION, INCOMING_ENV, MIGRATION_LABEL
from vfio_api.types import MigrationKey
from vfio_operator.counterpart import (
    DELETION_COST,
    Claim,
    adoption,
    claims_of,
    counterpart,
    counterpart_name,
    record_of,
    refusals,
)

KEY = MigrationKey("11111111-2222-3333-4444-555555555555", "team", "move")
OTHER = MigrationKey("99999999-2222-3333-4444-555555555555", "team", "back")
Json = dict[str, Any]
OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "rs", "controller": True}


def pod(**changes: Any) -> Json:
    """A pod of a ReplicaSet that runs on node-a."""
    spec: Json = {
        "nodeName": "node-a",
        "priority": 5,
        "nodeSelector": {"kubernetes.io/hostname": "node-a", "disk": "ssd"},
        "containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}]}],
        "initContainers": [{"name": "first", "image": "i"}],
    }
    metadata: Json = {
        "name": "web-1-abcde",
        "namespace": "team",
        "uid": "pod-uid",
        "resourceVersion": "7",
        "labels": {"app": "web", "pod-template-hash": "1"},
        "annotations": {"team/note": "kept", "k8s.v1.cni.cncf.io/network-status": "of the source"},
        "ownerReferences": [OWNER],
    }
    made = {"metadata": metadata, "spec": spec, "status": {"phase": "Running", "podIP": "10.0.0.7"}}
    for part, change in changes.items():
        made[part] = {**made[part], **change}
    return made


def test_nobody_takes_the_counterpart_before_the_decision() -> None:
    made = counterpart(pod(), KEY, "node-b")
    assert made["metadata"]["labels"] == {MIGRATION_LABEL: KEY.uid}, "neither a Service nor a ReplicaSet selects it"
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("VFIOMigration", KEY.uid, True)


def test_after_the_decision_it_is_what_the_source_was() -> None:
    made = counterpart(pod(), KEY, "node-b")
    made["metadata"]["uid"] = "made"
    patch = adoption(made)["metadata"]
    assert patch["uid"] == "made", "of this very pod"
    assert patch["labels"] == {"app": "web", "pod-template-hash": "1", MIGRATION_LABEL: None}
    assert patch["ownerReferences"] == [OWNER]
    assert patch["annotations"] == {HERITAGE_ANNOTATION: None, DELETION_COST: "2147483647"}


def test_it_has_the_sources_spec_on_the_target_node_by_the_scheduler() -> None:
    spec = counterpart(pod(), KEY, "node-b")["spec"]
    assert "nodeName" not in spec, "the scheduler looks whether its resources are free there"
    assert "priority" not in spec, "admission computes it"
    assert spec["nodeSelector"] == {"disk": "ssd"}
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-b"]}]}
    assert spec["hostname"] == "web-1-abcde"
    assert spec["containers"][0]["env"] == [
        {"name": "A", "value": "1"},
        {"name": INCOMING_ENV, "value": "team/move"},
    ]
    assert spec["initContainers"][0]["env"] == [{"name": INCOMING_ENV, "value": "team/move"}]


def test_affinity_of_its_own_stays_and_an_earlier_move_is_forgotten() -> None:
    zone = {"key": "zone", "operator": "In", "values": ["x"]}
    terms = [{"matchExpressions": [zone]}, {}]
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}},
        "podAffinity": {"kept": True},
    }
    once = counterpart(pod(spec={"affinity": affinity}), KEY, "node-b")
    twice = counterpart({**once, "metadata": {**once["metadata"], "uid": "u"}}, OTHER, "node-a")["spec"]
    to_a = [{"key": "metadata.name", "operator": "In", "values": ["node-a"]}]
    assert twice["affinity"]["podAffinity"] == {"kept": True}
    required = twice["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required["nodeSelectorTerms"] == [
        {"matchExpressions": [zone], "matchFields": to_a},
        {"matchFields": to_a},
    ]
    assert [e["value"] for e in twice["containers"][0]["env"] if e["name"] == INCOMING_ENV] == ["team/back"]


def test_its_name_follows_from_the_migration_and_does_not_grow() -> None:
    first = counterpart(pod(), KEY, "node-b")
    assert first["metadata"]["name"] == counterpart_name(pod(), KEY) == "web-1-abcde-666ff6cc"
    second = counterpart_name({**first, "metadata": {**first["metadata"]}}, OTHER)
    assert second != first["metadata"]["name"]
    assert len(second) == len(first["metadata"]["name"])
    long = pod(metadata={"name": "x" * 200})
    assert len(counterpart_name(long, KEY)) <= 63


def test_what_is_of_the_source_only_is_left_behind() -> None:
    annotations = counterpart(pod(), KEY, "node-b")["metadata"]["annotations"]
    assert annotations["team/note"] == "kept"
    assert "k8s.v1.cni.cncf.io/network-status" not in annotations
    assert json.loads(annotations[HERITAGE_ANNOTATION])["labels"]["app"] == "web"


def test_a_pod_is_not_changed_by_making_its_counterpart() -> None:
    source = pod()
    counterpart(source, KEY, "node-b")
    assert source == pod()


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "Job", "ReplicationController", "CloneSet"])
def test_a_controller_that_would_fight_it_is_named(kind: str) -> None:
    owner = {**OWNER, "kind": kind, "name": "db"}
    (failure,) = refusals(pod(metadata={"ownerReferences": [owner]}), (), "node-b")
    assert failure.reason is Reason.POD_NOT_MOVABLE
    assert failure.message.startswith(f"pod team/web-1-abcde belongs to {kind} db, which would make another in its ")


@pytest.mark.parametrize(
    ("claim", "node", "message"),
    [
        (Claim("data", ("ReadWriteOncePod",)), "node-a", "is ReadWriteOncePod: its counterpart could not mount it"),
        (Claim("data", ("ReadWriteOncePod",)), "node-b", "is ReadWriteOncePod: its counterpart could not mount it"),
        (Claim("data", ("ReadWriteOnce",)), "node-b", "it cannot be on node node-b while it is on node-a"),
        (Claim("data", ()), "node-b", "data, which does not exist"),
    ],
)
def test_a_volume_that_cannot_be_attached_twice_is_named(claim: Claim, node: str, message: str) -> None:
    (failure,) = refusals(pod(), (claim,), node)
    assert message in failure.message
    assert failure.reason is Reason.POD_NOT_MOVABLE


def test_what_can_be_moved_is_not_refused() -> None:
    assert list(refusals(pod(), (Claim("a", ("ReadWriteMany",)), Claim("b", ("ReadOnlyMany",))), "node-b")) == []
    assert list(refusals(pod(), (Claim("a", ("ReadWriteOnce",)),), "node-a")) == [], "on the same node it can be"
    assert list(refusals(pod(metadata={"ownerReferences": []}), (), "node-b")) == []


def test_claims_are_those_that_it_names_and_those_made_for_it() -> None:
    volumes = [
        {"name": "a", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "b", "ephemeral": {}},
        {"name": "c", "emptyDir": {}},
    ]
    assert claims_of(pod(spec={"volumes": volumes})) == ("data", "web-1-abcde-b")


@pytest.mark.parametrize(
    ("status", "running", "trouble"),
    [
        ({"containerStatuses": [{"state": {"running": {}}}]}, True, ""),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}, False, ""),
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]},
            False,
            "ErrImagePull: no such image",
        ),
        (
            {"containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]},
            False,
            "a container ended: OOMKilled (exit code 137)",
        ),
        ({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no ports"}, False, "no ports"),
    ],
)
def test_why_a_pod_does_not_run_is_in_the_kubelets_words(status: Json, running: bool, trouble: str) -> None:
    found = record_of({**pod(), "status": status})
    assert (found.running, found.trouble) == (running, trouble)


def test_why_a_pod_is_not_scheduled_is_in_the_schedulers_words() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}
    assert record_of({**pod(), "status": {"conditions": [condition]}}).unscheduled == "0/2 nodes are available"
