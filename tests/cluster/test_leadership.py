"""One replica leads and writes; the others only watch, and take over."""

import base64
import json
from pathlib import Path

import pytest

from cluster.world import SETS, World, mark, migration, pairs
from devtools.processes import Child

WRITES = {"create", "update", "patch", "delete", "deletecollection"}


def _token_id(world: World, name: str) -> str:
    """The credential id of a replica's token, as the audit log shows it."""
    kubeconfig = json.loads((world.stack.dir / f"{name}.kubeconfig").read_text())
    payload = kubeconfig["users"][0]["user"]["token"].split(".")[1]
    return "JTI=" + json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["jti"]


def _audited(folder: Path, token_id: str) -> list[tuple[str, str]]:
    """(verb, resource) of every request that was made with a token."""
    found = []
    for line in (folder / "audit.log").read_text().splitlines():
        entry = json.loads(line)
        if token_id in entry["user"].get("extra", {}).get("authentication.kubernetes.io/credential-id", []):
            found.append((entry["verb"], entry.get("objectRef", {}).get("resource", "")))
    return found


@pytest.fixture
def standby(world: World) -> Child:
    """A second replica."""
    return world.stack.start_operator("operator-1")


def test_a_standby_writes_nothing_and_takes_over_in_mid_migration(
    world: World, standby: Child, audit_folder: Path
) -> None:
    with world.workload():
        assert world.run(migration("watched", pairs()))["status"]["phase"] == "Succeeded"
        leader, second = (_audited(audit_folder, _token_id(world, n)) for n in ("operator-0", "operator-1"))
        assert {verb for verb, _ in leader} >= {"create", "update", "patch"}
        assert second, "the audit log shows nothing of the standby: the check could not fail"
        assert [entry for entry in second if entry[0] in WRITES] == []
        assert '"event": "leading"' not in standby.text()

        slow = migration(
            "handed-over",
            pairs(SETS, "node-b", "node-a"),
            strategy={"bandwidthLimitBytesPerSecond": 8 << 20},
        )
        world.apply(slow)
        world.stack.wait_until(
            lambda: world.stack.get("vfm", "handed-over").get("status", {}).get("phase") == "PreCopy", "pre-copy"
        )
        world.operator.kill()
        standby.wait_for('"event": "leading"', 60)
        world.operator = standby
        found = world.finished("handed-over", 90)
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        assert found["status"]["decision"]["by"] == "operator-1"
        assert world.marks("node-a", SETS) == [mark(address) for address in SETS]
        lease = world.stack.get("lease", "vfio-operator", "-n", "vfio-migration")
        assert int(lease["metadata"]["annotations"]["vfiomigration.io/epoch"]) >= 2
