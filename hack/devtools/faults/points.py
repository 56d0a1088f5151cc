"""The points of a migration at which time is stopped: how each is come to, and what proves that it was."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from devtools.faults.lane import Lane, LaneNode, Pair
from devtools.faults.story import End
from vfio_api.device import DeviceState as S

HOLD_SECONDS = 40.0
PROOF_SECONDS = 2.0  # what is held is held; the others' arcs and the watch for the decision may be a little behind
READ_AFTER_BYTES = 64 * 1024


@dataclass
class Situation:
    """A cell while it is run. The last pair's devices are those that are late where one device is."""

    lane: Lane
    pairs: tuple[Pair, ...]
    name: str
    uid: str = ""
    proof: str = ""
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[End, ...]:
        """Source devices."""
        return tuple((pair[1], pair[2]) for pair in self.pairs)

    @property
    def targets(self) -> tuple[End, ...]:
        """Target devices."""
        return tuple((pair[3], pair[4]) for pair in self.pairs)

    def ends(self, side: str) -> tuple[End, ...]:
        """The devices of a side."""
        return self.sources if side == "source" else self.targets

    def nodes(self, side: str) -> list[LaneNode]:
        """The nodes of a side; the one whose device is late comes first."""
        names = dict.fromkeys(name for name, _ in reversed(self.ends(side)))
        return [self.lane.node(name) for name in names]

    def states(self, side: str) -> str:
        """As "PRE_COPY PRE_COPY_P2P"."""
        return " ".join(self.lane.states(self.ends(side)))


Arc = tuple[S, S]


@dataclass(frozen=True)
class Hold:
    """What is held: an arc, or reading the stream while the device is in a state. last: of the last pair only."""

    side: str
    arc: Arc | None = None
    reading_in: S | None = None
    last: bool = False

    def _ends(self, situation: Situation) -> Sequence[End]:
        ends = situation.ends(self.side)
        return ends[-1:] if self.last else ends

    def arm(self, situation: Situation) -> None:
        """Before the migration begins."""
        for name, address in self._ends(situation):
            control = situation.lane.node(name).control
            if self.arc is not None:
                control.fault(address, "arc", arc=self.arc, hold=True)
            else:
                after = READ_AFTER_BYTES if self.reading_in is S.PRE_COPY else 0
                control.fault(address, "read", hold=True, in_state=self.reading_in, after_bytes=after)

    def reached(self, situation: Situation) -> bool:
        """Wait until everything is held that is to be."""
        return all(
            situation.lane.node(name).control.await_hold(address, HOLD_SECONDS)
            for name, address in self._ends(situation)
        )


Step = Callable[[Situation], bool]


@dataclass(frozen=True)
class Point:
    """sources, targets: states that prove the point ("*" for any). after: what is done once the hold is reached.

    decision: what must be decided there ("" for nothing, "*" for any).
    """

    name: str
    hold: Hold
    sources: str = "*"
    targets: str = "*"
    decision: str = ""
    after: Step = lambda _situation: True
    alone: bool = False  # it disturbs the operator, so that nothing else may run beside it

    def arm(self, situation: Situation) -> None:
        """Before the migration begins."""
        self.hold.arm(situation)

    def reach(self, situation: Situation) -> bool:
        """Wait for it; whether it was reached and proven."""
        if not self.hold.reached(situation) or not self.after(situation):
            situation.proof = ""
            return False
        with contextlib.suppress(TimeoutError):
            situation.lane.wait(lambda: self.prove(situation), self.name, PROOF_SECONDS)
            return True
        return False

    def prove(self, situation: Situation) -> bool:
        """Whether the migration is at this point now."""
        sources, targets = situation.states("source"), situation.states("target")
        decision = situation.lane.arena.witness.decision(situation.uid)
        outcome = decision.outcome if decision else ""
        there = (
            self.sources in ("*", sources)
            and self.targets in ("*", targets)
            and (self.decision == "*" or outcome == self.decision)
        )
        situation.proof = f"sources {sources}; targets {targets}" + (f"; {outcome}" if outcome else "")
        return there

    @staticmethod
    def release(situation: Situation) -> None:
        """Let time go on."""
        for node in (*situation.nodes("source"), *situation.nodes("target")):
            node.release()
        if situation.notes.pop("frozen", None) == "control":
            for node in situation.nodes("target"):
                node.operator_link.clear()
        situation.lane.arena.link.clear()


def _twice(state: str) -> str:
    return f"{state} {state}"


def _intended(situation: Situation) -> bool:
    """The switchover object is there."""
    return any(s["metadata"]["name"] == situation.uid for s in situation.lane.arena.api.switchovers())


def _vote_unheard(situation: Situation) -> bool:
    """The votes are journalled, and what the targets' agents say does not arrive."""
    for node in situation.nodes("target"):
        node.operator_link.freeze(up=True, down=False)
    situation.notes["frozen"] = "control"
    return _load(situation)


def _decision_unheard(situation: Situation) -> bool:
    """The decision is stored, and the answer does not arrive."""
    situation.lane.arena.link.freeze(up=False, down=True)
    if not _load(situation):
        return False
    witness = situation.lane.arena.witness
    situation.lane.wait(lambda: witness.decision(situation.uid) is not None, "the decision is stored", 5)
    return True


def _load(situation: Situation) -> bool:
    name, address = situation.targets[-1]
    situation.lane.node(name).control.release(address)
    situation.lane.wait(lambda: situation.states("target") == _twice("STOP"), "the last target is loaded", 5)
    return True


_QUIESCE = (S.PRE_COPY, S.PRE_COPY_P2P)
_STOP = (S.PRE_COPY_P2P, S.STOP_COPY)
_LOAD = (S.RESUMING, S.STOP)
_START_P2P = (S.STOP, S.RUNNING_P2P)
_START = (S.RUNNING_P2P, S.RUNNING)

POINTS: tuple[Point, ...] = (
    Point("after prepare", Hold("source", (S.RUNNING, S.PRE_COPY)), _twice("RUNNING"), _twice("RESUMING")),
    Point("in pre-copy", Hold("source", reading_in=S.PRE_COPY), _twice("PRE_COPY"), _twice("RESUMING")),
    Point("before pause", Hold("source", _QUIESCE), _twice("PRE_COPY"), _twice("RESUMING"), after=_intended),
    Point("in barrier A", Hold("source", _QUIESCE, last=True), "PRE_COPY_P2P PRE_COPY", _twice("RESUMING")),
    Point("after A", Hold("source", _STOP), _twice("PRE_COPY_P2P"), _twice("RESUMING")),
    Point("in barrier B", Hold("source", _STOP, last=True), "STOP_COPY PRE_COPY_P2P"),
    Point("mid stop-copy", Hold("source", reading_in=S.STOP_COPY), _twice("STOP_COPY"), _twice("RESUMING")),
    Point("before the vote", Hold("target", _LOAD), _twice("STOP_COPY"), _twice("RESUMING")),
    Point("after the vote", Hold("target", _LOAD, last=True), _twice("STOP_COPY"), _twice("STOP"), after=_vote_unheard),
    Point(
        "decision in flight",
        Hold("target", _LOAD, last=True),
        _twice("STOP_COPY"),
        _twice("STOP"),
        "Commit",
        after=_decision_unheard,
        alone=True,
    ),
    Point("after the decision", Hold("target", _START_P2P), _twice("STOP_COPY"), _twice("STOP"), "Commit"),
    Point("in barrier C", Hold("target", _START_P2P, last=True), _twice("STOP_COPY"), "RUNNING_P2P STOP", "Commit"),
    Point("in barrier D", Hold("target", _START, last=True), _twice("STOP_COPY"), "RUNNING RUNNING_P2P", "Commit"),
    Point("before finish", Hold("source", (S.STOP_COPY, S.STOP)), _twice("STOP_COPY"), _twice("RUNNING"), "Commit"),
)
