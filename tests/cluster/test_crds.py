"""The CRDs in a real API server: what it accepts at creation, and what it refuses and how."""

import pytest

from cluster.objects import FULL_SPEC, UID, Object, changed, create, device, migration, pair, refusal, switchover
from devtools.plane import Plane
from vfio_api.models import Strategy, VFIOMigration

# what is accepted

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
def test_accepted(namespace: Plane, spec: Object) -> None:
    stored = create(namespace, migration("accepted", **spec), "--dry-run=server")
    VFIOMigration.model_validate(stored)


@pytest.mark.parametrize("value", [1, 1048576, "1", "500M", "1.5Gi", "0.5", 2**60, "1Ei"])
def test_accepted_quantity_is_one_for_the_model(namespace: Plane, value: int | str) -> None:
    item = changed("strategy.bandwidthLimitBytesPerSecond", value, migration("quantity"))
    stored = VFIOMigration.model_validate(create(namespace, item, "--dry-run=server"))
    assert (stored.spec.strategy.bandwidth_limit() or 0) > 0


def test_defaults_are_those_of_the_model(namespace: Plane) -> None:
    stored = create(namespace, migration("defaults"), "--dry-run=server")
    assert stored["spec"]["strategy"] == Strategy().to_dict()
    assert (stored["spec"]["mode"], stored["spec"]["cancel"]) == ("Migrate", False)
    assert "ttlSecondsAfterFinished" not in stored["spec"]
    assert "status" not in stored


# what is refused at creation

ONE = migration("refused")
SHORTHAND = migration("refused", source={"nodeName": "node-a"}, target={"nodeName": "node-b"})
QUANTITY = (
    "spec.strategy.bandwidthLimitBytesPerSecond: Invalid value: ",
    "must be a number of bytes, more than 0 and at most 1Ei, such as 1024, 500M or 1.5Gi",
)


REFUSED: dict[str, tuple[Object, tuple[str, ...]]] = {
    "source-is-target": (
        changed("devices.0.target", pair()["source"], ONE),
        ("spec.devices[0].target: Invalid value", "source and target are the same device"),
    ),
    "unknown-field": (changed("postCopy", True, ONE), ('strict decoding error: unknown field "spec.postCopy"',)),
    "post-copy": (
        changed("strategy.preCopy", "PostCopy", ONE),
        (
            'spec.strategy.preCopy: Invalid value: "PostCopy": must be Auto, Required or Disabled; VFIO has no '
            "post-copy",
        ),
    ),
    "unknown-mode": (
        changed("mode", "Copy", ONE),
        ('spec.mode: Invalid value: "Copy": must be Migrate, Plan or Rehearse',),
    ),
    "257-pairs": (
        changed("devices", [pair(f"d{i}") for i in range(257)], ONE),
        ("spec.devices: Too many: 257: must have at most 256 items",),
    ),
    "no-pairs": (changed("devices", [], ONE), ("spec.devices", "should have at least 1 items")),
    "name-twice": (
        changed("devices", [pair(), pair(source="sim1")], ONE),
        ('spec.devices[1]: Duplicate value: {"name":"gpu0"}',),
    ),
    "bad-name": (changed("devices.0.name", "GPU_0", ONE), ('spec.devices[0].name: Invalid value: "GPU_0"',)),
    "long-name": (
        changed("devices.0.name", "a" * 64, ONE),
        ("spec.devices[0].name: Too long: may not be more than 63",),
    ),
    "device-is-a-path": (
        changed("devices.0.source.device", "../../etc/passwd", ONE),
        ('spec.devices[0].source.device: Invalid value: "../../etc/passwd"',),
    ),
    "device-in-upper-case": (
        changed("devices.0.source.device", "0000:3B:00.2", ONE),
        ("spec.devices[0].source.device: Invalid value",),
    ),
    "bad-node": (
        changed("devices.0.source.nodeName", "Node A", ONE),
        ('spec.devices[0].source.nodeName: Invalid value: "Node A"',),
    ),
    "no-device": (
        changed("devices.0.source", {"nodeName": "node-a"}, ONE),
        ("spec.devices[0].source.device: Required value",),
    ),
    "negative-limit": (
        changed("strategy.downtimeLimitMilliseconds", -1, ONE),
        ("spec.strategy.downtimeLimitMilliseconds: Invalid value: -1", "greater than or equal to 1"),
    ),
    "no-timeout": (
        changed("strategy.switchoverTimeoutSeconds", 0, ONE),
        ("spec.strategy.switchoverTimeoutSeconds: Invalid value: 0",),
    ),
    "limit-no-integer": (
        changed("strategy.downtimeLimitMilliseconds", 0.5, ONE),
        ("spec.strategy.downtimeLimitMilliseconds: Invalid value",),
    ),
    "negative-ttl": (changed("ttlSecondsAfterFinished", -1, ONE), ("spec.ttlSecondsAfterFinished: Invalid value: -1",)),
    **{
        f"quantity-{value!r}": (changed("strategy.bandwidthLimitBytesPerSecond", value, ONE), QUANTITY)
        for value in (0, -1, 2**60 + 1, "0", "-5Gi", "5GB", "500m", "fast", "", "1.1Ei", "9999Ei", "1e9")
    },
    "devices-and-source": (
        changed("source", {"nodeName": "node-a"}, ONE),
        ("spec: Invalid value", "give either devices, or both source and target"),
    ),
    "devices-and-shorthand": (
        changed("devices", [pair()], SHORTHAND),
        ("spec: Invalid value", "give either devices, or both source and target"),
    ),
    "neither": (migration("refused", mode="Plan"), ("give either devices, or both source and target",)),
    "source-only": (
        migration("refused", source={"nodeName": "node-a"}),
        ("give either devices, or both source and target",),
    ),
    "node-and-pod": (
        changed("source", {"nodeName": "node-a", "podName": "p"}, SHORTHAND),
        ("spec.source: Invalid value", "give either nodeName or podName, not both"),
    ),
    "empty-source": (changed("source", {}, SHORTHAND), ("give either nodeName or podName, not both",)),
    "no-spec": ({**ONE, "spec": None}, ("spec: Required value",)),
    "no-sources": (switchover(UID, sourceNodes=[]), ("spec.sourceNodes", "should have at least 1 items")),
    "source-node-twice": (
        switchover(UID, sourceNodes=["node-a", "node-a"]),
        ('spec.sourceNodes[1]: Duplicate value: "node-a"',),
    ),
    "switchover-of-another": (
        switchover(UID, migrationUID="another"),
        ("spec.migrationUID: Invalid value", "metadata.name must be the UID of the migration"),
    ),
    "no-epoch": (switchover(UID, epoch=0), ("spec.epoch: Invalid value: 0",)),
    "half-a-claim": (
        device("sim0", claimRef={"name": "m"}),
        ("spec.claimRef.namespace: Required value", "spec.claimRef.uid: Required value"),
    ),
    "unknown-backend": (device("sim0", backend="Magic"), ('spec.backend: Unsupported value: "Magic"',)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(namespace: Plane, case: str) -> None:
    item, messages = REFUSED[case]
    told = refusal(create, namespace, item, "--dry-run=server")
    for message in messages:
        assert message in told
