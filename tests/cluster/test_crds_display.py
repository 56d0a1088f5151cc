"""The CRDs in a real API server: what people see of the objects."""

import pytest

from cluster.objects import NAMESPACE, NOW, Object, claim, create, decision, device, migration, pair, patch, switchover
from devtools.plane import Plane
from vfio_api.models import VFIODevice, VFIOMigration, device_object_name

UID = "6f2f8a1e-7a3f-4a53-9d7e-0d6d5a1f6c09"


@pytest.fixture(scope="module")
def decided(namespace: Plane) -> Object:
    """A switchover with Commit written."""
    item = create(namespace, switchover(UID))
    assert "status" not in item
    return patch(namespace, item, decision("Commit"), "--subresource=status")


# what people see


@pytest.fixture(scope="module")
def reported(namespace: Plane) -> None:
    """One object of each kind with a full status."""
    item = create(namespace, migration("seen", devices=[pair()]))
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
        "timings": [{"step": "quiesce", "startTime": "2026-11-22T10:00:00.123456Z", "durationMicroseconds": 850}],
        "downtimeMicroseconds": 48211,
        "predictedDowntimeMicroseconds": 51000,
        "progress": {"percent": 100, "bytes": 1 << 40, "bytesPerSecond": 5, "etaSeconds": 0},
        "message": "All is well.",
    }
    stored = patch(namespace, item, {"status": status}, "--subresource=status")
    assert stored["status"] == status
    VFIOMigration.model_validate(stored)
    item = create(namespace, device("0000:3b:00.7", **claim("u1")["spec"]))
    status = {
        "driver": "mlx5_vfio_pci",
        "model": "15b3:101e",
        "migrationFlags": ["STOP_COPY", "P2P"],
        "migratable": True,
        "state": "RUNNING",
        "incarnation": "i1",
        "holder": "pod default/vm-0",
    }
    VFIODevice.model_validate(patch(namespace, item, {"status": status}, "--subresource=status"))


def row(plane: Plane, *arguments: str) -> dict[str, str]:
    """Return the first row of a table that kubectl prints, by column."""
    lines = plane.kubectl("get", *arguments).splitlines()
    starts = [i for i, c in enumerate(lines[0]) if c != " " and (i == 0 or lines[0][i - 1] == " ")]
    cut = [*starts[1:], None]
    return {lines[0][a:b].strip(): lines[1][a:b].strip() for a, b in zip(starts, cut, strict=True)}


@pytest.mark.usefixtures("reported")
def test_columns_of_a_migration(namespace: Plane) -> None:
    seen = row(namespace, "vfm", "seen", "-n", NAMESPACE)
    assert seen.pop("AGE")
    assert seen == {
        "NAME": "seen",
        "MODE": "Migrate",
        "PHASE": "Succeeded",
        "PERCENT": "100",
        "DOWNTIME-US": "48211",
    }
    wide = row(namespace, "vfm", "seen", "-n", NAMESPACE, "-o", "wide")
    assert (wide["SOURCE"], wide["TARGET"], wide["PREDICTED-US"]) == ("node-a", "node-b", "51000")
    assert wide["MESSAGE"] == "All is well."


@pytest.mark.usefixtures("reported")
def test_columns_of_a_device(namespace: Plane) -> None:
    seen = row(namespace, "vfd", device_object_name("node-a", "0000:3b:00.7"))
    assert seen.pop("AGE")
    assert seen == {
        "NAME": device_object_name("node-a", "0000:3b:00.7"),
        "NODE": "node-a",
        "DEVICE": "0000:3b:00.7",
        "DRIVER": "mlx5_vfio_pci",
        "STATE": "RUNNING",
        "HOLDER": "pod default/vm-0",
        "CLAIM": "m-u1",
    }


@pytest.mark.usefixtures("decided")
def test_columns_of_a_switchover(namespace: Plane) -> None:
    seen = row(namespace, "vfs", UID, "-n", NAMESPACE)
    assert seen.pop("AGE")
    assert seen == {"NAME": UID, "MIGRATION": "m", "DECISION": "Commit", "BY": "operator/a"}


@pytest.mark.usefixtures("reported", "decided")
def test_category_lists_all_kinds(namespace: Plane) -> None:
    names = namespace.kubectl("get", "vfio", "-n", NAMESPACE, "-o", "name").split()
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
def test_fields_select(namespace: Plane, kind: str, selector: str, found: bool) -> None:
    names = namespace.kubectl("get", kind, "-n", NAMESPACE, f"--field-selector={selector}", "-o", "name").split()
    assert bool(names) == found


@pytest.mark.usefixtures("reported")
def test_wait_for_the_end_works(namespace: Plane) -> None:
    namespace.kubectl("wait", "vfm/seen", "-n", NAMESPACE, "--for=condition=Finished", "--timeout=5s")


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
def test_explain(namespace: Plane, path: str, text: str) -> None:
    assert text in " ".join(namespace.kubectl("explain", path).split())
