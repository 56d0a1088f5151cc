"""What this system adds to the least that a switchover can take: devices that cost nothing, a real control plane.

    PYTHONPATH=hack:bench .venv/bin/python bench/overhead.py

Two nodes, an agent's process each, with four simulated devices whose arcs and state (one byte) cost nothing, as they
are the simulator's model in that process; etcd with fsync. Migrations there and back alternate with samples of
bench/floor.py: two round trips, as for one source and one target node, and one patch.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
from devtools.stack import NAMESPACE, Stack, migration, python_path
from fleet import FleetNode, fleet
from measure import Result, p50, p99, result

DEVICES, MIGRATIONS, WARM_UP = 4, 100, 5
ADDRESSES = [f"sim{n}" for n in range(DEVICES)]
FLOOR = Path(__file__).with_name("floor.py")
Json = dict[str, Any]


class Floor:
    """bench/floor.py, running: `sample` asks it for one sample."""

    def __init__(self, stack: Stack, rounds: int = 2):
        kubeconfig = stack.dir / "floor.kubeconfig"
        stack.plane.service_account_kubeconfig(NAMESPACE, "vfio-operator", kubeconfig)
        self._rounds = rounds
        self._server = self._start(stack, "operator", str(kubeconfig), "default")
        said = json.loads(self._line())
        for _ in range(2):
            self._start(stack, "agent", str(said["port"]), said["certificate"])
        if self._line() != "ready\n":
            raise RuntimeError("bench/floor.py did not start; its words are above")

    @staticmethod
    def _start(stack: Stack, *arguments: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, str(FLOOR), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **python_path()},
        )
        stack.closing.callback(child.wait)
        stack.closing.callback(child.kill)
        return child

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()

    def sample(self) -> dict[str, float]:
        """Milliseconds: whole and patch."""
        assert self._server.stdin is not None
        self._server.stdin.write(f"1 {self._rounds}\n")
        self._server.stdin.flush()
        (found,) = json.loads(self._line())
        return {name: seconds * 1000 for name, seconds in found.items()}


@dataclass(frozen=True)
class Run:
    """Milliseconds of one migration: its downtime, and its steps by name."""

    downtime: float
    steps: dict[str, float]


def await_holders(stack: Stack, wanted: dict[str, bool]) -> None:
    """Wait until the inventory shows the devices of these nodes held, or free."""

    def shown() -> bool:
        found = [d for d in stack.get("vfd")["items"] if d["spec"]["nodeName"] in wanted]
        return all(
            bool(d.get("status", {}).get("holder")) == wanted[d["spec"]["nodeName"]] and not d["spec"].get("claimRef")
            for d in found
        )

    stack.wait_until(shown, f"devices held: {wanted}")


def run(stack: Stack, source: str, target: str, number: int) -> Run:
    """One migration of all devices."""
    await_holders(stack, {source: True, target: False})
    name = f"overhead-{number}"
    pairs = [(a, source, a, target, a) for a in ADDRESSES]
    stack.kubectl("apply", "-f", "-", input=json.dumps(migration(name, pairs)))
    stack.kubectl("wait", "--for=condition=Finished", f"vfm/{name}", "--timeout=60s")
    status = stack.get("vfm", name)["status"]
    if status["phase"] != "Succeeded":
        raise RuntimeError(f"{name}: {status['message']}")
    steps: dict[str, float] = {}
    for timing in status["timings"]:
        steps[timing["step"]] = steps.get(timing["step"], 0) + timing["durationMicroseconds"] / 1000
    return Run(status["downtimeMicroseconds"] / 1000, steps)


def runs(stack: Stack, floor: Floor, count: int) -> tuple[list[Run], list[dict[str, float]]]:
    """Alternating: a migration, a sample of the floor."""
    nodes = ["node-a", "node-b"]
    mine, theirs = [], []
    for number in range(count + WARM_UP):
        mine.append(run(stack, nodes[number % 2], nodes[(number + 1) % 2], number))
        theirs.append(floor.sample())
    return mine[WARM_UP:], theirs[WARM_UP:]


def results(mine: list[Run], theirs: list[dict[str, float]]) -> list[Result]:
    """Both bars, both sides, and the steps."""
    down, bare = [r.downtime for r in mine], [s["whole"] for s in theirs]
    floor = p50(bare)
    peer = f"two bare round trips and one patch: p50 {floor:.2f} ms, p99 {p99(bare):.2f} ms"
    ratios = [d / floor for d in down]
    made = [
        result("overhead/downtime/p50", p50(down) / floor, "x floor p50", at_most=1.5, peer=peer, samples=ratios),
        result("overhead/downtime/p99", p99(down) / floor, "x floor p50", at_most=3, peer=peer),
        result("overhead/downtime/ours/p50", p50(down), "ms", samples=down),
        result("overhead/downtime/ours/p99", p99(down), "ms"),
        result("overhead/downtime/floor/p50", floor, "ms", samples=bare),
        result("overhead/downtime/floor/p99", p99(bare), "ms"),
        result("overhead/downtime/floor/patch/p50", p50([s["patch"] for s in theirs]), "ms"),
    ]
    for step in sorted({step for r in mine for step in r.steps}):
        samples = [r.steps[step] for r in mine if step in r.steps]
        made.append(result(f"overhead/step/{step}/p50", p50(samples), "ms", samples=samples))
    return made


def bench(count: int = MIGRATIONS) -> None:
    """Measure and keep the figures."""
    nodes = [FleetNode("node-a", tuple(ADDRESSES), held=tuple(ADDRESSES)), FleetNode("node-b", tuple(ADDRESSES))]
    with fleet(nodes, processes=len(nodes)) as (stack, _):
        floor = Floor(stack)
        mine, theirs = measure.undisturbed(lambda: runs(stack, floor, count), "overhead")
    found = results(mine, theirs)
    for each in found:
        print(f"{each.name}: {each.figure} {each.unit} {each.bar} {'' if each.holds is None else each.holds}")
    measure.save("overhead", found, {"ours": [vars(r) for r in mine], "floor": theirs})


if __name__ == "__main__":
    bench(int(sys.argv[1]) if len(sys.argv) > 1 else MIGRATIONS)
