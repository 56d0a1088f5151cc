"""Every arc of a migration that fails and stays where it was, or falls into ERROR, on the kernel's own devices.

One table: the arc, on which side, by what the migration turned back if the arc lies on the way back, and how it must
end. After each the same devices migrate, so that whatever it left is usable.
"""

from dataclasses import dataclass

import pytest

from devtools.mtty_workload import Fault
from kernel.trial import COMPLETED, LOST, ROLLED_BACK, State, Trial, assert_told

Arc = tuple[State, State]
ROWS = {Fault.FAIL: "arcs that fail and stay", Fault.ERROR: "arcs that end in ERROR"}
TO_PRE_COPY, QUIESCE, STOP = (
    (State.RUNNING, State.PRE_COPY),
    (State.PRE_COPY, State.PRE_COPY_P2P),
    (State.PRE_COPY_P2P, State.STOP_COPY),
)
LOAD, START = (State.RESUMING, State.STOP), (State.RUNNING_P2P, State.RUNNING)
LOST_THERE = (LOST, "TargetLostAfterCommit")
"""It ran at the target, so the source's older state is not started, and the target's is gone."""


@dataclass(frozen=True)
class Case:
    """An arc of the second device of a side; turned: (side, arc, device) that fails first, so that there is a way back.

    fails, errs: outcome and reason if the arc fails and stays, and if it ends in ERROR. asked: what the agent wants of
    the device, if the arc is one of several on the way there.
    """

    role: str
    arc: Arc
    fails: tuple[str, str]
    errs: tuple[str, str]
    turned: tuple[str, Arc, int] | None = None
    asked: Arc | None = None

    @property
    def name(self) -> str:
        back = f" back from {self.turned[1][1].name}" if self.turned else ""
        return f"{self.role} {way(self.arc)}{back}"


def way(arc: Arc) -> str:
    return f"{arc[0].name} -> {arc[1].name}"


FAILED, DEAD = (ROLLED_BACK, "ArcFailed"), (LOST, "SourceStateLost")
REFUSED, RETRIED = (ROLLED_BACK, "StateRefused"), (COMPLETED, "")
REFUSAL = ("target", LOAD, 0)
PREPARE = (State.RUNNING, State.RESUMING)

CASES = (
    # the source's way to STOP_COPY
    Case("source", TO_PRE_COPY, FAILED, DEAD),
    Case("source", QUIESCE, FAILED, DEAD),
    Case("source", STOP, FAILED, DEAD),
    # and back: what turned it stays the reason, and what fails on the way back is tried again
    Case("source", (State.STOP_COPY, State.STOP), REFUSED, DEAD, REFUSAL),
    Case("source", (State.STOP, State.RUNNING_P2P), REFUSED, DEAD, REFUSAL),
    Case("source", (State.RUNNING_P2P, State.RUNNING), REFUSED, DEAD, REFUSAL),
    Case("source", (State.PRE_COPY_P2P, State.RUNNING_P2P), FAILED, DEAD, ("source", STOP, 1)),
    Case("source", QUIESCE, FAILED, DEAD, ("source", QUIESCE, 1)),
    Case("source", (State.PRE_COPY, State.RUNNING), FAILED, DEAD, ("source", TO_PRE_COPY, 0)),
    # the target's way to the vote
    Case("target", (State.RUNNING, State.RUNNING_P2P), FAILED, FAILED, asked=PREPARE),
    Case("target", (State.RUNNING_P2P, State.STOP), FAILED, FAILED, asked=PREPARE),
    Case("target", (State.STOP, State.RESUMING), FAILED, FAILED, asked=PREPARE),
    Case("target", LOAD, REFUSED, REFUSED),
    # after Commit: tried again, or loaded again from the source
    Case("target", (State.STOP, State.RUNNING_P2P), RETRIED, RETRIED),
    Case("target", START, RETRIED, LOST_THERE),
    # after barrier D
    Case("source", (State.STOP_COPY, State.STOP), RETRIED, RETRIED),
)


@pytest.mark.parametrize("fault", ROWS, ids=lambda fault: fault.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_arc_fails(trial: Trial, case: Case, fault: Fault) -> None:
    if case.turned:
        trial.arm(case.turned[0], case.turned[1], Fault.FAIL, case.turned[2])
    trial.arm(case.role, case.arc, fault)
    trial.begin()
    found = trial.finished()
    trial.assert_fired()
    expected, reason = case.fails if fault is Fault.FAIL else case.errs
    if (expected, reason) == LOST_THERE:
        trial.judged_lost(found, kept=[0])
    else:
        lost = [trial.device("source", 1)] if expected == LOST else []
        assert trial.judged(found, lost) == expected, found["status"]
    if reason:
        assert_told(found, reason, *words(trial, case, fault, expected))
    trial.outcome(ROWS[fault], case.name, expected)
    trial.assert_usable()


def words(trial: Trial, case: Case, fault: Fault, expected: str) -> list[str]:
    """What the message must have: device, arc, errno and where it is now; of what began it, unless a state was lost."""
    if expected == LOST:
        return ["tty1", trial.device(case.role, 1)]
    role, arc, index = case.turned or (case.role, case.arc, 1)
    left = "ERROR" if fault is Fault.ERROR and not case.turned else arc[0].name
    return [f"tty{index}", trial.device(role, index), way(case.asked or arc), "[Errno 5]", f"now in {left}"]
