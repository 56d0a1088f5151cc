"""Without the barrier, writes ARE lost: the check that says `lost 0` can fail."""

from collections.abc import Iterator

import pytest

from cluster.world import SETS, World, migration, pairs
from devtools.stack import Node, SimulatedDevice, Stack

RATE = 2000


@pytest.fixture(scope="module")
def uneven() -> Iterator[World]:
    """Two nodes whose devices take different times to stop, as real ones do."""
    with Stack(["node-a", "node-b"]) as stack:
        operator = stack.start_operator("operator-0")
        latencies = (100, 5_000, 20_000, 60_000)
        made = [SimulatedDevice(a, arc_latency_us=us) for a, us in zip(SETS, latencies, strict=True)]
        for name in ("node-a", "node-b"):
            stack.add_node(name, made).start_agent()
        stack.devices_published(2 * len(SETS))
        yield World(stack, operator)


def _lost(world: World, name: str) -> int:
    with world.workload():
        world.open_rate(RATE)
        found = world.run(migration(name, pairs()))
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        return int(world.totals("node-b")["missing"])


def test_with_the_barrier_no_write_is_lost_and_without_it_writes_are(uneven: World) -> None:
    assert _lost(uneven, "whole") == 0
    node: Node = uneven.stack.nodes["node-a"]
    assert node.agent is not None
    node.agent.stop()
    mutant = node.start_agent(module="mutants.agent_without_barrier_a")
    mutant.wait_for('"event": "connected"')
    assert _lost(uneven, "mutant") > 0
