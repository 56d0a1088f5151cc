"""What this system adds to the least that a switchover can take: devices that cost nothing, a real control plane.

    PYTHONPATH=hack:bench .venv/bin/python bench/overhead.py

Two nodes, an agent's process each, with four simulated devices whose arcs and state (one byte) cost nothing, as they
are the simulator's model in that process; etcd with fsync. Migrations there and back alternate with samples of
bench/floor.py: two round trips, as for one source and one target node, and one patch. Then, without a bar, two nodes on
each side, and four round trips.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import measure
from devtools.stack import NAMESPACE, Stack, migration, python_path
from fleet import FleetNode, fleet
from measure import Result, p50, p99, result

DEVICES, MIGRATIONS, WARM_UP = 4, 100, 6
ADDRESSES = [f"sim{n}" for n in range(DEVICES)]
ANSWER_SECONDS = 60.0
FLOOR = Path(__file__).with_name("floor.py")
Json = dict[str, Any]


class Floor:
    """bench/floor.py, running: `sample` asks it for one sample."""

    def __init__(self, stack: Stack, rounds: int):
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
        if not select.select([self._server.stdout], [], [], ANSWER_SECONDS)[0]:
            raise TimeoutError(f"bench/floor.py has said nothing for {ANSWER_SECONDS:g} s; its words are above")
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


def run(stack: Stack, ways: Sequence[tuple[str, str]]) -> Run:
    """One migration of all devices. ways: (source node, target node)."""
    await_holders(stack, {source: True for source, _ in ways} | {target: False for _, target in ways})
    name = f"overhead-{time.time_ns()}"
    pairs = [(f"{source}-{a}", source, a, target, a) for source, target in ways for a in ADDRESSES]
    stack.kubectl("create", "-f", "-", input=json.dumps(migration(name, pairs)))
    stack.kubectl("wait", "--for=condition=Finished", f"vfm/{name}", "--timeout=60s")
    status = stack.get("vfm", name)["status"]
    if status["phase"] != "Succeeded":
        raise RuntimeError(f"{name}: {status['message']}")
    steps: dict[str, float] = {}
    for timing in status["timings"]:
        steps[timing["step"]] = steps.get(timing["step"], 0) + timing["durationMicroseconds"] / 1000
    return Run(status["downtimeMicroseconds"] / 1000, steps)


@dataclass(frozen=True)
class Scene:
    """So many nodes on each side; rounds: round trips that a switchover cannot do without there."""

    name: str
    nodes: int
    rounds: int
    migrations: int
    bars: bool

    @property
    def ways(self) -> list[tuple[str, str]]:
        """(source node, target node)."""
        return [(f"node-a{n}", f"node-b{n}") for n in range(self.nodes)]


ONE = Scene("overhead/downtime", 1, 2, MIGRATIONS, bars=True)
TWO = Scene("overhead/two-nodes-a-side", 2, 4, MIGRATIONS // 4, bars=False)


@dataclass(frozen=True)
class Measured:
    """Of one scene: what this system took, and the floor."""

    mine: list[Run]
    floor: list[dict[str, float]]

    def results(self, scene: Scene) -> list[Result]:
        """Both sides and how they compare; with the bars, if the scene has them."""
        down, bare = [r.downtime for r in self.mine], [s["whole"] for s in self.floor]
        floor, trips, name = p50(bare), f"{scene.rounds} bare round trips and one patch", scene.name
        peer = f"{trips}: p50 {floor:.2f} ms, p99 {p99(bare):.2f} ms"
        ratios, most = [d / floor for d in down], (1.5, 3) if scene.bars else (None, None)
        return [
            result(f"{name}/p50", p50(down) / floor, "x floor p50", at_most=most[0], peer=peer, samples=ratios),
            result(f"{name}/p99", p99(down) / floor, "x floor p50", at_most=most[1], peer=peer),
            result(f"{name}/p99-to-p99", p99(down) / p99(bare), "x floor p99", peer=peer),
            result(f"{name}/ours/p50", p50(down), "ms", samples=down),
            result(f"{name}/ours/p99", p99(down), "ms"),
            result(f"{name}/floor/p50", floor, "ms", samples=bare),
            result(f"{name}/floor/p99", p99(bare), "ms"),
            result(f"{name}/floor/patch/p50", p50([s["patch"] for s in self.floor]), "ms"),
        ]

    def steps(self) -> list[Result]:
        """The breakdown of what this system took."""
        made = []
        for step in sorted({step for r in self.mine for step in r.steps}):
            samples = [r.steps[step] for r in self.mine if step in r.steps]
            made.append(result(f"overhead/step/{step}/p50", p50(samples), "ms", samples=samples))
            made.append(result(f"overhead/step/{step}/p99", p99(samples), "ms"))
        return made


def runs(stack: Stack, scene: Scene, floor: Floor) -> Measured:
    """Alternating: a migration, a sample of the floor. An even number of both: what is measured again begins where the
    first one began.
    """
    there, mine, theirs = scene.ways, [], []
    for number in range(scene.migrations + scene.migrations % 2 + WARM_UP):
        mine.append(run(stack, there if number % 2 == 0 else [(b, a) for a, b in there]))
        theirs.append(floor.sample())
    return Measured(mine[WARM_UP:], theirs[WARM_UP:])


def take(scene: Scene) -> Measured:
    """One scene on a control plane of its own; a process for each agent."""
    addresses = tuple(ADDRESSES)
    nodes = [FleetNode(source, addresses, held=addresses) for source, _ in scene.ways]
    nodes += [FleetNode(target, addresses) for _, target in scene.ways]
    with fleet(nodes, processes=len(nodes)) as (stack, _):
        floor = Floor(stack, scene.rounds)
        return measure.undisturbed(lambda: runs(stack, scene, floor), scene.name)


def bench(count: int = MIGRATIONS) -> None:
    """Measure and keep the figures."""
    one, two = take(replace(ONE, migrations=count)), take(replace(TWO, migrations=count // 4))
    found = [*one.results(ONE), *one.steps(), *two.results(TWO)]
    for each in found:
        print(f"{each.name}: {each.figure} {each.unit} {each.bar} {'' if each.holds is None else each.holds}")
    measure.save("overhead", found, {"ours": [vars(r) for r in one.mine], "floor": one.floor})


if __name__ == "__main__":
    bench(int(sys.argv[1]) if len(sys.argv) > 1 else MIGRATIONS)
