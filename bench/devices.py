"""A simulation: the downtime of 1, 2, 4 and 8 devices that are like those of QEMU's multifd series.

    PYTHONPATH=hack:bench .venv/bin/python bench/devices.py [ROUNDS]

The cover letter of that series ("Multifd device state transfer support with VFIO consumer", v3, 2024-11-17, by Maciej
S. Szmigiero) has the downtime of 1, 2 and 4 mlx5 VFs with about 100 MiB of stop-copy state and about 70 ms for the load
of the config space each: QEMU loads one device after the other. Here such devices are simulated: 100 MiB of state that
all moves in the downtime (no pre-copy), and an arc RESUMING -> STOP of 70 ms. What is measured is whether this system
loads them side by side. How fast bytes move is that of this machine's cores, which also play the devices, so it is
taken off:

- "rest" is the downtime without the time from when the sources were stopped until the last byte of the last device was
  acknowledged, as the source's agent measured it (Agent/Transfer). Every moment is taken off once, however many streams
  carry bytes in it.
- A load that passes while another device's bytes are still moving costs nothing in that account. So that nothing hides
  there, "rest-and-hidden-loads" adds every moment in which a load was under way while bytes were still moving
  (by the target simulator's trace of arcs), as if the transfer had waited for it.
- "small": the same devices with 64 KiB of state, where there is nothing worth taking off: the whole downtime.
"""

import json
import sys
from dataclasses import dataclass
from functools import partial

import measure
from devtools.stack import Node, SimulatedDevice
from twonodes import NAMES, Moved, TwoNodes, tell, two_nodes

NAME = "devices"
COUNTS = (1, 2, 4, 8)
ROUNDS, CHUNK = 8, 4
STATE = {"like-mlx5": 100 << 20, "small": 64 << 10}
LOAD_US = 70_000
MOST = 1.3
# 25th percentile, 6 channels; and without the series
QEMU_MULTIFD = {1: 366, 2: 556, 4: 1095}
QEMU_WITHOUT = {1: 487, 2: 859, 4: 1900}
STRATEGY = {"downtimeLimitMilliseconds": 600_000, "switchoverTimeoutSeconds": 300}
Interval = tuple[float, float]


@dataclass(frozen=True)
class Run:
    """One migration, in milliseconds. loads: of every device, from when the transfer began, [begin, end]."""

    kind: str
    devices: int
    downtime: float
    transfer: float
    loads: list[Interval]

    @property
    def rest(self) -> float:
        """Of the downtime, without the time in which bytes moved."""
        return self.downtime - self.transfer

    @property
    def hidden(self) -> float:
        """In how much of the transfer loads of other devices were under way."""
        return sum(end - begin for begin, end in union([(b, min(e, self.transfer)) for b, e in self.loads]))

    @property
    def rest_and_hidden_loads(self) -> float:
        """See the module."""
        return self.rest + self.hidden

    @property
    def side_by_side(self) -> float:
        """How many loads were under way at once, on average."""
        return sum(e - b for b, e in self.loads) / sum(e - b for b, e in union(self.loads))


def union(intervals: list[Interval]) -> list[Interval]:
    """The same moments without overlaps; intervals of no length are left out."""
    merged: list[Interval] = []
    for begin, end in sorted(each for each in intervals if each[1] > each[0]):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def address(kind: str, number: int) -> str:
    """Of a device."""
    return f"{kind}-{number}"


def devices() -> list[SimulatedDevice]:
    """Eight of each kind."""
    return [
        SimulatedDevice(
            address(kind, n), size, flags=("STOP_COPY", "P2P"), model=kind, arc_latencies_us={"RESUMING->STOP": LOAD_US}
        )
        for kind, size in STATE.items()
        for n in range(max(COUNTS))
    ]


def arcs(node: Node, since: int) -> list[dict[str, object]]:
    """What the simulator of a node noted of arcs since its trace was so long."""
    with node.trace.open("rb") as trace:
        trace.seek(since)
        return [json.loads(line) for line in trace.read().decode().splitlines()]


def run(nodes: TwoNodes, kind: str, count: int, name: str, source: str) -> Run:
    """Migrate `count` devices from `source`, and close them at the other node."""
    target = NAMES[1 - NAMES.index(source)]
    addresses = [address(kind, n) for n in range(count)]
    nodes.await_room(target, addresses)
    nodes.occupy(source, addresses)
    there, here = nodes.stack.nodes[target], nodes.stack.nodes[source]
    lengths = here.trace.stat().st_size, there.trace.stat().st_size
    moved = nodes.move(name, source, addresses, STRATEGY)
    if not moved.succeeded:
        raise RuntimeError(f"{name}: {moved.status['message']}")
    made = _run(kind, count, moved, arcs(here, lengths[0]), arcs(there, lengths[1]))
    nodes.free(target, addresses)
    nodes.stack.kubectl("delete", "vfm", name)
    return made


def _run(kind: str, count: int, moved: Moved, here: list[dict[str, object]], there: list[dict[str, object]]) -> Run:
    """Both simulators read the same clock of this machine."""
    began = max(float(str(a["t"])) for a in here if a["event"] == "arc" and a["to"] == "STOP_COPY")

    def since(moment: object) -> float:
        return (float(str(moment)) - began) * 1000

    loads = [
        (since(a["began"]), since(a["t"]))
        for a in there
        if a["event"] == "arc" and (a["from"], a["to"]) == ("RESUMING", "STOP")
    ]
    if len(loads) != count:
        raise RuntimeError(f"{moved.name}: {count} devices, but {len(loads)} loads in the target's trace")
    assert moved.downtime is not None
    return Run(kind, count, moved.downtime, moved.step("Agent/Transfer"), sorted(loads))


def rounds(nodes: TwoNodes, numbers: range) -> list[Run]:
    """Every kind and count once in each round; every other round goes the other way."""
    found = []
    for number in numbers:
        for kind in STATE:
            for count in COUNTS:
                made = run(nodes, kind, count, f"{kind}-{count}-{number}", NAMES[number % 2])
                found.append(made)
                print(
                    f"| {number} | {kind} | {count} | {made.downtime:.0f} | {made.transfer:.0f} | {made.rest:.0f} | "
                    f"{made.hidden:.0f} | {made.side_by_side:.1f} |",
                    flush=True,
                )
    return found


def results(runs: list[Run]) -> list[measure.Result]:
    """Of every kind and count: the downtime and its parts; and how they grow with the number of devices."""
    found = []
    for kind in STATE:
        mine = {count: [r for r in runs if (r.kind, r.devices) == (kind, count)] for count in COUNTS}
        figures = {
            "downtime": {n: [r.downtime for r in each] for n, each in mine.items()},
            "rest": {n: [r.rest for r in each] for n, each in mine.items()},
            "rest-and-hidden-loads": {n: [r.rest_and_hidden_loads for r in each] for n, each in mine.items()},
        }
        for what, samples in figures.items():
            for n, each in samples.items():
                name = f"devices/simulated-{kind}/{n}/{what}"
                found.append(measure.result(name, measure.p50(each), "ms", samples=each))
        together = [r.side_by_side for r in mine[max(COUNTS)]]
        name = f"devices/simulated-{kind}/{max(COUNTS)}/loads-at-once"
        found.append(measure.result(name, measure.p50(together), "loads", samples=together))
    unhidden = _ratio(runs, "like-mlx5", "rest_and_hidden_loads", bar=None)
    return [*found, _ratio(runs, "like-mlx5", "rest"), unhidden, _ratio(runs, "small", "downtime")]


def _ratio(runs: list[Run], kind: str, what: str, bar: float | None = MOST) -> measure.Result:
    """Of the median of eight devices to that of one; its samples are of single rounds."""
    few, most = min(COUNTS), max(COUNTS)
    published = QEMU_MULTIFD[4] / QEMU_MULTIFD[1]
    one, all_ = ([getattr(r, what) for r in runs if (r.kind, r.devices) == (kind, n)] for n in (few, most))
    return measure.result(
        f"devices/simulated-{kind}/{what.replace('_', '-')}-of-{most}-to-{few}",
        measure.p50(all_) / measure.p50(one),
        "x one device",
        at_most=bar,
        peer=f"one simulated device (QEMU's published downtime of 4 VFs is {published:.2f} x that of one)",
        samples=[b / a for a, b in zip(one, all_, strict=True)],
    )


def bench() -> None:
    """Run everything, print a table, save the figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    runs: list[Run] = []
    print("Simulated devices; milliseconds.")
    with two_nodes(devices()) as nodes:
        for kind in STATE:  # these warm the interpreters up, and are not counted
            for source in NAMES:
                run(nodes, kind, 2, f"warm-{kind}-{source}", source)
        print("| round | kind | devices | downtime | transfer | rest | hidden loads | loads at once |")
        print("|---:|---|---:|---:|---:|---:|---:|---:|")
        for first in range(0, count, CHUNK):
            part = range(first, min(first + CHUNK, count))
            runs += measure.undisturbed(partial(rounds, nodes, part), f"rounds {part.start} to {part.stop - 1}")
    found = results(runs)
    raw = {
        "simulated": True,
        "load_ms": LOAD_US / 1000,
        "state_bytes": STATE,
        "qemu_published_p25_ms": {"multifd, 6 channels": QEMU_MULTIFD, "without multifd": QEMU_WITHOUT},
        "runs": [
            {
                "kind": r.kind,
                "devices": r.devices,
                "downtime_ms": round(r.downtime, 1),
                "transfer_ms": round(r.transfer, 1),
                "rest_ms": round(r.rest, 1),
                "hidden_loads_ms": round(r.hidden, 1),
                "loads_ms": [[round(b, 1), round(e, 1)] for b, e in r.loads],
            }
            for r in runs
        ],
    }
    measure.save(NAME, found, raw)
    tell(found)


if __name__ == "__main__":
    bench()
