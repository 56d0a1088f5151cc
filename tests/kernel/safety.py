"""What the drivers' logs of both guests must show of any one migration, however it ended: I1 and I3 of the design.

`judge` replays both logs, each in the order in which its kernel wrote it, and raises `SafetyError` where a device was
stopped or started before its side had arrived, or where a device lived on at both sides or came back after its state
was handed over. The product's word is not asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from devtools.mtty_trace import Arc, Outcome

RUNS = {"RUNNING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"}
STOPPED_BEHIND = {"RUNNING_P2P", "PRE_COPY_P2P", "STOP_COPY", "STOP"}
"""Where the others of its side may be when a source device is stopped (barrier B behind A)."""
STARTED_BEHIND = {"RUNNING_P2P", "RUNNING"}
"""Where the others of its side may be when a device is let run (barrier D behind C, and on the way back)."""
UNTOUCHED = {"RUNNING", "PRE_COPY"}
"""Where the others may be when a device leaves pre-copy without having been quiesced: nothing was."""


class SafetyError(AssertionError):
    """The log shows what must never be."""


@dataclass
class Traced:
    """One device as the log of its guest shows it, so far."""

    state: str
    fell: str = ""
    """Where it was when it fell into ERROR: arcs of one round go side by side, behind the same barrier."""
    saved: bool = False
    """It has begun to hand its state over: it was stopped for that."""
    back: bool = False
    """It ran on after that, with its state."""
    reset: bool = False
    loaded: bool = False
    """It holds a whole state that was sent to it."""
    ran: bool = False
    """What it was loaded with has left STOP, once."""


@dataclass
class Verdict:
    """Where the workload is: devices of a side run with their state, or do not."""

    sources: dict[str, Traced] = field(default_factory=dict)
    targets: dict[str, Traced] = field(default_factory=dict)

    @property
    def at_source(self) -> bool:
        """Whether every source device runs; one that was reset runs, and has lost its state."""
        return all(device.state == "RUNNING" for device in self.sources.values())

    @property
    def at_target(self) -> bool:
        """Whether every target device runs what it was loaded with."""
        return all(device.state == "RUNNING" and device.loaded and device.ran for device in self.targets.values())

    def lost(self) -> list[str]:
        """Source devices that were reset."""
        return [name for name, device in self.sources.items() if device.reset]


def judge(sources: Sequence[str], sent: Sequence[Arc], targets: Sequence[str], loaded: Sequence[Arc]) -> Verdict:
    """The verdict of one migration: its devices, and the arcs of each guest from before its begin to its end."""
    verdict = Verdict()
    for name in sources:
        verdict.sources[name] = Traced("RUNNING")
    for name in targets:
        first = next((arc.old for arc in loaded if arc.device == name), "RUNNING")
        verdict.targets[name] = Traced(first)
    for arc, over in _replayed(sent):
        (_source_ended if over else _source_begins)(arc, verdict.sources)
    for arc, over in _replayed(loaded):
        (_target_ended if over else _target_begins)(arc, verdict.targets)
    ran = [name for name, device in verdict.targets.items() if device.ran]
    back = [name for name, device in verdict.sources.items() if device.back or device.reset]
    if ran and back:
        raise SafetyError(f"both: {ran} ran what they were loaded with, and the sources {back} ran again")
    if ran and not all(device.saved for device in verdict.sources.values()):
        raise SafetyError(f"both: {ran} ran, and not every source was stopped: {verdict.sources}")
    return verdict


def _replayed(arcs: Sequence[Arc]) -> Iterator[tuple[Arc, bool]]:
    """(arc, False) where it began and (arc, True) where it ended, in the log's order."""
    events = [(arc.begun, 0, arc) for arc in arcs]
    events += [(arc.ended, 1, arc) for arc in arcs if arc.ended is not None]
    for _, over, arc in sorted(events, key=lambda event: event[:2]):
        yield arc, bool(over)


def _others(arc: Arc, side: dict[str, Traced]) -> dict[str, str]:
    return {name: device.fell or device.state for name, device in side.items() if name != arc.device}


def _behind(arc: Arc, side: dict[str, Traced], *allowed: str) -> None:
    """Raise unless all other devices of the side are there already: had arrived, by the log, before this arc began."""
    fallen = {name for name, device in side.items() if device.fell} if "ERROR" in allowed else set()
    judged = _others(arc, side).items()
    strays = {n: side[n].state for n, state in judged if state not in allowed and n not in fallen}
    if strays:
        raise SafetyError(
            f"barrier: {arc.device} {arc.old} -> {arc.new} with {strays}, which is not in {allowed}: {arc}"
        )


def _source_begins(arc: Arc, side: dict[str, Traced]) -> None:
    device = side[arc.device]
    if device.state != arc.old:
        raise SafetyError(f"the log has a hole: {arc.device} was in {device.state}: {arc}")
    if arc.outcome is Outcome.RESET:
        if arc.old != "ERROR":
            raise SafetyError(f"a source was reset that could have gone on: {arc}")
        _behind(arc, side, *STARTED_BEHIND, "ERROR")
    elif arc.new == "STOP_COPY":
        _behind(arc, side, *STOPPED_BEHIND)
        device.saved = True
    elif arc.new == "RUNNING" and arc.old == "PRE_COPY":
        _behind(arc, side, *UNTOUCHED, "ERROR")
    elif arc.new == "RUNNING":
        _behind(arc, side, *STARTED_BEHIND, "ERROR")
    if device.saved and arc.new in RUNS and arc.outcome is not Outcome.RESET:
        device.back = True


def _moved(device: Traced, arc: Arc) -> None:
    device.state = arc.after
    device.fell = arc.old if arc.after == "ERROR" else ""


def _source_ended(arc: Arc, side: dict[str, Traced]) -> None:
    device = side[arc.device]
    _moved(device, arc)
    device.reset = device.reset or arc.outcome is Outcome.RESET


def _target_begins(arc: Arc, side: dict[str, Traced]) -> None:
    device = side[arc.device]
    if device.state != arc.old:
        raise SafetyError(f"the log has a hole: {arc.device} was in {device.state}: {arc}")
    if not device.loaded or arc.outcome is Outcome.RESET:
        return
    if arc.new in RUNS and not all(other.loaded for other in side.values()):
        raise SafetyError(f"{arc.device} leaves STOP before every target is loaded: {arc}")
    if arc.new == "RUNNING":
        _behind(arc, side, *STARTED_BEHIND)
    if arc.new in RUNS and arc.outcome is Outcome.TAKEN:
        device.ran = True


def _target_ended(arc: Arc, side: dict[str, Traced]) -> None:
    device = side[arc.device]
    _moved(device, arc)
    if arc.outcome is Outcome.RESET:
        device.loaded = False
    elif (arc.old, arc.after) == ("RESUMING", "STOP"):
        device.loaded = True
