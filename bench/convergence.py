"""Which states converge, what was predicted and what it took: simulated devices of many sizes and dirty rates.

    make bench-convergence, or: PYTHONPATH=hack .venv/bin/python bench/convergence.py [OUTPUT.json [MOST_MIB]]

One migration at a time between two agents on this machine, by the whole product on a real control plane. The link is
the bandwidth limit, so that the figures are those of a link and not of this machine's cores. For each migration also
how much either agent's resident memory grew, and what one byte of state cost in bytes sent. How good the predictions
are over several links and many runs, and whether that keeps its bar, is what bench/prediction.py measures.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from devtools.footprint import forget_peak, resident_mib
from devtools.stack import SimulatedDevice
from twonodes import NAMES, TwoNodes, two_nodes

MIB = 1 << 20
LINK = 256 * MIB
SIZES = (64, 512, 4096, 8192)
DIRTY = (0, 16, 64, 192, 320)
LIMIT_MILLISECONDS = 300
PATIENCE_SECONDS = 20  # beyond what the first pass takes


@dataclass(frozen=True)
class Row:
    """One migration. Memory is the growth of the resident set at its highest, in MiB."""

    size_mib: int
    dirty_mib_per_second: int
    link_mib_per_second: int
    phase: str
    reason: str
    seconds: float
    predicted_milliseconds: float | None
    downtime_milliseconds: float | None
    sent_per_byte: float
    source_growth_mib: float
    target_growth_mib: float


def name(size: int, dirty: int) -> str:
    """The address of the device of this size and dirty rate."""
    return f"s{size}-d{dirty}"


def strategy(size: int, link: int) -> dict[str, int]:
    """Of a state of so many MiB over a link of so many bytes per second."""
    return {
        "bandwidthLimitBytesPerSecond": link,
        "downtimeLimitMilliseconds": LIMIT_MILLISECONDS,
        "convergenceTimeoutSeconds": int(size * MIB / link) + PATIENCE_SECONDS,
    }


def run(nodes: TwoNodes, size: int, dirty: int) -> Row:
    """Migrate one device from node-a to node-b, then free both ends."""
    address, pids = name(size, dirty), [nodes.agent(node) for node in NAMES]
    nodes.occupy("node-a", [address])
    before = [resident_mib(pid) for pid in pids]
    for pid in pids:
        forget_peak(pid)
    moved = nodes.move(f"converge-{address}", "node-a", [address], strategy(size, LINK))
    source, target = (resident_mib(pid, peak=True) - was for pid, was in zip(pids, before, strict=True))
    nodes.free(NAMES[moved.succeeded], [address])
    return Row(
        size,
        dirty,
        LINK // MIB,
        moved.status["phase"],
        moved.reason,
        round(moved.seconds, 1),
        moved.predicted and round(moved.predicted, 1),
        moved.downtime and round(moved.downtime, 1),
        round(moved.status["progress"]["bytes"] / (size * MIB), 3),
        round(source, 1),
        round(target, 1),
    )


def main() -> None:
    """Run every combination and print a table; write it as JSON if asked to."""
    rows = []
    sizes = [size for size in SIZES if size <= int(sys.argv[2])] if len(sys.argv) > 2 else list(SIZES)
    with two_nodes([SimulatedDevice(name(s, d), s * MIB, d * MIB) for s in sizes for d in DIRTY]) as nodes:
        run(nodes, sizes[0], 0)  # the first one warms the interpreters up; it is not counted
        nodes.stack.kubectl("delete", "vfm", "--all")
        print("| state MiB | dirty MiB/s | outcome | predicted ms | downtime ms | sent/byte | s | RSS +src/+dst MiB |")
        print("|---:|---:|---|---:|---:|---:|---:|---:|")
        for size in sizes:
            for dirty in DIRTY:
                row = run(nodes, size, dirty)
                rows.append(row)
                print(
                    f"| {size} | {dirty} | {row.reason} | {row.predicted_milliseconds} | {row.downtime_milliseconds} | "
                    f"{row.sent_per_byte} | {row.seconds} | {row.source_growth_mib}/{row.target_growth_mib} |",
                    flush=True,
                )
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
