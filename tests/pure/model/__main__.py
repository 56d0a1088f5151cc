"""The long run, `make model`: bounds, states, transitions and breaches of each exploration, walks, and every mutant.

Ends with one line: states, violations, stuck. Exits with 1 if anything was found broken, or a mutant was not caught.
"""

import sys
import time
from dataclasses import dataclass

from pure.model.explore import Found, explore
from pure.model.faults import KINDS, Budget
from pure.model.mutants import MUTANTS, Bench
from pure.model.rules import Rules
from pure.model.runs import LONG, WALKS, Run
from pure.model.state import SHAPES
from pure.model.system import System
from pure.model.walks import Walked, random_walks


@dataclass
class Total:
    """Of everything that was run."""

    states: int = 0
    violations: int = 0
    stuck: int = 0
    both_gone: int = 0
    missed: int = 0


def bounds(budget: Budget, rules: Rules) -> str:
    counts = ", ".join(f"{kind} {n}" for kind, n in zip(KINDS, budget.left, strict=True) if n)
    return (
        f"faults in all at most {budget.total} ({counts}); reports in flight on a connection {rules.in_flight}, "
        f"attempts {rules.attempts}, reloads {rules.reloads}, {'guarded' if rules.guarded else 'UNGUARDED'} leaders"
    )


def _tell_trace(text: str, labels: list[str]) -> None:
    print(f"  BROKEN {text}")
    for label in labels:
        print(f"    {label}")


def _explored(run: Run, total: Total) -> Found:
    found = explore(System(SHAPES[run.shape], run.budget, run.rules), lively=run.lively, stop=False, most=run.most)
    total.states += found.states
    total.violations += found.violations
    total.stuck += found.stuck
    total.both_gone += found.both_gone
    print(f"\n{run.shape}: {bounds(run.budget, run.rules)}")
    print(
        f"  {'every reachable state' if found.complete else f'the first {run.most} states'}: {found.states} states, "
        f"{found.transitions} transitions, {found.violations} violations; "
        f"{f'{found.lively} states followed to their end' if run.lively else 'ends not looked at'}, "
        f"{found.stuck} stuck, {found.both_gone} with both copies of a state gone; {found.seconds:.1f} s",
        flush=True,
    )
    for text, way in found.ways.items():
        _tell_trace(f"{found.kinds[text]} x {text}", way.labels)
    return found


def _walked(total: Total) -> None:
    print("\nbeyond the bounds, at random:")
    for shape, faults, count, worst in WALKS:
        began = time.perf_counter()
        found: Walked = random_walks(shape, faults, range(count), worst=worst)
        total.violations += found.violations
        total.stuck += found.stuck
        total.both_gone += found.both_gone
        print(
            f"  {shape}: {found.walks} walks of at most {faults} faults({KINDS[worst]} among them): "
            f"{found.steps} steps, {found.faults} faults, {found.violations} violations, {found.stuck} stuck, "
            f"{found.both_gone} with both copies of a state gone; {time.perf_counter() - began:.1f} s",
            flush=True,
        )
        if found.broken:
            _tell_trace(found.broken, found.labels)


def _hunted(total: Total) -> None:
    print("\nbroken on purpose:")
    bench = Bench()
    for mutant in MUTANTS:
        mutant.put_in(bench.put)
        try:
            found = mutant.hunt()
        finally:
            bench.clear()
        caught = found.broken.startswith(mutant.caught)
        total.missed += not caught
        print(f"  {mutant.name}: {'caught by' if caught else 'NOT CAUGHT,'} {found.broken or 'nothing'}")
        print(f"    {mutant.shape}, after {found.states} states, {found.seconds:.1f} s", flush=True)


def main() -> int:
    """Run everything; the exit code."""
    total = Total()
    for run in LONG:
        _explored(run, total)
    _walked(total)
    _hunted(total)
    print(f"\nstates: {total.states}, violations: {total.violations}, stuck: {total.stuck}, ", end="")
    print(f"both copies gone: {total.both_gone}")
    return int(bool(total.violations or total.stuck or total.missed))


if __name__ == "__main__":
    sys.exit(main())
