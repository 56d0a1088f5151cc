"""A migration as a user sees it: kubectl apply to Succeeded, and what is shown and measured on the way."""

import urllib.request

from cluster.world import SETS, World, condition, mark, migration, pairs
from devtools.promtool import check_metrics
from devtools.stack import Stack


def test_a_set_moves_with_nothing_lost_and_kubectl_tells_the_story(world: World) -> None:
    with world.workload():
        found = world.run(migration("moves", pairs()))
        status = found["status"]
        assert status["phase"] == "Succeeded", status["message"]
        assert condition(found, "Succeeded")["status"] == "True"
        assert [c["type"] for c in status["conditions"] if c["status"] != "True"] == []
        assert status["decision"]["outcome"] == "Commit"
        assert status["downtimeMicroseconds"] > 0
        assert [d["targetState"] for d in status["devices"]] == ["RUNNING"] * 4
        assert world.states("node-b") == ["RUNNING"] * 4
        assert world.marks("node-b", SETS) == [mark(address) for address in SETS]
        totals = world.totals("node-b")
        assert (totals["lost"], totals["missing"], totals["doubled"]) == (0, 0, 0)
        world.published("node-a", dict.fromkeys(SETS, ""))
        world.published("node-b", dict.fromkeys(SETS, "keeper"))
        wide = world.stack.kubectl("get", "vfm", "moves", "-o", "wide")
        assert "Succeeded" in wide
        assert "node-a" in wide
        described = world.stack.kubectl("describe", "vfm", "moves")
        for reason in ("Preparing", "PreCopyStarted", "SwitchoverStarted", "Switched", "Succeeded"):
            assert reason in described
        assert all("claimRef" not in d["spec"] for d in world.stack.get("vfd")["items"])


def test_it_moves_back_and_forth(world: World) -> None:
    with world.workload():
        for turn in range(4):
            source, target = ("node-a", "node-b") if turn % 2 == 0 else ("node-b", "node-a")
            found = world.run(migration(f"turn{turn}", pairs(SETS, source, target)))
            assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
            assert world.marks(target, SETS) == [mark(address) for address in SETS]
            world.published(target, dict.fromkeys(SETS, "keeper"))
            world.published(source, dict.fromkeys(SETS, ""))
        totals = world.totals("node-a")
        assert (totals["lost"], totals["missing"], totals["doubled"]) == (0, 0, 0)


def test_a_single_device_without_p2p_migrates(world: World) -> None:
    with world.workload("node-a", ["nop2p"]):
        found = world.run(migration("single", pairs(["nop2p"])))
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        assert world.marks("node-b", ["nop2p"]) == [mark("nop2p")]


def test_source_and_target_may_lie_on_one_node(world: World) -> None:
    with world.workload("node-a", ["sim0"]):
        found = world.run(migration("local", [("gpu0", "node-a", "sim0", "node-a", "sim3")]))
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        assert world.marks("node-a", ["sim3"]) == [mark("sim0")]


def test_two_source_nodes_and_two_target_nodes_pass_every_barrier_together(world: World) -> None:
    with world.workload("node-a", ["sim0", "sim1"]):
        world.open(world.stack.nodes["node-b"], ["sim2", "sim3"])
        crossed = [
            *pairs(["sim0", "sim1"]),
            ("gpu2", "node-b", "sim2", "node-a", "sim2"),
            ("gpu3", "node-b", "sim3", "node-a", "sim3"),
        ]
        found = world.run(migration("crossed", crossed))
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        steps = [t["step"] for t in found["status"]["timings"]]
        for barrier in ("BarrierA", "BarrierB", "BarrierC", "BarrierD"):
            assert barrier in steps
        assert world.marks("node-b", ["sim0", "sim1"]) == [mark("sim0"), mark("sim1")]
        assert world.marks("node-a", ["sim2", "sim3"]) == [mark("sim2"), mark("sim3")]


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_metrics_pass_promtool_and_have_the_series_that_matter(world: World) -> None:
    with world.workload("node-a", ["sim0", "sim1"]):
        assert world.run(migration("measured", pairs(["sim0", "sim1"])))["status"]["phase"] == "Succeeded"
    operator = _metrics(Stack.operator_metrics_port(world.operator))
    assert check_metrics(operator) == ""
    for series in (
        'vfio_migrations_total{reason="Succeeded",result="Succeeded"}',
        'vfio_migration_phase_duration_seconds_bucket{le="0.01",phase="PreCopy"}',
        "vfio_migration_downtime_seconds_bucket",
        'vfio_migration_barrier_wait_seconds_bucket{barrier="BarrierB"',
        "vfio_migration_state_bytes_total",
        "vfio_operator_agents_connected 2.0",
        "vfio_operator_leader 1.0",
    ):
        assert series in operator, series
    for node, direction in (("node-a", "sent"), ("node-b", "loaded")):
        agent = _metrics(world.stack.nodes[node].metrics_port())
        assert check_metrics(agent) == ""
        assert "vfio_agent_arc_duration_seconds_bucket" in agent
        assert f'vfio_agent_state_bytes_total{{direction="{direction}"}}' in agent
        assert "vfio_agent_operator_connected 1.0" in agent
