"""The driver's own record of what every device did: the kernel log's lines of mtty, parsed.

The kernel, not the program under test, says which device took which arc, when and in what order. The lines
come from ``dev_dbg`` in mtty_step_state(), switched on by the guest's init, and from `devtools.mtty_patch`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

STATES = ("ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P")
"""Names of ``enum vfio_device_mig_state`` in linux/vfio.h, by number."""

_TIME = r"(?:\[\s*(?P<seconds>\d+\.\d+)\]|\d+,\d+,(?P<microseconds>\d+),[^;]*;)"  # dmesg, /dev/kmsg
_LINE = re.compile(
    _TIME + r"\s*\S+ (?P<device>\S+): mtty_step_state: "
    r"(?:(?P<reset>reset )?(?P<old>\d) -> (?P<new>\d)|failed (?P<errno>-\d+))$",
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


def parse_driver_trace(text: str) -> list[Arc]:
    """The arcs in the text of ``dmesg`` or ``/dev/kmsg``, in its order; other lines are passed over."""
    arcs: list[Arc] = []
    latest: dict[str, int] = {}
    for found in _LINE.finditer(text):
        device = found["device"]
        if found["errno"] is not None:
            if device in latest:
                arcs[latest[device]] = replace(arcs[latest[device]], outcome=Outcome.FAILED)
            continue
        seconds = float(found["seconds"]) if found["seconds"] else int(found["microseconds"]) / 1e6
        outcome = Outcome.RESET if found["reset"] else Outcome.TAKEN
        latest[device] = len(arcs)
        arcs.append(Arc(seconds, device, STATES[int(found["old"])], STATES[int(found["new"])], outcome))
    return arcs


def by_device(arcs: list[Arc]) -> dict[str, list[str]]:
    """The states each device went through, from the first arc's old state on; failed arcs are left out."""
    paths: dict[str, list[str]] = {}
    for arc in _happened(arcs):
        paths.setdefault(arc.device, [arc.old]).append(arc.new)
    return paths


def _happened(arcs: list[Arc]) -> Iterator[Arc]:
    return (arc for arc in arcs if arc.outcome is not Outcome.FAILED)
