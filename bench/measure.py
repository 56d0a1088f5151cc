"""What every benchmark gives: figures with their bars, and whether they were taken while the machine was quiet."""

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
MOST_NOISE = 0.05  # of all cores, that others may use beside a measurement
QUIET_SECONDS, PATIENCE_SECONDS = 2.0, 600.0
ATTEMPTS = 3
_T = TypeVar("_T")
Json = dict[str, Any]


class NoiseError(RuntimeError):
    """Others used the machine during every attempt."""


@dataclass(frozen=True)
class Spread:
    """How far single figures lie apart: how many there are, their quartiles and extremes."""

    n: int
    low: float
    p25: float
    p75: float
    high: float


@dataclass(frozen=True)
class Result:
    """One figure.

    figure: what was measured, in `unit`. bar: "<= 0.5" or the like; "" for a figure that only informs. holds: None
    without a bar. peer: what it is compared with, measured in the same run. spread: of the figure's samples.
    """

    name: str
    figure: float
    unit: str
    bar: str = ""
    holds: bool | None = None
    peer: str = ""
    spread: Spread | None = None


def result(
    name: str,
    figure: float,
    unit: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    peer: str = "",
    samples: Sequence[float] = (),
) -> Result:
    """A figure and whether it keeps its bar. samples: what it was made of, in its own unit."""
    bar, holds = "", None
    if at_most is not None:
        bar, holds = f"<= {at_most:g}", figure <= at_most
    elif at_least is not None:
        bar, holds = f">= {at_least:g}", figure >= at_least
    return Result(name, _rounded(figure), unit, bar, holds, peer, spread(samples) if samples else None)


def spread(samples: Sequence[float]) -> Spread:
    """Of one sample or more."""
    values = [quantile(samples, q) for q in (0.0, 0.25, 0.75, 1.0)]
    return Spread(len(samples), *(_rounded(value) for value in values))


def _rounded(value: float) -> float:
    """Four digits that count."""
    return value if value == 0 or not math.isfinite(value) else round(value, 3 - math.floor(math.log10(abs(value))))


def quantile(samples: Sequence[float], q: float) -> float:
    """The q-quantile (0 to 1) of one sample or more, interpolated."""
    ordered = sorted(samples)
    at = q * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def p50(samples: Sequence[float]) -> float:
    """The median."""
    return statistics.median(samples)


def p99(samples: Sequence[float]) -> float:
    """The 99th percentile; with less than 100 samples close to the worst of them."""
    return quantile(samples, 0.99)


def save(name: str, results: Sequence[Result], raw: Json) -> None:
    """Keep a benchmark's figures, and what its plots are drawn from, in bench/data."""
    DATA.mkdir(exist_ok=True)
    body = {"results": [asdict(each) for each in results], "raw": raw}
    (DATA / f"{name}.json").write_text(json.dumps(body, indent=1) + "\n")


def await_quiet() -> None:
    """Return once others leave the machine alone. Raises NoiseError if they do not for ten minutes."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        before = _others()
        time.sleep(QUIET_SECONDS)
        if _noise(before) <= MOST_NOISE:
            return
    raise NoiseError(f"others have used this machine for {PATIENCE_SECONDS:g} s: end them, then measure again")


def undisturbed(measure: Callable[[], _T], what: str) -> _T:
    """What `measure` gives when nobody else used the machine meanwhile: what was taken under noise is taken again.

    Raises NoiseError after three attempts.
    """
    for attempt in range(1, ATTEMPTS + 1):
        await_quiet()
        before = _others()
        measured = measure()
        noise = _noise(before)
        if noise <= MOST_NOISE:
            return measured
        print(f"{what}: others used {noise:.0%} of the machine meanwhile: measured again ({attempt})", flush=True)
    raise NoiseError(f"{what}: others used more than {MOST_NOISE:.0%} of the machine in each of {ATTEMPTS} attempts")


@dataclass(frozen=True)
class _Usage:
    """CPU time at a moment, in clock ticks: of all processes that are not ours, by pid; stolen by the host; of nobody
    that is there: what all processes have used, less what ours, the kernel's threads and their ended children have.
    """

    moment: float
    others: dict[int, int]
    stolen: int
    unseen: int


def _others() -> _Usage:
    """What everybody else has used. Ours are this process, and all that it and they have started."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    ended: dict[int, int] = {}  # by children that a process has waited for
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        pid = int(entry.name)
        parents[pid], used[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
        ended[pid] = int(fields[13]) + int(fields[14])

    def ours(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    apart = {1, 2}  # init reaps for everybody; what the kernel does is done for us as well
    others = {p: ticks for p, ticks in used.items() if p not in apart and parents[p] != 2 and not ours(p)}
    user, nice, system, _, _, irq, softirq, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    known = sum(ticks + ended[p] for p, ticks in used.items() if p == 2 or parents[p] == 2 or ours(p))
    return _Usage(time.monotonic(), others, stolen, user + nice + system + irq + softirq - known)


def _noise(before: _Usage) -> float:
    """The share of all cores' time that others have used, or the host has taken, since `before`.

    Of others that have ended meanwhile only `unseen` tells, which is less exact: ticks of all cores against run times.
    """
    now = _others()
    seen = sum(used - before.others.get(pid, 0) for pid, used in now.others.items())
    ticks = max(seen, now.unseen - before.unseen) + now.stolen - before.stolen
    seconds = (now.moment - before.moment) * (os.cpu_count() or 1)
    return ticks / os.sysconf("SC_CLK_TCK") / max(seconds, 1e-6)
