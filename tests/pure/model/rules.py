"""How the modelled effects behave, and the small things that all modules of the model share."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from pure.model.state import Cmd, Content, Device, Part, Report, S, Sess, Stream
from vfio_api.device import RUNS, MigrationFlags
from vfio_api.types import Command, MigrationKey, Role

KEY = MigrationKey("uid-1", "team", "move")
ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
DISCARD, CLOSE = "discard", "close"


@dataclass(frozen=True)
class Rules:
    """What differs from the default is a mutant, but for bounds and the guard.

    in_flight: reports on a connection. attempts: how often a leader says a thing that fails. reloads: how often it has
    a target load once more. guarded: a leader whose lease is over writes nothing but what is under way already;
    without, it goes on as if it led: no device must be harmed, but the status may be wrong.
    """

    in_flight: int = 1
    attempts: int = 2
    reloads: int = 3
    guarded: bool = True
    checks_epoch: bool = True
    journals_first: bool = True
    journals_losses: bool = True
    passes_on_failure: bool = False
    asks: bool = True
    remembers_ends: bool = True
    write_once: bool = True


DEFAULT = Rules()
Streams = tuple[Stream, ...]
Effects = tuple[tuple[Any, ...], ...]
Change = tuple[Part, Streams, Effects]
Way = tuple[str, Change]  # a kind of fault, "" for none, and what then is


class Step(NamedTuple):
    """What can happen. effects: what the invariants look at. fault: the kind of fault that it takes, "" for none."""

    label: str
    part: Part
    streams: Streams
    effects: Effects = ()
    fault: str = ""


_commands: dict[tuple[Cmd, Role], Command] = {}


def command(cmd: Cmd, role: Role) -> Command:
    found = _commands.get((cmd, role))
    if found is None:
        found = _commands[cmd, role] = Command(
            KEY, role, cmd.goal, cmd.epoch, cmd.sequence, 1000, cmd.decision, attempt=cmd.attempt, again=cmd.again
        )
    return found


def report_of(sess: Sess) -> Report:
    facts = sess.facts
    failure = sess.refused or sess.failure
    return Report(sess.reached, facts.backward, failure, facts.epoch, facts.sequence, facts.lost, facts.attempt)


def tell(part: Part, rules: Rules, *, news: bool = True) -> Part:
    """There is something new to say: as soon as the connection has room, the newest is on its way."""
    if not part.link:
        return part._replace(dirty=False) if part.dirty else part
    if not (news or part.dirty):
        return part
    if len(part.up) >= rules.in_flight:
        return part._replace(dirty=True)
    if part.sess is not None:
        said = report_of(part.sess)
        sess = part.sess._replace(refused=None) if part.sess.refused else part.sess
        return part._replace(sess=sess, up=(*part.up, said), dirty=False)
    if part.last is not None:
        return part._replace(up=(*part.up, part.last), last=None, dirty=False)
    return part._replace(dirty=False)


def taken(device: Device) -> Content:
    """What is left of a device's content when a fault takes it."""
    if device.content is Content.LIVE:
        return Content.LOST
    if device.content is Content.LOADED:
        if device.state is S.RUNNING:
            return Content.DIED
        return Content.FALLEN if device.state in RUNS else Content.LOST
    return device.content


TOOK = (Content.LOST, Content.FALLEN, Content.DIED)


def broken(device: Device) -> Device:
    """Fallen into ERROR: what was in it is lost."""
    return Device(S.ERROR, taken(device), device.open)
