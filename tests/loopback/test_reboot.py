"""A node that restarts has lost what its devices held: said honestly, and never taken for a device that runs."""

import shutil

from loopback.agents_world import (
    ABORT,
    COMMIT,
    COUNT,
    SOURCE,
    TARGET,
    Node,
    Operator,
    RunningAgent,
    assert_sources_run,
    assert_targets_blank,
    play,
)
from vfio_api.device import DeviceState as S
from vfio_api.errors import Reason
from vfio_api.types import Goal


async def reboot(agent: RunningAgent) -> RunningAgent:
    """Keeper, tmpfs and every open device are gone; the disk is there."""
    await agent.end()
    for address in agent.keeper.held():
        agent.keeper.drop(address)
    shutil.rmtree(agent.node.directory / "run")
    return RunningAgent(agent.node, "boot-2")


def test_a_source_node_that_restarts_before_the_decision_says_that_the_state_is_lost(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        operator.source = await reboot(operator.source)
        report = operator.source.reports[SOURCE]
        assert report.failure is not None
        assert report.failure.reason is Reason.DEVICE_LOST
        assert "the keeper ended or the node restarted" in report.failure.message
        operator.decision = ABORT
        report = await operator.tell(SOURCE, Goal.RUNNING)
        assert report.failure is not None
        assert report.failure.reason is Reason.SOURCE_STATE_LOST
        assert operator.source.holdings.all() == {}  # nothing is opened to look as if it had never been gone
        assert (await operator.tell(TARGET, Goal.RELEASED)).reached is Goal.RELEASED
        assert_targets_blank(operator)
        assert (await operator.tell(SOURCE, Goal.RELEASED)).reached is Goal.RELEASED

    play(nodes, scene)


def test_a_source_node_that_restarts_after_commit_costs_nothing(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        operator.decision = COMMIT
        operator.source = await reboot(operator.source)
        assert (await operator.tell(TARGET, Goal.RUNNING)).failure is None
        assert operator.target.states() == [S.RUNNING] * COUNT
        assert (await operator.tell(SOURCE, Goal.RELEASED)).reached is Goal.RELEASED

    play(nodes, scene)


def test_a_target_node_that_restarts_before_the_decision_is_rolled_back(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        operator.target = await reboot(operator.target)
        report = operator.target.reports[TARGET]
        assert report.failure is not None
        assert (report.failure.reason, report.reached) == (Reason.DEVICE_LOST, None)
        await operator.roll_back()
        assert_sources_run(operator)
        assert_targets_blank(operator)

    play(nodes, scene)


def test_a_target_node_that_restarts_after_commit_is_not_loaded_with_an_older_state(nodes: tuple[Node, Node]) -> None:
    """What it was told before is gone with its tmpfs: it may have run."""

    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        operator.decision = COMMIT
        assert (await operator.tell(TARGET, Goal.RUNNING_P2P)).failure is None
        operator.target = await reboot(operator.target)
        operator.target.agent.take(operator.command(TARGET, Goal.RUNNING))
        report = await operator.target.until(
            TARGET, lambda r: r.failure is not None and r.failure.reason is Reason.TARGET_LOST_AFTER_COMMIT
        )
        assert report.lost == ()
        for role in (TARGET, SOURCE):
            operator.agent(role).agent.take(operator.command(role, Goal.RELEASED))
            await operator.agent(role).until(role, lambda r: r.reached is Goal.RELEASED)

    play(nodes, scene)


def test_a_device_held_for_a_session_that_is_gone_is_given_up_only_if_it_was_never_loaded(
    nodes: tuple[Node, Node],
) -> None:
    async def scene(operator: Operator) -> None:
        await operator.prepare()
        await operator.target.end()
        for folder in ("run/sessions", "state/sessions"):
            for path in (operator.target.node.directory / folder).glob("*.json"):
                path.unlink()
        held = operator.target.keeper.held()
        operator.target = RunningAgent(operator.target.node)
        assert len(held) == COUNT
        assert operator.target.keeper.held() == []
        await operator.roll_back()

    play(nodes, scene)
