"""What the checker is told of one migration, and how it looks at it. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from devtools.faults.history import Event

RUNS = frozenset({"RUNNING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"})
QUIESCENT = frozenset({"RUNNING_P2P", "PRE_COPY_P2P"})
STOPPED = frozenset({"STOP", "STOP_COPY"})
DELETED = "Deleted"
TERMINAL = frozenset({"Succeeded", "Failed", "Cancelled", DELETED})
SOURCE_LOST, TARGET_LOST = "SourceStateLost", "TargetLostAfterCommit"
# The time of day is only read to microseconds, and its distance to CLOCK_MONOTONIC is measured.
CLOCK_SECONDS = 0.0005

End = tuple[str, str]
"""(node, device)."""


@dataclass(frozen=True, slots=True)
class Decision:
    """VFIOSwitchover.status.decision; time in seconds since 1970."""

    outcome: str
    by: str
    time: float


@dataclass(frozen=True, slots=True)
class EndState:
    """A device when all was over. marks_ok: what the workload had written into it is there."""

    state: str
    open: bool
    marks_ok: bool
    port: int | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A source device and its target device."""

    name: str
    source: End
    target: End


@dataclass(frozen=True)
class Story:
    """One migration, from when its workload had opened the devices until all was over.

    pairs: (name, source node, source device, target node, target device). events: of all nodes, by t. decisions: every
    decision that was ever seen; more than one is a violation by itself. phase: the last one, or DELETED if the object
    went with its finalizers. wall_minus_monotonic: seconds. lost, doubled, missing: P2P writes, counted from the
    story's beginning. closed_by_fault: (node, device) of devices that the fault itself closed, as when an agent and its
    keeper are both killed.
    """

    pairs: tuple[tuple[str, str, str, str, str], ...]
    events: tuple[Event, ...]
    decision: Decision | None
    phase: str
    reason: str
    wall_minus_monotonic: float = 0.0
    end: dict[End, EndState] = field(default_factory=dict)
    lost: int = 0
    doubled: int = 0
    missing: int = 0
    claims_left: int = 0
    closed_by_fault: frozenset[End] = frozenset()
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise: "I1" to "I4", "P2P" or "Rest", and which device did what when."""

    invariant: str
    message: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.message}"


@dataclass(frozen=True, slots=True)
class Life:
    """A target from when its state was loaded (RESUMING -> STOP) until it was taken away, or to the end.

    ended: the event that took it away: a reset, a close, a new RESUMING, or an arc into ERROR.
    """

    loaded: Event
    arcs: tuple[Event, ...] = ()
    ended: Event | None = None

    def entered(self, states: frozenset[str]) -> Iterator[Event]:
        """Arcs that led into one of `states`."""
        return (arc for arc in self.arcs if not arc.errno and arc.new in states)


class View:
    """A story, looked at from all sides that the rules need."""

    def __init__(self, story: Story):
        self.story = story
        self.pairs = tuple(Pair(name, (sn, sd), (tn, td)) for name, sn, sd, tn, td in story.pairs)
        self.sources = tuple(pair.source for pair in self.pairs)
        self.targets = tuple(pair.target for pair in self.pairs)
        self._of: dict[End, list[Event]] = {}
        for event in sorted(story.events, key=lambda event: event.t):
            self._of.setdefault(event.end, []).append(event)

    def of(self, end: End) -> list[Event]:
        """Events of one device."""
        return self._of.get(end, [])

    def of_all(self, ends: tuple[End, ...]) -> list[Event]:
        """Events of several devices, by t."""
        return sorted((event for end in ends for event in self.of(end)), key=lambda event: event.t)

    def _decided(self, outcome: str) -> float | None:
        decision = self.story.decision
        if decision is None or decision.outcome != outcome:
            return None
        return decision.time - self.story.wall_minus_monotonic

    @cached_property
    def commit(self) -> float | None:
        """When Commit was made, in seconds of CLOCK_MONOTONIC; None: it was not."""
        return self._decided("Commit")

    @cached_property
    def abort(self) -> float | None:
        """When Abort was made, in seconds of CLOCK_MONOTONIC; None: it was not."""
        return self._decided("Abort")

    def committed_by(self, t: float) -> bool:
        """Whether Commit was made by `t`."""
        return self.commit is not None and self.commit <= t + CLOCK_SECONDS

    def aborted_by(self, t: float) -> bool:
        """Whether Abort was made by `t`."""
        return self.abort is not None and self.abort <= t + CLOCK_SECONDS

    def state(self, end: End, t: float) -> str:
        """The state of a device after everything that ended by `t`."""
        events = self.of(end)
        if not events:
            found = self.story.end.get(end)
            return found.state if found else ""
        state = events[0].old
        for event in events:
            if event.t > t:
                break
            state = event.after
        return state

    def port(self, end: End) -> int | None:
        """Who a source device is to its peers, before it is given up; None: nobody."""
        if not self.of(end):  # nothing has happened to it
            return self.story.end[end].port if end in self.story.end else None
        found = [event.port for event in self.of(end) if event.port is not None]
        return found[0] if found else None

    def lives(self, end: End) -> list[Life]:
        """The lives of a target device."""
        lives: list[Life] = []
        arcs: list[Event] = []
        loaded: Event | None = None
        for event in self.of(end):
            if loaded is not None:
                arcs += [event] if event.kind == "arc" else []
                if _takes_away(event):
                    lives.append(Life(loaded, tuple(arcs), event))
                    loaded = None
            elif event.kind == "arc" and (event.old, event.new, event.errno) == ("RESUMING", "STOP", 0):
                loaded, arcs = event, []
        return [*lives, Life(loaded, tuple(arcs))] if loaded is not None else lives

    def ran_all(self, t: float) -> bool:
        """Whether every target had entered RUNNING, with what it had loaded, after Commit and by `t`."""
        return all(
            any(
                arc.t <= t and self.committed_by(arc.t)
                for life in self.lives(target)
                for arc in life.entered(frozenset({"RUNNING"}))
            )
            for target in self.targets
        )

    def fell(self, ends: tuple[End, ...]) -> list[Event]:
        """Events by which devices fell into ERROR."""
        return [event for event in self.of_all(ends) if event.after == "ERROR"]

    def excused(self, end: End) -> bool:
        """Whether what happened to a device is the fault's own doing: it fell into ERROR, or was closed by it."""
        return end in self.story.closed_by_fault or bool(self.fell((end,)))

    def honest(self) -> bool:
        """Whether the terminal reason says that a state was lost, and the trace bears it out."""
        reason, closed = self.story.reason, self.story.closed_by_fault
        if reason == SOURCE_LOST:
            return any(self.excused(source) for source in self.sources)
        if reason == TARGET_LOST:
            failed = [e for e in self.of_all(self.targets) if e.kind == "arc" and e.errno and self.committed_by(e.t)]
            return self.commit is not None and bool(failed or closed & set(self.targets))
        return False


def _takes_away(event: Event) -> bool:
    if event.kind in ("reset", "close", "open"):
        return not event.errno
    return event.kind == "arc" and (event.after == "ERROR" or (event.new == "RESUMING" and not event.errno))
