"""What the simulators wrote down of their devices, as events: the only witness of what happened to a device."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a simulator's trace.

    t, began: its end and its beginning, seconds of CLOCK_MONOTONIC, which all processes of one machine share. kind:
    "arc", "open", "close", "reset" or "start". old, new: state it began in, state it was to lead to. errno: 0 if it
    did. state: what the device was in after it. port: who the device was to its peers after it (None: blank).
    """

    t: float
    began: float
    node: str
    device: str
    kind: str
    old: str
    new: str
    errno: int = 0
    port: int | None = None
    state: str = ""

    @property
    def after(self) -> str:
        """The device's state after the event."""
        return self.state or (self.old if self.errno else self.new)

    @property
    def end(self) -> tuple[str, str]:
        """(node, device)."""
        return self.node, self.device

    def __str__(self) -> str:
        failed = f" (errno {self.errno}, then {self.after})" if self.errno else ""
        what = f"{self.old} -> {self.new}" if self.kind == "arc" else f"{self.kind} in {self.old}"
        return f"{self.node}/{self.device}: {what}{failed} at {self.t:.6f}"


def parse(node: str, lines: Iterable[str]) -> list[Event]:
    """Events of a node's trace lines; a last line that is not complete yet is left out."""
    return [_event(node, json.loads(line)) for line in lines if line.endswith("\n")]


def read(node: str, path: Path, since_line: int = 0) -> list[Event]:
    """Events of a node's trace from line `since_line` (0: the first) on."""
    with path.open(encoding="utf-8") as file:
        return parse(node, list(file)[since_line:])


def count(path: Path) -> int:
    """How many complete lines a trace has: where to read on later."""
    return path.read_bytes().count(b"\n")


def merge(*histories: Iterable[Event]) -> tuple[Event, ...]:
    """The events of all nodes in the order in which they ended; those of one node keep theirs."""
    return tuple(sorted((event for history in histories for event in history), key=lambda event: event.t))


def _event(node: str, line: Mapping[str, Any]) -> Event:
    return Event(
        t=line["t"],
        began=line["began"],
        node=node,
        device=line["device"],
        kind=line["event"],
        old=line["from"],
        new=line["to"],
        errno=line["errno"] or 0,
        port=line["port"],
        state=line["state"],
    )
