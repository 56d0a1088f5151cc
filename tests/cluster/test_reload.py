"""After Commit the source still has the state until every target runs: a target that loses it is loaded again."""

from errno import EIO

from cluster.world import SETS, Json, World, condition, mark, migration, pairs
from vfio_api.device import DeviceState as S

START = (S.STOP, S.RUNNING_P2P)


def assert_moved(world: World) -> None:
    """Every target runs with its marks, no write was lost or doubled, and the sources are free."""
    assert world.states("node-b") == ["RUNNING"] * 4
    assert world.marks("node-b", SETS) == [mark(address) for address in SETS]
    totals = world.totals("node-b")
    assert (totals["lost"], totals["missing"], totals["doubled"]) == (0, 0, 0)
    world.published("node-a", dict.fromkeys(SETS, ""))


def test_a_target_that_falls_into_error_when_it_is_to_start_is_loaded_again(world: World) -> None:
    with world.workload():
        since = len(world.stack.nodes["node-b"].arcs())
        world.control("node-b").fault("sim2", "arc", arc=START, error=EIO, to_error=True)
        found = world.run(migration("again", pairs()))
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        steps = [timing["step"] for timing in found["status"]["timings"]]
        assert steps.index("Decide") < steps.index("ReloadTargets") < steps.index("ResendSources")
        assert_moved(world)
        arcs = [a for a in world.stack.nodes["node-b"].arcs()[since:] if a["event"] == "arc" and not a["errno"]]
        assert [a["to"] for a in arcs if a["device"] == "sim1"].count("RESUMING") == 1  # the others kept theirs


def test_a_target_that_falls_into_error_after_it_left_stop_is_said_to_be_lost_and_every_device_is_usable_again(
    world: World,
) -> None:
    with world.workload():
        world.control("node-b").fault("sim2", "arc", arc=(S.RUNNING_P2P, S.RUNNING), error=EIO, to_error=True)
        found = world.run(migration("gone", pairs()))
        assert found["status"]["phase"] == "Failed"
        succeeded = condition(found, "Succeeded")
        assert (succeeded["status"], succeeded["reason"]) == ("False", "TargetLostAfterCommit")
        assert "the state of gpu2 is gone" in succeeded["message"]
        assert "arc=RUNNING_P2P -> RUNNING" in succeeded["message"]
        assert found["status"]["failure"]["reason"] == "TargetLostAfterCommit"
        world.published("node-a", dict.fromkeys(SETS, ""))
        world.published("node-b", {"sim0": "keeper", "sim1": "keeper", "sim2": "", "sim3": "keeper"})
        assert world.marks("node-b", ["sim0", "sim1", "sim3"]) == [mark(a) for a in ("sim0", "sim1", "sim3")]
        assert all("claimRef" not in d["spec"] for d in world.stack.get("vfd")["items"])


def test_a_target_that_cannot_start_is_given_up_in_the_end_and_brought_there_when_it_can(world: World) -> None:
    """Its state is in the source all the while: whoever mends the device loses nothing."""
    with world.workload():
        world.control("node-b").fault("sim2", "arc", arc=START, error=EIO, to_error=True, times=1000)
        found = world.run(migration("never", pairs()), timeout=90)
        assert found["status"]["phase"] == "Failed"
        succeeded = condition(found, "Succeeded")
        assert (succeeded["status"], succeeded["reason"]) == ("False", "TargetLostAfterCommit")
        assert "given up after repeated failures" in succeeded["message"]
        assert {"RUNNING", "RUNNING_P2P"}.isdisjoint(world.states("node-a"))
        world.control("node-b").clear_faults("sim2")
        world.published("node-b", dict.fromkeys(SETS, "keeper"), timeout=90)
        assert_moved(world)


def switchovers(world: World) -> dict[str, Json]:
    """Every VFIOSwitchover by its name, also those of migrations of other tests."""
    return {each["metadata"]["name"]: each for each in world.stack.get("vfioswitchovers")["items"]}


def test_the_decision_outlives_its_migration_while_a_target_has_not_started(world: World) -> None:
    """Who deletes what has failed, or lets its time run out, does not take away what the agents go by."""
    with world.workload():
        world.control("node-b").fault("sim2", "arc", arc=START, error=EIO, to_error=True, times=1000)
        found = world.run(migration("deleted", pairs()), timeout=90)
        assert condition(found, "Succeeded")["reason"] == "TargetLostAfterCommit"
        world.stack.kubectl("delete", "vfm", "deleted")
        name = found["metadata"]["uid"]
        assert switchovers(world)[name]["status"]["decision"]["outcome"] == "Commit"
        world.control("node-b").clear_faults("sim2")
        world.published("node-a", dict.fromkeys(SETS, ""), timeout=90)  # the janitor tries again after 30 s
        assert_moved(world)
        world.stack.wait_until(lambda: name not in switchovers(world), "the decision is let go")
