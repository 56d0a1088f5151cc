"""Runs cells: opens devices, begins a migration, stops time, lets something go wrong, and asks the checker."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, Queue

from kubernetes.client.exceptions import ApiException

from devtools.faults.arena import Arena
from devtools.faults.cells import HOW, Cell
from devtools.faults.checker import check
from devtools.faults.gather import Gatherer
from devtools.faults.kinds import TERMINAL
from devtools.faults.lane import Lane
from devtools.faults.points import Situation
from devtools.faults.report import Result, running_again
from devtools.faults.story import Story, Violation
from devtools.plane import KubectlError
from devtools.processes import ProcessError

CREATED_SECONDS = 20.0
END_SECONDS = 60.0  # from the end of a fault to the end of its migration
Told = Callable[[Result, float], None]


@dataclass
class Times:
    """Of a cell, in seconds of CLOCK_MONOTONIC: the fault, and its end."""

    fired: float = 0.0
    ended: float = 0.0


def run_cell(lane: Lane, cell: Cell, number: int) -> Result:
    """One cell. Whatever goes wrong with running it becomes the result's error."""
    try:
        return _run(lane, cell, number)
    except Exception as error:  # the others are to be run all the same
        for node in lane.nodes.values():
            node.heal()
        what = f"{type(error).__name__}: {error}; {lane.arena.tail()[-1500:]}"
        return Result(cell.name, cell.shape, "", "", "", "", None, None, (), what)


def _run(lane: Lane, cell: Cell, number: int) -> Result:
    lane.arena.await_leader(frozenset())
    lane.reset()
    pairs = lane.pairs(cell.shape)
    lane.open(pairs)
    situation = Situation(lane, pairs, f"cell-{number}")
    gatherer = Gatherer(node.node for node in lane.nodes.values())
    times = Times()
    fired = _of_point(cell, situation, times) if cell.point is not None else _of_arc(cell, situation, times)
    witness = lane.arena.witness
    witness.wait_for_phase(situation.uid, TERMINAL, max(0.0, times.ended + END_SECONDS - time.monotonic()))
    terminal = next((t for t, phase in witness.phases(situation.uid) if phase in TERMINAL), None)
    closed = cell.kind.closed(situation) if cell.kind is not None else ()
    rest = _await_rest(lane, situation, times)
    _await_witness(lane, situation)
    lane.calm()
    story = gatherer.story(
        witness,
        situation.uid,
        pairs,
        marks_ok=lane.marks_ok,
        claims_left=lane.claims(situation.uid),
        closed_by_fault=closed,
    )
    if cell.arc is not None:
        times.fired = _arc_event(cell, situation, story) or times.fired
        fired = bool(_arc_event(cell, situation, story))
    elif cell.kind is not None:
        fired = fired and cell.kind.happened(situation)
    judged = cell.kind.judge(situation) if cell.kind is not None else ()
    return Result(
        cell=cell.name,
        shape=cell.shape,
        fired_at=situation.proof if fired else "",
        phase=story.phase,
        reason=story.reason,
        decision=story.decision.outcome if story.decision else "",
        to_terminal=max(0.0, terminal - times.ended) if terminal is not None else None,
        to_running=running_again(story, times.fired),
        violations=(*check(story), *judged, *rest),
    )


def _begin(situation: Situation) -> None:
    lane, manifest = situation.lane, situation.lane.manifest(situation.name, situation.pairs)

    def created() -> bool:
        try:
            situation.uid = lane.arena.api.create(manifest)
        except ApiException as error:
            if error.status != 503:  # its policies do not know the kind yet: it has just been restarted
                raise
            return False
        return True

    lane.wait(created, "the API server takes a VFIOMigration", CREATED_SECONDS)


def _of_point(cell: Cell, situation: Situation, times: Times) -> bool:
    """Whether the fault was fired where it was to be."""
    assert cell.point is not None
    assert cell.kind is not None
    cell.point.arm(situation)
    _begin(situation)
    there = cell.point.reach(situation)
    times.fired = time.monotonic()
    try:
        if there:
            cell.kind.fire(situation)
    finally:
        cell.point.release(situation)
    if there:
        cell.kind.heal(situation)
    times.ended = time.monotonic()
    return there


def _of_arc(cell: Cell, situation: Situation, times: Times) -> bool:
    """A device that fails by itself: armed, and then waited for."""
    name, address = situation.ends(cell.side)[-1]
    situation.lane.node(name).control.fault(address, "arc", arc=cell.arc, **HOW[cell.how])  # type: ignore[arg-type]
    _begin(situation)
    times.fired = times.ended = time.monotonic()
    return True


def _arc_event(cell: Cell, situation: Situation, story: Story) -> float | None:
    """When the arc began that failed, or took its time."""
    assert cell.arc is not None
    old, new = cell.arc
    end = situation.ends(cell.side)[-1]
    for event in story.events:
        if event.end == end and (event.kind, event.old, event.new) == ("arc", old.name, new.name):
            slow = cell.how == "is slow" and event.t - event.began > 1.0
            if event.errno or slow:
                situation.proof = f"{old.name} -> {new.name}: " + (event.after if event.errno else "slow")
                return event.began
    return None


def _await_rest(lane: Lane, situation: Situation, times: Times) -> tuple[Violation, ...]:
    """What is left over is cleaned up within the same time."""
    left = max(1.0, times.ended + END_SECONDS - time.monotonic())
    try:
        lane.wait(lambda: not lane.left_over(situation.uid, situation.pairs), "nothing is left of the migration", left)
    except TimeoutError:
        found = lane.left_over(situation.uid, situation.pairs)
        return (Violation("Rest", f"{left:.0f} s later there is still: {found}"),) if found else ()
    return ()


def _await_witness(lane: Lane, situation: Situation) -> None:
    """A watch that was cut begins anew a moment later: what is stored must have been seen before it is judged."""
    stored = [s for s in lane.arena.api.switchovers() if s["metadata"]["name"] == situation.uid]
    if stored and stored[0].get("status", {}).get("decision"):
        lane.wait(lambda: lane.arena.witness.decision(situation.uid) is not None, "the decision is seen", 10)


class Matrix:
    """Runs cells on arenas: those that disturb nobody else on several lanes of one, the others one at a time."""

    def __init__(self, folder: Path, told: Told):
        self._folder, self._told = folder, told
        self._lock = threading.Lock()
        self._results: dict[int, Result] = {}
        self.broken: list[str] = []
        self._began = time.monotonic()

    def run(self, cells: Sequence[Cell], lanes: int, lone_arenas: int) -> list[Result]:
        """Results in the order of the cells; `broken` then says which arenas and lanes did not work, and why."""
        shared: Queue[tuple[int, Cell]] = Queue()
        alone: Queue[tuple[int, Cell]] = Queue()
        for numbered in enumerate(cells):
            (alone if numbered[1].alone else shared).put(numbered)
        threads = [
            *(self._thread(f"x{n}", alone, 1, 2) for n in range(min(lone_arenas, alone.qsize()))),
            *([self._thread("s", shared, min(lanes, shared.qsize()), 1)] if shared.qsize() else []),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [self._results[n] for n in sorted(self._results)]

    def _thread(self, name: str, queue: "Queue[tuple[int, Cell]]", lanes: int, replicas: int) -> threading.Thread:
        return threading.Thread(
            target=self._noted, args=(name, lambda: self._arena(name, queue, lanes, replicas)), name=name
        )

    def _noted(self, name: str, work: Callable[[], None]) -> None:
        """Results of others are not to be lost by what does not work here."""
        try:
            work()
        except Exception as error:
            with self._lock:
                self.broken.append(f"{name}: {type(error).__name__}: {error}")

    def _arena(self, name: str, queue: "Queue[tuple[int, Cell]]", lanes: int, replicas: int) -> None:
        names = [f"{name}{n}" for n in range(lanes)]
        nodes = [node for lane in names for node in Lane.node_names(lane)]
        with ExitStack() as stack:
            arena = stack.enter_context(Arena(nodes, self._folder / name, replicas))
            works = {lane: partial(self._lane, arena, lane, queue) for lane in names}
            workers = [threading.Thread(target=self._noted, args=each, name=each[0]) for each in works.items()]
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers):
                arena.stopping.wait(0.2)
                with contextlib.suppress(ProcessError, KubectlError):  # tried again at once
                    arena.replenish()

    def _lane(self, arena: Arena, name: str, queue: "Queue[tuple[int, Cell]]") -> None:
        lane = Lane(arena, name)  # its children end with this thread
        lane.start()
        while True:
            try:
                number, cell = queue.get_nowait()
            except Empty:
                return
            result = run_cell(lane, cell, number)
            with self._lock:
                self._results[number] = result
                self._told(result, time.monotonic() - self._began)


def chosen(cells: Iterable[Cell], words: Sequence[str]) -> list[Cell]:
    """Cells whose name (with shape) contains one of the words; all without words."""
    return [c for c in cells if not words or any(word in f"{c.name} ({c.shape})" for word in words)]
