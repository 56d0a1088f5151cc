"""The rate of a link: bytes of all streams over the time in which any of them was busy, lately."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_agent.linkrate import LinkMeter

MB = 1_000_000
TURN_SECONDS = 0.001


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def made(**options: float) -> tuple[LinkMeter, Clock]:
    clock = Clock()
    return LinkMeter(ceiling=int(options.pop("ceiling", 0)), clock=clock, **options), clock


def carry(meter: LinkMeter, clock: Clock, seconds: float, count: int) -> None:
    """One stream is busy for `seconds`, alone."""
    began = meter.now()
    clock.now += seconds
    meter.carried(began, count)


def test_nothing_was_measured_yet() -> None:
    meter, _ = made()
    assert meter.bytes_per_second() == 0
    meter.carried(meter.now(), MB)
    assert meter.bytes_per_second() == 0, "no time has passed: any number would be a guess"


def test_streams_that_take_turns_reach_together_what_each_reaches_alone() -> None:
    meter, clock = made()
    for _ in range(50):
        carry(meter, clock, 0.1, 10 * MB)
    assert meter.bytes_per_second() == pytest.approx(100 * MB, rel=1e-6)


def test_streams_that_are_busy_at_once_add_up() -> None:
    meter, clock = made()
    for _ in range(50):
        began = meter.now()
        clock.now += 0.1
        for _stream in range(4):
            meter.carried(began, 10 * MB)
    assert meter.bytes_per_second() == pytest.approx(400 * MB, rel=1e-6)


def test_time_in_which_no_stream_is_busy_does_not_count() -> None:
    meter, clock = made()
    for _ in range(50):
        carry(meter, clock, 0.01, MB)
        clock.now += 60
    assert meter.bytes_per_second() == pytest.approx(100 * MB, rel=1e-6)


def test_a_short_turn_within_a_long_one_counts_once() -> None:
    meter, clock = made()
    began = meter.now()
    clock.now += 8
    carry(meter, clock, 1, 10 * MB)
    clock.now += 1
    meter.carried(began, 90 * MB)
    # 9 more seconds of busy time, not 10
    assert meter.bytes_per_second() == pytest.approx(10 * MB, rel=0.01)


def test_a_wait_is_time_without_bytes() -> None:
    meter, clock = made()
    for _ in range(100):
        carry(meter, clock, 0.001, MB)
        carry(meter, clock, 0.099, 0)
    assert meter.bytes_per_second() == pytest.approx(10 * MB, rel=0.05)


def test_the_rate_is_the_recent_one() -> None:
    meter, clock = made(window_seconds=2.0)
    for _ in range(600):
        carry(meter, clock, 0.1, 100 * MB)
    before = meter.bytes_per_second()
    for _ in range(60):
        carry(meter, clock, 0.1, 1 * MB)
    assert before == pytest.approx(1000 * MB, rel=1e-6)
    # three windows later e**-3 of the old rate is left: an average over all would still say 910 MB/s
    assert 10 * MB < meter.bytes_per_second() < 65 * MB


def test_it_never_says_more_than_the_link_can_carry() -> None:
    meter, clock = made(ceiling=5 * MB)
    carry(meter, clock, 0.1, 10 * MB)
    assert meter.bytes_per_second() == 5 * MB
    for _ in range(100):
        carry(meter, clock, 1, MB)
    assert meter.bytes_per_second() == pytest.approx(MB, rel=1e-6)


def test_a_slow_stream_beside_many_pieces_of_a_fast_one_counts_time_once() -> None:
    """Pieces of one stream are microseconds apart: 2000 of them, while the slow one is busy with one."""
    meter, clock = made(window_seconds=1e12)
    began = meter.now()
    for _ in range(2000):
        carry(meter, clock, 0.000995, MB)
        clock.now += 0.000005
    meter.carried(began, 4 * MB)
    assert meter.bytes_per_second() == pytest.approx(1002 * MB, rel=1e-3)


def test_more_spans_than_are_remembered_are_not_counted_twice() -> None:
    meter, clock = made(window_seconds=1e12)
    began = meter.now()
    for _ in range(400):
        carry(meter, clock, 0.018, MB)
        clock.now += 0.002
    meter.carried(began, 0)
    # 8 s; what nobody was busy with of the oldest spans is forgotten, which is little
    assert meter.bytes_per_second() == pytest.approx(50 * MB, rel=0.05)


@given(st.lists(st.tuples(st.floats(0, 0.2), st.floats(0, 0.2)), min_size=1, max_size=60))
def test_whatever_overlaps_the_busy_time_is_that_of_the_union(turns: list[tuple[float, float]]) -> None:
    """At an even number of bytes per busy second of the union, in any order, that number comes out."""
    meter, clock = made(window_seconds=1e12)  # nothing decays
    busy: list[tuple[float, float]] = []
    for passed, lasted in turns:
        clock.now += passed
        busy.append((max(100.0, clock.now - lasted), clock.now))
        meter.carried(busy[-1][0], 1000)
    union, end = 0.0, 0.0
    for start, stop in sorted(busy):
        turn = start if start - end >= TURN_SECONDS else end  # less than a turn is not idle
        union += max(0.0, stop - max(turn, end))
        end = max(end, stop)
    expected = 1000 * len(busy) / union if union > 1e-9 else None
    if expected is not None:
        assert meter.bytes_per_second() == pytest.approx(expected, rel=1e-4, abs=2)
