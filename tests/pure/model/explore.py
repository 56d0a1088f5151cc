"""Every reachable state within the bounds, breadth first: so what is found broken comes with a shortest way to it."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pure.model.invariants import BOTH_GONE
from pure.model.liveness import Liveness
from pure.model.state import World
from pure.model.system import System


@dataclass(frozen=True)
class Way:
    """The labels of a shortest way to a breach, and the state that it ends in (for I4: from where it ends badly)."""

    labels: list[str]
    world: World


@dataclass
class Found:
    """What an exploration found. both_gone: states that end so (see BOTH_GONE). broken: the first breach. kinds: how
    often each. complete: nothing was left out.
    """

    states: int = 0
    transitions: int = 0
    violations: int = 0
    stuck: int = 0
    lively: int = 0
    both_gone: int = 0
    seconds: float = 0.0
    complete: bool = True
    broken: str = ""
    kinds: dict[str, int] = field(default_factory=dict)
    ways: dict[str, Way] = field(default_factory=dict)


Parents = dict[World, tuple[World, str] | None]


def way(parents: Parents, world: World) -> list[str]:
    labels = []
    at: World = world
    while (parent := parents[at]) is not None:
        at, label = parent
        labels.append(label)
    return labels[::-1]


def explore(
    system: System,
    *,
    most: int = 10**9,
    lively: bool = True,
    stop: bool = True,
    until: Callable[[], bool] = lambda: False,
) -> Found:
    """Explore from the start of `system`. stop: at the first breach. most: states, for want of room or time."""
    found, began = Found(), time.perf_counter()
    liveness = Liveness(system)
    parents: Parents = {system.start: None}
    queue = deque([system.start])

    def breach(text: str, world: World, label: str = "") -> None:
        found.kinds[text] = found.kinds.get(text, 0) + 1
        if found.kinds[text] == 1:
            labels = way(parents, world)
            found.ways[text] = Way([*labels, label] if label else labels, world)
            found.broken = found.broken or text

    while queue:
        world = queue.popleft()
        found.states += 1
        if lively:
            ended = liveness.end(world)
            if ended.startswith(BOTH_GONE):
                found.both_gone += 1
            elif ended:
                found.stuck += 1
                breach(ended, world)
        for step in system.steps(world):
            found.transitions += 1
            if step.broken:
                found.violations += 1
                breach(step.broken, world, step.label)
            elif step.world not in parents:
                if len(parents) >= most:
                    found.complete = False
                    continue
                parents[step.world] = world, step.label
                queue.append(step.world)
        if (stop and found.broken) or until():
            found.complete = found.complete and not queue
            break
    found.lively = liveness.checked
    found.seconds = time.perf_counter() - began
    return found
