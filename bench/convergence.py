"""Which states converge, what was predicted and what it took: simulated devices of many sizes and dirty rates.

    make bench-convergence, or: PYTHONPATH=hack .venv/bin/python bench/convergence.py [OUTPUT.json [MOST_MIB]]

One migration at a time between two agents on this machine, by the whole product on a real control plane. The link is
the bandwidth limit, so that the figures are those of a link and not of this machine's cores. For each migration also
how much either agent's resident memory grew, and what one byte of state cost in bytes sent.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from devtools.stack import Node, SimulatedDevice, Stack, migration
from vfio_agent.broker import close_device, request_device

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


def resident(node: Node, *, peak: bool) -> float:
    """MiB that the node's agent has resident, now or at most since `forget_peak`."""
    assert node.agent is not None
    field = "VmHWM:" if peak else "VmRSS:"
    status = Path(f"/proc/{node.agent.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1024


def forget_peak(node: Node) -> None:
    """Let the peak of the resident set begin anew."""
    assert node.agent is not None
    Path(f"/proc/{node.agent.pid}/clear_refs").write_text("5")


def run(stack: Stack, size: int, dirty: int) -> Row:
    """Migrate one device from node-a to node-b, then free both ends."""
    source, target = stack.nodes["node-a"], stack.nodes["node-b"]
    address, called = name(size, dirty), f"converge-{name(size, dirty)}"
    _, fds = request_device(source.broker_socket, address, "bench")
    for fd in fds:  # the keeper holds it
        os.close(fd)
    holds = {"node-a": "workload bench"}
    stack.wait_until(lambda: _held(stack, address, holds), "the source is held")
    before = {node.name: resident(node, peak=False) for node in (source, target)}
    for node in (source, target):
        forget_peak(node)
    strategy = {
        "bandwidthLimitBytesPerSecond": LINK,
        "downtimeLimitMilliseconds": LIMIT_MILLISECONDS,
        "convergenceTimeoutSeconds": int(size * MIB / LINK) + PATIENCE_SECONDS,
    }
    began = time.monotonic()
    made = migration(called, [("d", "node-a", address, "node-b", address)], strategy=strategy)
    stack.kubectl("apply", "-f", "-", input=json.dumps(made))
    stack.kubectl("wait", "--for=condition=Finished", f"vfm/{called}", "--timeout=300s")
    seconds = time.monotonic() - began
    growth = {node.name: resident(node, peak=True) - before[node.name] for node in (source, target)}
    status: dict[str, Any] = stack.get("vfm", called)["status"]
    close_device((target if status["phase"] == "Succeeded" else source).broker_socket, address)
    succeeded = next(c for c in status["conditions"] if c["type"] == "Succeeded")
    return Row(
        size,
        dirty,
        LINK // MIB,
        status["phase"],
        succeeded["reason"],
        round(seconds, 1),
        _milliseconds(status.get("predictedDowntimeMicroseconds")),
        _milliseconds(status.get("downtimeMicroseconds")),
        round(status["progress"]["bytes"] / (size * MIB), 3),
        round(growth["node-a"], 1),
        round(growth["node-b"], 1),
    )


def _milliseconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else round(microseconds / 1000, 1)


def _held(stack: Stack, address: str, holds: dict[str, str]) -> bool:
    shown = {
        d["spec"]["nodeName"]: d.get("status", {}).get("holder", "")
        for d in stack.get("vfd")["items"]
        if d["spec"]["address"] == address
    }
    return all(shown.get(node) == holder for node, holder in holds.items())


def main() -> None:
    """Run every combination and print a table; write it as JSON if asked to."""
    rows = []
    sizes = [size for size in SIZES if size <= int(sys.argv[2])] if len(sys.argv) > 2 else list(SIZES)
    with Stack(["node-a", "node-b"], fsync=True) as stack:
        operator = stack.start_operator()
        for node in ("node-a", "node-b"):
            devices = [SimulatedDevice(name(s, d), s * MIB, d * MIB) for s in sizes for d in DIRTY]
            stack.add_node(node, devices).start_agent()
        operator.wait_for('"event": "leading"')
        stack.devices_published(2 * len(sizes) * len(DIRTY), 60)
        run(stack, sizes[0], 0)  # the first one warms the interpreters up; it is not counted
        stack.kubectl("delete", "vfm", "--all")
        print("| state MiB | dirty MiB/s | outcome | predicted ms | downtime ms | sent/byte | s | RSS +src/+dst MiB |")
        print("|---:|---:|---|---:|---:|---:|---:|---:|")
        for size in sizes:
            for dirty in DIRTY:
                row = run(stack, size, dirty)
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
