"""What fails or is cancelled before the decision goes back to RUNNING with nothing lost, and says what failed."""

from errno import EIO
from typing import Any

import pytest

from cluster.world import SETS, World, condition, mark, migration, pairs
from vfio_api.device import DeviceState as S

SLOW = {"strategy": {"bandwidthLimitBytesPerSecond": 4 << 20}}


def assert_sources_run_on(world: World, addresses: list[str] = SETS) -> None:
    """Every source runs with its marks; no write was lost; the targets are free and blank; nothing is claimed."""
    assert world.states("node-a", addresses) == ["RUNNING"] * len(addresses)
    assert world.marks("node-a", addresses) == [mark(address) for address in addresses]
    totals = world.totals("node-a")
    assert (totals["lost"], totals["missing"], totals["doubled"]) == (0, 0, 0)
    world.published("node-b", dict.fromkeys(addresses, ""))
    assert not any(d["open"] for d in world.control("node-b").list())
    # the claim on a device whose agent is away at the end is dropped when that is back
    world.stack.wait_until(
        lambda: all("claimRef" not in d["spec"] for d in world.stack.get("vfd")["items"]), "every claim is dropped", 60
    )


def assert_rolled_back_behind_the_barrier(world: World, since: int, addresses: list[str] = SETS) -> None:
    """In the simulator's trace, all sources are in RUNNING_P2P (or never stopped) before any enters RUNNING."""
    quiescent: set[str] = set()
    for line in world.stack.nodes["node-a"].arcs()[since:]:
        if line["event"] != "arc" or line["errno"] or line["device"] not in addresses:
            continue
        if line["to"] == "RUNNING_P2P":
            quiescent.add(line["device"])
        elif line["to"] == "RUNNING" and line["from"] == "RUNNING_P2P":
            assert quiescent == set(addresses), line
        else:
            quiescent.discard(line["device"])


FAULTS = [
    ("pre-copy", "node-a", (S.RUNNING, S.PRE_COPY), "ArcFailed", "RUNNING -> PRE_COPY"),
    ("barrier-a", "node-a", (S.PRE_COPY, S.PRE_COPY_P2P), "ArcFailed", "PRE_COPY -> PRE_COPY_P2P"),
    ("barrier-b", "node-a", (S.PRE_COPY_P2P, S.STOP_COPY), "ArcFailed", "PRE_COPY_P2P -> STOP_COPY"),
    ("target-prepare", "node-b", (S.STOP, S.RESUMING), "ArcFailed", "RUNNING -> RESUMING"),
    ("target-load", "node-b", (S.RESUMING, S.STOP), "StateRefused", "RESUMING -> STOP"),
]


@pytest.mark.parametrize(("name", "node", "arc", "reason", "shown"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_failed_arc_rolls_back_and_names_device_arc_and_errno(
    world: World, name: str, node: str, arc: Any, reason: str, shown: str
) -> None:
    with world.workload():
        since = len(world.stack.nodes["node-a"].arcs())
        world.control(node).fault("sim2", "arc", arc=arc, error=EIO)
        found = world.run(migration(f"fault-{name}", pairs()))
        assert found["status"]["phase"] == "Failed"
        succeeded = condition(found, "Succeeded")
        assert (succeeded["status"], succeeded["reason"]) == ("False", reason)
        assert "device gpu2 (sim2)" in succeeded["message"] or "device sim2" in succeeded["message"]
        assert shown in succeeded["message"]
        assert f"errno={EIO}" in succeeded["message"]
        assert_sources_run_on(world)
        assert_rolled_back_behind_the_barrier(world, since)


def test_a_failed_read_and_a_failed_load_roll_back(world: World) -> None:
    with world.workload():
        world.control("node-a").fault("sim1", "read", error=EIO)
        found = world.run(migration("fault-read", pairs()))
        assert found["status"]["phase"] == "Failed"
        assert "device gpu1: reading its state failed" in condition(found, "Succeeded")["message"]
        assert_sources_run_on(world)
        world.control("node-b").fault("sim3", "write", error=EIO, after_bytes=1 << 20)
        found = world.run(migration("fault-write", pairs()))
        assert found["status"]["phase"] == "Failed"
        assert condition(found, "Succeeded")["reason"] == "StateRefused"
        assert "device gpu3: it refused state at byte" in condition(found, "Succeeded")["message"]
        assert_sources_run_on(world)


def test_a_device_that_falls_into_error_is_said_to_be_lost_and_its_peers_run_on(world: World) -> None:
    with world.workload():
        world.control("node-a").fault("sim2", "arc", arc=(S.PRE_COPY_P2P, S.STOP_COPY), error=EIO, to_error=True)
        found = world.run(migration("lost", pairs()), timeout=120)
        assert found["status"]["phase"] == "Failed"
        succeeded = condition(found, "Succeeded")
        assert succeeded["reason"] == "SourceStateLost"
        assert "gpu2" in succeeded["message"]
        assert world.states("node-a") == ["RUNNING", "RUNNING", "RUNNING", "RUNNING"]
        assert world.marks("node-a", ["sim0", "sim1", "sim3"]) == [mark(a) for a in ("sim0", "sim1", "sim3")]


def test_cancel_in_pre_copy(world: World) -> None:
    with world.workload():
        world.apply(migration("cancel", pairs(), **SLOW))
        world.in_pre_copy("cancel")
        world.stack.kubectl("patch", "vfm", "cancel", "--type=merge", "-p", '{"spec":{"cancel":true}}')
        found = world.finished("cancel")
        assert found["status"]["phase"] == "Cancelled"
        assert condition(found, "Succeeded")["reason"] == "Cancelled"
        assert "spec.cancel was set" in condition(found, "Succeeded")["message"]
        assert_sources_run_on(world)


def test_delete_in_pre_copy_rolls_back_before_the_object_goes(world: World) -> None:
    with world.workload():
        world.apply(migration("deleted", pairs(), **SLOW))
        world.in_pre_copy("deleted")
        world.stack.kubectl("delete", "vfm", "deleted", "--timeout=30s")
        assert_sources_run_on(world)


def test_convergence_timeout_aborts(world: World) -> None:
    with world.workload():
        strategy = {"bandwidthLimitBytesPerSecond": 1 << 20, "convergenceTimeoutSeconds": 2}
        found = world.run(migration("slow", pairs(), strategy=strategy))
        assert found["status"]["phase"] == "Failed"
        assert condition(found, "Succeeded")["reason"] == "ConvergenceTimeout"
        assert_sources_run_on(world)


def test_an_agent_killed_in_pre_copy_rolls_back(world: World) -> None:
    with world.workload():
        world.apply(migration("killed", pairs(), **SLOW))
        world.in_pre_copy("killed")
        node = world.stack.nodes["node-a"]
        assert node.agent is not None
        node.agent.kill()
        node.start_agent().wait_for('"event": "connected"')
        found = world.finished("killed")
        assert found["status"]["phase"] == "Failed"
        assert condition(found, "Succeeded")["reason"] in ("AgentRestarted", "StreamBroken", "FrameInvalid")
        assert_sources_run_on(world)


def test_a_claim_of_a_migration_that_never_was_is_freed_and_one_that_is_needed_stays(world: World) -> None:
    with world.workload("node-a", ["sim0"]):
        world.apply(migration("needs", pairs(["sim0"]), strategy={"bandwidthLimitBytesPerSecond": 1 << 20}))
        device = next(
            d["metadata"]["name"]
            for d in world.stack.get("vfd")["items"]
            if (d["spec"]["nodeName"], d["spec"]["address"]) == ("node-b", "sim3")
        )
        claim = (
            '{"spec":{"claimRef":{"namespace":"default","name":"ghost","uid":"00000000-0000-0000-0000-000000000000"}}}'
        )
        world.stack.kubectl("patch", "vfd", device, "--type=merge", "-p", claim)
        world.stack.wait_until(
            lambda: "claimRef" not in world.stack.get("vfd", device)["spec"], "the ghost's claim is freed"
        )
        claimed = [d["spec"]["address"] for d in world.stack.get("vfd")["items"] if "claimRef" in d["spec"]]
        assert claimed == ["sim0", "sim0"]
        world.stack.kubectl("patch", "vfm", "needs", "--type=merge", "-p", '{"spec":{"cancel":true}}')
        assert world.finished("needs")["status"]["phase"] == "Cancelled"


def test_a_target_agent_that_was_away_at_the_end_is_blanked_when_it_comes_back(world: World) -> None:
    with world.workload():
        world.apply(migration("away", pairs(), **SLOW))
        world.in_pre_copy("away")
        node = world.stack.nodes["node-b"]
        assert node.agent is not None
        node.agent.kill()
        found = world.finished("away")
        assert found["status"]["phase"] == "Failed"
        assert world.states("node-a") == ["RUNNING"] * 4
        node.start_agent().wait_for('"event": "connected"')
        assert_sources_run_on_eventually(world)


def assert_sources_run_on_eventually(world: World) -> None:
    """The janitor comes by: then everything is as after any rollback."""
    world.stack.wait_until(
        lambda: all("claimRef" not in d["spec"] for d in world.stack.get("vfd")["items"]), "every claim is freed", 60
    )
    assert_sources_run_on(world)
