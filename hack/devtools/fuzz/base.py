"""What a target of randomized inputs is, and how one is run."""

import random
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

MOST_CRASHES = 5  # of one target; then it is left
PAGE = 4096


class BrokenError(AssertionError):
    """A property did not hold."""


def insist(holds: bool, what: str) -> None:
    """Raise BrokenError unless `holds`."""
    if not holds:
        raise BrokenError(what)


class Feed(Protocol):
    """Makes one input and gives it to what is tested; returns how many inputs that was.

    What it does not expect it lets out: that is a crash.
    """

    async def __call__(self, rng: random.Random) -> int:
        """One input."""


@dataclass(frozen=True, slots=True)
class Target:
    """share: of all inputs, relative. prepare(scratch folder): its surroundings for the time of a run."""

    name: str
    share: int
    prepare: Callable[[Path], AbstractAsyncContextManager[Feed]]


@dataclass(slots=True)
class Result:
    """What came of one target. growth: bytes of memory at the end more than after the first tenth."""

    name: str
    inputs: int = 0
    seconds: float = 0.0
    growth: int = 0
    crashes: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For people."""
        rate = self.inputs / self.seconds if self.seconds else 0.0
        return f"{self.name:<12} {self.inputs:>9} inputs {rate:>9.0f} /s   +{self.growth / 1e6:.1f} MB"


def memory() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


async def run(target: Target, count: int, seed: int, scratch: Path) -> Result:
    """Feed a target with `count` inputs. Each can be made again from the seed and its number."""
    result, number, settled, most = Result(target.name), 0, 0, 0
    began = time.monotonic()
    async with target.prepare(scratch) as feed:
        while result.inputs < count and len(result.crashes) < MOST_CRASHES:
            number += 1
            try:
                result.inputs += await feed(random.Random(f"{seed}/{target.name}/{number}"))
            except Exception:
                result.inputs += 1
                result.crashes.append(f"{target.name}, seed {seed}, number {number}:\n{traceback.format_exc()}")
            if number % 256 == 0:
                now = memory()
                settled = now if result.inputs < count // 10 or not settled else settled
                most = max(most, now)
    result.seconds = time.monotonic() - began
    result.growth = max(0, most - settled)
    return result
