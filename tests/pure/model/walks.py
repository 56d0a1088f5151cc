"""Beyond the bounds: one way at a time through larger shapes, chosen by a seed or by a list of numbers.

A walk takes steps as a coin says, faults among them, and then lets it come to its end by the fair schedule.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pure.model.faults import KINDS, Budget, budget
from pure.model.invariants import BOTH_GONE
from pure.model.liveness import Liveness
from pure.model.rules import DEFAULT, Rules
from pure.model.state import SHAPES
from pure.model.system import Next, System

# how likely a fault is where one can happen: most of a walk is work
FAULTY = 0.06
WORST = ("error", "both", "reboot", "disk")


@dataclass
class Walked:
    """What walks found. visited: different states, not counted again where walks met."""

    walks: int = 0
    steps: int = 0
    faults: int = 0
    violations: int = 0
    stuck: int = 0
    both_gone: int = 0
    broken: str = ""
    labels: list[str] = field(default_factory=list)


def many_faults(total: int, worst: str) -> Budget:
    """As many as there may be in all of every kind that costs no device its state, and one cancel.

    worst: which of the others there is: "error" as often as any, "both" or "reboot" once, or "disk". Two of these at
    once can take both copies of a state, or what was known of it; that is a known limit.
    """
    counts = {kind: 1 if kind in ("cancel", "both", "reboot") else total for kind in KINDS}
    return budget(total, **{kind: n for kind, n in counts.items() if kind not in WORST or kind == worst})


def walk(system: System, liveness: Liveness, choices: Iterator[float], most: int, found: Walked) -> None:
    """One walk: each choice is a number from 0 to 1."""
    world, labels = system.start, list[str]()
    for _ in range(most):
        steps = list(system.steps(world))
        works = [s for s in steps if not s.fault]
        breaks = [s for s in steps if s.fault]
        chosen = _choose(works, breaks, next(choices, 1.0), next(choices, 0.0))
        if chosen is None:
            break
        labels.append(chosen.label)
        found.steps += 1
        found.faults += bool(chosen.fault)
        if chosen.broken:
            found.violations += 1
            _note(found, chosen.broken, labels)
            break
        world = chosen.world
    found.walks += 1
    ended = liveness.end(world)
    if ended.startswith(BOTH_GONE):
        found.both_gone += 1
    elif ended:
        found.stuck += 1
        _note(found, ended, labels)


def _choose(works: list[Next], breaks: list[Next], coin: float, pick: float) -> Next | None:
    several = breaks if breaks and (coin < FAULTY or not works) else works
    return several[min(int(pick * len(several)), len(several) - 1)] if several else None


def _note(found: Walked, text: str, labels: list[str]) -> None:
    if not found.broken:
        found.broken, found.labels = text, labels


def random_walks(
    shape: str, faults: int, seeds: Iterable[int], *, most: int = 400, worst: str = "error", rules: Rules = DEFAULT
) -> Walked:
    """A walk for each seed, through one shape."""
    system = System(SHAPES[shape], many_faults(faults, worst), rules)
    liveness, found = Liveness(system), Walked()
    for seed in seeds:
        coins = random.Random(seed)
        walk(system, liveness, iter(coins.random, None), most, found)
    return found


def driven_walk(shape: str, faults: int, worst: str, numbers: Iterable[int]) -> Walked:
    """A walk whose choices are `numbers` from 0 to 255, pair by pair: to be searched by hypothesis."""
    system = System(SHAPES[shape], many_faults(faults, worst))
    found = Walked()
    walk(system, Liveness(system), (number / 256 for number in numbers), 300, found)
    return found
