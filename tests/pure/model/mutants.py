"""Small changes of the product's pure code, or of a rule of the modelled effects, that must each be caught.

A mutant is put into a table or a function of the real module for as long as `Mutant.put_in` says, or into `Rules`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pure.model.explore import Found, explore
from pure.model.faults import NO_FAULTS, Budget, budget
from pure.model.rules import DEFAULT, Rules
from pure.model.state import SHAPES
from pure.model.system import System
from vfio_agent import machine
from vfio_api.types import Goal, Role
from vfio_operator import observed
from vfio_operator import plan as planning
from vfio_operator.actions import Step
from vfio_operator.steps import FORWARD, ROLLBACK

Put = Callable[[Any, str, Any], None]
MOST = 60_000


def without(ladder: tuple[Step, ...], name: str) -> tuple[Step, ...]:
    assert any(step.name == name for step in ladder)
    return tuple(step for step in ladder if step.name != name)


def above(ladder: tuple[Step, ...], name: str, other: str) -> tuple[Step, ...]:
    rest = list(without(ladder, name))
    rest.insert([s.name for s in rest].index(other), next(s for s in ladder if s.name == name))
    return tuple(rest)


@dataclass(frozen=True)
class Mutant:
    """name: what is done wrong. caught: how what it breaks begins. patches: (module, name, what is put there)."""

    name: str
    caught: str
    shape: str = "1-1"
    budget: Budget = NO_FAULTS
    rules: Rules = DEFAULT
    patches: tuple[tuple[Any, str, Any], ...] = ()
    lively: bool = False

    def put_in(self, put: Put) -> None:
        for module, name, value in self.patches:
            put(module, name, value)

    def hunt(self) -> Found:
        """Explore until something breaks; the patches must be in."""
        return explore(System(SHAPES[self.shape], self.budget, self.rules), lively=self.lively, most=MOST)


def ladder(name: str, steps: tuple[Step, ...]) -> tuple[Any, str, Any]:
    return planning, name, steps


def waypoints(role: Role, goal: Goal) -> tuple[Any, str, Any]:
    """Without the first waypoint of a goal."""
    return machine, "WAYPOINTS", {**machine.WAYPOINTS, (role, goal): machine.WAYPOINTS[role, goal][1:]}


def admits(name: str) -> tuple[Any, str, Any]:
    return machine, name, lambda *_: None


_early = above(above(FORWARD, "BarrierD", "Decide"), "BarrierC", "BarrierD")

MUTANTS = (
    Mutant(
        "barrier A skipped by the operator",
        "I3: Source",
        "2-1",
        patches=(ladder("FORWARD", without(FORWARD, "BarrierA")),),
    ),
    Mutant("barrier A skipped within a node", "I3: Source", patches=(waypoints(Role.SOURCE, Goal.STOP_COPY),)),
    Mutant(
        "barrier C skipped by the operator",
        "I3: Target",
        "1-2",
        patches=(ladder("FORWARD", without(FORWARD, "BarrierC")),),
    ),
    Mutant(
        "barrier passed on failure",
        "I3: Source",
        budget=budget(1, stays=1),
        rules=Rules(passes_on_failure=True),
    ),
    Mutant(
        "Commit before the votes",
        "I1: Commit is written",
        patches=(ladder("FORWARD", above(FORWARD, "Decide", "Vote")),),
    ),
    Mutant(
        "RESUMING counted as a vote",
        "I1: Commit is written",
        patches=((observed, "_ORDER", {**observed._ORDER, Goal.LOADED: observed._ORDER[Goal.PREPARED]}),),
    ),
    Mutant(
        "source resumed on timeout without asking",
        "I1: Source",
        budget=budget(1, silence=1),
        rules=Rules(asks=False),
    ),
    Mutant(
        "stale epoch accepted",
        "E: ",
        budget=budget(2, elect=1, late=1),
        rules=Rules(checks_epoch=False),
        patches=(admits("_admit_order"),),
    ),
    Mutant(
        "journal after effect",
        "I4: ",
        budget=budget(1, restart=1),
        rules=Rules(journals_first=False),
        lively=True,
    ),
    Mutant(
        "target started before Commit",
        "I1: Target",
        patches=(ladder("FORWARD", _early), admits("_admit_target")),
    ),
    Mutant(
        "decision written more than once",
        "D: Commit is written over Abort",
        budget=budget(1, silence=1),
        rules=Rules(write_once=False),
    ),
    Mutant(
        "sources released before barrier D",
        "I2: source",
        patches=(ladder("FORWARD", above(FORWARD, "ReleaseSources", "BarrierD")),),
    ),
    Mutant(
        "rollback without its barrier",
        "I3: Source",
        "2-1",
        budget=budget(1, cancel=1),
        patches=(ladder("ROLLBACK", without(ROLLBACK, "RestoreP2P")),),
    ),
    Mutant(
        "voted target blanked without Abort",
        "I2: target",
        budget=budget(1, cancel=1),
        patches=(ladder("ROLLBACK", above(ROLLBACK, "BlankTargets", "Abort")), admits("_admit_target")),
    ),
    Mutant(
        "a vote overwritten by a late Prepared",
        "I2: target",
        budget=budget(2, dup=1, restart=1),
        patches=(admits("_admit_preparation"),),
    ),
    Mutant(
        "a source's loss not journalled before its reset",
        "I4: Failed (",
        budget=budget(2, error=1, restart=1),
        rules=Rules(journals_losses=False),
        lively=True,
    ),
    Mutant(
        "a session made anew by a late command",
        "I4: ",
        budget=budget(1, dup=1),
        rules=Rules(remembers_ends=False),
        lively=True,
    ),
)


@dataclass
class Bench:
    """Puts patches in, and takes them out again."""

    before: list[tuple[Any, str, Any]] = field(default_factory=list)

    def put(self, module: Any, name: str, value: Any) -> None:
        self.before.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def clear(self) -> None:
        while self.before:
            setattr(*self.before.pop())
