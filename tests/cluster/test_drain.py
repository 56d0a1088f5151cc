"""Pods come and go by SIGTERM: an agent's migrations are finished first, and a leader's go on with the next one."""

import signal
from collections.abc import Callable, Iterator

import pytest

from cluster.world import SETS, World, condition, mark, migration, pairs
from devtools.processes import Child
from devtools.stack import AGENT_NAMESPACE, SimulatedDevice, Stack
from vfio_api.device import DeviceState as S

DRAIN = "120"
GRACE_SECONDS = 30  # the operator's pod has so long, as the chart says
# The limit, since loads that this module makes slow are remembered by the forecast; pre-copy takes seconds.
QUICK = {"downtimeLimitMilliseconds": 5000}
SLOW = {**QUICK, "bandwidthLimitBytesPerSecond": 8 << 20}
DEVICES = [SimulatedDevice(address, dirty_rate_bytes_per_second=1 << 18) for address in SETS]
SIDES = {"source": "node-a", "target": "node-b"}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Agents of this module take their time to end."""
    with Stack(["node-a", "node-b"]) as stack:
        operator = stack.start_operator("operator-0", REVIEW_SECONDS="1")  # which disturbs nobody
        made = World(stack, operator)
        for name in SIDES.values():
            stack.add_node(name, DEVICES)
            start_agent(made, name)
        stack.devices_published(2 * len(DEVICES))
        yield made


def start_agent(world: World, node: str, *, drain: str = DRAIN, module: str = "vfio_agent") -> Child:
    """The node's agent, or the next one, connected."""
    agent = world.stack.nodes[node].start_agent(module=module, DRAIN_SECONDS=drain)
    agent.wait_for('"event": "connected"')
    return agent


def agent_of(world: World, node: str) -> Child:
    agent = world.stack.nodes[node].agent
    assert agent is not None
    return agent


def terminate(world: World, node: str) -> Child:
    """As the kubelet does; returns once the agent has noticed."""
    agent = agent_of(world, node)
    agent.signal(signal.SIGTERM)
    agent.wait_for('"event": "draining"')
    return agent


def in_pre_copy(world: World, name: str) -> None:
    world.in_pre_copy(name)


def in_switchover(world: World, _name: str) -> None:
    """Sources are stopped, and the last target takes its time to load."""
    world.stack.wait_until(lambda: set(world.states("node-a")) == {"STOP_COPY"}, "sources stopped")


def message(world: World, name: str) -> str:
    return str(world.stack.get("vfm", name).get("status", {}).get("message", ""))


@pytest.mark.parametrize("moment", [in_pre_copy, in_switchover])
@pytest.mark.parametrize("side", SIDES)
def test_an_agent_that_is_to_end_finishes_its_migration_first(
    world: World, side: str, moment: Callable[[World, str], None]
) -> None:
    name = f"drained-{side}-{moment.__name__.replace('_', '-')}"
    with world.workload():
        if moment is in_switchover:
            world.control("node-b").fault("sim3", "arc", arc=(S.RESUMING, S.STOP), delay_us=2_000_000)
        world.apply(migration(name, pairs(), strategy=SLOW if moment is in_pre_copy else QUICK))
        moment(world, name)
        agent = terminate(world, SIDES[side])
        found = world.finished(name, 90)
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        assert agent.ended() == 0
        assert '"why": "nothing is left to do"' in agent.text()
        start_agent(world, SIDES[side])
        assert world.marks("node-b", SETS) == [mark(address) for address in SETS]


def test_a_new_migration_waits_for_the_next_agent(world: World) -> None:
    """While the old one drains, and while there is none."""
    with world.workload():
        world.apply(migration("first", pairs(SETS[:2]), strategy=SLOW))
        world.in_pre_copy("first")
        agent = terminate(world, "node-b")
        world.apply(migration("second", pairs(SETS[2:]), strategy=QUICK))
        waiting = "waiting for the next vfio-agent of node-b: the present one is being replaced"
        world.stack.wait_until(lambda: message(world, "second") == waiting, "the second one waits")
        assert world.finished("first", 90)["status"]["phase"] == "Succeeded"
        assert agent.ended() == 0
        world.operator.wait_for('"event": "agent disconnected"')
        world.apply(migration("third", pairs(SETS[2:])))
        world.stack.wait_until(lambda: message(world, "third") == waiting, "the third one waits")
        world.stack.kubectl("patch", "vfm", "third", "--type=merge", "-p", '{"spec":{"cancel":true}}')
        assert world.finished("third")["status"]["phase"] == "Cancelled"
        assert message(world, "second") == waiting
        start_agent(world, "node-b")
        found = world.finished("second")
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        assert world.marks("node-b", SETS) == [mark(address) for address in SETS]


def test_when_its_time_is_over_an_agent_ends_as_one_that_crashes(world: World) -> None:
    agent_of(world, "node-b").stop()
    start_agent(world, "node-b", drain="0.5")
    with world.workload():
        world.apply(migration("overdue", pairs(), strategy=SLOW))
        world.in_pre_copy("overdue")
        agent = terminate(world, "node-b")
        assert agent.ended() == 0
        assert '"why": "the time for it is over"' in agent.text()
        start_agent(world, "node-b")
        found = world.finished("overdue")
        assert found["status"]["phase"] == "Failed"
        assert condition(found, "Succeeded")["reason"] in ("AgentRestarted", "StreamBroken")
        assert world.states("node-a") == ["RUNNING"] * 4


def test_who_is_told_twice_ends_at_once(world: World) -> None:
    with world.workload():
        world.apply(migration("urged", pairs(), strategy=SLOW))
        world.in_pre_copy("urged")
        agent = terminate(world, "node-a")
        agent.signal(signal.SIGTERM)
        assert agent.ended() == 0
        assert '"why": "it was told a second time"' in agent.text()
        start_agent(world, "node-a")
        assert world.finished("urged")["status"]["phase"] == "Failed"
        assert world.states("node-a") == ["RUNNING"] * 4


def test_an_agent_without_work_ends_at_once(world: World) -> None:
    agent = agent_of(world, "node-b")
    agent.signal(signal.SIGTERM)
    assert agent.ended() == 0
    assert '"why": "nothing is left to do"' in agent.text()
    start_agent(world, "node-b")


def test_without_the_drain_a_switchover_is_cut(world: World) -> None:
    """The check of above can fail."""
    node = "node-b"
    agent_of(world, node).stop()
    agent = start_agent(world, node, module="mutants.agent_that_does_not_drain")
    with world.workload():
        world.control("node-b").fault("sim3", "arc", arc=(S.RESUMING, S.STOP), delay_us=2_000_000)
        world.apply(migration("cut", pairs(), strategy=QUICK))
        in_switchover(world, "")
        agent.signal(signal.SIGTERM)
        agent.ended()
        start_agent(world, node)
        found = world.finished("cut", 90)
        assert found["status"]["phase"] == "Failed"
        assert world.states("node-a") == ["RUNNING"] * 4


def test_a_leader_that_is_to_end_gives_its_lease_back_and_migrations_go_on(world: World) -> None:
    with world.workload():
        first, world.operator = world.operator, world.stack.start_operator("operator-1", REVIEW_SECONDS="1")
        world.apply(migration("handed-over", pairs(), strategy=SLOW))
        world.in_pre_copy("handed-over")
        first.signal(signal.SIGTERM)
        assert first.ended(GRACE_SECONDS) == 0
        assert "lease not released" not in first.text()
        found = world.finished("handed-over", 90)
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        assert found["status"]["decision"]["by"] == "operator-1"
        assert world.marks("node-b", SETS) == [mark(address) for address in SETS]


def test_an_agent_whose_pod_is_gone_is_served_no_longer(world: World) -> None:
    """Its process and its stream live on, as on a node that cannot be reached; the API server is asked every second."""
    agent = agent_of(world, "node-b")
    world.stack.kubectl(
        "delete", "pod", "vfio-agent-node-b", "-n", AGENT_NAMESPACE, "--force", "--grace-period=0", "--wait=false"
    )
    world.operator.wait_for("the token of pod vfio-agent-node-b on node node-b is now that of nobody", 60)
    agent.wait_for('"status": 401')  # its token for the API server is that of the same pod
    agent.stop()
    start_agent(world, "node-b")


def test_an_operator_that_does_not_listen_begins_where_an_agent_is_to_end() -> None:
    """The check of above can fail."""
    with Stack(["node-a", "node-b"]) as stack:
        world = World(stack, stack.start_operator(module="mutants.operator_that_begins_where_agents_leave"))
        for name in SIDES.values():
            stack.add_node(name, DEVICES)
            start_agent(world, name)
        stack.devices_published(2 * len(DEVICES))
        with world.workload():
            slower = {**QUICK, "bandwidthLimitBytesPerSecond": 2 << 20}
            world.apply(migration("first", pairs(SETS[:2]), strategy=slower))
            world.in_pre_copy("first")
            terminate(world, "node-b")
            world.apply(migration("second", pairs(SETS[2:]), strategy=QUICK))
            for name in ("second", "first"):  # no other agent has been started
                assert world.finished(name, 90)["status"]["phase"] == "Succeeded"
            start_agent(world, "node-b")
