"""How the moves of a round are made: who is called to help, what a failure leaves, and what is not begun any more."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vfio_agent.machine import BARRIER_A, BARRIER_B, Round
from vfio_agent.passage import Moves, go_through
from vfio_api.device import DeviceState as S
from vfio_api.errors import DeviceError

PATIENCE = 20.0
NAMES = [f"gpu{n}" for n in range(8)]
MOVES = [(name, S.STOP_COPY) for name in NAMES]


@pytest.fixture
def arcs() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(len(NAMES), "arc") as pool:
        yield pool


def test_arcs_that_take_their_time_are_under_way_at_once(arcs: ThreadPoolExecutor) -> None:
    together = threading.Barrier(len(NAMES))  # breaks unless all come
    moves = Moves(arcs, lambda _name, _state: together.wait(PATIENCE) and None)
    leading = threading.Thread(target=moves.make, args=(MOVES,))
    leading.start()
    while not moves.call_help():  # as the event loop does every now and then
        pass
    leading.join(PATIENCE)
    assert not together.broken
    moves.make(MOVES)  # by now they are called at once


def test_whoever_finds_no_thread_to_help_makes_them_all(arcs: ThreadPoolExecutor) -> None:
    """Threads that wait for other migrations' devices are not waited for."""
    stuck = threading.Event()
    for _ in NAMES:
        arcs.submit(stuck.wait, PATIENCE)
    made: list[str] = []
    try:
        moves = Moves(arcs, lambda name, _state: made.append(name))
        moves.call_help()
        moves.make(MOVES)
        assert not stuck.is_set()
    finally:
        stuck.set()
    assert made == NAMES


def test_every_move_is_waited_for_and_the_first_failure_is_raised(arcs: ThreadPoolExecutor) -> None:
    made = set[str]()

    def move(name: str, _state: S) -> None:
        if name in ("gpu2", "gpu5"):
            raise DeviceError(f"{name} does not", device=name)
        made.add(name)

    with pytest.raises(DeviceError, match="gpu2 does not"):
        Moves(arcs, move).make(MOVES)
    assert made == set(NAMES) - {"gpu2", "gpu5"}


def test_nothing_to_move(arcs: ThreadPoolExecutor) -> None:
    Moves(arcs, lambda name, _state: pytest.fail(name)).make([])


def test_it_is_noticed_that_a_single_arc_takes_its_time(arcs: ThreadPoolExecutor) -> None:
    let = threading.Event()
    moves = Moves(arcs, lambda _name, _state: let.wait(PATIENCE) and None)
    leading = threading.Thread(target=moves.make, args=(MOVES[:1],))
    leading.start()
    while not moves.call_help():
        pass
    let.set()
    leading.join(PATIENCE)
    assert not leading.is_alive()


def test_where_no_thread_can_be_started_whoever_is_there_makes_every_move() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()  # refuses as it does when the system has no more threads
    made: list[str] = []

    def move(name: str, _state: S) -> None:
        made.append(name)
        moves.call_help()

    moves = Moves(pool, move)
    moves.make(MOVES)
    moves.make(MOVES)
    assert made == 2 * NAMES


class Arcs:
    """What `go_through` needs of a session: devices that take an arc when they are let."""

    def __init__(self, pool: ThreadPoolExecutor, *, settled: bool = True):
        self.around, self.side, self.trail = self, self, self
        self.arcs, self._settled = pool, settled
        self.states: dict[str, S] = {}
        self.entered, self.let, self.done = threading.Event(), threading.Event(), threading.Event()
        self.settlings, self.rounds = 0, list[str]()
        self.let.set()

    async def blocking(self, call: Callable[[], Any]) -> Any:
        def noted() -> Any:
            try:
                return call()
            finally:
                self.done.set()

        return await asyncio.get_running_loop().run_in_executor(self.arcs, noted)

    def set_state(self, name: str, new: S, called_off: threading.Event) -> None:
        self.entered.set()
        assert self.let.wait(PATIENCE)
        if called_off.is_set():
            raise DeviceError("too late", device=name)
        self.states[name] = new

    def settled(self) -> bool:
        return self._settled

    async def settle(self) -> None:
        assert set(self.states.values()) == {S.PRE_COPY_P2P}
        self.settlings += 1  # and devices that are written to have new data at once: `settled` stays as it is

    def turns(self) -> None: ...
    def turned(self) -> None: ...

    def enter(self, step: str) -> None:
        self.rounds.append(step)

    def timed(self, _step: str, _began: float) -> None: ...


ROUNDS = (
    Round(BARRIER_A, tuple((name, S.PRE_COPY_P2P) for name in NAMES)),
    Round(BARRIER_B, tuple((name, S.STOP_COPY) for name in NAMES)),
)


@pytest.mark.parametrize("settled", [True, False])
def test_barrier_b_waits_until_initial_data_is_loaded(arcs: ThreadPoolExecutor, settled: bool) -> None:
    session = Arcs(arcs, settled=settled)
    asyncio.run(go_through(session, ROUNDS))  # type: ignore[arg-type]
    assert session.settlings == (not settled)
    assert session.states == dict.fromkeys(NAMES, S.STOP_COPY)


@pytest.mark.parametrize("rounds", [ROUNDS[:1], ()], ids=["quiesced", "quiescent already"])
@pytest.mark.parametrize("settled", [True, False])
def test_nobody_says_that_it_is_quiescent_before_initial_data_is_loaded(
    arcs: ThreadPoolExecutor, rounds: tuple[Round, ...], settled: bool
) -> None:
    session = Arcs(arcs, settled=settled)
    session.states = dict.fromkeys(NAMES, S.PRE_COPY if rounds else S.PRE_COPY_P2P)
    asyncio.run(go_through(session, rounds, settles=True))  # type: ignore[arg-type]
    assert session.settlings == (not settled)
    assert set(session.states.values()) == {S.PRE_COPY_P2P}


def test_what_was_called_off_moves_no_device_any_more(arcs: ThreadPoolExecutor) -> None:
    """A rollback may have looked at the devices since: an arc that comes after that would go unseen."""
    session = Arcs(arcs)
    session.let.clear()

    async def scene() -> None:
        going = asyncio.create_task(go_through(session, ROUNDS))  # type: ignore[arg-type]
        await asyncio.to_thread(session.entered.wait, PATIENCE)
        assert session.rounds == [BARRIER_A]
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        session.let.set()
        assert await asyncio.to_thread(session.done.wait, PATIENCE)

    asyncio.run(scene())
    assert session.states == {}
    assert session.rounds == [BARRIER_A]


def test_a_round_that_fails_is_the_last(arcs: ThreadPoolExecutor) -> None:
    session = Arcs(arcs)
    move = session.set_state

    def fails(name: str, new: S, called_off: threading.Event) -> None:
        if (name, new) == ("gpu3", S.PRE_COPY_P2P):
            raise DeviceError("gpu3 does not", device=name)
        move(name, new, called_off)

    session.set_state = fails  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="gpu3 does not"):
        asyncio.run(go_through(session, ROUNDS))  # type: ignore[arg-type]
    assert S.STOP_COPY not in session.states.values()
