"""The phase timeline of a migration as bars to scale, from `status.timings`. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# While the plan is at these steps the workload is down.
DOWN_STEPS = ("BarrierA", "BarrierB", "Vote", "Decide", "BarrierC", "BarrierD")
AGENT = "Agent/"
WORDS = {
    "Authorize": "ask for rights",
    "FindPod": "look for the pod",
    "AwaitInventory": "await inventory",
    "AwaitAgents": "await next agents",
    "AwaitTurn": "wait for its turn",
    "AddFinalizer": "accept",
    "PersistPairs": "plan",
    "Claim": "claim devices",
    "TargetPod": "start the counterpart",
    "PrepareSources": "prepare sources",
    "PrepareTargets": "prepare targets",
    "PreCopy": "connect streams",
    "Converge": "pre-copy",
    "BeginSwitchover": "record the intent",
    "ReloadTargets": "prepare targets once more",
    "ResendSources": "send once more",
    "AwaitReady": "counterpart gets ready",
    "KeepPod": "counterpart is kept",
    "SwitchPods": "pods change places",
    "ReleaseSources": "release sources",
    "SourceEnds": "source pod ends",
    "ReleaseTargets": "hand targets over",
    "Unclaim": "drop claims",
    "Abort": "record the abort",
    "RestoreP2P": "sources RUNNING_P2P",
    "Restore": "sources RUNNING",
    "RecordFailure": "record the failure",
    "BlankTargets": "reset targets",
    "EndSources": "end source sessions",
    "ReleasePods": "delete the counterpart",
    "Rehearsed": "record the rehearsal",
    "LeavePreCopy": "leave pre-copy",
    "RestP2P": "what is left RUNNING_P2P",
    "RestRuns": "what is left RUNNING",
}
LABEL_WIDTH, DURATION_WIDTH, MARGIN = 26, 8, 2


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: what lasted from `start` for `duration` microseconds. down: the workload was down meanwhile."""

    label: str
    start: int
    duration: int
    down: bool = False

    @property
    def end(self) -> int:
        """When it ended, in microseconds."""
        return self.start + self.duration


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a chart, in the parts that are coloured differently."""

    label: str
    picture: str
    duration: str = ""
    down: bool = False

    @property
    def text(self) -> str:
        """The whole line."""
        return f"{' ' * MARGIN}{self.label:<{LABEL_WIDTH}}{self.picture}{self.duration:>{DURATION_WIDTH}}".rstrip()


def duration_text(microseconds: int) -> str:
    """Three digits and a unit."""
    if microseconds < 1000:
        return f"{microseconds} us"
    value, unit = (microseconds / 1e3, "ms") if microseconds < 999_500 else (microseconds / 1e6, "s")
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{digits}f} {unit}"


def operator_steps(timings: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """The operator's steps, one after the other; each begins where the one before it ended, on one clock."""
    bars: list[Bar] = []
    for timing in timings:
        if not timing["step"].startswith(AGENT):
            start = bars[-1].end if bars else 0
            step = timing["step"]
            bars.append(Bar(step, start, int(timing["durationMicroseconds"]), step in DOWN_STEPS))
    return bars


def overview(timings: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """The whole migration, with all that is downtime as one bar."""
    bars: list[Bar] = []
    for step in operator_steps(timings):
        if step.down and bars and bars[-1].down:
            bars[-1] = Bar("SWITCHOVER", bars[-1].start, bars[-1].duration + step.duration, True)
        else:
            label = "SWITCHOVER" if step.down else WORDS.get(step.label, step.label)
            bars.append(Bar(label, step.start, step.duration, step.down))
    return bars


def switchover(timings: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """What happened within the downtime; 0 is its beginning. Empty if there was none.

    Agents publish how long their steps took, not when: no clock of one node is compared with another's. So their bars
    have true lengths, and lie as early as their order within the operator's steps allows.
    """
    down = {bar.label: bar for bar in operator_steps(timings) if bar.down}
    if not down:
        return []
    zero = min(bar.start for bar in down.values())
    took = {
        t["step"].removeprefix(AGENT): int(t["durationMicroseconds"]) for t in timings if t["step"].startswith(AGENT)
    }
    windows = {name: Bar(name, bar.start - zero, bar.duration, True) for name, bar in down.items()}
    stop = _stop(took, windows)
    return [*stop, *_vote(stop, windows), *_decide(windows), *_start(took, windows)]


def _stop(took: Mapping[str, int], windows: Mapping[str, Bar]) -> list[Bar]:
    """The pause, barriers A and B, the rest of the state, its load."""
    bars, now = [], 0
    for name, label in (("Pause", "   pause the workload"), ("BarrierA", "A  sources quiesce P2P")):
        if name in took:
            bars.append(Bar(label, now, took[name], True))
            now = bars[-1].end
    stop = windows.get("BarrierB", Bar("", 0, 0))
    now = max(now, stop.start)
    if "BarrierB" in took:
        bars.append(Bar("B  sources STOP_COPY", now, took["BarrierB"], True))
        now = bars[-1].end
    if "Transfer" in took:  # counted from the command, so it includes the arcs
        end = max(now, stop.start + took["Transfer"])
        bars.append(Bar("   send the rest of state", now, end - now, True))
        now = end
    if "Load" in took:  # the decision waits for it, but a source may be told of its end later
        latest = windows["Decide"].start - took["Load"] if "Decide" in windows else now
        bars.append(Bar("   load, validate, vote", max(0, min(now, latest)), took["Load"], True))
    return bars


def _vote(before: Sequence[Bar], windows: Mapping[str, Bar]) -> list[Bar]:
    """From the last of the targets' loads to the decision: what is on its way, and the operator itself."""
    if "Decide" not in windows or not before:
        return []
    begin, end = max(bar.end for bar in before), windows["Decide"].start
    return [Bar("   votes on their way", begin, end - begin, True)] if end > begin else []


def _decide(windows: Mapping[str, Bar]) -> list[Bar]:
    decide = windows.get("Decide")
    return [Bar("   decision stored: Commit", decide.start, decide.duration, True)] if decide else []


def _start(took: Mapping[str, int], windows: Mapping[str, Bar]) -> list[Bar]:
    """Barriers C and D, and the resume; on one target node C is passed there, within the operator's step D."""
    bars: list[Bar] = []
    now = 0
    for name, label in (("BarrierC", "C  targets RUNNING_P2P"), ("BarrierD", "D  targets RUNNING")):
        now = max(now, windows[name].start if name in windows else 0, windows["BarrierD"].start if bars else 0)
        if name in took and "BarrierD" in windows:
            begin = now or windows["BarrierD"].start
            bars.append(Bar(label, begin, took[name], True))
            now = bars[-1].end
    if "Resume" in took and bars:
        bars.append(Bar("   resume the workload", now, took["Resume"], True))
    return bars


def chart(bars: Sequence[Bar], width: int, *, total: int = 0, ascii_only: bool = False) -> list[Row]:
    """The bars to scale with an axis below, in lines of at most `width` columns.

    `total` microseconds fill the width; by default the end of the last bar.
    """
    if not bars:
        return []
    total = max(total, *(bar.end for bar in bars), 1)
    cells = max(10, width - MARGIN - LABEL_WIDTH - DURATION_WIDTH)
    rows = [
        Row(bar.label[:LABEL_WIDTH], _picture(bar, total, cells, ascii_only), duration_text(bar.duration), bar.down)
        for bar in bars
    ]
    return [*rows, *_axis(total, cells, ascii_only)]


def _picture(bar: Bar, total: int, cells: int, ascii_only: bool) -> str:
    """`cells` columns with the bar in it, to half a column; nothing is too short to be seen."""
    halves = 2 * cells
    first = min(halves - 1, round(bar.start * halves / total))
    last = min(halves, max(first + 1, round(bar.end * halves / total)))
    glyphs = (" ", "#", "#", "#") if ascii_only else (" ", "▌", "▐", "█")
    line = ""
    for cell in range(cells):
        left, right = first <= 2 * cell < last, first <= 2 * cell + 1 < last
        line += glyphs[left + 2 * right]
    return line


def _axis(total: int, cells: int, ascii_only: bool) -> list[Row]:
    """A line with ticks and the line with their times."""
    step = _nice(total / max(2, cells // 9))
    line = ["-" if ascii_only else "─"] * cells
    words = [" "] * (cells + DURATION_WIDTH)
    for number in range(int(total // step) + 1):
        at = min(cells - 1, round(number * step * cells / total))
        line[at] = "+" if ascii_only else "┴"
        word = _tick(number * step, step)
        words[at : at + len(word)] = word
    return [Row("", "".join(line)), Row("", "".join(words[: cells + DURATION_WIDTH]).rstrip())]


def _nice(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not less than `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)


def _tick(at: float, step: float) -> str:
    if at == 0:
        return "0"
    unit, name = (1e6, "s") if step >= 1e5 else (1e3, "ms")
    return f"{at / unit:g} {name}"
