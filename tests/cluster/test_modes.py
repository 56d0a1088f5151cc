"""Plan, Rehearse and the shorthand, as a user sees them; pre-copy as the strategy asks for it."""

from collections.abc import Sequence
from typing import Any

import pytest

from cluster.world import SETS, Json, World, condition, mark, migration, pairs


def arcs(world: World, node: str, since: int, addresses: Sequence[str] = SETS) -> set[tuple[str, str]]:
    """Every arc that the node's simulator has seen since, of these devices."""
    return {
        (line["from"], line["to"])
        for line in world.stack.nodes[node].arcs()[since:]
        if line["event"] == "arc" and line["device"] in addresses
    }


def assert_as_before(world: World, addresses: Sequence[str] = SETS) -> None:
    """The sources run with their marks and lost nothing; the targets are free; nothing is claimed."""
    assert world.states("node-a", addresses) == ["RUNNING"] * len(addresses)
    assert world.marks("node-a", addresses) == [mark(address) for address in addresses]
    totals = world.totals("node-a")
    assert (totals["lost"], totals["missing"], totals["doubled"]) == (0, 0, 0)
    world.published("node-b", dict.fromkeys(addresses, ""))
    assert all("claimRef" not in d["spec"] for d in world.stack.get("vfd")["items"])


def short(name: str, source: str = "node-a", target: str = "node-b", **spec: Any) -> Json:
    made = migration(name, [], **spec)
    del made["spec"]["devices"]
    made["spec"] |= {"source": {"nodeName": source}, "target": {"nodeName": target}}
    return made


# --- Rehearse


def test_a_rehearsal_measures_on_the_real_target_and_the_sources_never_leave_pre_copy(world: World) -> None:
    with world.workload():
        since = len(world.stack.nodes["node-a"].arcs())
        found = world.run(migration("rehearsal", pairs(), mode="Rehearse"))
        status = found["status"]
        assert status["phase"] == "Succeeded", status["message"]
        assert arcs(world, "node-a", since) == {("RUNNING", "PRE_COPY"), ("PRE_COPY", "RUNNING")}
        assert status["predictedDowntimeMicroseconds"] > 0
        assert status["progress"]["bytes"] >= 4 * (8 << 20)
        assert "rehearsed; every source runs on" in status["message"]
        assert "forecast downtime" in status["message"]
        assert condition(found, "Converged")["reason"] == "Rehearsed"
        assert condition(found, "Succeeded")["reason"] == "Rehearsed"
        assert condition(found, "Committed")["status"] == "False"
        assert "downtimeMicroseconds" not in status
        assert "decision" not in status
        assert "rehearsal" not in [s["spec"]["migrationName"] for s in world.stack.get("vfioswitchovers")["items"]]
        assert_as_before(world)
        # and then for good, with the same devices
        found = world.run(migration("after-rehearsal", pairs()))
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        assert world.marks("node-b", SETS) == [mark(address) for address in SETS]


def test_a_rehearsal_that_cannot_keep_the_limit_says_by_how_much(world: World) -> None:
    with world.workload():
        since = len(world.stack.nodes["node-a"].arcs())
        strategy = {"downtimeLimitMilliseconds": 1, "convergenceTimeoutSeconds": 2}
        found = world.run(migration("too-slow", pairs(), mode="Rehearse", strategy=strategy))
        assert found["status"]["phase"] == "Failed"
        succeeded = condition(found, "Succeeded")
        assert succeeded["reason"] == "ConvergenceTimeout"
        assert "pre-copy did not converge within 2 s: the forecast downtime is " in succeeded["message"]
        assert "strategy.downtimeLimitMilliseconds is 1: raise it" in succeeded["message"]
        assert found["status"]["predictedDowntimeMicroseconds"] > 1000
        assert arcs(world, "node-a", since) == {("RUNNING", "PRE_COPY"), ("PRE_COPY", "RUNNING")}
        assert_as_before(world)


# --- Plan


def test_a_plan_touches_nothing(world: World) -> None:
    with world.workload("node-a", ["sim0", "sim1"]):
        before = [len(node.arcs()) for node in world.stack.nodes.values()]
        found = world.run(migration("plan", pairs(["sim0", "sim1"]), mode="Plan"))
        status = found["status"]
        assert status["phase"] == "Succeeded", status["message"]
        assert status["feasibility"] == [{"name": "gpu0", "feasible": True}, {"name": "gpu1", "feasible": True}]
        assert [p["target"]["device"] for p in status["pairs"]] == ["sim0", "sim1"]
        assert status["predictedDowntimeMicroseconds"] > 0
        assert status["message"].startswith("2 pairs can migrate; forecast downtime ")
        assert condition(found, "Validated")["status"] == "True"
        assert condition(found, "Prepared")["status"] == "False"
        assert condition(found, "Succeeded")["reason"] == "Planned"
        assert [len(node.arcs()) for node in world.stack.nodes.values()] == before
        assert "finalizers" not in found["metadata"]
        assert all("claimRef" not in d["spec"] for d in world.stack.get("vfd")["items"])


def test_a_plan_shows_for_each_pair_why_it_cannot_be_done(world: World) -> None:
    with world.workload("node-a", ["sim0", "sim1"]):
        wanted = [*pairs(["sim0"]), ("gpu1", "node-a", "sim1", "node-b", "other")]
        found = world.run(migration("half-a-plan", wanted, mode="Plan"))
        assert found["status"]["phase"] == "Failed"
        good, bad = found["status"]["feasibility"]
        assert good == {"name": "gpu0", "feasible": True}
        assert (bad["feasible"], bad["reason"]) == (False, "IncompatibleDevices")
        assert "pair gpu1: model differs: source sim1 has sim-vf, target other has other-vf" in bad["message"]


# --- the shorthand


def test_a_whole_node_moves_each_device_to_its_namesake(world: World) -> None:
    with world.workload("node-a", ["sim0", "sim2", "other"]):
        found = world.run(short("whole-node"))
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        moved = {p["source"]["device"]: p["target"]["device"] for p in found["status"]["pairs"]}
        assert moved == {"other": "other", "sim0": "sim0", "sim2": "sim2"}
        assert world.marks("node-b", ["sim0", "sim2", "other"]) == [mark(a) for a in ("sim0", "sim2", "other")]


def test_a_taken_namesake_is_passed_over(world: World) -> None:
    with world.workload("node-a", ["sim0", "sim1"]):
        world.open(world.stack.nodes["node-b"], ["sim0"])
        found = world.run(short("passed-over", mode="Plan"))
        moved = {p["source"]["device"]: p["target"]["device"] for p in found["status"]["pairs"]}
        assert moved == {"sim0": "sim2", "sim1": "sim1"}


def test_a_set_without_room_at_the_target_is_refused_with_every_candidate(world: World) -> None:
    with world.workload("node-a", ["sim0", "sim1"]):
        world.open(world.stack.nodes["node-b"], SETS)
        found = world.run(short("no-room"))
        assert found["status"]["phase"] == "Failed"
        succeeded = condition(found, "Succeeded")
        assert succeeded["reason"] == "NoCompatibleTarget"
        assert "source device sim0 on node node-a (vfio-sim sim-vf STOP_COPY|P2P|PRE_COPY)" in succeeded["message"]
        assert "sim1: held by workload test" in succeeded["message"]
        assert "sim3: held by workload test; nop2p: it is vfio-sim sim-vf STOP_COPY|PRE_COPY" in succeeded["message"]


def test_a_node_with_nothing_to_migrate(world: World) -> None:
    found = world.run(short("nothing"))
    assert condition(found, "Succeeded")["reason"] == "NothingToMigrate"
    assert "node node-a has no migratable device in use" in condition(found, "Succeeded")["message"]


# --- pre-copy


def test_devices_with_and_without_pre_copy_move_in_one_set(world: World) -> None:
    with world.workload("node-a", ["sim0", "plain"]):
        since = len(world.stack.nodes["node-a"].arcs())
        found = world.run(migration("mixed", pairs(["sim0", "plain"])))
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        assert ("RUNNING", "PRE_COPY") in arcs(world, "node-a", since, ["sim0"])
        assert ("RUNNING", "PRE_COPY") not in arcs(world, "node-a", since, ["plain"])
        assert world.marks("node-b", ["sim0", "plain"]) == [mark("sim0"), mark("plain")]
        totals = world.totals("node-b")
        assert (totals["lost"], totals["missing"], totals["doubled"]) == (0, 0, 0)


def test_pre_copy_disabled_copies_everything_within_the_downtime(world: World) -> None:
    with world.workload("node-a", ["sim0", "sim1"]):
        since = len(world.stack.nodes["node-a"].arcs())
        strategy = {"preCopy": "Disabled", "downtimeLimitMilliseconds": 20_000}
        found = world.run(migration("stop-and-copy", pairs(["sim0", "sim1"]), strategy=strategy))
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        assert not any("PRE_COPY" in end for arc in arcs(world, "node-a", since) for end in arc)
        assert world.marks("node-b", ["sim0", "sim1"]) == [mark("sim0"), mark("sim1")]


def test_a_limit_that_is_never_kept_is_passed_over_if_the_user_says_so(world: World) -> None:
    with world.workload("node-a", ["sim0"]):
        strategy = {
            "downtimeLimitMilliseconds": 1,
            "convergenceTimeoutSeconds": 2,
            "onConvergenceTimeout": "Switchover",
        }
        found = world.run(migration("late", pairs(["sim0"]), strategy=strategy))
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        assert found["status"]["downtimeMicroseconds"] > 1000


@pytest.mark.parametrize("policy", ["Abort", "Switchover"])
def test_initial_bytes_that_are_not_loaded_in_time_end_it_whatever_the_policy(world: World, policy: str) -> None:
    with world.workload("node-a", ["sim0"]):
        strategy = {
            "bandwidthLimitBytesPerSecond": 1 << 20,
            "convergenceTimeoutSeconds": 2,
            "onConvergenceTimeout": policy,
        }
        found = world.run(migration(f"unloaded-{policy.lower()}", pairs(["sim0"]), strategy=strategy))
        assert condition(found, "Succeeded")["reason"] == "ConvergenceTimeout"
        assert "the initial bytes of gpu0 are not loaded at the target yet" in condition(found, "Succeeded")["message"]
        assert_as_before(world, ["sim0"])
