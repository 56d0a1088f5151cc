"""The control plane under load: 1,000 migrations at once, 10,000 finished ones at rest, 200 agents, 5,000 devices.

    make bench-scale, or: PYTHONPATH=hack:bench:tests .venv/bin/python bench/scale.py

Real control plane with fsync; the operator as it is shipped with its limits set high; agents of bench/fleet.py, whose
devices cost nothing. API writes are counted in the API server's audit log. The peer (bench/kopf_peer.py) makes the same
writes for the same objects on the same control plane, in turn with ours. In ours the agents and their data streams
share the machine; while it is the peer's turn they are stopped (SIGSTOP), as there is no operator for them to look for.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import audit
import measure
from audit import AGENT, OPERATOR, Entry
from devtools.processes import Child
from devtools.stack import NAMESPACE, python_path
from ground import (
    AS_SHIPPED,
    HIGH,
    SETTLE_SECONDS,
    STRATEGY,
    Ground,
    Size,
    Tail,
    create,
    create_finished,
    ground,
    started,
)
from measure import Result

NAME = "scale"
HERE = Path(__file__).resolve().parent
REST_SECONDS = 60.0
# How long pre-copy takes at the limited rate, and how long a standby is given to see what there is.
HELD_SECONDS, STANDBY_SECONDS = 60, 3.0
MOST_WRITES, MOST_MEBIBYTES, MOST_CORE, MOST_RATIO = 12, 250, 0.01, 1.5
Json = dict[str, Any]


# --- 1,000 at once --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drain:
    """Many migrations applied at once. seconds: from the first that was asked for to the last one's last write."""

    seconds: float
    each: tuple[float, ...]
    entries: tuple[Entry, ...]
    cpu_seconds: float

    def writes(self, user: str = "", *resources: str) -> int:
        """How many writes there were of migrations, switchovers and devices; by one, and of one kind."""
        return sum(
            1 for e in self.entries if e.writes and user in ("", e.user) and (not resources or e.resource in resources)
        )


def drain(ground: Ground, child: Child, text: bytes, bodies: Sequence[Json]) -> Drain:
    """Apply `bodies` at once, and wait until `child` has said `text` for each."""
    count = len(bodies)
    mark, tail, used = ground.audit.mark(), Tail(child, text), cpu_seconds(child.pid)
    asyncio.run(create(ground.stack.plane.kubeconfig, bodies))
    tail.wait(count, 240)
    used = cpu_seconds(child.pid) - used
    time.sleep(3)  # the audit log is written a second later, and agents publish
    entries = ground.audit.since(mark)
    whole = audit.whole(entries)
    if len(whole) != count:
        raise RuntimeError(f"the audit log has {len(whole)} of {count} migrations")
    began, ended = (min(b for b, _ in whole.values()), max(e for _, e in whole.values()))
    return Drain(ended - began, tuple(sorted(e - b for b, e in whole.values())), tuple(entries), used)


def check(ground: Ground, bodies: Sequence[Json], found: Drain) -> None:
    """That every migration is right: succeeded, each device claimed and released once. Raises RuntimeError."""
    there = {m["metadata"]["name"]: m for m in ground.stack.get("vfm")["items"]}
    for body in bodies:
        phase = there[body["metadata"]["name"]].get("status", {}).get("phase")
        if phase != "Succeeded":
            raise RuntimeError(f"{body['metadata']['name']}: {phase}: {there[body['metadata']['name']]['status']}")
    times = Counter(audit.claims(found.entries).values())
    if times != {2: 2 * len(bodies)}:
        raise RuntimeError(f"changes of claims by device: {dict(times)}, expected 2 of each of {2 * len(bodies)}")


def ours(ground: Ground, operator: Child, count: int, label: str) -> Drain:
    """This product."""
    bodies = ground.wanted(count, label)
    found = drain(ground, operator, b'"event": "finished"', bodies)
    check(ground, bodies, found)
    ground.moved(count)
    return found


def peers(ground: Ground, plan: Json, count: int, label: str) -> Drain:
    """The bare kopf operator, on objects of the same kind; nobody else works meanwhile."""
    stack = ground.stack
    kubeconfig, said = stack.dir / "peer.kubeconfig", stack.dir / "peer.json"
    stack.plane.service_account_kubeconfig(NAMESPACE, "vfio-operator", kubeconfig)
    said.write_text(json.dumps(plan))
    argv = [sys.executable, str(HERE / "kopf_peer.py"), "--plan", str(said)]
    env = {**python_path(), "KUBECONFIG": str(kubeconfig)}
    ground.fleet.signal(signal.SIGSTOP)
    try:
        child = Child("kopf peer", argv, stack.dir / "peer.log", env, "peer ready")
        try:
            return drain(ground, child, b"peer finished", ground.wanted(count, label, peer=True))
        finally:
            child.stop()
    finally:
        ground.fleet.signal(signal.SIGCONT)


def both(ground: Ground, plan: Json, count: int) -> tuple[Drain, Drain]:
    """Ours, by an operator that has just started, and the peer's."""
    operator = started(ground)
    try:
        found = ours(ground, operator, count, "few")
    finally:
        operator.stop()
    return found, peers(ground, plan, count, "few-of-peer")


def plan_of(ground: Ground, found: Drain, name: str) -> Json:
    """What the peer is to do: what ours did for one migration, in whole writes; what it did is counted as well."""
    each = len(found.each)
    status = ground.stack.get("vfm", name)["status"]
    return {
        "admin": str(ground.stack.plane.kubeconfig),
        "device_statuses": round(found.writes(AGENT, "vfiodevices/status") / each),
        "device_status": ground.stack.get("vfd")["items"][0]["status"],
        "devices": ground.size.nodes * ground.size.devices,
        "statuses": round(found.writes(OPERATOR, "vfiomigrations/status") / each),
        "events": round(found.writes(OPERATOR, "events") / each),
        "status": status,
    }


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def mebibytes(pid: int, what: str = "VmRSS") -> float:
    """Memory of a process: resident, or the most that ever was (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(f"{what}:")).split()[1]) / 1024


def table(found: Drain) -> None:
    """Print what was asked of the API server, per migration."""
    for (who, verb, resource), times in sorted(audit.counted(found.entries).items()):
        print(f"  {who:9} {verb:14} {resource:32} {times:7} {times / len(found.each):7.2f}", flush=True)


def at_rest(ground: Ground) -> tuple[float, float]:
    """(MiB, share of a core) of an operator that has nothing to do."""
    operator = started(ground)
    time.sleep(SETTLE_SECONDS)
    before, mark = cpu_seconds(operator.pid), ground.audit.mark()
    time.sleep(REST_SECONDS)
    used, memory = (cpu_seconds(operator.pid) - before) / REST_SECONDS, mebibytes(operator.pid)
    asked = ground.audit.since(mark)
    print("at rest:", memory, "MiB", used, "cores", dict(audit.counted(asked)), flush=True)
    operator.stop()
    return memory, used


def listed(entries: Sequence[Entry]) -> int:
    """Lists by the operator."""
    return sum(1 for e in entries if e.user == OPERATOR and e.verb == "list")


# --- the leader ends ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failover:
    """Seconds from SIGKILL of the leader: until another led, until all tasks ran again, until all had finished."""

    led: float
    resumed: float
    finished: float


def failover(size: Size, count: int) -> Failover:
    """Kill the leader while `count` migrations copy at a limited rate; raises RuntimeError unless all end well."""
    rate = size.held_bytes // HELD_SECONDS
    slow = {**STRATEGY, "downtimeLimitMilliseconds": 2000, "bandwidthLimitBytesPerSecond": rate}
    with ground(size, {}, size_bytes=size.held_bytes) as (made, leader):
        bodies = made.wanted(count, "held")
        for body in bodies:
            body["spec"]["strategy"] = slow
        mark, tail = made.audit.mark(), Tail(leader, b'"step": "Converge"')
        asyncio.run(create(made.stack.plane.kubeconfig, bodies))
        tail.wait(count, 60)
        second = made.stack.start_operator("operator-1", **{**AS_SHIPPED, **HIGH})
        time.sleep(STANDBY_SECONDS)
        killed = time.time()
        leader.kill()
        second.wait_for('"event": "leading"', 60)
        ended = Tail(second, b'"event": "finished"')
        ended.wait(count, 120)
        time.sleep(3)
        entries = made.audit.since(mark)
        check(made, bodies, Drain(0.0, (), tuple(entries), 0.0))
        said = [json.loads(line) for line in second.text().splitlines() if line.startswith("{")]
    at = [(each, datetime.fromisoformat(each["timestamp"]).timestamp() - killed) for each in said]
    first: dict[str, float] = {}
    for each, moment in at:
        if each["event"] == "step":
            first.setdefault(each["uid"], moment)
    finishes = Counter(each["uid"] for each, _ in at if each["event"] == "finished")
    if len(first) != count or set(finishes.values()) != {1} or len(finishes) != count:
        most = max(finishes.values(), default=0)
        raise RuntimeError(f"{len(first)} of {count} were taken up, {len(finishes)} finished, at most {most} times")
    led = next(moment for each, moment in at if each["event"] == "leading")
    return Failover(led, max(first.values()), max(m for each, m in at if each["event"] == "finished"))


# --- all of it ------------------------------------------------------------------------------------------------------


def results(first: Drain, theirs: Drain, small: Sequence[Drain], peers: Sequence[Drain]) -> list[Result]:
    """Of many at once, ours and the peer's; `small` and `peers`: the smaller size, again and again."""
    count, name = len(first.each), f"scale/{len(first.each)}-at-once"
    operator, agents = (first.writes(user, *KINDS) / count for user in (OPERATOR, AGENT))
    changed = sum(audit.claims(first.entries).values()) / count
    again = f"scale/{len(small[0].each)}-at-once"
    ratios = [a.seconds / b.seconds for a, b in zip(small, peers, strict=True)]
    seconds = [each.seconds for each in small]
    return [
        measure.result(f"{name}/ratio", first.seconds / theirs.seconds, "x peer", at_most=MOST_RATIO, peer=PEER),
        measure.result(f"{name}/drain", first.seconds, "s"),
        measure.result(f"{name}/drain-of-peer", theirs.seconds, "s"),
        measure.result(f"{name}/each-p50", measure.p50(first.each), "s", samples=first.each),
        measure.result(f"{name}/each-p99", measure.p99(first.each), "s"),
        measure.result(f"{name}/operator-cpu", first.cpu_seconds / count * 1e3, "ms per migration"),
        measure.result(f"{name}/cpu-of-peer", theirs.cpu_seconds / count * 1e3, "ms per migration"),
        measure.result(f"{name}/writes", operator + agents - changed, "per migration", at_most=MOST_WRITES),
        measure.result(f"{name}/writes-of-operator", operator - changed, "per migration"),
        measure.result(f"{name}/writes-of-peer", theirs.writes(OPERATOR, *KINDS) / count - changed, "per migration"),
        measure.result(f"{name}/writes-of-agents", agents, "per migration"),
        measure.result(f"{name}/events", first.writes(OPERATOR, "events") / count, "per migration"),
        measure.result(f"{name}/claims-and-releases", changed / 2, "per device", at_most=2),
        measure.result(f"{name}/lists", listed(first.entries), "lists", at_most=0),
        measure.result(f"{again}/ratio", measure.p50(ratios), "x peer", at_most=MOST_RATIO, peer=PEER, samples=ratios),
        measure.result(f"{again}/drain", measure.p50(seconds), "s", samples=seconds),
    ]


KINDS = (
    "vfiomigrations",
    "vfiomigrations/status",
    "vfioswitchovers",
    "vfioswitchovers/status",
    "vfiodevices",
    "vfiodevices/status",
)
PEER = "kopf 1.45 that makes the operator's writes and nothing else"


def bench() -> None:
    """Measure it all, and keep it."""
    size = Size()
    with ground(size, {}) as (made, operator):
        first = measure.undisturbed(partial(ours, made, operator, size.migrations, "many"), "many at once")
        table(first)
        after, most = mebibytes(operator.pid), mebibytes(operator.pid, "VmHWM")
        last = f"many-{made.asked}-0000"
        plan, pattern = plan_of(made, first, last), made.stack.get("vfm", last)
        operator.stop()
        theirs = measure.undisturbed(partial(peers, made, plan, size.migrations, "many-of-peer"), "many of the peer")
        rounds = [
            measure.undisturbed(partial(both, made, plan, size.again), f"round {turn}") for turn in range(size.rounds)
        ]
        there = len(made.stack.get("vfm")["items"])
        asyncio.run(create_finished(made.stack.plane.kubeconfig, pattern, size.finished - there))
        memory, core = measure.undisturbed(partial(at_rest, made), "at rest")
    killed = failover(Size(nodes=size.held_nodes), size.held)
    found = [
        *results(first, theirs, [a for a, _ in rounds], [b for _, b in rounds]),
        measure.result("scale/at-rest/memory", memory, "MiB", at_most=MOST_MEBIBYTES),
        measure.result(f"scale/{size.migrations}-at-once/memory-after", after, "MiB"),
        measure.result(f"scale/{size.migrations}-at-once/memory-at-most", most, "MiB"),
        measure.result("scale/at-rest/cpu", core, "cores", at_most=MOST_CORE),
        measure.result("scale/failover/led", killed.led, "s"),
        measure.result("scale/failover/resumed", killed.resumed, "s"),
        measure.result("scale/failover/finished", killed.finished, "s"),
    ]
    for each in found:
        print(f"{each.name:45} {each.figure:10g} {each.unit:20} {each.bar:8} {each.holds}", flush=True)
    measure.save(NAME, found, {"each": first.each, "each_of_peer": theirs.each, "failover": asdict(killed)})


if __name__ == "__main__":
    bench()
