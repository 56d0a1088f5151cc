"""Every arc of a migration that fails and stays where it was, or falls into ERROR, on the kernel's own devices.

One table: the arc, on which side, by what the migration turned back if the arc lies on the way back, and how it must
end. After each the same devices migrate, so that whatever it left is usable.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from devtools.kernel_stack import KernelStack
from devtools.mtty_workload import Fault
from kernel.figures import Figures
from kernel.trial import COMPLETED, LOST, ROLLED_BACK, State, Trial, assert_told

Arc = tuple[State, State]
ROWS = {Fault.FAIL: "arcs that fail and stay", Fault.ERROR: "arcs that end in ERROR"}
TO_PRE_COPY, QUIESCE, STOP = (
    (State.RUNNING, State.PRE_COPY),
    (State.PRE_COPY, State.PRE_COPY_P2P),
    (State.PRE_COPY_P2P, State.STOP_COPY),
)
LOAD = (State.RESUMING, State.STOP)
EIO = "[Errno 5]"


@dataclass(frozen=True)
class Case:
    """An arc of the second device of a side; turned: (side, arc, device) that fails first, so that there is a way back.

    fails, errs: outcome and reason if the arc fails and stays, and if it ends in ERROR.
    """

    role: str
    arc: Arc
    fails: tuple[str, str]
    errs: tuple[str, str]
    turned: tuple[str, Arc, int] | None = None

    @property
    def way(self) -> str:
        return f"{self.arc[0].name} -> {self.arc[1].name}"

    @property
    def name(self) -> str:
        back = f" back from {self.turned[1][1].name}" if self.turned else ""
        return f"{self.role} {self.way}{back}"


FAILED, DEAD = (ROLLED_BACK, "ArcFailed"), (LOST, "SourceStateLost")
REFUSED, RETRIED = (ROLLED_BACK, "StateRefused"), (COMPLETED, "")
REFUSAL = ("target", LOAD, 0)

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
    Case("target", (State.RUNNING, State.RUNNING_P2P), FAILED, FAILED),
    Case("target", (State.RUNNING_P2P, State.STOP), FAILED, FAILED),
    Case("target", (State.STOP, State.RESUMING), FAILED, FAILED),
    Case("target", LOAD, REFUSED, REFUSED),
    # after Commit: tried again, or loaded again from the source, as long as it has not left STOP
    Case("target", (State.STOP, State.RUNNING_P2P), RETRIED, RETRIED),
    Case("target", (State.RUNNING_P2P, State.RUNNING), RETRIED, ("lost", "TargetLostAfterCommit")),
)


def parameters(cases: Sequence[Case]) -> list[object]:
    """Each case with either fault."""
    return [pytest.param(case, fault, id=f"{case.name}: {fault.name}") for case in cases for fault in ROWS]


@pytest.mark.parametrize(("case", "fault"), parameters(CASES[:-1]))
def test_arc_fails(stack: KernelStack, path: str, figures: Figures, case: Case, fault: Fault) -> None:
    trial = Trial(stack, figures, path)
    if case.turned:
        role, arc, index = case.turned
        trial.arm(role, arc, Fault.FAIL, index)
    trial.arm(case.role, case.arc, fault)
    trial.begin()
    found = trial.finished()
    trial.assert_fired()
    expected, reason = case.fails if fault is Fault.FAIL else case.errs
    lost = [trial.device("source", 1)] if expected == LOST else []
    assert trial.judged(found, lost) == expected, found["status"]
    if reason:
        # what turned it back is named, unless a state was lost meanwhile
        role, arc, index = case.turned if case.turned and expected != LOST else (case.role, case.arc, 1)
        assert_told(found, reason, f"tty{index}", trial.device(role, index))
        if expected != LOST:
            assert_told(found, reason, f"{arc[0].name} -> {arc[1].name}", EIO)
    trial.outcome(ROWS[fault], case.name, expected)
    trial.assert_usable(f"{case.name}: {fault.name}")
