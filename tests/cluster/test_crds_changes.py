"""The CRDs in a real API server: what cannot be changed once it is there."""

import json

import pytest

from cluster.objects import (
    FULL_SPEC,
    LATER,
    NAMESPACE,
    UID,
    Object,
    claim,
    create,
    decision,
    device,
    migration,
    pair,
    patch,
    refusal,
    switchover,
)
from devtools.plane import KubectlError, Plane
from vfio_api.models import VFIOSwitchover

NEW = "create a new VFIOMigration"

# what cannot be changed later


@pytest.fixture(scope="module")
def full(namespace: Plane) -> Object:
    """A stored migration with every field."""
    return create(namespace, migration("full", **FULL_SPEC))


@pytest.fixture(scope="module")
def shorthand(namespace: Plane) -> Object:
    """A stored migration by the shorthand, with only what must be given."""
    return create(namespace, migration("shorthand", source={"nodeName": "node-a"}, target={"nodeName": "node-b"}))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("devices", {"devices": [pair(target="0000:5e:00.3")]}),
        ("devices", {"devices": [pair(), pair("gpu1", "sim1", "sim1")]}),
        ("workload", {"workload": {"pause": {"method": "Hook"}}}),
        ("workload", {"workload": None}),
        ("strategy", {"strategy": {"preCopy": "Disabled"}}),
        ("strategy", {"strategy": {"bandwidthLimitBytesPerSecond": None}}),
        ("strategy", {"strategy": None}),
        ("mode", {"mode": "Migrate"}),
        ("mode", {"mode": None}),
    ],
)
def test_spec_cannot_be_changed(namespace: Plane, full: Object, field: str, change: Object) -> None:
    told = refusal(patch, namespace, full, {"spec": change})
    assert f"spec.{field}: Forbidden: spec.{field} cannot be changed after creation: {NEW}" in told


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        (["source"], {"source": {"nodeName": "node-b"}}),
        (["source"], {"source": {"nodeName": None, "podName": "p"}}),
        (["target"], {"target": {"nodeName": "node-a"}}),
        (["workload"], {"workload": {"pause": {}}}),
        (["devices", "source", "target"], {"source": None, "target": None, "devices": [pair()]}),
    ],
)
def test_shorthand_cannot_be_changed(namespace: Plane, shorthand: Object, fields: list[str], change: Object) -> None:
    told = refusal(patch, namespace, shorthand, {"spec": change})
    for field in fields:
        assert f"spec.{field}: Forbidden: spec.{field} cannot be changed after creation: {NEW}" in told


def test_spec_cannot_be_removed(namespace: Plane, full: Object) -> None:
    assert "spec: Required value" in refusal(patch, namespace, full, {"spec": None})


def test_cancel_is_one_way_and_ttl_is_free(namespace: Plane) -> None:
    item = create(namespace, migration("cancelled"))
    assert patch(namespace, item, {"spec": {"ttlSecondsAfterFinished": 5}})["spec"]["ttlSecondsAfterFinished"] == 5
    assert "ttlSecondsAfterFinished" not in patch(namespace, item, {"spec": {"ttlSecondsAfterFinished": None}})["spec"]
    assert patch(namespace, item, {"spec": {"cancel": True}})["spec"]["cancel"] is True
    assert patch(namespace, item, {"spec": {"ttlSecondsAfterFinished": 9}})["spec"]["cancel"] is True
    for value in (False, None):
        told = refusal(patch, namespace, item, {"spec": {"cancel": value}})
        assert f"spec.cancel: Forbidden: spec.cancel cannot be taken back: {NEW}" in told


# the switchover's decision


@pytest.fixture(scope="module")
def decided(namespace: Plane) -> Object:
    """A switchover with Commit written."""
    item = create(namespace, switchover(UID))
    assert "status" not in item
    return patch(namespace, item, decision("Commit"), "--subresource=status")


def test_decision_is_written(decided: Object) -> None:
    status = VFIOSwitchover.model_validate(decided).status
    assert status is not None
    assert status.decision is not None
    assert status.decision.outcome == "Commit"


def test_same_decision_again_is_accepted(namespace: Plane, decided: Object) -> None:
    again = patch(namespace, decided, decision("Commit"), "--subresource=status")
    assert again["metadata"]["resourceVersion"] == decided["metadata"]["resourceVersion"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(decision("Abort"), id="other-outcome"),
        pytest.param(decision("Commit", by="agent/node-a"), id="other-author"),
        pytest.param(decision("Commit", time=LATER), id="other-time"),
        pytest.param({"status": {"decision": None}}, id="no-decision"),
        pytest.param({"status": None}, id="no-status"),
    ],
)
def test_decision_is_written_once(namespace: Plane, decided: Object, change: Object) -> None:
    told = refusal(patch, namespace, decided, change, "--subresource=status")
    assert "status.decision: Forbidden: status.decision is written once: read it back and obey it" in told
    stored = json.loads(namespace.kubectl("get", "vfs", UID, "-n", NAMESPACE, "-o", "json"))
    assert stored["status"] == decided["status"]


def test_decision_cannot_be_replaced_by_json_patch(namespace: Plane, decided: Object) -> None:
    operations = [{"op": "remove", "path": "/status"}]
    command = ["patch", "vfs", UID, "-n", NAMESPACE, "--subresource=status", "--type=json"]
    with pytest.raises(KubectlError, match=r"status\.decision is written once"):
        namespace.kubectl(*command, "-p", json.dumps(operations))


def test_main_resource_does_not_touch_the_decision(namespace: Plane, decided: Object) -> None:
    assert patch(namespace, decided, decision("Abort"))["status"] == decided["status"]
    assert patch(namespace, decided, {"status": None})["status"] == decided["status"]


def test_decision_at_creation_is_dropped(namespace: Plane) -> None:
    """So that who may create a switchover has not decided it."""
    uid = "6f2f8a1e-7a3f-4a53-9d7e-0d6d5a1f6c02"
    assert "status" not in create(namespace, switchover(uid) | decision("Commit"))


def test_unknown_outcome_is_refused(namespace: Plane, decided: Object) -> None:
    told = refusal(patch, namespace, decided, decision("Maybe"), "--subresource=status")
    assert 'status.decision.outcome: Unsupported value: "Maybe": supported values: "Commit", "Abort"' in told


@pytest.mark.parametrize("change", [{"epoch": 2}, {"sourceNodes": ["node-b"]}, {"timeoutSeconds": 31}])
def test_switchover_cannot_be_changed(namespace: Plane, decided: Object, change: Object) -> None:
    told = refusal(patch, namespace, decided, {"spec": change})
    assert "spec: Forbidden: spec cannot be changed after creation" in told


# the inventory


def test_claim_goes_to_the_first(namespace: Plane) -> None:
    item = create(namespace, device("0000:3b:00.1"))
    patch(namespace, item, claim("first"))
    patch(namespace, item, claim("first"))
    told = refusal(patch, namespace, item, claim("second"))
    assert "spec.claimRef: Forbidden: the device is claimed by another migration" in told
    freed = patch(namespace, item, {"spec": {"claimRef": None}})
    assert "claimRef" not in freed["spec"]
    assert patch(namespace, item, claim("second"))["spec"]["claimRef"]["uid"] == "second"


@pytest.mark.parametrize("field", ["nodeName", "address", "backend"])
def test_identity_cannot_be_changed(namespace: Plane, field: str) -> None:
    name = f"identity-{field.lower()}"
    item = create(namespace, device(name))
    told = refusal(patch, namespace, item, {"spec": {field: "Simulated"} if field == "backend" else {field: "other"}})
    assert f"spec.{field}: Forbidden: spec.{field} cannot be changed after creation" in told
