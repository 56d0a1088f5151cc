"""Keepers that are killed, alone or with their agent, in the middle of a migration of the kernel's own devices.

A device that nobody holds is closed. mtty keeps its migration state then, but whoever opens it resets it.
"""

import signal

import pytest

from devtools.mtty_workload import Fault
from kernel.sides import condition
from kernel.test_kernel_kills import POINTS, SIDES
from kernel.trial import COMPLETED, LOST, ROLLED_BACK, Trial, assert_told

KEEPERS, BOTH = "keeper, then agent killed", "agent and keeper killed"
MENDED = "devices given to the keeper again"


def hold(trial: Trial, name: str) -> None:
    """Have the migration held at a point."""
    point = POINTS[name]
    trial.arm(point.role, point.arc, Fault.HOLD)
    trial.begin()
    trial.await_held(point.role, point.arc)


@pytest.mark.parametrize(("name", "killed"), [("barrier B", "source"), ("barrier C", "target")])
def test_keeper_killed_and_then_its_agent(trial: Trial, name: str, killed: str) -> None:
    """The agent gives its devices to the next keeper, from which the next agent takes them."""
    hold(trial, name)
    node = trial.node(killed)
    node.keeper.kill()
    node.start_keeper()
    node.agent.wait_for(MENDED)
    node.agent.kill()
    trial.restart(killed)
    trial.release()
    found = trial.finished()
    assert trial.judged(found) == POINTS[name].ends, found["status"]
    trial.outcome(KEEPERS, f"{name}, {killed}", POINTS[name].ends)
    trial.assert_usable()


@pytest.mark.parametrize("killed", SIDES)
def test_keeper_killed_alone(trial: Trial, killed: str) -> None:
    """Nobody notices, while the agent lives."""
    hold(trial, "barrier B")
    node = trial.node(killed)
    node.keeper.kill()
    trial.release()
    found = trial.finished()
    node.start_keeper()
    assert trial.judged(found) == COMPLETED, found["status"]
    if killed == "target":
        node.agent.wait_for(MENDED)  # a source holds nothing any more
    trial.outcome("keeper killed", f"barrier B, {killed}", COMPLETED)
    trial.assert_usable()


@pytest.mark.parametrize("killed", SIDES)
def test_agent_and_keeper_killed_before_the_vote(trial: Trial, killed: str) -> None:
    """Source devices are closed, and their state is gone: that is said. Of a target's nothing is lost."""
    hold(trial, "before the vote")
    trial.kill_both(killed)
    trial.release()
    found = trial.finished()
    if killed == "source":
        assert_told(found, "SourceStateLost", "no longer held", "tty0", trial.device("source", 0))
        trial.judged_lost(found)
        outcome = LOST
    else:
        # its peer may have said first that a stream is broken
        assert condition(found, "Succeeded")["reason"] in ("DeviceLost", "StreamBroken"), found["status"]
        outcome = trial.judged(found, closed=True)
        assert outcome == ROLLED_BACK, found["status"]
    trial.outcome(BOTH, f"before the vote, {killed}", outcome)
    trial.assert_usable()


def test_agent_and_keeper_killed_after_the_vote(trial: Trial) -> None:
    """The vote may be counted or not. If it was, the source sends its state once more to what is opened anew."""
    hold(trial, "before the vote")
    operator = trial.stack.operator
    operator.signal(signal.SIGSTOP)
    try:
        trial.release()
        trial.await_journalled("target", '"loaded": true')
        trial.kill_both("target", restart=False)
    finally:
        operator.signal(signal.SIGCONT)
    trial.restart("target")
    found = trial.finished()
    outcome = trial.judged(found, closed=True)
    trial.outcome(BOTH, "after the vote, target", outcome, same=False)
    trial.assert_usable()


@pytest.mark.parametrize("killed", SIDES)
def test_agent_and_keeper_killed_after_commit(trial: Trial, killed: str) -> None:
    """A target that was told to leave STOP may have run: what is lost with it is said, and not started again."""
    hold(trial, "barrier C")
    trial.kill_both(killed)
    trial.release()
    found = trial.finished()
    if killed == "source":
        outcome = trial.judged(found)
        assert outcome == COMPLETED, found["status"]
    else:
        assert_told(found, "TargetLostAfterCommit")
        trial.judged_lost(found)
        outcome = LOST
    trial.outcome(BOTH, f"after Commit, {killed}", outcome)
    trial.assert_usable()
