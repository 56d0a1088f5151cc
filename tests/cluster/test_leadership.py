"""One replica leads and writes; the others only watch, and take over."""

import signal
from datetime import UTC, datetime
from errno import EIO
from pathlib import Path

import pytest

from cluster.audited import entries, requests, token_id
from cluster.world import SETS, World, mark, migration, pairs
from devtools.processes import Child
from devtools.stack import Stack
from vfio_api.device import DeviceState as S

WRITES = {"create", "update", "patch", "delete", "deletecollection"}


@pytest.fixture
def standby(world: World) -> Child:
    """A second replica."""
    return world.stack.start_operator("operator-1")


def test_a_standby_writes_nothing_and_takes_over_in_mid_migration(
    world: World, standby: Child, audit_folder: Path
) -> None:
    with world.workload():
        assert world.run(migration("watched", pairs()))["status"]["phase"] == "Succeeded"
        leader, second = (requests(audit_folder, token_id(world.stack, n)) for n in ("operator-0", "operator-1"))
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
        world.in_pre_copy("handed-over")
        world.operator.kill()
        standby.wait_for('"event": "leading"', 60)
        world.operator = standby
        found = world.finished("handed-over", 90)
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        assert found["status"]["decision"]["by"] == "operator-1"
        assert world.marks("node-a", SETS) == [mark(address) for address in SETS]
        lease = world.stack.get("lease", "vfio-operator", "-n", "vfio-migration")
        assert int(lease["metadata"]["annotations"]["vfiomigration.io/epoch"]) >= 2


def _changed(folder: Path, token: str, since: datetime) -> list[str]:
    """What a replica has changed since then: "verb resource", for requests that were not refused."""
    found = []
    for entry in entries(folder, token):
        received = datetime.fromisoformat(entry["requestReceivedTimestamp"])
        done = entry["verb"] in WRITES and entry.get("responseStatus", {}).get("code", 500) < 400
        if done and received > since:
            found.append(f"{entry['verb']} {entry['objectRef']['resource']}")
    return found


@pytest.mark.parametrize("moment", ["BarrierB", "RollingBack"])
def test_a_leader_that_was_stopped_past_its_lease_changes_nothing_when_it_wakes(
    world: World, audit_folder: Path, moment: str
) -> None:
    """Stopped in the middle of a switchover, or of the way back; another replica ends what it had begun."""
    first, number = world.operator, moment.lower()
    with world.workload():
        if moment == "BarrierB":
            world.control("node-b").fault("sim3", "arc", arc=(S.RESUMING, S.STOP), delay_us=12_000_000)
        else:
            world.control("node-a").fault("sim3", "arc", arc=(S.PRE_COPY_P2P, S.STOP_COPY), error=EIO)
            world.control("node-a").fault("sim2", "arc", arc=(S.STOP, S.RUNNING_P2P), delay_us=12_000_000)
        name = world.apply(migration(f"stopped-{number}", pairs()))
        awaited = "STOP_COPY" if moment == "BarrierB" else "RUNNING_P2P"  # that lasts: one arc takes its time
        world.stack.wait_until(lambda: awaited in world.states("node-a"), f"sources in {awaited}")
        first.signal(signal.SIGSTOP)
        world.operator = world.stack.start_operator(f"operator-{number}")
        world.operator.wait_for('"event": "leading"', 60)
        woken = datetime.now(UTC)
        first.signal(signal.SIGCONT)
        world.stack.wait_until(lambda: not first.running, "the replica that was stopped ends by itself", 60)
        found = world.finished(name, 120)
        assert found["status"]["phase"] == ("Succeeded" if moment == "BarrierB" else "Failed"), found["status"]
        assert found["status"]["decision"]["by"] == (f"operator-{number}" if moment == "BarrierB" else first.name)
        if moment == "BarrierB":
            # the arc that lasts 12 s is within it, and began under the first
            assert found["status"]["downtimeMicroseconds"] > 12_000_000
        assert "leadership lost" in first.text()
        assert _changed(audit_folder, token_id(world.stack, first.name), woken) == []
        assert _changed(audit_folder, token_id(world.stack, world.operator.name), woken)


@pytest.mark.parametrize("moment", ["PreCopy", "Switchover"])
def test_what_vanished_while_nobody_led_is_ended_by_the_next_leader(world: World, moment: str) -> None:
    """Leader killed, then the object is deleted with its finalizer stripped: only sessions and claims are left.

    The sources lie on two nodes, so that going back needs the barrier between them.
    """
    name = f"vanished-{moment.lower()}"
    crossed = [
        *pairs(["sim0", "sim1"]),
        ("gpu2", "node-b", "sim2", "node-a", "sim2"),
        ("gpu3", "node-b", "sim3", "node-a", "sim3"),
    ]
    with world.workload("node-a", ["sim0", "sim1"]):
        world.open(world.stack.nodes["node-b"], ["sim2", "sim3"])
        strategy = {"bandwidthLimitBytesPerSecond": 2 << 20} if moment == "PreCopy" else {}
        if moment == "Switchover":
            arc = (S.PRE_COPY_P2P, S.STOP_COPY)
            world.control("node-b").fault("sim3", "arc", arc=arc, delay_us=2_000_000)
        since = len(world.stack.nodes["node-a"].arcs())
        world.apply(migration(name, crossed, strategy=strategy))
        if moment == "PreCopy":
            world.in_pre_copy(name)
        else:
            world.stack.wait_until(lambda: "STOP_COPY" in world.states("node-a", ["sim0", "sim1"]), "stopped")
        world.operator.kill()
        world.stack.kubectl("delete", "vfm", name, "--wait=false")
        world.stack.kubectl("patch", "vfm", name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        world.operator = world.stack.start_operator(f"operator-{moment.lower()}")
        world.operator.wait_for('"event": "leading"', 60)
        world.stack.wait_until(
            lambda: all("claimRef" not in d["spec"] for d in world.stack.get("vfd")["items"]), "claims are freed", 90
        )
        assert world.states("node-a", ["sim0", "sim1"]) == ["RUNNING"] * 2
        assert world.states("node-b", ["sim2", "sim3"]) == ["RUNNING"] * 2
        assert world.marks("node-a", ["sim0", "sim1"]) == [mark("sim0"), mark("sim1")]
        assert world.marks("node-b", ["sim2", "sim3"]) == [mark("sim2"), mark("sim3")]
        world.published("node-b", {"sim0": "", "sim1": ""})
        world.published("node-a", {"sim2": "", "sim3": ""})
        world.stack.wait_until(
            lambda: name not in [s["spec"]["migrationName"] for s in world.stack.get("vfioswitchovers")["items"]],
            "the VFIOSwitchover is let go",
        )
        arcs = [a for a in world.stack.nodes["node-a"].arcs()[since:] if a["event"] == "arc" and a["device"] == "sim0"]
        if moment == "Switchover":
            assert [a["to"] for a in arcs][-2:] == ["RUNNING_P2P", "RUNNING"]


def test_a_replica_that_would_see_no_migrations_does_not_lead_but_ends() -> None:
    """kopf asks once what is served, and an API server that starts serves custom resources a moment after the rest."""
    with Stack([]) as stack:
        stack.kubectl("delete", "crd", "vfiomigrations.vfiomigration.io")
        replica = stack.start_operator()
        stack.wait_until(lambda: not replica.running, "the replica ends")
        assert '"event": "leading"' not in replica.text()
        assert "does not serve vfiomigrations (vfiomigration.io/v1alpha1): install the CustomResource" in replica.text()
        assert "Traceback" not in replica.text()
