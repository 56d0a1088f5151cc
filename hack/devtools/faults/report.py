"""What came of every cell of the matrix: a table for people, JSON for programs, and one line at the end. Pure."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from devtools.faults.story import TERMINAL, End, Story, View, Violation

_WORKS = frozenset({"RUNNING", "PRE_COPY"})
_COLUMNS = (
    "cell",
    "shape",
    "fired at",
    "phase",
    "reason",
    "decision",
    "s to terminal",
    "s to running",
    "violations",
)


@dataclass(frozen=True, slots=True)
class Result:
    """One cell: a fault at a point of a migration of some shape.

    fired_at: where the fault proved to be when it fired ("": it missed its point). to_terminal, to_running: seconds
    from the fault to the terminal phase, and until all devices of one side ran (again); None: never. error: why the
    cell itself could not be run to its end ("" if it could).
    """

    cell: str
    shape: str
    fired_at: str
    phase: str
    reason: str
    decision: str
    to_terminal: float | None
    to_running: float | None
    violations: tuple[Violation, ...] = ()
    error: str = ""

    @property
    def stuck(self) -> bool:
        """Whether it came to no terminal phase."""
        return self.phase not in TERMINAL

    @property
    def missed(self) -> bool:
        """Whether its fault did not fire where it should have."""
        return not self.fired_at


def running_again(story: Story, since: float) -> float | None:
    """Seconds from `since` (CLOCK_MONOTONIC) until all devices of the side that the decision chose run for good.

    0 if they never ceased to; None if they do not in the end. A device in PRE_COPY runs for all that it does.
    """
    view = View(story)
    side = view.targets if view.commit is not None else view.sources
    off: set[End] = {end for end in side if view.port(end) is None or view.state(end, since) not in _WORKS}
    if view.commit is not None:
        off |= {end for end in side if not any(life.loaded.t <= since for life in view.lives(end))}
    at: float | None = since if not off else None
    for event in view.of_all(side):
        if event.t <= since:
            continue
        if event.after in _WORKS and event.port is not None:
            off.discard(event.end)
            at = event.t if at is None and not off else at
        else:
            off.add(event.end)
            at = None
    return None if at is None else at - since


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that at least `share` (0 to 1) of all do not exceed; None without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def last_line(results: Sequence[Result]) -> str:
    """What the run came to."""
    violations = sum(len(result.violations) for result in results)
    return f"cells: {len(results)}, violations: {violations}, stuck: {sum(result.stuck for result in results)}"


def summary(results: Sequence[Result]) -> dict[str, object]:
    """The figures of a run; times in seconds."""
    running = [result.to_running for result in results if result.to_running is not None]
    terminal = [result.to_terminal for result in results if result.to_terminal is not None]
    return {
        "cells": len(results),
        "missed": sum(result.missed for result in results),
        "errors": sum(bool(result.error) for result in results),
        "violations": sum(len(result.violations) for result in results),
        "stuck": sum(result.stuck for result in results),
        "commit": sum(result.decision == "Commit" for result in results),
        "abort": sum(result.decision == "Abort" for result in results),
        "undecided": sum(not result.decision for result in results),
        "running_p50": percentile(running, 0.5),
        "running_p99": percentile(running, 0.99),
        "running_max": max(running, default=None),
        "terminal_p50": percentile(terminal, 0.5),
        "terminal_p99": percentile(terminal, 0.99),
        "terminal_max": max(terminal, default=None),
    }


def markdown(results: Sequence[Result]) -> str:
    """The table, every violation in full, and the figures; ends with `last_line`."""
    figures = summary(results)
    rows = [_row(result) for result in results]
    widths = [max(len(row[n]) for row in [_COLUMNS, *rows]) for n in range(len(_COLUMNS))]
    lines = [_line(_COLUMNS, widths), _line(["-" * width for width in widths], widths)]
    lines += [_line(row, widths) for row in rows]
    for result in results:
        found = [*map(str, result.violations), *([f"not run to its end: {result.error}"] if result.error else [])]
        lines += [f"\n{result.cell} ({result.shape}):"] if found else []
        lines += [f"- {each}" for each in found]
    lines += [
        "",
        f"decisions: Commit {figures['commit']}, Abort {figures['abort']}, none {figures['undecided']}; "
        f"missed their point: {figures['missed']}; not run to their end: {figures['errors']}",
        f"from the fault to running again: p50 {_shown(figures['running_p50'])}, "
        f"p99 {_shown(figures['running_p99'])}, longest {_shown(figures['running_max'])}",
        f"from the fault to a terminal phase: p50 {_shown(figures['terminal_p50'])}, "
        f"p99 {_shown(figures['terminal_p99'])}, longest {_shown(figures['terminal_max'])}",
        last_line(results),
    ]
    return "\n".join(lines) + "\n"


def to_json(results: Sequence[Result]) -> str:
    """The same for programs."""
    return json.dumps({"summary": summary(results), "cells": [asdict(result) for result in results]}, indent=1) + "\n"


def _row(result: Result) -> list[str]:
    return [
        result.cell,
        result.shape,
        result.fired_at or "MISSED",
        result.phase or "none",
        result.reason or "-",
        result.decision or "none",
        _shown(result.to_terminal),
        _shown(result.to_running),
        ", ".join(sorted({violation.invariant for violation in result.violations})) or "0",
    ]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _shown(seconds: object) -> str:
    return f"{seconds:.3f} s" if isinstance(seconds, float | int) else "never"
