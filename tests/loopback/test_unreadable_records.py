"""An agent that cannot read what an earlier one wrote of a session starts, says so, and touches nothing of it."""

from pathlib import Path

import pytest

from loopback.agents_world import (
    ABORT,
    COMMIT,
    COUNT,
    KEY,
    SOURCE,
    TARGET,
    Node,
    Operator,
    RunningAgent,
    play,
)
from vfio_api.device import DeviceState as S
from vfio_api.errors import Reason
from vfio_api.types import Command, Goal, Outcome, Role, SessionReport


def record_of(agent: RunningAgent, role: Role) -> Path:
    return agent.node.directory / "run" / "sessions" / f"{KEY.uid}.{role.value.lower()}.json"


async def spoiled(agent: RunningAgent, role: Role) -> RunningAgent:
    """The next agent of the node; a byte of the record has turned over meanwhile."""
    path = record_of(agent, role)
    await agent.end()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    return RunningAgent(agent.node)


async def refused(agent: RunningAgent, command: Command) -> SessionReport:
    agent.reports.pop(command.role, None)
    agent.agent.take(command)
    return await agent.until(command.role, lambda report: report.sequence == command.sequence)


def assert_held_back(report: SessionReport) -> None:
    assert report.reached is None
    assert report.failure is not None
    assert report.failure.reason is Reason.JOURNAL_FAILED
    assert f"record of its {report.role} session cannot be read" in report.failure.message
    assert "its devices stay as they are" in report.failure.message
    # no device is closed while the record is there: first the record, then the devices
    order = ["put the record aside", "restart the agent", "act on the devices as the decision"]
    assert sorted(order, key=report.failure.message.index) == order


@pytest.mark.parametrize("decision", [None, COMMIT, ABORT], ids=str)
@pytest.mark.parametrize("role", [SOURCE, TARGET], ids=str)
def test_nothing_is_done_for_a_session_whose_record_cannot_be_read(
    nodes: tuple[Node, Node], role: Role, decision: Outcome | None
) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        agent = await spoiled(operator.agent(role), role)
        if role is SOURCE:
            operator.source = agent
        else:
            operator.target = agent
        report = agent.reports[role]
        assert_held_back(report)  # known to the operator as a session: it keeps the claims
        before = agent.states()
        assert before == [S.STOP_COPY if role is SOURCE else S.STOP] * COUNT
        operator.decision = decision
        for goal in Goal:
            report = await refused(agent, operator.command(role, goal))
            assert_held_back(report)
        assert agent.states() == before
        assert len(agent.keeper.held()) == COUNT
        assert "its record in the journal cannot be read" in agent.agent.busy("sim0"), "no workload closes it meanwhile"
        # when the record is gone, the next agent knows nothing of the session
        record_of(agent, role).unlink()
        (agent.node.directory / "state" / "sessions" / record_of(agent, role).name).unlink()
        await agent.end()
        again = RunningAgent(agent.node)
        if role is SOURCE:
            operator.source = again
        else:
            operator.target = again
        assert again.reports == {}
        assert again.states() == before

    play(nodes, scene)
