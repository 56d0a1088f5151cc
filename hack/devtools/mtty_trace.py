"""The driver's own record of what every device did: the kernel log's lines of mtty, parsed.

The kernel, not the program under test, says which device took which arc, when and in what order. The lines
come from ``dev_dbg`` in mtty_step_state(), switched on by the guest's init, and from `devtools.mtty_patch`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

STATES = ("ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P")
"""Names of ``enum vfio_device_mig_state`` in linux/vfio.h, by number."""

# dmesg; or /dev/kmsg, whose records are numbered
_TIME = r"(?:\[\s*(?P<seconds>\d+\.\d+)\]|\d+,(?P<record>\d+),(?P<microseconds>\d+),[^;]*;)"
_LINE = re.compile(
    _TIME + r"\s*\S+ (?P<device>\S+): mtty_step_state: "
    r"(?:(?P<reset>reset )?(?P<old>\d) -> (?P<new>\d)|(?P<done>done)|failed (?P<errno>-\d+) in (?P<left>\d))$",
    re.MULTILINE,
)


class Outcome(StrEnum):
    """How an arc came about, or that it did not."""

    TAKEN = "taken"
    FAILED = "failed"
    RESET = "reset"


@dataclass(frozen=True)
class Arc:
    """One step of one device from state to state; of a multi-step arc each step is one."""

    time: float
    """When the step began, in seconds of the guest's kernel: to be compared within one guest only."""
    device: str
    old: str
    new: str
    outcome: Outcome = Outcome.TAKEN
    left: str = ""
    """If it failed: the state that it left the device in, which is the old one or ERROR."""
    begun: int = field(default=0, compare=False)
    ended: int | None = field(default=None, compare=False)
    """Where in the log it began and ended (the same for a reset); None: it was under way when the log was read."""

    @property
    def after(self) -> str:
        """The state that it ended in."""
        return self.left if self.outcome is Outcome.FAILED else self.new


def parse_driver_trace(text: str) -> list[Arc]:
    """The arcs in the text of ``dmesg`` or ``/dev/kmsg``, in its order; other lines are passed over."""
    arcs: list[Arc] = []
    latest: dict[str, int] = {}
    for number, found in enumerate(_LINE.finditer(text)):
        device, place = found["device"], int(found["record"] or number)
        if found["old"] is not None:
            seconds = float(found["seconds"]) if found["seconds"] else int(found["microseconds"]) / 1e6
            latest[device] = len(arcs)
            arc = Arc(seconds, device, STATES[int(found["old"])], STATES[int(found["new"])], begun=place)
            arcs.append(replace(arc, outcome=Outcome.RESET, ended=place) if found["reset"] else arc)
            continue
        if device not in latest:
            continue  # it began before this text does
        arc = replace(arcs[latest[device]], ended=place)
        if found["errno"] is not None:
            arc = replace(arc, outcome=Outcome.FAILED, left=STATES[int(found["left"])])
        arcs[latest[device]] = arc
    return arcs


def by_device(arcs: list[Arc]) -> dict[str, list[str]]:
    """The states each device went through, from the first arc's old state on; failed arcs are left out."""
    paths: dict[str, list[str]] = {}
    for arc in _happened(arcs):
        paths.setdefault(arc.device, [arc.old]).append(arc.new)
    return paths


def _happened(arcs: list[Arc]) -> Iterator[Arc]:
    return (arc for arc in arcs if arc.outcome is not Outcome.FAILED)
