"""What must not be unsaid: that a leader was replaced, that a session has ended, that a device's state is lost."""

import asyncio
from errno import EIO

from loopback.agents_world import ABORT, COUNT, KEY, SOURCE, TARGET, Node, Operator, RunningAgent, play
from vfio_api.device import DeviceState as S
from vfio_api.errors import DeviceError, Reason
from vfio_api.types import Command, Goal, SessionReport


async def waits_for_its_turn(agent: RunningAgent, command: Command) -> None:
    """Send a command, and be back when it stands behind another one."""
    turn = agent.agent._sessions[KEY.uid, command.role]._turn
    agent.agent.take(command)
    async with asyncio.timeout(10):
        while not turn._waiters:  # noqa: ASYNC110 - asyncio.Lock tells nobody
            await asyncio.sleep(0)


def test_a_command_that_waited_while_another_leader_came_is_not_obeyed(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.prepare()
        agent = operator.source
        async with agent.agent._sessions[KEY.uid, SOURCE]._turn:
            await waits_for_its_turn(agent, operator.command(SOURCE, Goal.PRE_COPY))
            await agent.agent.raise_epoch(5)
        report = await agent.until(SOURCE, lambda r: r.failure is not None)
        assert report.failure is not None
        assert report.failure.reason is Reason.STALE_EPOCH
        assert agent.states() == [S.RUNNING] * COUNT
        operator.epoch = 5
        await operator.roll_back()

    play(nodes, scene)


def test_what_comes_for_a_session_that_has_ended_is_told_so_and_begins_nothing(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.prepare()
        late = operator.command(SOURCE, Goal.PREPARED)
        await operator.roll_back()
        for command in (late, operator.command(SOURCE, Goal.RUNNING)):
            operator.source.reports.pop(SOURCE)
            operator.source.agent.take(command)
            report = await operator.source.until(SOURCE, lambda _report: True)
            assert (report.reached, report.failure) == (Goal.RELEASED, None)
        assert operator.source.agent.sessions() == ()

    play(nodes, scene)


def is_lost(report: SessionReport) -> bool:
    return report.failure is not None and report.failure.reason is Reason.SOURCE_STATE_LOST


def test_that_a_source_was_reset_is_said_as_often_as_it_is_asked_also_by_the_next_agent(
    nodes: tuple[Node, Node],
) -> None:
    async def scene(operator: Operator) -> None:
        await operator.prepare()
        operator.source.node.control.fault("sim1", "arc", arc=(S.RUNNING, S.PRE_COPY), error=EIO, to_error=True)
        assert (await operator.tell(SOURCE, Goal.PRE_COPY)).failure is not None
        operator.decision = ABORT
        for _ in range(2):
            report = await operator.tell(SOURCE, Goal.RUNNING)
            assert is_lost(report)
            assert report.failure is not None
            assert report.failure.device == "gpu1"
        await operator.source.end()
        operator.source = RunningAgent(operator.source.node)
        operator.source.agent.take(operator.command(SOURCE, Goal.RUNNING))
        await operator.source.until(SOURCE, is_lost)
        assert operator.source.states() == [S.RUNNING] * COUNT
        for role in (TARGET, SOURCE):
            assert (await operator.tell(role, Goal.RELEASED)).reached is Goal.RELEASED

    play(nodes, scene)


def test_a_loss_is_said_though_the_stream_of_that_device_said_something_first(nodes: tuple[Node, Node]) -> None:
    """What breaks on a device in ERROR is heard at any time, also while its peers are being brought back."""

    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        operator.source.node.control.fault("sim1", "arc", arc=(S.PRE_COPY_P2P, S.STOP_COPY), error=EIO, to_error=True)
        await operator.tell(SOURCE, Goal.STOP_COPY)
        operator.decision = ABORT
        command = operator.command(SOURCE, Goal.RUNNING)
        session = operator.source.agent._sessions[KEY.uid, SOURCE]
        before = session.side.before

        async def late(told: Command) -> None:
            await before(told)
            session.fail(DeviceError("reading its state failed", device="gpu1"))

        session.side.before = late  # type: ignore[method-assign]
        operator.source.agent.take(command)
        report = await operator.source.until(SOURCE, lambda r: r.reached is Goal.RUNNING and r.failure is not None)
        report = await operator.source.until(
            SOURCE, lambda r: r.failure is not None and r.failure.reason is Reason.SOURCE_STATE_LOST
        )
        assert report.failure is not None
        assert report.failure.device == "gpu1"
        await operator.roll_back()

    play(nodes, scene)
