"""Downtime against QEMU's, on the same mtty devices in one guest, alternating.

    PYTHONPATH=hack:bench .venv/bin/python bench/qemu.py

What is down is told by one witness for both: the driver's own log, from the first source device that leaves PRE_COPY
or RUNNING to the last target device that enters RUNNING ("devices"); of QEMU its events VFIO_MIGRATION tell the same.
Beside that, QEMU's downtime is what query-migrate says, which ends when the source has sent everything, so that it can
be shorter than what its devices are down for; and from its event STOP to its event RESUME. Ours is the migration's
downtimeMicroseconds.
"""

import json
import sys
import time
from dataclasses import dataclass

import measure
from devtools.guest import WORKLOAD
from devtools.kernel_workload import PORTS
from devtools.mtty_trace import Arc, Outcome, parse_driver_trace
from devtools.mtty_workload import Mark
from devtools.stack import Json, migration
from measure import Result, p50, p99, result
from one_guest import OneGuest, Place, this_folder

ROUNDS = 12
DEVICES = 2
PEER_DEVICES = {
    side: [f"6d747479-00{number}0-4000-8000-{index:012x}" for index in range(DEVICES)]
    for side, number in (("source", "a"), ("target", "b"))
}
RUNS = ("RUNNING", "PRE_COPY")
STRATEGY = {"downtimeLimitMilliseconds": 1000}


@dataclass(frozen=True)
class Round:
    """One migration, in milliseconds. steps: of ours, as the status tells them."""

    downtime: float
    devices: float
    steps: dict[str, float]


def of_devices(arcs: list[Arc], sources: list[str], targets: list[str]) -> float:
    """Milliseconds from the first source that stopped doing P2P to the last target that began to run."""
    taken = [arc for arc in arcs if arc.outcome is Outcome.TAKEN]
    began = [a.time for a in taken if a.device in sources and a.old in RUNS and a.new.endswith("_P2P")]
    ended = [a.time for a in taken if a.device in targets and (a.old, a.new) == ("RUNNING_P2P", "RUNNING")]
    if len(began) < len(sources) or len(ended) < len(targets):
        raise RuntimeError(f"the driver's log has {len(began)} of {len(sources)} stops, {len(ended)} starts: {taken}")
    return (max(ended[-len(targets) :]) - min(began[-len(sources) :])) * 1000


def of_events(events: list[Json]) -> float:
    """The same by QEMU's events."""
    told = [e for e in events if e["event"] == "VFIO_MIGRATION"]
    states = [(float(e["time"]), str(e["side"]), str(e["data"]["device-state"])) for e in told]
    began = [moment for moment, side, state in states if side == "source" and state.endswith("-p2p")]
    ended = [moment for moment, side, state in states if side == "target" and state == "running"]
    return (max(ended) - min(began)) * 1000


def ours(stack: OneGuest, source: Place, target: Place, number: int) -> Round:
    """One migration by this system; the marks must arrive."""
    marks = [
        tuple(Mark((7 * number + n + port) % 256, b"bench%d" % n) for port in range(PORTS)) for n in range(DEVICES)
    ]
    for device, mark in zip(source.devices, marks, strict=True):
        source.workload.mark(device, mark)
    stack.settled(source, target)
    source.workload.log()
    name = f"bench-{time.time_ns()}"
    pairs = [
        (f"tty{n}", source.name, old, target.name, new)
        for n, (old, new) in enumerate(zip(source.devices, target.devices, strict=True))
    ]
    stack.migrate(migration(name, pairs, strategy=STRATEGY))
    stack.wait_until(lambda: _finished(stack.get("vfm", name)), f"{name} is finished", 90)
    status = stack.get("vfm", name)["status"]
    if status["phase"] != "Succeeded":
        raise RuntimeError(f"{name}: {status['message']}")
    arcs = source.workload.arcs()
    stack.settled(target, source)
    found = [target.workload.read(device) for device in target.devices]
    if found != marks:
        raise RuntimeError(f"{name}: wrote {marks}, found {found}")
    steps = {t["step"]: t["durationMicroseconds"] / 1000 for t in status["timings"]}
    return Round(
        status["downtimeMicroseconds"] / 1000, of_devices(arcs, list(source.devices), list(target.devices)), steps
    )


def _finished(found: Json) -> bool:
    conditions = found.get("status", {}).get("conditions", [])
    return ("Finished", "True") in [(each["type"], each["status"]) for each in conditions]


def peer(stack: OneGuest) -> tuple[Round, Json]:
    """One migration by QEMU."""
    witness = stack.places["source"].workload
    witness.log()
    sources, targets = PEER_DEVICES["source"], PEER_DEVICES["target"]
    argv = [sys.executable, "-E", "-S", str(this_folder() / "qemu_peer.py"), ",".join(sources), ",".join(targets)]
    found = json.loads(stack.guest.exec(argv, 150).check().stdout)
    if found["migration"]["status"] != "completed" or found["target"] != "running":
        raise RuntimeError(f"QEMU's migration: {found}")
    at = {event["event"]: event["time"] for event in found["events"] if event["event"] in ("STOP", "RESUME")}
    arcs = parse_driver_trace(witness.log())
    steps = {"STOP to RESUME": (at["RESUME"] - at["STOP"]) * 1000, "VFIO_MIGRATION": of_events(found["events"])}
    return Round(float(found["migration"]["downtime"]), of_devices(arcs, sources, targets), steps), found


def rounds(stack: OneGuest, count: int) -> tuple[list[Round], list[Round], Json]:
    """Alternating; the first of each warm up and do not count. An even number of all: what is measured again begins
    where the first one began.
    """
    mine: list[Round] = []
    theirs: list[Round] = []
    places = stack.places["source"], stack.places["target"]
    last: Json = {}
    warm_up = 1 + (count + 1) % 2
    for number in range(count + warm_up):
        source, target = places if number % 2 == 0 else places[::-1]
        mine.append(ours(stack, source, target, number))
        round_, last = peer(stack)
        theirs.append(round_)
        print(f"{number}: ours {mine[-1].downtime:.1f} ms (devices {mine[-1].devices:.1f}), QEMU "
              f"{theirs[-1].downtime:.0f} ms (STOP to RESUME {theirs[-1].steps['STOP to RESUME']:.1f}, devices "
              f"{theirs[-1].devices:.1f})", flush=True)  # fmt: skip
    return mine[warm_up:], theirs[warm_up:], last


def results(mine: list[Round], theirs: list[Round]) -> list[Result]:
    """The bar, and what it is made of."""
    down, down_peer = [r.downtime for r in mine], [r.downtime for r in theirs]
    made = [
        result(
            "downtime/two-mtty/p50",
            p50(down) / p50(down_peer),
            "x QEMU",
            at_most=0.5,
            peer=f"QEMU {p50(down_peer):g} ms by query-migrate",
            samples=[d / p50(down_peer) for d in down],
        )
    ]
    for who, found in (("ours", mine), ("qemu", theirs)):
        for what, samples in (("whole", [r.downtime for r in found]), ("devices", [r.devices for r in found])):
            made.append(result(f"downtime/two-mtty/{who}/{what}/p50", p50(samples), "ms", samples=samples))
            made.append(result(f"downtime/two-mtty/{who}/{what}/p99", p99(samples), "ms"))
    for step in ("STOP to RESUME", "VFIO_MIGRATION"):
        events, name = [r.steps[step] for r in theirs], f"downtime/two-mtty/qemu/{step.lower().replace(' ', '-')}"
        made.append(result(f"{name}/p50", p50(events), "ms", samples=events))
    own, others = [r.devices for r in mine], p50([r.devices for r in theirs])
    ratios = [each / others for each in own]
    made.append(result("downtime/two-mtty/devices/p50", p50(own) / others, "x QEMU's", samples=ratios))
    return made


def bench(count: int = ROUNDS) -> None:
    """Measure and keep the figures."""
    with OneGuest(DEVICES) as stack:
        for devices in PEER_DEVICES.values():
            stack.guest.exec([sys.executable, "-E", "-S", str(WORKLOAD), "create", *devices]).check()
        mine, theirs, last = measure.undisturbed(lambda: rounds(stack, count), "downtime against QEMU")
    found = results(mine, theirs)
    for each in found:
        print(f"{each.name}: {each.figure} {each.unit} {each.bar}")
    raw = {
        "ours": [vars(r) for r in mine],
        "qemu": [vars(r) for r in theirs],
        "example": last,
    }
    measure.save("qemu", found, raw)


if __name__ == "__main__":
    bench(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
