"""Hand-made stories for the tests of the checker: what a migration looks like when all is well, to be spoilt."""

from dataclasses import dataclass, field, replace

from devtools.faults.history import Event
from devtools.faults.story import Decision, EndState, Story

WALL = 1_000_000.0  # how far the time of day is ahead
Pairs = tuple[tuple[str, str, str, str, str], ...]
RESUMING = ("RUNNING", "RUNNING_P2P", "STOP", "RESUMING")
PAIRS: Pairs = (("gpu0", "a", "s0", "b", "t0"), ("gpu1", "a", "s1", "b", "t1"), ("gpu2", "c", "s2", "d", "t2"))


@dataclass
class Tale:
    """A story as it is told: every event takes a second, and the next one begins when it is over."""

    pairs: Pairs = PAIRS
    now: float = 100.0
    events: list[Event] = field(default_factory=list)
    ports: dict[tuple[str, str], int | None] = field(default_factory=dict)
    states: dict[tuple[str, str], str] = field(default_factory=dict)
    open: set[tuple[str, str]] = field(default_factory=set)
    decision: Decision | None = None
    closed: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        for number, (_, node, device, target_node, target_device) in enumerate(self.pairs):
            self.ports[node, device], self.ports[target_node, target_device] = number, None
            self.states[node, device] = self.states[target_node, target_device] = "RUNNING"
            self.open.add((node, device))

    def source(self, number: int) -> tuple[str, str]:
        return self.pairs[number][1:3]

    def target(self, number: int) -> tuple[str, str]:
        return self.pairs[number][3:5]

    @property
    def sources(self) -> list[tuple[str, str]]:
        return [self.source(n) for n in range(len(self.pairs))]

    @property
    def targets(self) -> list[tuple[str, str]]:
        return [self.target(n) for n in range(len(self.pairs))]

    def arc(self, end: tuple[str, str], new: str, *, errno: int = 0, error: bool = False, took: float = 0.5) -> None:
        """One arc; error: it fails into ERROR."""
        old, after = self.states[end], "ERROR" if error else self.states[end] if errno else new
        if (old, after) == ("RESUMING", "STOP"):
            self.ports[end] = next(n for n, pair in enumerate(self.pairs) if pair[3:5] == end)
        if after == "RESUMING":
            self.ports[end] = None
        self.now += 1
        self._tell(end, "arc", old, new, took=took, errno=errno or 5 * error, state=after)
        self.states[end] = after

    def arcs(self, ends: list[tuple[str, str]], *states: str) -> None:
        """Each state is entered by all before the next one is."""
        for state in states:
            for end in ends:
                self.arc(end, state)

    def take(self, kind: str, end: tuple[str, str]) -> None:
        """open, close or reset."""
        self.now += 1
        old, self.ports[end], self.states[end] = self.states[end], None, "RUNNING"
        if kind != "reset":
            (self.open.add if kind == "open" else self.open.discard)(end)
        self._tell(end, kind, old, "RUNNING", took=0, errno=0, state="RUNNING")

    def _tell(
        self, end: tuple[str, str], kind: str, old: str, new: str, *, took: float, errno: int, state: str
    ) -> None:
        t = self.now
        self.events.append(Event(t, t - took, *end, kind, old, new, errno, self.ports[end], state))

    def decide(self, outcome: str) -> None:
        self.now += 1
        self.decision = Decision(outcome, "operator-0", self.now + WALL)

    def prepare(self) -> None:
        for target in self.targets:
            self.take("open", target)
            self.arcs([target], *RESUMING[1:])
        self.arcs(self.sources, "PRE_COPY")

    def save(self) -> None:
        self.arcs(self.sources, "PRE_COPY_P2P", "STOP_COPY")

    def load(self) -> None:
        self.arcs(self.targets, "STOP")

    def start(self) -> None:
        self.arcs(self.targets, "RUNNING_P2P", "RUNNING")

    def release(self) -> None:
        self.arcs(self.sources, "STOP")
        for source in self.sources:
            self.take("close", source)

    def back(self) -> None:
        self.arcs(self.sources, "STOP", "RUNNING_P2P", "RUNNING")

    def blank(self) -> None:
        for target in self.targets:
            self.take("reset", target)
            self.take("close", target)

    def story(self, phase: str, reason: str = "", **changes: object) -> Story:
        end = {
            end: EndState(state, end in self.open, self.ports[end] is not None, self.ports[end])
            for end, state in self.states.items()
        }
        decisions = (self.decision,) if self.decision else ()
        story = Story(
            self.pairs,
            tuple(self.events),
            self.decision,
            phase,
            reason,
            WALL,
            end,
            closed_by_fault=frozenset(self.closed),
            decisions=decisions,
        )
        return replace(story, **changes)  # type: ignore[arg-type]


def until_the_vote(pairs: Pairs = PAIRS) -> Tale:
    """Every target has loaded, nothing is decided."""
    tale = Tale(pairs)
    tale.prepare()
    tale.save()
    tale.load()
    return tale


def committed(pairs: Pairs = PAIRS) -> Tale:
    """Commit, and no target has been started."""
    tale = until_the_vote(pairs)
    tale.decide("Commit")
    return tale


def moved(pairs: Pairs = PAIRS) -> Tale:
    """A migration that succeeded."""
    tale = committed(pairs)
    tale.start()
    tale.release()
    return tale


def aborted(pairs: Pairs = PAIRS) -> Tale:
    """A migration that came back after every target had voted."""
    tale = until_the_vote(pairs)
    tale.decide("Abort")
    tale.back()
    tale.blank()
    return tale
