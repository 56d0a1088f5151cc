"""docs/performance.md: every bar with its figure, and the plots. Drawn from bench/data, by `make bench` at its end.

PYTHONPATH=hack:bench .venv/bin/python bench/performance.py
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import plots
from measure import DATA, HERE

Json = dict[str, Any]
HEAD = """# Performance

Measured by `make bench` on one machine, and drawn from `bench/data` (do not edit). A figure is a ratio to a peer that
was measured in the same run, or has a fixed limit; medians of alternating rounds where n says of how many. What was
taken while others used the machine was taken again. A bar that is not reached is said to fall short; why is in the
decisions [22](decisions/0022-what-is-done-while-devices-are-down.md),
[23](decisions/0023-what-a-thousand-migrations-may-cost.md) and
[24](decisions/0024-how-much-the-system-may-hold-unsent.md).

"""
# Title and what is to be known to read the figures; in the order in which they are told.
SECTIONS: dict[str, tuple[str, str]] = {
    "qemu": (
        "Downtime beside QEMU's, on the same devices",
        "QEMU 10 migrates two mediated `mtty` devices between two of its processes, this system migrates two of them "
        "between two agents, alternating, in one guest. The guest is emulated (TCG), where an instruction of Python "
        "takes 28 times as long as on the machine itself, and QEMU's own virtual machine is emulated within it. The "
        "bar takes what query-migrate calls QEMU's downtime. That ends when the source has sent everything, before the "
        "target runs: *devices* is what the driver's log tells of both, from the first source that leaves pre-copy to "
        "the last target that runs (*vfio_migration*: the same by QEMU's events). QEMU stops a VM and moves its last "
        "pages meanwhile.",
    ),
    "overhead": (
        "Over the bare minimum",
        "Two nodes, four devices each that cost nothing, a real control plane with fsync. The floor "
        "(`bench/floor.py`) is two round trips on the same kind of streams and the patch of the decision; with two "
        "nodes on each side, where no device may stop before those elsewhere are quiescent, four.",
    ),
    "dataplane": (
        "Transfer",
        "8 GiB of incompressible state from a source that costs nothing, on loopback, over the product's sender and "
        "receiver. TLS 1.3 beside the fastest of `openssl s_client` and `socat` on the same cipher; *plain* is the "
        "same code with a stand-in for TLS, beside iperf3. CPU is of both ends together.",
    ),
    "barrier": (
        "Barriers over many agents",
        "All pairs are one migration. The agents are real and share this machine's two cores in two processes, where "
        "on their own nodes they would work side by side. A bare fan-out sends a message to as many streams, in as "
        "many processes, and waits for every answer; then another one, until the last has it. *operator-b* is how long "
        "the operator waited for the reports of barrier B. Of it 200 ms are the devices': they are made to take so "
        "long until they give their state, or 256 transfers on these cores would be taken for a barrier.",
    ),
    "scale": (
        "The control plane under load",
        "200 agents in two processes, 5,000 `VFIODevice` objects, a real control plane with fsync on the same two "
        "cores. The peer is a bare kopf operator that makes the same writes for the same objects; agents stand still "
        "while it works, as nobody commands them. The thousand were applied once, the two hundred again and again. *At "
        "rest* is an operator that has just started on 10,000 finished migrations; what the one that has moved the "
        "thousand keeps is *memory-after*.",
    ),
    "devices": (
        "More devices (a simulation)",
        "Devices simulated like the published figures of QEMU's multifd series: 100 MiB of state that moves while they "
        "are stopped, and 70 ms to load. QEMU's figures are of real NICs on other machines, and are not to be compared "
        "one to one: what counts is how downtime grows. *Rest* is the downtime without the time in which bytes moved, "
        "*rest-and-hidden-loads* counts loads as well that went on meanwhile: with eight devices bytes move for longer "
        "than with one, and loads of the first pass beside them at no cost.",
    ),
    "prediction": (
        "Predicted and actual downtime",
        "Simulated devices of many sizes and dirty rates over several bandwidth limits. The first six runs, of a "
        "leader that has measured nothing yet, are told apart (*of-a-new-leader*).",
    ),
    "soak": (
        "Soak",
        "Migrations back and forth without a pause for *soak/time*; one in ten is a rehearsal and one in ten is "
        "refused by a device and rolled back. In less than half an hour only large leaks are found.",
    ),
}


def page(results: Iterable[Json], pictures: Iterable[str]) -> str:
    """The page. results: as in bench/results.json. pictures: names of benchmarks that have a plot."""
    by_section: dict[str, list[Json]] = {name: [] for name in SECTIONS}
    for each in results:
        prefix = each["name"].partition("/")[0]
        by_section["qemu" if prefix == "downtime" else prefix].append(each)
    bars = [each for each in results if each["bar"]]
    text = HEAD + "## All bars\n\n" + _table(bars, verdict=True)
    for name, (title, words) in SECTIONS.items():
        found = by_section[name]
        text += f"\n## {title}\n\n{words}\n\n"
        if not found:
            text += "Not measured yet.\n"
            continue
        if name in pictures:
            text += f"![{title}](performance/{name}.svg)\n\n"
        text += _table(found, verdict=False)
    return text


def _table(results: Iterable[Json], *, verdict: bool) -> str:
    rows = ["| | figure | quartiles | bar | peer |" + (" |" if verdict else "")]
    rows.append("|---|---:|---:|---|---|" + ("---|" if verdict else ""))
    for each in results:
        spread = each["spread"]
        quartiles = f"{spread['p25']:g} to {spread['p75']:g} (n {spread['n']})" if spread else ""
        row = f"| {each['name']} | {each['figure']:g} {each['unit']} | {quartiles} | {each['bar']} | {each['peer']} |"
        rows.append(row + (f" {'holds' if each['holds'] else '**falls short**'} |" if verdict else ""))
    return "\n".join(rows) + "\n"


def draw(docs: Path) -> None:
    """Write docs/performance.md and its plots from what is in bench/data and bench/results.json."""
    kept = {path.stem: json.loads(path.read_text()) for path in sorted(DATA.glob("*.json"))}
    pictures = plots.draw({name: each["raw"] for name, each in kept.items()}, docs / "performance")
    results = json.loads((HERE / "results.json").read_text())
    (docs / "performance.md").write_text(page(results, pictures))


if __name__ == "__main__":
    draw(HERE.parent / "docs")
