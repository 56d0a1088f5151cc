"""The CRDs in a real API server: what it accepts, what it refuses and how, what people see."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
from devtools.plane import KubectlError, Plane
from vfio_api.models import Strategy, VFIODevice, VFIOMigration, VFIOSwitchover, device_object_name

API_VERSION = "vfiomigration.io/v1alpha1"
NAMESPACE = "test-crds"
UID = "6f2f8a1e-7a3f-4a53-9d7e-0d6d5a1f6c01"
NOW, LATER = "2026-11-22T10:00:00Z", "2026-11-22T10:00:01Z"
NEW = "create a new VFIOMigration"

Object = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def namespace(crds: Plane) -> Iterator[None]:
    crds.kubectl("create", "namespace", NAMESPACE)
    yield
    crds.kubectl("delete", "vfiodevices", "-l", f"test={NAMESPACE}")
    crds.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def pair(name: str = "gpu0", source: str = "0000:3b:00.2", target: str = "0000:5e:00.2") -> Object:
    return {
        "name": name,
        "source": {"nodeName": "node-a", "device": source},
        "target": {"nodeName": "node-b", "device": target},
    }


def migration(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "VFIOMigration",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec or {"devices": [pair()]},
    }


def switchover(uid: str, **spec: Any) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "VFIOSwitchover",
        "metadata": {"name": uid, "namespace": NAMESPACE},
        "spec": {
            "migrationName": "m",
            "migrationUID": uid,
            "epoch": 1,
            "sourceNodes": ["node-a"],
            "targetNodes": ["node-b"],
            "timeoutSeconds": 30,
        }
        | spec,
    }


def device(address: str, **spec: Any) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "VFIODevice",
        "metadata": {"name": device_object_name("node-a", address), "labels": {"test": NAMESPACE}},
        "spec": {"nodeName": "node-a", "address": address, "backend": "Kernel"} | spec,
    }


def create(plane: Plane, item: Object, *flags: str) -> Object:
    """Create an object and return it as stored."""
    created = json.loads(plane.kubectl("create", "-f", "-", "-o", "json", *flags, input=json.dumps(item)))
    assert isinstance(created, dict)
    return created


def patch(plane: Plane, item: Object, change: Object, *flags: str) -> Object:
    """Merge-patch an object and return it as stored."""
    command = ["patch", item["kind"].lower(), item["metadata"]["name"], "--type=merge", "-o", "json"]
    if "namespace" in item["metadata"]:
        command += ["-n", item["metadata"]["namespace"]]
    changed = json.loads(plane.kubectl(*command, *flags, "-p", json.dumps(change)))
    assert isinstance(changed, dict)
    return changed


def refusal(action: Callable[..., Object], *arguments: Any) -> str:
    """Return what the user is told when the API server refuses an action."""
    with pytest.raises(KubectlError) as caught:
        action(*arguments)
    return str(caught.value)


def changed(path: str, value: Any, item: Object) -> Object:
    """Return a copy of the object with the field at `path` ("devices.0.name" below spec) set to the value."""
    copy = deepcopy(item)
    at: Any = copy["spec"]
    *parents, last = path.split(".")
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
    at[int(last) if isinstance(at, list) else last] = value
    return copy


# what is accepted

FULL_SPEC: Object = {
    "devices": [pair()],
    "workload": {"pause": {"method": "Freeze"}},
    "strategy": {
        "downtimeLimitMilliseconds": 100,
        "preCopy": "Required",
        "convergenceTimeoutSeconds": 60,
        "onConvergenceTimeout": "Switchover",
        "switchoverAck": False,
        "switchoverTimeoutSeconds": 10,
        "bandwidthLimitBytesPerSecond": "1.5Gi",
    },
    "mode": "Rehearse",
    "cancel": False,
    "ttlSecondsAfterFinished": 3600,
}
MDEV = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"devices": [pair()]}, id="one-pair"),
        pytest.param({"devices": [pair(f"d{i}", f"sim{i}", f"sim{i}") for i in range(256)]}, id="256-pairs"),
        pytest.param({"devices": [pair(source=MDEV, target="sim0")]}, id="mdev-and-simple-name"),
        pytest.param(FULL_SPEC, id="every-field"),
        pytest.param({"source": {"nodeName": "node-a"}, "target": {"nodeName": "node-b"}}, id="node"),
        pytest.param({"source": {"podName": "vm-0"}, "target": {"nodeName": "node-b"}}, id="pod"),
    ],
)
def test_accepted(crds: Plane, spec: Object) -> None:
    stored = create(crds, migration("accepted", **spec), "--dry-run=server")
    VFIOMigration.model_validate(stored)


@pytest.mark.parametrize("value", [1, 1048576, "1", "500M", "1.5Gi", "0.5", "7Ei"])
def test_accepted_quantity_is_one_for_the_model(crds: Plane, value: int | str) -> None:
    item = changed("strategy.bandwidthLimitBytesPerSecond", value, migration("quantity"))
    stored = VFIOMigration.model_validate(create(crds, item, "--dry-run=server"))
    assert (stored.spec.strategy.bandwidth_limit() or 0) > 0


def test_defaults_are_those_of_the_model(crds: Plane) -> None:
    stored = create(crds, migration("defaults"), "--dry-run=server")
    assert stored["spec"]["strategy"] == Strategy().to_dict()
    assert (stored["spec"]["mode"], stored["spec"]["cancel"]) == ("Migrate", False)
    assert "ttlSecondsAfterFinished" not in stored["spec"]
    assert "status" not in stored


# what is refused at creation

ONE = migration("refused")
SHORTHAND = migration("refused", source={"nodeName": "node-a"}, target={"nodeName": "node-b"})
QUANTITY = (
    "spec.strategy.bandwidthLimitBytesPerSecond: Invalid value: ",
    "must be a number of bytes, more than 0 and less than 8Ei, such as 1024, 500M or 1.5Gi",
)


@pytest.mark.parametrize(
    ("item", "messages"),
    [
        pytest.param(
            changed("devices.0.target", pair()["source"], ONE),
            ("spec.devices[0].target: Invalid value", "source and target are the same device"),
            id="source-is-target",
        ),
        pytest.param(
            changed("postCopy", True, ONE),
            ('strict decoding error: unknown field "spec.postCopy"',),
            id="unknown-field",
        ),
        pytest.param(
            changed("strategy.preCopy", "PostCopy", ONE),
            (
                'spec.strategy.preCopy: Unsupported value: "PostCopy": supported values: "Auto", "Required", "Disabled"',
            ),
            id="post-copy",
        ),
        pytest.param(
            changed("mode", "Copy", ONE), ('spec.mode: Unsupported value: "Copy"',), id="unknown-mode"
        ),
        pytest.param(
            changed("devices", [pair(f"d{i}") for i in range(257)], ONE),
            ("spec.devices: Too many: 257: must have at most 256 items",),
            id="257-pairs",
        ),
        pytest.param(
            changed("devices", [], ONE), ("spec.devices", "should have at least 1 items"), id="no-pairs"
        ),
        pytest.param(
            changed("devices", [pair(), pair(source="sim1")], ONE),
            ('spec.devices[1]: Duplicate value: {"name":"gpu0"}',),
            id="name-twice",
        ),
        pytest.param(
            changed("devices.0.name", "GPU_0", ONE),
            ('spec.devices[0].name: Invalid value: "GPU_0"',),
            id="bad-name",
        ),
        pytest.param(
            changed("devices.0.name", "a" * 64, ONE),
            ("spec.devices[0].name: Too long: may not be more than 63",),
            id="long-name",
        ),
        pytest.param(
            changed("devices.0.source.device", "../../etc/passwd", ONE),
            ('spec.devices[0].source.device: Invalid value: "../../etc/passwd"',),
            id="device-is-a-path",
        ),
        pytest.param(
            changed("devices.0.source.device", "0000:3B:00.2", ONE),
            ("spec.devices[0].source.device: Invalid value",),
            id="device-in-upper-case",
        ),
        pytest.param(
            changed("devices.0.source.nodeName", "Node A", ONE),
            ('spec.devices[0].source.nodeName: Invalid value: "Node A"',),
            id="bad-node",
        ),
        pytest.param(
            changed("devices.0.source", {"nodeName": "node-a"}, ONE),
            ("spec.devices[0].source.device: Required value",),
            id="no-device",
        ),
        pytest.param(
            changed("strategy.downtimeLimitMilliseconds", -1, ONE),
            ("spec.strategy.downtimeLimitMilliseconds: Invalid value: -1", "greater than or equal to 1"),
            id="negative-limit",
        ),
        pytest.param(
            changed("strategy.switchoverTimeoutSeconds", 0, ONE),
            ("spec.strategy.switchoverTimeoutSeconds: Invalid value: 0",),
            id="no-timeout",
        ),
        pytest.param(
            changed("strategy.downtimeLimitMilliseconds", 0.5, ONE),
            ("spec.strategy.downtimeLimitMilliseconds: Invalid value",),
            id="limit-no-integer",
        ),
        pytest.param(
            changed("ttlSecondsAfterFinished", -1, ONE),
            ("spec.ttlSecondsAfterFinished: Invalid value: -1",),
            id="negative-ttl",
        ),
        *(
            pytest.param(
                changed("strategy.bandwidthLimitBytesPerSecond", value, ONE), QUANTITY, id=f"quantity-{value}"
            )
            for value in (0, -1, "0", "-5Gi", "5GB", "500m", "fast", "", "8Ei", "1e9")
        ),
        pytest.param(
            changed("source", {"nodeName": "node-a"}, ONE),
            ("spec: Invalid value", "give either devices, or both source and target"),
            id="devices-and-source",
        ),
        pytest.param(
            changed("devices", [pair()], SHORTHAND),
            ("spec: Invalid value", "give either devices, or both source and target"),
            id="devices-and-shorthand",
        ),
        pytest.param(
            migration("refused", mode="Plan"),
            ("give either devices, or both source and target",),
            id="neither",
        ),
        pytest.param(
            migration("refused", source={"nodeName": "node-a"}),
            ("give either devices, or both source and target",),
            id="source-only",
        ),
        pytest.param(
            changed("source", {"nodeName": "node-a", "podName": "p"}, SHORTHAND),
            ("spec.source: Invalid value", "give either nodeName or podName, not both"),
            id="node-and-pod",
        ),
        pytest.param(
            changed("source", {}, SHORTHAND),
            ("give either nodeName or podName, not both",),
            id="empty-source",
        ),
        pytest.param({**ONE, "spec": None}, ("spec: Required value",), id="no-spec"),
        pytest.param(
            switchover(UID, sourceNodes=[]),
            ("spec.sourceNodes", "should have at least 1 items"),
            id="no-sources",
        ),
        pytest.param(
            switchover(UID, sourceNodes=["node-a", "node-a"]),
            ('spec.sourceNodes[1]: Duplicate value: "node-a"',),
            id="source-node-twice",
        ),
        pytest.param(
            switchover(UID, migrationUID="another"),
            ("spec.migrationUID: Invalid value", "metadata.name must be the UID of the migration"),
            id="switchover-of-another",
        ),
        pytest.param(switchover(UID, epoch=0), ("spec.epoch: Invalid value: 0",), id="no-epoch"),
        pytest.param(
            device("sim0", claimRef={"name": "m"}),
            ("spec.claimRef.namespace: Required value", "spec.claimRef.uid: Required value"),
            id="half-a-claim",
        ),
        pytest.param(
            device("sim0", backend="Magic"),
            ('spec.backend: Unsupported value: "Magic"',),
            id="unknown-backend",
        ),
    ],
)
def test_refused(crds: Plane, item: Object, messages: tuple[str, ...]) -> None:
    told = refusal(create, crds, item, "--dry-run=server")
    for message in messages:
        assert message in told


# what cannot be changed later


@pytest.fixture(scope="module")
def full(crds: Plane) -> Object:
    """A stored migration with every field."""
    return create(crds, migration("full", **FULL_SPEC))


@pytest.fixture(scope="module")
def shorthand(crds: Plane) -> Object:
    """A stored migration by the shorthand, with only what must be given."""
    return create(crds, migration("shorthand", **SHORTHAND["spec"]))


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
def test_spec_cannot_be_changed(crds: Plane, full: Object, field: str, change: Object) -> None:
    told = refusal(patch, crds, full, {"spec": change})
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
def test_shorthand_cannot_be_changed(
    crds: Plane, shorthand: Object, fields: list[str], change: Object
) -> None:
    told = refusal(patch, crds, shorthand, {"spec": change})
    for field in fields:
        assert f"spec.{field}: Forbidden: spec.{field} cannot be changed after creation: {NEW}" in told


def test_spec_cannot_be_removed(crds: Plane, full: Object) -> None:
    assert "spec: Required value" in refusal(patch, crds, full, {"spec": None})


def test_cancel_is_one_way_and_ttl_is_free(crds: Plane) -> None:
    item = create(crds, migration("cancelled"))
    assert patch(crds, item, {"spec": {"ttlSecondsAfterFinished": 5}})["spec"]["ttlSecondsAfterFinished"] == 5
    assert (
        "ttlSecondsAfterFinished"
        not in patch(crds, item, {"spec": {"ttlSecondsAfterFinished": None}})["spec"]
    )
    assert patch(crds, item, {"spec": {"cancel": True}})["spec"]["cancel"] is True
    assert patch(crds, item, {"spec": {"ttlSecondsAfterFinished": 9}})["spec"]["cancel"] is True
    for value in (False, None):
        told = refusal(patch, crds, item, {"spec": {"cancel": value}})
        assert f"spec.cancel: Forbidden: spec.cancel cannot be taken back: {NEW}" in told


# the switchover's decision


def decision(outcome: str, by: str = "operator/a", time: str = NOW) -> Object:
    return {"status": {"decision": {"outcome": outcome, "by": by, "time": time}}}


@pytest.fixture(scope="module")
def decided(crds: Plane) -> Object:
    """A switchover with Commit written."""
    item = create(crds, switchover(UID))
    assert "status" not in item
    return patch(crds, item, decision("Commit"), "--subresource=status")


def test_decision_is_written(decided: Object) -> None:
    status = VFIOSwitchover.model_validate(decided).status
    assert status is not None
    assert status.decision is not None
    assert status.decision.outcome == "Commit"


def test_same_decision_again_is_accepted(crds: Plane, decided: Object) -> None:
    again = patch(crds, decided, decision("Commit"), "--subresource=status")
    assert again["metadata"]["resourceVersion"] == decided["metadata"]["resourceVersion"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(decision("Abort"), id="other-outcome"),
        pytest.param(decision("Commit", by="agent/node-a"), id="other-author"),
        pytest.param(decision("Commit", time=LATER), id="other-time"),
        pytest.param({"status": {"decision": None}}, id="no-decision"),
        pytest.param({"status": {}, "spec": None}, id="no-spec"),
        pytest.param({"status": None}, id="no-status"),
    ],
)
def test_decision_is_written_once(crds: Plane, decided: Object, change: Object) -> None:
    if "spec" in change:  # the main resource's fields are not the status's to change: nothing happens
        stored = patch(crds, decided, change, "--subresource=status")
    else:
        told = refusal(patch, crds, decided, change, "--subresource=status")
        assert "status.decision: Forbidden: status.decision is written once: read it back and obey it" in told
        stored = json.loads(crds.kubectl("get", "vfs", UID, "-n", NAMESPACE, "-o", "json"))
    assert (stored["status"], stored["spec"]) == (decided["status"], decided["spec"])


def test_decision_cannot_be_replaced_by_json_patch(crds: Plane, decided: Object) -> None:
    operations = [{"op": "remove", "path": "/status"}]
    command = ["patch", "vfs", UID, "-n", NAMESPACE, "--subresource=status", "--type=json"]
    with pytest.raises(KubectlError, match="status.decision is written once"):
        crds.kubectl(*command, "-p", json.dumps(operations))


def test_main_resource_does_not_touch_the_decision(crds: Plane, decided: Object) -> None:
    assert patch(crds, decided, decision("Abort"))["status"] == decided["status"]
    assert patch(crds, decided, {"status": None})["status"] == decided["status"]


def test_decision_at_creation_is_dropped(crds: Plane) -> None:
    """So that who may create a switchover has not decided it."""
    uid = "6f2f8a1e-7a3f-4a53-9d7e-0d6d5a1f6c02"
    assert "status" not in create(crds, switchover(uid) | decision("Commit"))


def test_unknown_outcome_is_refused(crds: Plane, decided: Object) -> None:
    told = refusal(patch, crds, decided, decision("Maybe"), "--subresource=status")
    assert 'status.decision.outcome: Unsupported value: "Maybe": supported values: "Commit", "Abort"' in told


@pytest.mark.parametrize("change", [{"epoch": 2}, {"sourceNodes": ["node-b"]}, {"timeoutSeconds": 31}])
def test_switchover_cannot_be_changed(crds: Plane, decided: Object, change: Object) -> None:
    told = refusal(patch, crds, decided, {"spec": change})
    assert "spec: Forbidden: spec cannot be changed after creation" in told


# the inventory


def claim(uid: str) -> Object:
    return {"spec": {"claimRef": {"namespace": NAMESPACE, "name": f"m-{uid}", "uid": uid}}}


def test_claim_goes_to_the_first(crds: Plane) -> None:
    item = create(crds, device("0000:3b:00.1"))
    patch(crds, item, claim("first"))
    patch(crds, item, claim("first"))
    told = refusal(patch, crds, item, claim("second"))
    assert "spec.claimRef: Forbidden: the device is claimed by another migration" in told
    freed = patch(crds, item, {"spec": {"claimRef": None}})
    assert "claimRef" not in freed["spec"]
    assert patch(crds, item, claim("second"))["spec"]["claimRef"]["uid"] == "second"


@pytest.mark.parametrize("field", ["nodeName", "address", "backend"])
def test_identity_cannot_be_changed(crds: Plane, field: str) -> None:
    name = f"identity-{field.lower()}"
    item = create(crds, device(name))
    told = refusal(
        patch, crds, item, {"spec": {field: "Simulated"} if field == "backend" else {field: "other"}}
    )
    assert f"spec.{field}: Forbidden: spec.{field} cannot be changed after creation" in told


# what people see


@pytest.fixture(scope="module")
def reported(crds: Plane) -> None:
    """One object of each kind with a full status."""
    item = create(crds, migration("seen", devices=[pair()]))
    condition = {
        "type": "Finished",
        "status": "True",
        "reason": "Done",
        "message": "",
        "lastTransitionTime": NOW,
    }
    status = {
        "observedGeneration": 1,
        "phase": "Succeeded",
        "conditions": [condition | {"observedGeneration": 1}],
        "decision": decision("Commit")["status"]["decision"],
        "pairs": [pair()],
        "devices": [{"name": "gpu0", "sourceState": "STOP", "targetState": "RUNNING", "bytes": 1 << 40}],
        "timings": [
            {"step": "quiesce", "startTime": "2026-11-22T10:00:00.123456Z", "durationMicroseconds": 850}
        ],
        "downtimeMicroseconds": 48211,
        "predictedDowntimeMicroseconds": 51000,
        "progress": {"percent": 100, "bytes": 1 << 40, "bytesPerSecond": 5, "etaSeconds": 0},
        "message": "All is well.",
    }
    stored = patch(crds, item, {"status": status}, "--subresource=status")
    assert stored["status"] == status
    VFIOMigration.model_validate(stored)
    item = create(crds, device("0000:3b:00.7", **claim("u1")["spec"]))
    status = {
        "driver": "mlx5_vfio_pci",
        "model": "15b3:101e",
        "migrationFlags": ["STOP_COPY", "P2P"],
        "migratable": True,
        "state": "RUNNING",
        "incarnation": "i1",
        "holder": "pod default/vm-0",
    }
    VFIODevice.model_validate(patch(crds, item, {"status": status}, "--subresource=status"))


def row(plane: Plane, *arguments: str) -> dict[str, str]:
    """Return the first row of a table that kubectl prints, by column."""
    lines = plane.kubectl("get", *arguments).splitlines()
    starts = [i for i, c in enumerate(lines[0]) if c != " " and (i == 0 or lines[0][i - 1] == " ")]
    cut = [*starts[1:], None]
    return {lines[0][a:b].strip(): lines[1][a:b].strip() for a, b in zip(starts, cut, strict=True)}


@pytest.mark.usefixtures("reported")
def test_columns_of_a_migration(crds: Plane) -> None:
    seen = row(crds, "vfm", "seen", "-n", NAMESPACE)
    assert seen.pop("AGE")
    assert seen == {
        "NAME": "seen",
        "MODE": "Migrate",
        "PHASE": "Succeeded",
        "PROGRESS": "100",
        "DOWNTIME-US": "48211",
    }
    wide = row(crds, "vfm", "seen", "-n", NAMESPACE, "-o", "wide")
    assert (wide["SOURCE"], wide["TARGET"], wide["PREDICTED-US"]) == ("node-a", "node-b", "51000")
    assert wide["MESSAGE"] == "All is well."


@pytest.mark.usefixtures("reported")
def test_columns_of_a_device(crds: Plane) -> None:
    seen = row(crds, "vfd", device_object_name("node-a", "0000:3b:00.7"))
    assert seen.pop("AGE")
    assert seen == {
        "NAME": device_object_name("node-a", "0000:3b:00.7"),
        "NODE": "node-a",
        "DEVICE": "0000:3b:00.7",
        "DRIVER": "mlx5_vfio_pci",
        "FLAGS": '["STOP_COPY","P2P"]',
        "STATE": "RUNNING",
        "HOLDER": "pod default/vm-0",
        "CLAIM": "m-u1",
    }


@pytest.mark.usefixtures("decided")
def test_columns_of_a_switchover(crds: Plane) -> None:
    seen = row(crds, "vfs", UID, "-n", NAMESPACE)
    assert seen.pop("AGE")
    assert seen == {"NAME": UID, "MIGRATION": "m", "DECISION": "Commit", "BY": "operator/a"}


@pytest.mark.usefixtures("reported", "decided")
def test_category_lists_all_kinds(crds: Plane) -> None:
    names = crds.kubectl("get", "vfio", "-n", NAMESPACE, "-o", "name").split()
    kinds = {name.split(".")[0] for name in names}
    assert kinds == {"vfiomigration", "vfioswitchover", "vfiodevice"}


@pytest.mark.usefixtures("reported", "decided")
@pytest.mark.parametrize(
    ("kind", "selector", "found"),
    [
        ("vfm", "status.phase=Succeeded", True),
        ("vfm", "status.phase=Failed", False),
        ("vfm", "spec.mode=Migrate,metadata.name=seen", True),
        ("vfd", "spec.nodeName=node-a", True),
        ("vfd", "spec.nodeName=node-b", False),
        ("vfd", "spec.claimRef.uid=u1,status.migratable=true", True),
        ("vfs", "spec.migrationName=m,status.decision.outcome=Commit", True),
        ("vfs", "status.decision.outcome=Abort", False),
    ],
)
def test_fields_select(crds: Plane, kind: str, selector: str, found: bool) -> None:
    names = crds.kubectl("get", kind, "-n", NAMESPACE, f"--field-selector={selector}", "-o", "name").split()
    assert bool(names) == found


@pytest.mark.usefixtures("reported")
def test_wait_for_the_end_works(crds: Plane) -> None:
    crds.kubectl("wait", "vfm/seen", "-n", NAMESPACE, "--for=condition=Finished", "--timeout=5s")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("vfiomigration.spec.strategy.preCopy", "There is no post-copy: VFIO has none."),
        ("vfiomigration.spec.devices.source.device", "an mdev UUID or a simple name"),
        ("vfioswitchover.status.decision", "whoever is first decides for all"),
        ("vfiodevice.status.holder", "A target must have no holder"),
        ("vfiodevice.spec.claimRef", "no other can until it is removed"),
    ],
)
def test_explain(crds: Plane, path: str, text: str) -> None:
    assert text in " ".join(crds.kubectl("explain", path).split())
