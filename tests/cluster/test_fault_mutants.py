"""The checker can fail: for each promise there is a version of the product that breaks it, as processes of its own.

Every scenario is run twice: with the product, where the checker finds nothing, and with the broken version, where it
finds the promise that is broken.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from errno import EIO
from typing import Any

import pytest

from cluster.fault_world import DEVICES, SOURCE, TARGET, FaultWorld
from devtools.faults.witness import Witness
from devtools.stack import Stack
from vfio_api.device import DeviceState as S

Disturb = Callable[[FaultWorld, str], None]
TIMEOUT = {"strategy": {"switchoverTimeoutSeconds": 2}}
SECOND_US = 1_000_000


@pytest.fixture(scope="module")
def world() -> Iterator[FaultWorld]:
    with Stack([SOURCE, TARGET]) as stack, Witness(stack.plane) as witness:
        yield FaultWorld(stack, witness)


def undisturbed(_world: FaultWorld, _name: str) -> None:
    """All goes well."""


def leader_dies_before_the_vote(world: FaultWorld, name: str) -> None:
    """Nobody is there while the last target is being loaded; another leader comes when the sources run again."""
    world.stack.wait_until(lambda: set(world.states(SOURCE, DEVICES)) == {"STOP_COPY"}, "sources stopped")
    world.operator.kill()
    world.stack.wait_until(lambda: set(world.states(SOURCE, DEVICES)) == {"RUNNING"}, "sources run")
    world.start_operator()


def all_die_but_the_target_that_voted(world: FaultWorld, name: str) -> None:
    """Neither a leader nor the source lives when the target has heard nothing for too long: it has to hold on."""
    world.stack.wait_until(lambda: set(world.states(SOURCE, DEVICES)) == {"STOP_COPY"}, "sources stopped")
    world.operator.kill()
    world.stack.wait_until(lambda: marked(world, TARGET) == ["STOP"] * len(DEVICES), "every target has loaded")
    world.kill_agent(SOURCE)
    target = world.stack.nodes[TARGET].agent
    assert target is not None
    world.stack.wait_until(
        lambda: '"event": "held' in target.text() or marked(world, TARGET) != ["STOP"] * len(DEVICES),
        "the target holds, or has done something",
    )
    world.start_agent(SOURCE, connected=False)
    world.start_operator()


def cancelled_under_another_leader(world: FaultWorld, name: str) -> None:
    """The next leader finds a migration in pre-copy, and that it is cancelled."""
    world.in_pre_copy(name)
    world.operator.kill()
    world.stack.kubectl("patch", "vfm", name, "--type=merge", "-p", '{"spec":{"cancel":true}}')
    world.start_operator()


def target_node_dies_in_barrier_d(world: FaultWorld, name: str) -> None:
    """Its devices have left STOP; all are closed."""
    world.stack.wait_until(lambda: "RUNNING" in marked(world, TARGET), "a target runs")
    world.kill_node(TARGET)


def marked(world: FaultWorld, node: str) -> list[str]:
    """States of the devices that carry state."""
    found = world.control(node).stats()["devices"]
    return [found[address]["state"] for address in DEVICES if found[address]["port"] is not None]


@dataclass(frozen=True)
class Scenario:
    """A migration and what disturbs it. faults: (node, device, fault). mutant: part -> module; product: likewise."""

    invariant: str
    mutant: dict[str, str]
    disturb: Disturb = undisturbed
    faults: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    spec: dict[str, Any] = field(default_factory=dict)
    product: dict[str, str] = field(default_factory=dict)
    phase: str = "Succeeded"
    reason: str = ""


def arc(node: str, device: str, old: S, new: S, **more: Any) -> tuple[str, str, dict[str, Any]]:
    return node, device, {"arc": (old, new), **more}


SLOW_LOAD = arc(TARGET, "sim1", S.RESUMING, S.STOP, delay_us=SECOND_US)
SLOW_START = arc(TARGET, "sim1", S.STOP, S.RUNNING_P2P, delay_us=SECOND_US // 2)
SLOW_COPY = {"strategy": {"bandwidthLimitBytesPerSecond": 4 << 20}}

SCENARIOS = {
    "barrier A skipped": Scenario("I3", {"source": "agent_without_barrier_a"}),
    "barrier passed on failure": Scenario(
        "I3",
        {"source": "agent_that_passes_on_failure"},
        faults=(
            arc(SOURCE, "sim1", S.PRE_COPY, S.PRE_COPY_P2P, error=EIO),
            arc(SOURCE, "sim1", S.PRE_COPY, S.PRE_COPY_P2P, delay_us=SECOND_US // 4),
        ),
        phase="Failed",
        reason="ArcFailed",
    ),
    "Commit before the votes": Scenario(
        "I2", {"operator": "operator_that_commits_before_the_votes"}, faults=(SLOW_LOAD,)
    ),
    "RESUMING counted as a vote": Scenario("I2", {"target": "agent_that_votes_in_resuming"}),
    "sources released before barrier D": Scenario(
        "I2", {"operator": "operator_that_releases_early"}, faults=(SLOW_START,)
    ),
    "target started before Commit": Scenario("I1", {"target": "agent_that_starts_before_commit"}),
    "barrier D skipped": Scenario("I3", {"target": "agent_without_barrier_d"}),
    "barrier back skipped": Scenario(
        "I3",
        {"source": "agent_without_a_barrier_back"},
        faults=(arc(TARGET, "sim1", S.RESUMING, S.STOP, error=EIO),),
        phase="Failed",
        reason="StateRefused",
    ),
    "source resumed without asking": Scenario(
        "I1",
        {"source": "agent_that_resumes_by_itself"},
        leader_dies_before_the_vote,
        (arc(TARGET, "sim1", S.RESUMING, S.STOP, delay_us=4 * SECOND_US),),
        TIMEOUT,
        phase="Failed",
        reason="SwitchoverTimeout",
    ),
    "vote dropped without asking": Scenario(
        "I2",
        {"target": "agent_that_drops_its_vote"},
        all_die_but_the_target_that_voted,
        (arc(TARGET, "sim1", S.RESUMING, S.STOP, delay_us=SECOND_US),),
        TIMEOUT,
        phase="Failed",
    ),
    "stale epoch accepted": Scenario(
        "I4",
        {"target": "agent_that_obeys_old_leaders"},
        cancelled_under_another_leader,
        spec=SLOW_COPY,
        product={"target": "agent_with_late_commands"},
        phase="Cancelled",
        reason="Cancelled",
    ),
    "journal after effect": Scenario(
        "I1",
        {"target": "agent_that_journals_afterwards"},
        target_node_dies_in_barrier_d,
        (arc(TARGET, "sim1", S.RUNNING_P2P, S.RUNNING, delay_us=2 * SECOND_US),),
        phase="Failed",
        reason="TargetLostAfterCommit",
    ),
}


def name_of(scenario: str) -> str:
    return scenario.lower().replace(" ", "-")


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_product_keeps_its_promises(world: FaultWorld, name: str) -> None:
    scenario = SCENARIOS[name]
    world.become(**scenario.product)
    for node, device, fault in scenario.faults:
        world.control(node).fault(device, "arc", **fault)
    story = world.told(name_of(name), scenario.disturb, **scenario.spec)
    assert [str(violation) for violation in world.judge(story)] == []
    assert story.phase == scenario.phase
    assert scenario.reason in ("", story.reason)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_broken_version_is_caught(world: FaultWorld, name: str) -> None:
    scenario = SCENARIOS[name]
    world.become(**scenario.mutant)
    for node, device, fault in scenario.faults:
        world.control(node).fault(device, "arc", **fault)
    story = world.told(f"{name_of(name)}-broken", scenario.disturb, seconds=10, **scenario.spec)
    found = world.judge(story)
    assert scenario.invariant in {violation.invariant for violation in found}, [str(each) for each in found]
