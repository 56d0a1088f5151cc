"""What a state of the model is made of: immutable, hashable, and without what makes no difference.

A state is a tuple of small numbers, one for each component, and a component is stored once (`Table`). So a state is
cheap to hash and to compare, and what a component does by itself is worked out once for each of its values.

Left out, since no rule looks at them: messages for people, sizes, rates, times. Numbers of commands: `next_number`
gives the lowest that is above the last one of its leader and not below its goal's rank. Only their order counts, and
this keeps the order of every command of one leader to one participant; so runs that differ in nothing but how many
commands there were come to the same state.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from vfio_agent.machine import SessionFacts
from vfio_api.device import DeviceState
from vfio_api.errors import Reason
from vfio_api.models_status import Phase
from vfio_api.types import Goal, Outcome, Role
from vfio_operator.observed import Pair

S = DeviceState


class Content(IntEnum):
    """What a device has in it."""

    BLANK = 0
    LIVE = 1  # the workload's state, in the source device that it began in
    LOADED = 2  # the workload's state, in the target device
    LOST = 3  # it had a state that counted, and a fault took it; a target had not left STOP with it
    FALLEN = 4  # a target that had left STOP, and was taken by a fault before it was RUNNING
    DIED = 5  # at a target that was RUNNING, or a source that was RUNNING again: no longer a matter of the migration


class Stream(IntEnum):
    """A pair's data stream. DONE: the target has taken every byte, and said so."""

    NONE = 0
    OPEN = 1
    DONE = 2
    BROKEN = 3


class Device(NamedTuple):
    """late: an arc under way that outlived the deadline of its command, and where it leads."""

    state: DeviceState
    content: Content
    open: bool
    late: DeviceState | None = None


class Cmd(NamedTuple):
    """A command under way. own: the agent's to itself, when it finishes alone."""

    goal: Goal
    decision: Outcome | None
    epoch: int
    sequence: int
    attempt: int = 0
    again: tuple[str, ...] = ()
    own: bool = False


class Report(NamedTuple):
    """A session as its agent told it; reached None and no failure: nothing yet."""

    reached: Goal | None
    backward: bool
    failure: Reason | None
    epoch: int
    sequence: int
    lost: tuple[str, ...] = ()
    attempt: int = 0


class Job(NamedTuple):
    """A command being carried out. rounds None: what comes before them is still to be done, or what comes after it has
    failed; the devices' locks are waited for. failed: a move of this round was, or the whole command.
    """

    cmd: Cmd
    rounds: tuple[tuple[str, tuple[tuple[int, DeviceState | str], ...]], ...] | None
    failed: Reason | None = None


class Asking(IntEnum):
    """What a session does by itself after silence."""

    NO = 0
    ASKS = 1  # for Abort, or what was decided
    FINISHES = 2  # alone, as the decision wants it


class Sess(NamedTuple):
    """A session. disk: its facts as they are in the journal, durable: as they are in the part that outlives a reboot.

    Of each device a bit: loaded, of those that are validated; senders, of a source's that have a stream of this
    process; serves, of a target's for which this process lets a stream in; ran, of a target's that this process has
    seen leave STOP. final and interrupted: a source's streams were told to go on to the end, or called off. listening:
    a target lets streams in. held: it drives its devices (those that are open); known: their openings are in the
    journal. left: an earlier process was told to leave STOP. sent_again: the last attempt to send once more that came
    to its end.
    """

    facts: SessionFacts
    disk: SessionFacts | None = None
    durable: SessionFacts | None = None
    reached: Goal | None = None
    failure: Reason | None = None
    job: Job | None = None
    queue: tuple[Cmd, ...] = ()
    loaded: int = 0
    senders: int = 0
    serves: int = 0
    ran: int = 0
    final: bool = False
    interrupted: bool = False
    listening: bool = False
    held: bool = False
    known: bool = False
    left: bool = False
    sent_again: int = 0
    asking: Asking = Asking.NO
    tries: int = 0
    refused: Reason | None = None


class Part(NamedTuple):
    """A participant: one agent with its session, its devices and its connection.

    epoch: the highest it has seen, on disk. link: the epoch of the leader it is connected to, 0 for none. down and up:
    what is under way. dirty: there is something new to report. last: what is still to be said of a session that ended
    or never began. limbo: commands that the network holds up. lossy: the connection has lost a message.
    """

    epoch: int = 0
    sess: Sess | None = None
    devices: tuple[Device, ...] = ()
    link: int = 0
    down: tuple[Cmd, ...] = ()
    up: tuple[Report, ...] = ()
    dirty: bool = False
    last: Report | None = None
    limbo: tuple[Cmd, ...] = ()
    lossy: bool = False
    full: bool = False
    ended: tuple[int, int] = (0, 0)


class Sent(NamedTuple):
    """What the leader said last to a participant on the present connection, and how often."""

    goal: Goal
    decision: Outcome | None
    epoch: int
    sequence: int
    attempt: int
    attempts: int


class Seen(NamedTuple):
    """What a leader knows of a participant. reloads: how often it was told to load once more."""

    linked: bool = False
    sent: Sent | None = None
    report: Report | None = None
    sequence: int = 0
    reloads: int = 0


class Lead(NamedTuple):
    """A leader's task of the migration. recalled: it has read what is stored. left: it ends what is left of it."""

    epoch: int
    seen: tuple[Seen, ...]
    recalled: bool = False
    finalizer: bool = False
    pairs: bool = False
    authorized: bool = False
    claims: bool = False
    exists: bool = False
    decision: Outcome | None = None
    by: str = ""
    failure: Reason | None = None
    recorded: Reason | None = None
    exhausted: bool = False
    inherited: bool = False
    cancel: bool = False
    left: bool = False
    done: bool = False


class Etcd(NamedTuple):
    """What is stored. claims: a bit for each participant. terminal: phase and reason."""

    finalizer: bool = False
    pairs: bool = False
    claims: int = 0
    exists: bool = False
    decision: Outcome | None = None
    by: str = ""
    failure: Reason | None = None
    cancel: bool = False
    terminal: tuple[Phase, Reason | None] | None = None


class World(NamedTuple):
    """Every component by its number; parts is open-ended, so they come last as one tuple."""

    etcd: int
    lead: int
    zombie: int
    streams: int
    budget: int
    parts: tuple[int, ...]


class Table:
    """Each value once, by number; 0 is None."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {None: 0}
        self.values: list[Any] = [None]

    def __call__(self, value: Any) -> int:
        number = self._numbers.get(value)
        if number is None:
            number = self._numbers[value] = len(self.values)
            self.values.append(value)
        return number


@dataclass(frozen=True)
class Place:
    """A participant of a shape: its node, its side, and which pairs have their device there."""

    node: str
    role: Role
    pairs: tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """Which pairs lie where. Source and target nodes are different ones."""

    name: str
    pairs: tuple[Pair, ...]
    places: tuple[Place, ...]

    def side(self, role: Role) -> tuple[int, ...]:
        return tuple(n for n, place in enumerate(self.places) if place.role is role)


def shape(name: str, sources: str, targets: str) -> Shape:
    """A pair for each letter: its source node in `sources`, its target node in `targets`."""
    pairs = tuple(
        Pair(f"gpu{n}", s, f"g{n}", t, f"h{n}") for n, (s, t) in enumerate(zip(sources, targets, strict=True))
    )
    places = [
        Place(node, role, tuple(n for n, letter in enumerate(letters) if letter == node))
        for role, letters in ((Role.SOURCE, sources), (Role.TARGET, targets))
        for node in sorted(set(letters))
    ]
    return Shape(name, pairs, tuple(places))


SHAPES = {
    s.name: s
    for s in (
        shape("1-1", "aa", "cc"),
        shape("2-1", "ab", "cc"),
        shape("1-2", "aa", "cd"),
        shape("2-2", "ab", "cd"),
        shape("3 pairs 2-2", "aab", "cdd"),
    )
}

_RANK = {
    goal: number
    for number, goal in enumerate(
        (Goal.PREPARED, Goal.PRE_COPY, Goal.QUIESCED, Goal.STOP_COPY, Goal.RUNNING_P2P, Goal.RUNNING, Goal.RELEASED), 1
    )
}


def next_number(last: int, goal: Goal) -> int:
    return max(last + 1, _RANK[goal])
