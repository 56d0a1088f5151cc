"""How the rounds of one command are gone through: one thread leads, others help it where arcs take their time.

Devices are down meanwhile, so there is no way back to the event loop between two rounds, and hardly anybody is woken
for an arc that is over in microseconds.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING

from vfio_agent.machine import BARRIER_A, BARRIER_B, BARRIER_D, Round
from vfio_api.device import DeviceState

if TYPE_CHECKING:
    from vfio_agent.session import Session

HELP_SECONDS = 0.0005
Move = Callable[[str, DeviceState], None]


async def go_through(session: "Session", rounds: Sequence[Round], *, settles: bool = False) -> None:
    """Pass every round: all moves of one succeed before the next one begins. Raises the first failure of a round.

    settles: devices of other nodes stop next, so that all initial data must be loaded when this returns. Called off by
    the command's deadline, it makes no move any more; one that is under way then goes on.
    """
    passage = _Passage(session, settles)
    helps = any(len(planned.moves) > 1 for planned in rounds)
    try:
        while rounds or passage.settles:
            helping = _call_help(passage.moves) if helps else None
            try:
                rounds = await session.blocking(partial(passage.go_on, rounds))
            finally:
                if helping is not None:
                    helping.cancel()
            if not passage.settled:
                await session.side.settle()
                passage.settled, passage.settles = True, False
    finally:
        passage.called_off.set()


def _call_help(moves: "Moves") -> asyncio.Task[None]:
    """Have others help once a round takes its time; looked for here, where nobody has to be woken for it."""

    async def look() -> None:
        await asyncio.sleep(HELP_SECONDS)
        while not moves.call_help():  # noqa: ASYNC110 - whoever makes the moves is not to be troubled with an event
            await asyncio.sleep(HELP_SECONDS)

    return asyncio.create_task(look())


class _Passage:
    """Of one command. settled: whether initial data that the devices had between the barriers A and B is loaded; asked
    once, as devices that are written to may have new data at any time.
    """

    def __init__(self, session: "Session", settles: bool):
        self._session = session
        self.called_off = threading.Event()
        self.moves = Moves(session.around.arcs, partial(session.set_state, called_off=self.called_off))
        self.settles, self.settled, self._asked = settles, True, False

    def go_on(self, rounds: Sequence[Round]) -> Sequence[Round]:
        """Pass them; returns those that are left when `settled` says that there is data to wait for. In an arc's
        thread. Raises what a move raised.
        """
        for number, planned in enumerate(rounds):
            if self.called_off.is_set() or (planned.step == BARRIER_B and not self._settles()):
                return rounds[number:]
            self._make(planned)
        if self.settles and self._settles():
            self.settles = False
        return ()

    def _settles(self) -> bool:
        if not self._asked:
            self._asked, self.settled = True, self._session.side.settled()
        return self.settled

    def _make(self, planned: Round) -> None:
        session, began = self._session, time.perf_counter()
        if planned.step == BARRIER_A:
            session.turns()
        session.trail.enter(planned.step)
        try:
            self.moves.make(planned.moves)
        finally:
            session.timed(planned.step, began)
        if planned.step == BARRIER_D and planned.moves:
            session.turned()


class Moves:
    """Makes the moves of one round after the other. arcs: where others help."""

    def __init__(self, arcs: Executor, move: Move):
        self._arcs, self._move = arcs, move
        self._left: deque[tuple[int, tuple[str, DeviceState]]] = deque()
        self._failures: dict[int, Exception] = {}
        self._awaited, self._over, self._lock = 0, threading.Event(), threading.Lock()
        self._slow, self._seen = False, 0

    def make(self, moves: Sequence[tuple[str, DeviceState]]) -> None:
        """Make all moves of a round and wait for each; then raise what the first one raised that failed. Blocking."""
        if not moves:
            return
        self._over.clear()
        self._awaited = len(moves)
        self._left.extend(enumerate(moves))
        self._work(calls=self._slow)
        self._over.wait()  # for what others have taken
        if self._failures:
            raise self._failures[min(self._failures)]

    def call_help(self) -> bool:
        """If some are left, or none has ended since the last call, have others help from now on; whether they do. To be
        called by one thread.
        """
        awaited = self._awaited
        self._slow = self._slow or bool(self._left) or 0 < awaited == self._seen
        self._seen = awaited
        if self._left:
            self._help()
        return self._slow

    def _help(self) -> None:
        with contextlib.suppress(RuntimeError):  # no thread can be started: whoever is there makes them all
            self._arcs.submit(self._work)

    def _work(self, *, calls: bool = True) -> None:
        """Take what is left. calls: the next one first; where arcs are quick that would only take time from them."""
        while True:
            try:
                number, (name, state) = self._left.popleft()
            except IndexError:
                return
            if self._left and calls:
                self._help()
            try:
                self._move(name, state)
            except Exception as error:  # the others' outcomes are waited for
                self._failures[number] = error
            with self._lock:
                self._awaited -= 1
                if not self._awaited:
                    self._over.set()
