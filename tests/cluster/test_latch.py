"""A source that hears nothing in the middle of a switchover asks for Abort by itself, and obeys what is read back."""

import json
from typing import Any

import pytest

from cluster.test_rollback import assert_rolled_back_behind_the_barrier, assert_sources_run_on
from cluster.world import SETS, World, condition, migration, pairs
from devtools.stack import NAMESPACE as OPERATOR_NAMESPACE
from vfio_api.device import DeviceState as S

TIMEOUT = {"strategy": {"switchoverTimeoutSeconds": 2}}
LATER_US = 5_000_000


def decision(world: World, name: str) -> dict[str, Any]:
    """What is decided of a migration so far."""
    found = [s for s in world.stack.get("vfioswitchovers")["items"] if s["spec"]["migrationName"] == name]
    made: dict[str, Any] = found[0].get("status", {}).get("decision", {}) if found else {}
    return made


def test_a_source_whose_leader_dies_asks_for_abort_and_runs_on_alone(world: World) -> None:
    """No leader is there: the agent of the only source node brings its devices back behind the barrier."""
    with world.workload():
        since = len(world.stack.nodes["node-a"].arcs())
        world.control("node-b").fault("sim3", "arc", arc=(S.RESUMING, S.STOP), delay_us=LATER_US)
        world.apply(migration("orphaned", pairs(), **TIMEOUT))
        world.stack.wait_until(lambda: world.states("node-a") == ["STOP_COPY"] * 4, "sources stopped")
        world.operator.kill()
        world.stack.wait_until(lambda: bool(decision(world, "orphaned")), "somebody has decided")
        assert decision(world, "orphaned")["outcome"] == "Abort"
        assert decision(world, "orphaned")["by"] == "vfio-agent/node-a"
        world.stack.wait_until(lambda: world.states("node-a") == ["RUNNING"] * 4, "sources run")
        assert_rolled_back_behind_the_barrier(world, since)
        world.operator = world.stack.start_operator("operator-latch")
        found = world.finished("orphaned", 90)
        assert found["status"]["phase"] == "Failed"
        assert condition(found, "Succeeded")["reason"] == "SwitchoverTimeout"
        assert "node-a" in condition(found, "Succeeded")["message"]
        assert_sources_run_on(world)


def test_a_target_whose_leader_dies_after_commit_starts_alone(world: World) -> None:
    """The decision is all it needs: it reads Commit by itself. The sources are released by the next leader."""
    with world.workload():
        for address in SETS:
            world.control("node-b").fault(address, "arc", arc=(S.STOP, S.RUNNING_P2P), delay_us=1_000_000)
        world.apply(migration("committed", pairs(), **TIMEOUT))
        world.stack.wait_until(lambda: decision(world, "committed").get("outcome") == "Commit", "Commit")
        node = world.stack.nodes["node-b"]
        assert node.agent is not None
        node.agent.kill()  # with the command that it was at
        world.operator.kill()
        node.start_agent()
        world.stack.wait_until(lambda: world.states("node-b") == ["RUNNING"] * 4, "targets run")
        assert world.states("node-a") == ["STOP_COPY"] * 4
        world.operator = world.stack.start_operator("operator-after-commit")
        assert world.finished("committed", 90)["status"]["phase"] == "Succeeded"


def test_a_source_that_cannot_ask_holds_and_says_so(world: World) -> None:
    """Neither a leader nor the API server: it stays stopped, and asks until it is told."""
    with world.workload():
        node = world.stack.nodes["node-a"]
        assert node.agent is not None
        world.control("node-b").fault("sim3", "arc", arc=(S.RESUMING, S.STOP), delay_us=LATER_US)
        # a switchover that is not there is as good as an API server that does not answer
        world.apply(migration("held", pairs(), **TIMEOUT))
        world.stack.wait_until(lambda: world.states("node-a") == ["STOP_COPY"] * 4, "sources stopped")
        world.operator.kill()
        uid = world.stack.get("vfm", "held")["metadata"]["uid"]
        stored = world.stack.get("vfioswitchovers", uid)
        world.stack.kubectl("patch", "vfioswitchovers", uid, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        world.stack.kubectl("delete", "vfioswitchovers", uid)
        node.agent.wait_for('"event": "held: the decision cannot be learned; asking again"', 30)
        assert world.states("node-a") == ["STOP_COPY"] * 4
        metadata = {key: stored["metadata"][key] for key in ("name", "namespace", "ownerReferences", "finalizers")}
        again = json.dumps({**stored, "metadata": metadata, "status": {}})
        operator = f"--as=system:serviceaccount:{OPERATOR_NAMESPACE}:vfio-operator"  # nobody else may create one
        world.stack.kubectl("create", operator, "-f", "-", input=again)
        world.stack.wait_until(lambda: world.states("node-a") == ["RUNNING"] * 4, "sources run")
        world.operator = world.stack.start_operator("operator-held")
        assert world.finished("held", 90)["status"]["phase"] == "Failed"
        assert_sources_run_on(world)


@pytest.mark.parametrize("moment", ["PreCopy"])
def test_silence_before_the_intent_is_no_matter(world: World, moment: str) -> None:
    """Without an intent nothing is stopped, so nothing latches: the next leader goes on."""
    with world.workload():
        slow = {"bandwidthLimitBytesPerSecond": 8 << 20, "switchoverTimeoutSeconds": 2}
        world.apply(migration("patient", pairs(), strategy=slow))
        world.in_pre_copy("patient")
        world.operator.kill()
        world.operator = world.stack.start_operator("operator-patient")
        found = world.finished("patient", 90)
        assert found["status"]["phase"] == "Succeeded", (moment, found["status"])
