"""The bandwidth limit: never exceeded by more than a burst, and reached by streams that have enough to send."""

import heapq
import threading
from bisect import bisect_right
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_agent.ratelimit import MAX_PIECE, MIN_CHUNK, TokenBucket
from vfio_api.types import BURST_SECONDS

MIB = 1 << 20
RATES = [MIB, 20_000_000, 200_000_000]


@dataclass
class Clock:
    now: float = 5.0

    def __call__(self) -> float:
        return self.now


def sent(rate: int, streams: int, seconds: float, late: list[float]) -> list[tuple[float, int]]:
    """(time, bytes) of all that `streams` send which always have something; they wake up late by what `late` says."""
    clock = Clock()
    bucket = TokenBucket(rate, clock=clock)
    piece, turn, done = bucket.piece(), 0, []
    # (when, stream, whether it sends now what it has taken)
    due: list[tuple[float, int, bool]] = [(clock.now, stream, False) for stream in range(streams)]
    while due[0][0] < 5.0 + seconds:
        clock.now, stream, sends = heapq.heappop(due)
        if sends:
            done.append((clock.now, piece))
        turn += 1
        wait = bucket.take(piece)
        heapq.heappush(due, (clock.now + wait + (late[turn % len(late)] if wait else 0), stream, True))
    return done


@pytest.mark.parametrize("streams", [1, 4, 64])
@pytest.mark.parametrize("rate", RATES)
@settings(max_examples=10, deadline=None)
@given(late=st.lists(st.floats(0, 0.005), min_size=1, max_size=20))
def test_no_second_carries_more_than_five_percent_above_the_limit_nor_less(
    rate: int, streams: int, late: list[float]
) -> None:
    done = sent(rate, streams, 3.0, late)
    times = [when for when, _ in done]
    for first, when in enumerate(times):
        if when > 7.0:
            break
        window = sum(count for _, count in done[first : bisect_right(times, when + 1.0)])
        assert window <= 1.05 * rate + done[0][1]  # a window that begins with a piece has its edge in it
        if when > 5.1 + 0.02 * streams:  # all have their turns
            assert window >= 0.95 * rate


def test_a_limit_is_kept_after_an_idle_time() -> None:
    clock = Clock()
    bucket = TokenBucket(MIB, clock=clock)
    clock.now += 3600
    taken = 0
    while bucket.take(bucket.piece()) <= 1.0:
        taken += bucket.piece()
    assert taken <= 1.05 * MIB


@pytest.mark.parametrize("before", [0, MIB // 100, MIB // 30])
def test_a_switchover_has_a_whole_burst_whatever_was_sent_before_but_only_one(before: int) -> None:
    clock = Clock()
    bucket = TokenBucket(MIB, clock=clock)
    bucket.take(before)
    bucket.switch_over()
    assert bucket.take(MIB // 50) == 0.0
    bucket.switch_over()  # of another device
    assert bucket.take(MIB // 50) == pytest.approx(0.02, rel=0.01)


def test_a_switchover_of_many_streams_forgives_no_more_than_two_bursts() -> None:
    clock = Clock()
    bucket = TokenBucket(MIB, clock=clock)
    for _ in range(64):
        bucket.take(bucket.piece())
    owed = bucket.take(0)
    bucket.switch_over()
    assert bucket.take(0) == pytest.approx(owed - 2 * BURST_SECONDS, rel=0.01)


def test_whether_something_would_have_to_wait() -> None:
    clock = Clock()
    bucket = TokenBucket(MIB, clock=clock)
    assert bucket.has(MIB // 50)
    assert not bucket.has(MIB // 40)
    bucket.take(MIB // 50)
    assert not bucket.has(MIB // 100)
    clock.now += 0.011
    assert bucket.has(MIB // 100)
    assert TokenBucket(0).has(1 << 40)


@pytest.mark.parametrize("given_up", [False, True])
def test_who_waits_for_the_limit_is_let_go_by_the_switchover_and_by_giving_up(given_up: bool) -> None:
    bucket, left = TokenBucket(MIB), threading.Event()
    waiting = threading.Thread(target=bucket.hold, args=(3600.0, left.is_set), kwargs={"switched_over": False})
    waiting.start()
    if given_up:
        left.set()
        bucket.wake()
    else:
        bucket.switch_over()
    waiting.join(60)
    assert not waiting.is_alive()


def test_nobody_begins_to_wait_who_had_looked_before_the_switchover() -> None:
    bucket = TokenBucket(MIB)
    bucket.switch_over()
    bucket.hold(3600.0, lambda: False, switched_over=False)


@pytest.mark.parametrize(("rate", "chunk"), [(0, MIB), (10_000, MIN_CHUNK), (MIB, MIB // 50), (1 << 40, MIB)])
def test_a_chunk_is_a_fiftieth_of_a_second_of_the_limit(rate: int, chunk: int) -> None:
    assert TokenBucket(rate).chunk(MIB) == chunk


def test_a_piece_is_a_hundredth_of_a_second_of_the_limit() -> None:
    assert [TokenBucket(rate).piece() for rate in (0, 1, MIB, 1 << 40)] == [MAX_PIECE, 64, MIB // 100, MAX_PIECE]


def test_what_a_limit_is_worth() -> None:
    assert TokenBucket(0).worth(0.1, MIB) == MIB
    assert TokenBucket(1000).worth(0.1, MIB) == 100
    assert TokenBucket(1 << 40).worth(0.1, MIB) == MIB
    assert [TokenBucket(rate).rate for rate in (0, 1000)] == [0, 1000]
