"""Migrations there and back without an end, and what the processes have meanwhile: nothing of it may grow.

    SOAK_SECONDS=3600 PYTHONPATH=hack:bench .venv/bin/python bench/soak.py

Four simulated devices, two of which dirty their state while it is copied, go from node-a to node-b and back in one
migration after the other, by the whole product with fsync. One in ten is a rehearsal, and one in ten is refused by a
target device when all of its state is there (an injected fault), so that it is rolled back. Finished ones are deleted
by their ttlSecondsAfterFinished, so that what is at rest does not grow either. Every few seconds the memory, file
descriptors, threads and tasks of the operator, both agents and both keepers are noted.

No growth means, for each process, after the first tenth of the time, in which caches and pools are filled:

- fds, threads and tasks: the median of the last tenth is at most 2 above that of the second tenth. Samples are taken
  in the midst of migrations, so that single ones jitter; what leaks grows by one in every few migrations, hundreds in
  an hour.
- memory: the Theil-Sen slope (the median of the slopes between all pairs of samples; outliers do not move it) of the
  resident set over the last 80 % of the time, extrapolated to an hour, is at most 2 % of the median or 4 MiB, whichever
  is more. In a soak of less than half an hour allocators and pools are still filling up, and a few hundred kilobytes
  would be made many MiB: there, the slope times the soak's own time has that bar, which finds large leaks only.
"""

import itertools
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from errno import EIO

import measure
from devtools.footprint import Footprint, Watched, of_stack
from devtools.stack import SimulatedDevice
from twonodes import NAMES, TwoNodes, tell, two_nodes
from vfio_agent.devices.simulated import SimulatorControl
from vfio_api.device import DeviceState

NAME = "soak"
SECONDS = float(os.environ.get("SOAK_SECONDS", "3600"))
SAMPLES = 360  # about; at least SHORTEST_SECONDS apart
SHORTEST_SECONDS = 2.0
DEVICES = [SimulatedDevice(f"sim{n}", 4 << 20, (n % 2) * (2 << 20)) for n in range(4)]
ADDRESSES = [device.address for device in DEVICES]
KEPT_SECONDS = 20
LONG_SECONDS = 1750.0
JITTER, GROWTH_SHARE, GROWTH_MIB = 2, 0.02, 4.0
PLAIN = ("fds", "threads", "tasks")


@dataclass(frozen=True)
class Sample:
    """What one process has, so many seconds after the beginning, when so many migrations had ended."""

    at: float
    migrations: int
    found: Footprint


class Kind(StrEnum):
    """What a migration is to come to."""

    MOVE = "moves"
    REHEARSAL = "rehearsals"
    REFUSED = "refused and rolled back"


class Sampler:
    """Looks at the processes in a thread of its own; `samples` by process."""

    def __init__(self, processes: Sequence[Watched], every: float):
        self.samples: dict[str, list[Sample]] = {each.name: [] for each in processes}
        self.migrations = 0
        self.failure: Exception | None = None
        self._processes, self._every = processes, every
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._every):
                at = time.monotonic() - self._began
                for each in self._processes:
                    self.samples[each.name].append(Sample(at, self.migrations, each.footprint()))
        except Exception as error:  # told by `close`
            self.failure = error

    def close(self) -> None:
        """Stop. Raises what went wrong meanwhile."""
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure


def soak(nodes: TwoNodes, sampler: Sampler, seconds: float) -> dict[str, int]:
    """Migrate there and back; returns how many there were of each kind. Raises RuntimeError if one ends otherwise."""
    done = dict.fromkeys(Kind, 0)
    place, deadline = 0, time.monotonic() + seconds
    nodes.occupy(NAMES[place], ADDRESSES)
    for number in itertools.count(1):
        kind = {0: Kind.REHEARSAL, 5: Kind.REFUSED}.get(number % 10, Kind.MOVE)
        if kind is Kind.REFUSED:
            target = SimulatorControl(nodes.stack.nodes[NAMES[1 - place]].simulator_socket)
            target.fault(ADDRESSES[0], "arc", arc=(DeviceState.RESUMING, DeviceState.STOP), error=EIO)
        mode = "Rehearse" if kind is Kind.REHEARSAL else "Migrate"
        kept = {"ttlSecondsAfterFinished": KEPT_SECONDS}
        moved = nodes.move(f"soak-{number}", NAMES[place], ADDRESSES, {}, mode=mode, **kept)
        if moved.succeeded is (kind is Kind.REFUSED):
            raise RuntimeError(f"{kind} {number} ended as {moved.status['phase']}: {moved.status['message']}")
        done[kind] += 1
        sampler.migrations = number
        if sampler.failure is not None:  # raised when it is closed
            break
        place = 1 - place if kind is Kind.MOVE else place
        if time.monotonic() > deadline:
            break
    return {kind.value: count for kind, count in done.items()}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil-Sen: the median of the slopes between all pairs of (x, y) points."""
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2) if b[0] > a[0]]
    return measure.p50(slopes)


def between(samples: Sequence[Sample], first: float, last: float) -> list[Sample]:
    """Those of a part of the whole time, in shares of it. Raises ValueError if there are none."""
    end = samples[-1].at
    found = [sample for sample in samples if first * end < sample.at <= last * end]
    if not found:
        raise ValueError(f"no sample between {first:.0%} and {last:.0%} of {end:.0f} s: soak for longer")
    return found


def growth(samples: Sequence[Sample], what: str) -> float:
    """How much more of fds, threads or tasks the last tenth has than the second one."""
    early, late = ([float(getattr(s.found, what)) for s in between(samples, *part)] for part in ((0.1, 0.2), (0.9, 1)))
    return measure.p50(late) - measure.p50(early)


def results(taken: dict[str, list[Sample]]) -> list[measure.Result]:
    """The four figures of every process."""
    found = []
    for process, samples in taken.items():
        name = process.replace(" ", "-")
        for what in PLAIN:
            if samples[0].found.tasks is None and what == "tasks":
                continue  # it has no event loop
            found.append(measure.result(f"soak/{name}/{what}", growth(samples, what), f"more {what}", at_most=JITTER))
        late = between(samples, 0.2, 1)
        memory = [s.found.rss_mib for s in late]
        most = max(GROWTH_SHARE * measure.p50(memory), GROWTH_MIB)
        growing = slope([(s.at, s.found.rss_mib) for s in late])
        if samples[-1].at >= LONG_SECONDS:
            found.append(measure.result(f"soak/{name}/memory", growing * 3600, "MiB per hour", at_most=round(most, 2)))
        else:
            figure = growing * samples[-1].at
            found.append(measure.result(f"soak/{name}/memory-meanwhile", figure, "MiB more", at_most=round(most, 2)))
            found.append(measure.result(f"soak/{name}/memory", growing * 3600, "MiB per hour"))
        found.append(measure.result(f"soak/{name}/resident", measure.p50(memory), "MiB", samples=memory))
    return found


def raw(taken: dict[str, list[Sample]], ends: dict[str, int]) -> measure.Json:
    """For the plots: columns, as they are the smallest."""
    return {
        "simulated": True,
        "seconds": SECONDS,
        "ends": ends,
        "processes": {
            process: {
                "seconds": " ".join(f"{s.at:.0f}" for s in samples),
                "migrations": " ".join(str(s.migrations) for s in samples),
                "rss_mib": " ".join(f"{s.found.rss_mib:.2f}" for s in samples),
                **{
                    what: " ".join(str(getattr(s.found, what)) for s in samples)
                    for what in PLAIN
                    if getattr(samples[0].found, what) is not None
                },
            }
            for process, samples in taken.items()
        },
    }


def bench() -> None:
    """Soak, print the figures, save them."""
    with two_nodes(DEVICES, {"rate_per_second": 50, "latency_us": 500}) as nodes:
        sampler = Sampler(of_stack(nodes.stack, nodes.operator), max(SHORTEST_SECONDS, SECONDS / SAMPLES))
        try:
            ends = soak(nodes, sampler, SECONDS)
        finally:
            sampler.close()
        left = len(nodes.stack.get("vfm")["items"])
    found = results(sampler.samples)
    found.append(measure.result("soak/migrations", sum(ends.values()), "migrations"))
    found.append(measure.result("soak/time", SECONDS, "s"))
    measure.save(NAME, found, raw(sampler.samples, ends))
    print(f"{SECONDS:g} s, {ends}; {left} finished migrations were left")
    tell(found)


if __name__ == "__main__":
    bench()
