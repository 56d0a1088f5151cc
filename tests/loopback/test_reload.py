"""After Commit: a target that lost what it had loaded, without having left STOP, is loaded again from the source."""

from errno import EIO

import pytest

from loopback.agents_world import (
    COMMIT,
    COUNT,
    NAMES,
    SOURCE,
    TARGET,
    Node,
    Operator,
    RunningAgent,
    assert_nothing_lost,
    play,
)
from vfio_api.device import DeviceState as S
from vfio_api.errors import Reason
from vfio_api.types import Goal, Peer, SessionReport


async def lose_target(operator: Operator) -> None:
    """Agent and keeper of the target die together: its devices are closed. Then another agent starts."""
    node = operator.target.node
    await operator.target.end()
    for address in operator.target.keeper.held():
        operator.target.keeper.drop(address)
    operator.target = RunningAgent(node)


def peers(agent: RunningAgent, report: SessionReport) -> tuple[Peer, ...]:
    return (Peer("other", f"127.0.0.1:{agent.server.port}", report.certificate),)


async def load_again(operator: Operator, lost: tuple[str, ...], attempt: int = 1) -> SessionReport:
    """What the plan does about it, up to the vote."""
    source = operator.source.reports[SOURCE]
    made = {"attempt": attempt, "again": lost}
    ready = await operator.tell(TARGET, Goal.PREPARED, peers=peers(operator.source, source), **made)
    assert (ready.failure, ready.reached, ready.lost) == (None, Goal.PREPARED, lost)
    sent = await operator.tell(SOURCE, Goal.STOP_COPY, peers=peers(operator.target, ready), **made)
    assert sent.failure is None
    return await operator.target.until(TARGET, lambda r: r.reached is Goal.LOADED)


async def end_well(operator: Operator) -> None:
    assert (await operator.tell(TARGET, Goal.RUNNING)).failure is None
    assert operator.target.states() == [S.RUNNING] * COUNT
    marks = [operator.target.device(f"sim{n}").read_region(0, 8) for n in range(COUNT)]
    assert marks == [b"marker 0", b"marker 1"]
    for role in (SOURCE, TARGET):
        assert (await operator.tell(role, Goal.RELEASED)).failure is None
    assert operator.source.holdings.all() == {}
    assert_nothing_lost(operator, TARGET)


def test_a_target_that_died_with_its_keeper_is_loaded_again(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        operator.decision = COMMIT
        await lose_target(operator)
        found = await operator.tell(TARGET, Goal.RUNNING)
        assert found.failure is not None
        assert found.failure.reason is Reason.DEVICE_LOST
        assert found.lost == tuple(NAMES)
        voted = await load_again(operator, found.lost)
        assert (voted.lost, voted.failure) == ((), None)
        await end_well(operator)

    play(nodes, scene)


def test_only_the_device_that_lost_its_state_is_loaded_again(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        operator.decision = COMMIT
        operator.target.node.control.fault("sim1", "arc", arc=(S.STOP, S.RUNNING_P2P), error=EIO, to_error=True)
        before = len(operator.target.node.arcs())
        found = await operator.tell(TARGET, Goal.RUNNING)
        assert found.lost == ("gpu1",)
        assert operator.target.states() == [S.RUNNING_P2P, S.ERROR]
        await load_again(operator, found.lost)
        assert operator.target.states() == [S.RUNNING_P2P, S.STOP]
        await end_well(operator)
        moved = operator.target.node.arcs()[before:]
        assert [state for device, state in moved if device == "sim0"] == ["RUNNING_P2P", "RUNNING"]

    play(nodes, scene)


def test_what_fails_while_it_is_sent_once_more_is_sent_a_third_time(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        operator.decision = COMMIT
        await lose_target(operator)
        lost = (await operator.tell(TARGET, Goal.RUNNING)).lost
        source = operator.source.reports[SOURCE]
        made = {"attempt": 1, "again": lost}
        ready = await operator.tell(TARGET, Goal.PREPARED, peers=peers(operator.source, source), **made)
        operator.target.node.control.fault("sim1", "write", error=EIO)
        operator.source.agent.take(
            operator.command(SOURCE, Goal.STOP_COPY, peers=peers(operator.target, ready), **made)
        )
        broken = await operator.target.until(TARGET, lambda r: r.failure is not None)
        assert broken.lost == lost
        await operator.source.until(SOURCE, lambda r: r.failure is not None)
        await load_again(operator, lost, attempt=2)
        await end_well(operator)

    play(nodes, scene)


def test_a_target_that_may_have_run_is_not_loaded_with_an_older_state(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        operator.decision = COMMIT
        assert (await operator.tell(TARGET, Goal.RUNNING_P2P)).failure is None
        await lose_target(operator)
        found = await operator.tell(TARGET, Goal.RUNNING)
        assert found.failure is not None
        assert (found.failure.reason, found.lost) == (Reason.TARGET_LOST_AFTER_COMMIT, ())
        assert "gpu0, gpu1 is gone" in found.failure.message
        refused = await operator.tell(TARGET, Goal.PREPARED, attempt=1, again=tuple(NAMES))
        assert refused.failure is not None
        assert refused.failure.reason is Reason.COMMAND_REFUSED
        for role in (TARGET, SOURCE):
            assert (await operator.tell(role, Goal.RELEASED)).reached is Goal.RELEASED
        assert operator.source.holdings.all() == operator.target.holdings.all() == {}

    play(nodes, scene)


def test_what_is_not_lost_runs_on_and_what_is_becomes_a_blank_device(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        operator.decision = COMMIT
        operator.target.node.control.fault("sim1", "arc", arc=(S.RUNNING_P2P, S.RUNNING), error=EIO, to_error=True)
        found = await operator.tell(TARGET, Goal.RUNNING)
        assert found.failure is not None
        assert found.failure.reason is Reason.TARGET_LOST_AFTER_COMMIT
        assert (found.failure.device, found.failure.arc) == ("gpu1", "RUNNING_P2P -> RUNNING")
        for role in (TARGET, SOURCE):
            operator.agent(role).agent.take(operator.command(role, Goal.RELEASED))
            await operator.agent(role).until(role, lambda r: r.reached is Goal.RELEASED)
        assert operator.source.holdings.all() == {}
        held = operator.target.holdings.all()
        assert [(address, one.holder) for address, one in held.items()] == [("sim0", "keeper")]
        assert operator.target.device("sim0").state() is S.RUNNING
        assert operator.target.device("sim0").read_region(0, 8) == b"marker 0"

    play(nodes, scene)


@pytest.mark.parametrize("again", [(), ("gpu0",)])
def test_nothing_that_is_loaded_is_prepared_again(nodes: tuple[Node, Node], again: tuple[str, ...]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        operator.decision = COMMIT
        refused = await operator.tell(TARGET, Goal.PREPARED, attempt=1, again=again)
        assert refused.failure is not None
        assert "its state is not to be overwritten" in refused.failure.message
        assert operator.target.states() == [S.STOP] * COUNT
        await end_well(operator)

    play(nodes, scene)
