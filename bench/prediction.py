"""How good the predicted downtime is: many sizes, dirty rates and links, several times each.

    PYTHONPATH=hack:bench .venv/bin/python bench/prediction.py [ROUNDS]

One migration of one simulated device at a time, there and back between two nodes, by the whole product with fsync; most
with pre-copy, after which there is little left to be sent, and some without, whose whole state is. What was predicted
is the last forecast before the switchover, on which the decision to begin it was taken; it is compared with the
downtime that followed. The link is the bandwidth limit; a link of 0 is as fast as this machine's cores.

Only migrations that succeeded count, that is those that converged: the others were not stopped at all, so there is no
downtime to compare with. How many these were is a figure of its own. The first three of each way are not among them:
until a leader has measured everything twice (lately, that is within two minutes) it assumes what it has not, and says
so in its forecast. How good these are is a figure of its own, too, without a bar.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import measure
from convergence import MIB, strategy
from devtools.stack import SimulatedDevice
from twonodes import NAMES, TwoNodes, tell, two_nodes

NAME = "prediction"
ROUNDS, FIRST = 3, 3
# size in MiB -> links in MiB/s
LINKS = {1: (32, 256), 16: (32, 128, 256), 128: (64, 128, 256, 0), 512: (128, 256, 0), 2048: (256,)}
DIRTY = (0.0, 0.2, 0.5)  # of the link; of a link without limit: of what is assumed of it
LARGE, DIRTY_OF_LARGE = 2048, (0.0, 0.2)
ASSUMED_LINK = 128
# Without pre-copy, so that the whole state moves in the downtime.
STOPPED = {1: (32, 128, 256), 16: (32, 128, 256), 128: (128, 256, 0)}
ENOUGH_MILLISECONDS = 60_000
SHARE, TOLERANCE, TOLERANCE_MILLISECONDS = 0.9, 0.25, 5.0


@dataclass(frozen=True)
class Case:
    """A device and a link. dirty: MiB per second. link: MiB per second, 0 without a limit. stopped: whether it is
    stopped before anything is copied.
    """

    size_mib: int
    dirty_mib_per_second: int
    link_mib_per_second: int
    stopped: bool = False

    @property
    def address(self) -> str:
        """Of the device that is for this case."""
        return f"s{self.size_mib}-d{self.dirty_mib_per_second}-l{self.link_mib_per_second}"

    def strategy(self) -> dict[str, int | str]:
        """What its migration is told."""
        told: dict[str, int | str] = {**strategy(self.size_mib, (self.link_mib_per_second or ASSUMED_LINK) * MIB)}
        if self.stopped:
            told |= {"preCopy": "Disabled", "downtimeLimitMilliseconds": ENOUGH_MILLISECONDS}
        if not self.link_mib_per_second:
            del told["bandwidthLimitBytesPerSecond"]
        return told


@dataclass(frozen=True)
class Run:
    """One migration that converged, in milliseconds."""

    predicted: float
    actual: float

    @property
    def off(self) -> float:
        """How far the prediction was from what came."""
        return abs(self.predicted - self.actual)

    @property
    def holds(self) -> bool:
        """Whether the prediction was good enough."""
        return self.off <= max(TOLERANCE * self.actual, TOLERANCE_MILLISECONDS)


@dataclass(frozen=True)
class Outcome:
    """How the migration of a case ended. run: None if it did not converge, so that nothing was stopped."""

    case: Case
    reason: str
    run: Run | None


def cases() -> list[Case]:
    """Every combination."""
    stopped = [Case(size, 0, link, stopped=True) for size, links in STOPPED.items() for link in links]
    return stopped + [
        Case(size, int(share * (link or ASSUMED_LINK)), link)
        for size, links in LINKS.items()
        for link in links
        for share in (DIRTY_OF_LARGE if size >= LARGE else DIRTY)
    ]


def migrate(nodes: TwoNodes, case: Case, turn: str, source: str) -> Outcome:
    """Migrate the device of a case from `source`; afterwards it is free on both nodes."""
    target = NAMES[1 - NAMES.index(source)]
    nodes.await_room(target, [case.address])
    nodes.occupy(source, [case.address])
    name = f"{case.address}-{'stopped' if case.stopped else 'copied'}-{turn}"
    moved = nodes.move(name, source, [case.address], case.strategy())
    nodes.free(target if moved.succeeded else source, [case.address])
    nodes.stack.kubectl("delete", "vfm", name)
    if not moved.succeeded:
        return Outcome(case, moved.reason, None)
    if moved.predicted is None or moved.downtime is None:
        raise RuntimeError(f"{name} succeeded without a prediction or a downtime: {moved.status}")
    return Outcome(case, moved.reason, Run(moved.predicted, moved.downtime))


def once(nodes: TwoNodes, turn: str, source: str, part: Sequence[Case]) -> list[Outcome]:
    """Every case once."""
    found = []
    for case in part:
        outcome = migrate(nodes, case, turn, source)
        found.append(outcome)
        run = outcome.run
        shown = f"{run.predicted:.1f} | {run.actual:.1f} | {'yes' if run.holds else 'NO'}" if run else "- | - | -"
        how = "no" if case.stopped else "yes"
        columns = turn, how, case.size_mib, case.dirty_mib_per_second, case.link_mib_per_second, outcome.reason, shown
        print(f"| {' | '.join(map(str, columns))} |", flush=True)
    return found


def results(first: Sequence[Outcome], outcomes: Sequence[Outcome]) -> list[measure.Result]:
    """The share that holds, and how far off the predictions are. first: of a leader that has measured nothing yet."""
    early, runs = ([outcome.run for outcome in some if outcome.run is not None] for some in (first, outcomes))
    if not early or not runs:
        raise RuntimeError(f"{len(early)} of {len(first)} first runs and {len(runs)} of {len(outcomes)} converged")
    off, ratios = [run.off for run in runs], [run.predicted / run.actual for run in runs]
    early_share, share = (sum(run.holds for run in some) / len(some) for some in (early, runs))
    within = "within-25-percent-or-5-ms"
    return [
        measure.result(f"prediction/{within}", share, "of runs", at_least=SHARE, peer="actual downtime"),
        measure.result(f"prediction/of-a-new-leader/{within}", early_share, "of runs"),
        measure.result("prediction/predicted-to-actual", measure.p50(ratios), "x actual", samples=ratios),
        measure.result("prediction/distance", measure.p50(off), "ms", samples=off),
        measure.result("prediction/compared", len(runs), "runs"),
        measure.result("prediction/not-converged", len(outcomes) - len(runs), "runs"),
    ]


def _raw(outcomes: Sequence[Outcome]) -> list[measure.Json]:
    """For the plot; milliseconds."""
    return [{**asdict(each.case), "reason": each.reason, **(asdict(each.run) if each.run else {})} for each in outcomes]


def bench() -> None:
    """Run everything, print a table, save the figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    every = cases()
    by_address = {case.address: case for case in every}
    devices = [SimulatedDevice(a, c.size_mib * MIB, c.dirty_mib_per_second * MIB) for a, c in by_address.items()]
    outcomes: list[Outcome] = []
    with two_nodes(devices) as nodes:
        first = [migrate(nodes, Case(16, 0, 128), f"first-{turn}", source) for turn in range(FIRST) for source in NAMES]
        print("| round | pre-copy | MiB | dirty MiB/s | link MiB/s | outcome | predicted ms | actual ms | holds |")
        print("|---:|---|---:|---:|---:|---|---:|---:|---|")
        for turn in range(count):
            half = len(every) // 2
            for number, part in enumerate((every[:half], every[half:])):
                work = partial(once, nodes, str(turn), NAMES[turn % 2], part)
                outcomes += measure.undisturbed(work, f"round {turn}, part {number}")
    found = results(first, outcomes)
    measure.save(NAME, found, {"simulated": True, "of_a_new_leader": _raw(first), "runs": _raw(outcomes)})
    tell(found)


if __name__ == "__main__":
    bench()
