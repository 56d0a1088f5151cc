"""Agents that are killed in the middle of a migration of the kernel's own devices, and started again.

The driver holds an arc, so that the agent dies exactly there. What the devices went through is told by their drivers.
"""

import signal
from dataclasses import dataclass

import pytest

from devtools.mtty_trace import Outcome
from devtools.mtty_workload import Fault
from kernel.sides import condition
from kernel.trial import COMPLETED, ROLLED_BACK, State, Trial

KILLS = "agents killed on the way"


@dataclass(frozen=True)
class Point:
    """A place in a migration: the second device of a side is held on the way, the first has arrived."""

    role: str
    old: State
    new: State
    ends: str

    @property
    def arc(self) -> tuple[State, State]:
        return self.old, self.new


POINTS = {
    "into pre-copy": Point("source", State.RUNNING, State.PRE_COPY, ROLLED_BACK),
    "barrier A": Point("source", State.PRE_COPY, State.PRE_COPY_P2P, ROLLED_BACK),
    "barrier B": Point("source", State.PRE_COPY_P2P, State.STOP_COPY, ROLLED_BACK),
    "before the vote": Point("target", State.RESUMING, State.STOP, ROLLED_BACK),
    "barrier C": Point("target", State.STOP, State.RUNNING_P2P, COMPLETED),
    "barrier D": Point("target", State.RUNNING_P2P, State.RUNNING, COMPLETED),
    "release": Point("source", State.STOP_COPY, State.STOP, COMPLETED),
}
STUCK = ("barrier B", "before the vote", "barrier D")
"""Where the killed agent's arc cannot be interrupted: it ends after the next agent was started."""
SIDES = ("source", "target")


def end(trial: Trial, case: str, expected: str) -> None:
    """The migration ends as expected, with the workload on one side; then its devices migrate again."""
    found = trial.finished()
    outcome = trial.judged(found)
    assert outcome == expected, found["status"]
    if outcome == ROLLED_BACK:
        # its peer may have said first that a stream is broken
        assert condition(found, "Succeeded")["reason"] in ("AgentRestarted", "StreamBroken"), found["status"]
    trial.outcome(KILLS, case, outcome)
    trial.assert_usable()


@pytest.mark.parametrize("killed", SIDES)
@pytest.mark.parametrize("name", POINTS)
def test_agent_killed_at(trial: Trial, name: str, killed: str) -> None:
    point = POINTS[name]
    trial.arm(point.role, point.arc, Fault.HOLD)
    trial.begin()
    trial.await_held(point.role, point.arc)
    trial.node(killed).agent.kill()
    if killed == point.role:  # the arc ended with its process and was not taken
        last = trial.last(killed, point.arc)
        assert (last.outcome, last.left) == (Outcome.FAILED, point.old.name)
    trial.restart(killed)
    trial.release()
    end(trial, f"{name}, {killed}", point.ends)


@pytest.mark.parametrize("name", STUCK)
def test_agent_killed_in_an_arc_that_goes_on_without_it(trial: Trial, name: str) -> None:
    point = POINTS[name]
    node = trial.node(point.role)
    trial.arm(point.role, point.arc, Fault.STUCK)
    trial.begin()
    trial.await_held(point.role, point.arc)
    dying = node.agent
    dying.signal(signal.SIGKILL)
    early = node.start_agent()
    early.wait_for("another vfio-agent holds")  # nobody drives a device while another's arc is under way
    assert early.wait(10) != 0
    assert dying.running
    trial.release()
    dying.wait(10)
    assert trial.last(point.role, point.arc).outcome is Outcome.TAKEN
    trial.restart(point.role)
    end(trial, f"{name}, {point.role}, arc goes on", point.ends)


@pytest.mark.parametrize("killed", SIDES)
def test_agent_killed_in_pre_copy(trial: Trial, killed: str) -> None:
    trial.begin(strategy={"downtimeLimitMilliseconds": 1})  # no guest is that fast: it goes on copying
    trial.await_state("source", State.PRE_COPY)
    trial.node(killed).agent.kill()
    trial.restart(killed)
    end(trial, f"in pre-copy, {killed}", ROLLED_BACK)


@pytest.mark.parametrize("killed", SIDES)
def test_agent_killed_after_the_vote(trial: Trial, killed: str) -> None:
    """The operator is stopped, so that the vote is known to the target alone when an agent dies."""
    point = POINTS["before the vote"]
    trial.arm(point.role, point.arc, Fault.HOLD)
    trial.begin()
    trial.await_held(point.role, point.arc)
    operator = trial.stack.operator
    operator.signal(signal.SIGSTOP)
    try:
        trial.release()
        trial.await_journalled("target", '"loaded": true')
        trial.await_state("target", State.STOP)
        trial.node(killed).agent.kill()
    finally:
        operator.signal(signal.SIGCONT)
    trial.restart(killed)
    found = trial.finished()
    outcome = trial.judged(found)
    trial.outcome(KILLS, f"after the vote, {killed}", outcome, same=False)
    trial.assert_usable()
